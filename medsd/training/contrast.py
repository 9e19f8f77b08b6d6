"""The contrastive term of training: studies with studies, and images with notes where the settings ask for it."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medsd.errors import SettingsError
from medsd.networks.fusion import StudyModel, StudyOutputs
from medsd.sd import inverse_frequency_weights, loss_by_name
from medsd.sd.by_finding import IntraLabelLoss
from medsd.sd.crossmodal import CrossModalLoss
from medsd.sd.losses import ContrastiveLoss
from medsd.settings import LossSettings
from medsd.training.loaders import Batch, Sentences


class Contrast(nn.Module):
    """The contrastive loss of the settings in float32, called with a model, its outputs and a batch; returns ().

    Whole studies are compared behind the projection; ``jspcl`` compares their logits, and ``icl`` the findings within
    each image (`finding_features`). With ``cross_modal_weight``, images also meet notes in the learned space, and
    sentences that name a finding ("large effusion"), because referrers seldom use the words with which images are
    searched. Such prompts: Yang et al., Unified Contrastive Learning, CVPR 2022.

    The weights of the findings come from `labels`, float32 (N, F) of the training studies. `width` is that of the
    projection, for the prototypes of ``msc``. Raises SettingsError: no such loss or option, or msc or icl together with
    contrast across modalities.
    """

    def __init__(
        self,
        settings: LossSettings,
        labels: npt.NDArray[np.float32],
        sentences: Sentences | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.sentences = settings.cross_modal_weight, sentences
        if self.weight and settings.name in ("msc", "icl"):
            raise SettingsError(
                f"loss.name: {settings.name} has no form across modalities; set loss.cross_modal_weight to 0"
            )
        self.criterion: nn.Module
        if settings.name == "icl":
            self.criterion = IntraLabelLoss(temperature=settings.temperature, gather=True)
            return
        options = dict(settings.options)
        if settings.name == "msc" and width is not None:
            options |= {"findings": labels.shape[1], "embedding_size": width}
        self.criterion = loss_by_name(
            settings.name,
            temperature=settings.temperature,
            finding_weights=long_tail_weights(
                torch.from_numpy(labels), settings.finding_weights, settings.finding_power
            ),
            negatives=settings.negatives,
            gather=True,
            **options,
        )

    def forward(self, model: StudyModel, outputs: StudyOutputs, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar."""
        labels = batch.labels.to(outputs.features.device)
        if isinstance(self.criterion, IntraLabelLoss):
            given = batch.inputs.has_image
            known = labels if given is None else labels.masked_fill(given.to(labels.device)[:, None] == 0, torch.nan)
            found: Tensor = self.criterion(finding_features(outputs), known)
            return found
        across = self._across(model, outputs, batch, labels) if self.weight else None
        compared = model.project(outputs.features.float()) if self.criterion.on_sphere else outputs.logits.float()
        whole: Tensor = self.criterion(compared, labels)
        return whole if across is None else whole + self.weight * across

    def _across(self, model: StudyModel, outputs: StudyOutputs, batch: Batch, labels: Tensor) -> Tensor:
        """Images with notes, and with sentences where there are any."""
        images, notes, given = outputs.image_features, outputs.note_features, batch.inputs
        assert images is not None and notes is not None, "the settings see to it that a model has both"
        assert isinstance(self.criterion, ContrastiveLoss)
        images, crossed = images.float(), CrossModalLoss(self.criterion)
        has_image = given.has_image.bool() if given.has_image is not None else None
        has_note = given.has_note.bool() if given.has_note is not None else None
        total: Tensor = crossed(images, notes.float(), labels, has_note, has_image)
        if self.sentences is None:
            return total
        # One random sentence a finding (F, D), and their labels (F, F), known of that finding alone.
        chosen = [int(torch.randint(len(ids), ())) for ids in self.sentences.ids]
        spoken = _read(model, self.sentences, chosen).float()
        named = torch.full((len(chosen),) * 2, torch.nan, device=spoken.device).fill_diagonal_(1.0)
        # Cases are indexed with image and note joined, so sentences meet both: images alone, and whole studies.
        found = crossed(images, spoken, labels, has_image=has_image, note_labels=named)
        found = found + crossed(outputs.features.float(), spoken, labels, note_labels=named)
        return (total + found / 2) / 2


def finding_features(outputs: StudyOutputs) -> Tensor:
    """An embedding of each finding in each image, float32 (B, F, D).

    It is the mean of the regions, weighted by a softmax over the evidence for the finding, as in class-specific
    residual attention (Zhu and Wu, ICCV 2021). A model that reads no images is a SettingsError.
    """
    if outputs.evidence is None or outputs.regions is None:
        raise SettingsError("loss.name: icl compares the findings within an image, but network.image is null")
    attention = outputs.evidence.float().flatten(2).softmax(dim=2)  # (B, F, h·w)
    return attention @ outputs.regions.float().flatten(2).mT


def long_tail_weights(labels: Tensor, choice: str, power: float) -> Tensor | None:
    """Weights of the findings (F,) with a mean of 1 from training labels (N, F); None unless inverse_frequency."""
    return inverse_frequency_weights(labels, power) if choice == "inverse_frequency" else None


def read_sentences(model: StudyModel, sentences: Sentences) -> npt.NDArray[np.float32]:
    """The plain sentence of each finding, its title, in the learned space: float32 (F, D) of unit length."""
    with model.reading():
        found = torch.nn.functional.normalize(_read(model, sentences, [0] * len(sentences.ids)), dim=1)
    return np.asarray(found.float().cpu())


def _read(model: StudyModel, sentences: Sentences, chosen: list[int]) -> Tensor:
    device = next(model.parameters()).device
    ids, mask = (
        torch.from_numpy(np.stack([each[one] for each, one in zip(values, chosen, strict=True)]).astype(np.int64))
        for values in (sentences.ids, sentences.mask)
    )
    assert model.note is not None
    found: Tensor = model.note_to_space(model.note(ids.to(device), mask.to(device)))
    return found
