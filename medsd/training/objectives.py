"""The classification term of fine-tuning: cross-entropy, asymmetric loss or focal loss over the known labels.

Each loss is a mean over the known labels of a batch, so that its scale does not depend on how many are known.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.losses import FocalLoss
from torch import Tensor

from medsd.networks.fusion import StudyModel, StudyOutputs
from medsd.settings import ObjectiveSettings
from medsd.training.contrast import long_tail_weights
from medsd.training.distributed import joint_mean
from medsd.training.loaders import Batch
from medsd.training.step import Loss

_SMALLEST = 1e-7  # distance of a probability from 0 and 1, where a power below 1 has no derivative


@dataclass(frozen=True)
class Objective:
    """A loss over the known labels, called with logits (B, F) and labels (B, F), each in [0, 1] or NaN; returns ().

    Example:
        >>> Objective(ObjectiveSettings(name="focal"))(torch.zeros(1, 2), torch.tensor([[1.0, torch.nan]]))
        tensor(0.1733)
    """

    settings: ObjectiveSettings
    smoothing: float = 0.0  # share by which the labels are moved towards one half
    positive_weights: Tensor | None = None  # (F,), of a positive relative to a negative; None for 1
    finding_weights: Tensor | None = None  # (F,); None for 1

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        known = ~torch.isnan(labels)
        target = torch.where(known, labels, 0.0) * (1 - self.smoothing) + 0.5 * self.smoothing
        each = self._each(logits, target)  # (B, F)
        if self.finding_weights is None:
            return joint_mean((each * known).sum(), known.sum())
        weights = known * self.finding_weights.to(logits)
        return joint_mean((each * weights).sum(), weights.sum(), _SMALLEST)

    def _each(self, logits: Tensor, target: Tensor) -> Tensor:
        constants = self.settings
        weights = None if self.positive_weights is None else self.positive_weights.to(logits)
        if constants.name == "bce":
            return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights, reduction="none")
        if constants.name == "asl":
            positive, negative = asymmetric_terms(
                logits, constants.gamma_positive, constants.gamma_negative, constants.margin
            )
            return target * positive * (1.0 if weights is None else weights) + (1 - target) * negative
        each: Tensor = FocalLoss(gamma=constants.gamma, alpha=constants.alpha, reduction="none")(logits, target)
        return each if weights is None else each * (1 + target * (weights - 1))


def masked_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy, the default `Objective`: mean over the known labels, 0 where none is known."""
    return Objective(ObjectiveSettings(), smoothing)(logits, labels)


def asymmetric_terms(
    logits: Tensor, gamma_positive: float, gamma_negative: float, margin: float
) -> tuple[Tensor, Tensor]:
    """The cost of a label as a positive and as a negative in the asymmetric loss (Ridnik et al., ICCV 2021):

        L₊ = −(1 − p)^γ₊ · log p,    L₋ = −p_m^γ₋ · log(1 − p_m),    p_m = max(p − m, 0)

    where p is the sigmoid of the logits, of any shape. The paper takes γ₊ = 0, γ₋ = 4 and the margin m = 0.05.
    """
    probability = torch.sigmoid(logits).clamp(_SMALLEST, 1 - _SMALLEST)
    positive = -((1 - probability) ** gamma_positive) * F.logsigmoid(logits)
    if not margin:
        return positive, -(probability**gamma_negative) * F.logsigmoid(-logits)
    shifted = (probability - margin).clamp_min(_SMALLEST)
    return positive, -(shifted**gamma_negative) * torch.log(1 - shifted)


def effective_number_weights(labels: Tensor, beta: float) -> Tensor:
    """Weights (F,) of the positives relative to the negatives, by effective numbers (Cui et al., CVPR 2019):

        E(n) = (1 − β^n) / (1 − β),    w = E(negatives) / E(positives) for each finding

    `labels` (N, F) of the training studies are 1, 0 or NaN; a class without samples counts as one. With β near 1 the
    weight is the ratio of the counts, near 0 it is 1.
    """
    positives, negatives = (labels > 0.5).sum(dim=0).clamp_min(1), (labels <= 0.5).sum(dim=0).clamp_min(1)
    base = torch.tensor(beta, dtype=torch.float64)
    effective = [1 - base ** count.double() for count in (negatives, positives)]  # the common 1 − β cancels
    return (effective[0] / effective[1]).float()


def build_objective(settings: ObjectiveSettings, labels: Tensor, smoothing: float = 0.0) -> Objective:
    """The objective of the settings, with weights from the labels float32 (N, F) of the training studies."""
    positive = effective_number_weights(labels, settings.beta) if settings.balance == "effective_number" else None
    findings = long_tail_weights(labels, settings.finding_weights, settings.finding_power)
    return Objective(settings, smoothing, positive, findings)


def finetuning_loss(objective: Objective, sd_weight: float, contrast: Loss, modality_weight: float = 0.0) -> Loss:
    """The classification term, `sd_weight` times the contrast, and image and note each read alone.

    The last is `modality_weight` times the mean of the objective over the two, of a model of both. No further pass is
    needed, because the classifier is linear.
    """

    def loss(model: StudyModel, outputs: StudyOutputs, batch: Batch) -> Tensor:
        logits, given = outputs.logits.float(), batch.inputs
        labels = batch.labels.to(logits.device)
        total = objective(logits, labels)
        if sd_weight:
            total = total + sd_weight * contrast(model, outputs, batch)
        if not modality_weight or outputs.image_features is None or outputs.note_features is None:
            return total
        parts = ((outputs.image_features, given.has_image), (outputs.note_features, given.has_note))
        for features, present in parts:
            assert present is not None, "a model with both modalities is told which are there"
            known = labels.masked_fill(present.to(labels.device)[:, None] == 0, torch.nan)
            total = total + modality_weight / 2 * objective(model.classifier(model.dropout(features)).float(), known)
        return total

    return loss
