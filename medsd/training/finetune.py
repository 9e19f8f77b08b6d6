"""Fine-tuning: masked binary cross-entropy, and a small SD term that keeps the learned space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from medsd.evaluation.metrics import auroc, macro
from medsd.networks.fusion import Outputs, StudyModel
from medsd.settings import Settings, StageSettings
from medsd.training.augment import sample_seed
from medsd.training.engine import Loss, Stage, StageResult
from medsd.training.loaders import Batch, StudyArrays, plain_batches
from medsd.training.pretrain import contrast, stage_batches

STAGE = 2
FEW = 4  # findings with fewer validation positives do not help to choose the epoch


def masked_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy over the known labels.

    Args:
        logits: (B, F).
        labels: (B, F), 1, 0 or NaN; unknown labels count nothing.
        smoothing: share by which the labels are drawn towards a half.

    Returns:
        (): mean over the known labels; 0 where none is known.
    """
    known = ~torch.isnan(labels)
    target = torch.where(known, labels, 0.0) * (1 - smoothing) + 0.5 * smoothing
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (each * known).sum() / known.sum().clamp_min(1)


def classify_and_keep(stage: StageSettings, keep: Loss) -> Loss:
    """Cross-entropy plus `sd_weight` times the contrast."""

    def loss(model: StudyModel, outputs: Outputs, batch: Batch) -> Tensor:
        logits = outputs.logits.float()
        total = masked_cross_entropy(logits, batch.labels.to(logits.device), stage.label_smoothing)
        return total + stage.sd_weight * keep(model, outputs, batch) if stage.sd_weight else total

    return loss


def finetune(
    settings: Settings,
    model: StudyModel,
    arrays: StudyArrays,
    rows: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
    folder: Path,
) -> StageResult:
    """Fine-tune `model` in place on `rows`, keeping the epoch with the best macro AUROC on `validation`."""
    stage = settings.training.finetune
    seed = sample_seed(settings.seed, STAGE)
    batches = stage_batches(settings, stage, arrays, rows, views=1, seed=seed)

    def validate(current: StudyModel) -> dict[str, float]:
        logits, _ = read_studies(current, arrays, validation)
        labels = arrays.labels[validation]
        loss = masked_cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
        probs = 1 / (1 + np.exp(-logits))
        return {"validation_loss": float(loss), "validation_auroc": macro(auroc(labels, probs, few=FEW)).value}

    torch.manual_seed(seed)
    loss = classify_and_keep(stage, contrast(settings.loss))
    return Stage(
        "finetune",
        model,
        loss,
        batches,
        stage,
        settings.training,
        folder,
        seed=seed,
        validate=validate,
        key="validation_auroc",
    ).run()


def read_studies(
    model: StudyModel,
    arrays: StudyArrays,
    rows: npt.NDArray[np.int64],
    *,
    use_image: bool = True,
    use_note: bool = True,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What the model says of `rows`, without augmentation.

    Returns:
        logits float32 (N, F) and embeddings float32 (N, D) of unit length.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    logits, embeddings = [], []
    with torch.inference_mode():
        for inputs in plain_batches(arrays, rows, use_image=use_image, use_note=use_note):
            outputs = model(inputs.to(device))
            logits.append(outputs.logits.float().cpu().numpy())
            embeddings.append(outputs.embedding.float().cpu().numpy())
    model.train(was_training)
    return np.concatenate(logits), np.concatenate(embeddings)
