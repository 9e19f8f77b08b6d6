"""Contrast across modalities: images and notes drawn together in the learned space, so that a sentence finds images.

Beside the notes at hand, sentences that name a finding («large effusion») take part, each known to be of that finding
and of nothing else: referrers' notes seldom use the words by which films are looked for. Such sentences as text prompts
of labels: Yang et al., Unified Contrastive Learning, CVPR 2022.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medsd.networks.fusion import Outputs, StudyModel
from medsd.sd.crossmodal import CrossModalLoss
from medsd.sd.losses import ContrastiveLoss
from medsd.training.engine import Loss
from medsd.training.loaders import Batch, Sentences
from medsd.training.objectives import Objective


def with_contrast_across(keep: Loss, criterion: ContrastiveLoss, weight: float, sentences: Sentences | None) -> Loss:
    """`keep` plus `weight` times the contrast of images with notes, and with sentences where there are any.

    Args:
        keep: the loss of whole studies.
        criterion: weighs the pairs; it belongs to the SD family.
        weight: 0 gives `keep` itself.
        sentences: that name findings.
    """
    if not weight:
        return keep
    crossed = CrossModalLoss(criterion)

    def loss(model: StudyModel, outputs: Outputs, batch: Batch) -> Tensor:
        images, notes, given = outputs.image_features, outputs.note_features, batch.inputs
        assert images is not None and notes is not None, "the settings see to it that a model has both"
        labels, images = batch.labels.to(images.device), images.float()
        has_image = given.has_image.bool() if given.has_image is not None else None
        has_note = given.has_note.bool() if given.has_note is not None else None
        total = crossed.to(images.device)(images, notes.float(), labels, has_note, has_image)
        if sentences is not None:
            spoken, named = _read_some(model, sentences)
            # Cases are indexed with image and note joined, so sentences meet both: images alone, and whole studies.
            found = crossed(images, spoken, labels, has_image=has_image, note_labels=named)
            found = found + crossed(outputs.features.float(), spoken, labels, note_labels=named)
            total = (total + found / 2) / 2
        return keep(model, outputs, batch) + weight * total

    return loss


def with_each_modality(whole: Loss, objective: Objective, weight: float) -> Loss:
    """`whole` plus `weight` times the mean of `objective` over image and note, each read alone; where a model has one
    modality, or the weight is 0, `whole` itself. It costs no pass: the classifier is linear."""
    if not weight:
        return whole

    def loss(model: StudyModel, outputs: Outputs, batch: Batch) -> Tensor:
        total, given = whole(model, outputs, batch), batch.inputs
        if outputs.image_features is None or outputs.note_features is None:
            return total
        parts = ((outputs.image_features, given.has_image), (outputs.note_features, given.has_note))
        for features, present in parts:
            assert present is not None, "a model with both is told which are there"
            labels = batch.labels.to(features.device)
            known = labels.masked_fill(present.to(features.device)[:, None] == 0, torch.nan)
            total = total + weight / 2 * objective(model.classifier(model.dropout(features)).float(), known)
        return total

    return loss


def _read_some(model: StudyModel, sentences: Sentences) -> tuple[Tensor, Tensor]:
    """One sentence a finding, chosen by torch's generator: (F, D), and their labels (F, F), known of that finding."""
    device, count = next(model.parameters()).device, len(sentences.ids)
    chosen = [int(torch.randint(len(ids), ())) for ids in sentences.ids]
    ids, mask = (
        torch.from_numpy(np.stack([each[one] for each, one in zip(values, chosen, strict=True)]).astype(np.int64))
        for values in (sentences.ids, sentences.mask)
    )
    assert model.note is not None
    spoken = model.note_to_space(model.note(ids.to(device), mask.to(device))).float()
    named = torch.full((count, count), torch.nan, device=device)
    return spoken, named.fill_diagonal_(1.0)


def read_sentences(model: StudyModel, sentences: Sentences) -> npt.NDArray[np.float32]:
    """The plain sentence of each finding, its title, in the learned space: float32 (F, D) of unit length."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids, mask = (
        torch.from_numpy(np.stack([each[0] for each in values]).astype(np.int64)).to(device)
        for values in (sentences.ids, sentences.mask)
    )
    assert model.note is not None
    with torch.inference_mode():
        found = torch.nn.functional.normalize(model.note_to_space(model.note(ids, mask)), dim=1)
    model.train(was_training)
    return np.asarray(found.float().cpu())
