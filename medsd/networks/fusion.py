"""The model that joins image and note: one space, one linear classifier, either modality may be missing.

Each encoder ends in a linear map into a space of `network.embedding` dimensions; the features of a study are the mean
over the modalities it has. Everything after the last feature map is linear. The logit of a finding is therefore the
mean of its evidence map plus the contribution of the note: the map is an exact class activation map (Zhou et al., CVPR
2016). The logit of a study with both modalities is the mean of the logits of its image alone and of its note alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from medsd.networks.image import ImageEncoder, image_encoder
from medsd.networks.note import NoteEncoder, note_encoder
from medsd.settings import NetworkSettings


@dataclass(frozen=True)
class StudyInputs:
    """A batch for the model. Pixels alone are read as images without notes, ids and mask alone as notes."""

    pixels: Tensor | None  # float32 (B, 1, S, S) in [0, 1]; any values where `has_image` is 0
    has_image: Tensor | None = None  # float32 (B,), 1 given, 0 missing
    note_ids: Tensor | None = None  # int64 (B, L)
    note_mask: Tensor | None = None  # int64 (B, L)
    has_note: Tensor | None = None  # float32 (B,)

    def to(self, device: torch.device | str) -> "StudyInputs":
        """The same batch on another device."""
        values = (getattr(self, field.name) for field in fields(self))
        return StudyInputs(*(None if value is None else value.to(device, non_blocking=True) for value in values))


@dataclass(frozen=True)
class StudyOutputs:
    """What the model computes for a batch; None of a modality that it does not read, arbitrary if a study lacks it."""

    logits: Tensor  # (B, F)
    features: Tensor  # (B, D), before normalisation
    evidence: Tensor | None = None  # (B, F, h, w), in logits
    image_features: Tensor | None = None  # (B, D), of the image alone
    note_features: Tensor | None = None  # (B, D), of the note alone
    regions: Tensor | None = None  # (B, D, h, w), whose mean over the regions is the image's part of `features`

    @property
    def embedding(self) -> Tensor:
        """(B, D) of unit length."""
        return F.normalize(self.features, dim=1)


class StudyModel(nn.Module):
    """Image encoder, note encoder, or both; the common space and the classifier of F `findings`.

    `size` is the side of the input in pixels. The tokenizer of the notes is needed where `settings.note` is given.
    """

    def __init__(self, settings: NetworkSettings, findings: int, size: int, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.image: ImageEncoder | None = None
        if settings.image is not None:
            self.image = image_encoder(settings.image, size)
            self.image_to_space = nn.Conv2d(self.image.width, settings.embedding, kernel_size=1)
        self.note: NoteEncoder | None = None
        if settings.note is not None:
            assert tokenizer is not None, "a model with notes needs their tokenizer"
            self.note = note_encoder(settings.note, tokenizer)
            self.note_to_space = nn.Linear(self.note.width, settings.embedding)
        either = settings.image or settings.note
        assert either is not None, "the settings see to it that a model reads something"
        self.dropout = nn.Dropout(either.dropout)
        self.classifier = nn.Linear(settings.embedding, findings)
        # The pretraining head: contrast acts behind it and leaves more information in front (Chen et al., ICML 2020).
        self.projection = nn.Sequential(
            nn.Linear(settings.embedding, settings.embedding),
            nn.ReLU(),
            nn.Linear(settings.embedding, settings.projection),
        )

    def forward(self, inputs: StudyInputs) -> StudyOutputs:
        """Read a batch; see `StudyInputs` and `StudyOutputs` for the shapes."""
        note = None
        if self.note is not None and inputs.note_ids is not None:
            note = self.note_to_space(self.note(inputs.note_ids, inputs.note_mask))  # (B, D)
        if self.image is None:
            assert note is not None
            return StudyOutputs(self.classifier(self.dropout(note)), note, note_features=note)
        assert inputs.pixels is not None
        space = self.image_to_space(self.image(inputs.pixels))  # (B, D, h, w)
        image = space.mean(dim=(2, 3))  # (B, D)
        if note is None:
            share, features = torch.ones_like(image[:, :1]), image
        else:
            has_image, has_note = inputs.has_image, inputs.has_note
            assert has_image is not None and has_note is not None
            total = (has_image + has_note).clamp_min(1)
            share = (has_image / total).unsqueeze(1)  # (B, 1)
            features = share * image + (has_note / total).unsqueeze(1) * note
        evidence = F.conv2d(space, self.classifier.weight[:, :, None, None]) * share[:, :, None, None]
        regions = space * share[:, :, None, None]
        return StudyOutputs(self.classifier(self.dropout(features)), features, evidence, image, note, regions)

    @contextmanager
    def reading(self) -> Iterator[torch.device]:
        """Evaluation mode and no gradients in here; yields the device of the weights."""
        was_training = self.training
        self.eval()
        with torch.inference_mode():
            yield next(self.parameters()).device
        self.train(was_training)

    def project(self, features: Tensor) -> Tensor:
        """(B, D) → (B, projection), where the SD loss is taken; the loss normalises the length."""
        return self.projection(features)


class EvidenceHead(nn.Module):
    """Draws evidence maps: the contribution of each image region to each logit.

    The plain class activation map mostly shows what all images have in common. This head redistributes the logit over
    the image and keeps its sum, less a constant that is the same for every image.

    Args:
        average: (F, h, w), the activation map of an average image, which is subtracted; 0 for a finding with a pointer.
        pointer: (F, D), linear in the regions. Its deviation from its mean over the image moves the logit's parts.
            Learned from boxes (`medsd.pipeline.evidence_head`); 0 for a finding without them.
    """

    average: Tensor
    pointer: Tensor

    def __init__(self, average: Tensor, pointer: Tensor) -> None:
        super().__init__()
        self.register_buffer("average", average)
        self.register_buffer("pointer", pointer)

    def forward(self, outputs: StudyOutputs, share: Tensor) -> Tensor:
        """(B, F, h, w): maps whose sum over h and w is the image's part of the logit, less those of bias and average.

        `share` (B or 1, 1, 1, 1) is the image's share of the features; 1 without a note.
        """
        assert outputs.evidence is not None and outputs.regions is not None
        drawn = F.conv2d(outputs.regions, self.pointer[:, :, None, None])
        drawn = drawn - drawn.mean(dim=(2, 3), keepdim=True)
        return logit_parts(outputs.evidence - self.average * share + drawn)


def logit_parts(maps: Tensor) -> Tensor:
    """Maps (B, F, h, w) divided by h·w, so that their sum is what was their mean."""
    return maps / (maps.shape[2] * maps.shape[3])
