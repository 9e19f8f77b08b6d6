"""Fine-tuning: a classification term over the known labels, and a small SD term that keeps the learned space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor

from medsd.metrics.metrics import auroc, enough, macro
from medsd.networks.fusion import Outputs, StudyModel
from medsd.settings import Settings
from medsd.training.across import with_each_modality
from medsd.training.augment import sample_seed
from medsd.training.engine import Loss, Stage, StageResult
from medsd.training.layers import freeze
from medsd.training.loaders import Batch, StudyArrays, plain_batches
from medsd.training.objectives import Objective, build_objective, masked_cross_entropy
from medsd.training.pretrain import contrast, stage_batches

STAGE = 2
KEY, FALLBACK = "validation_auroc", "validation_loss"  # what chooses the epoch; where the first is NaN, the second
FEW = 4  # findings with fewer validation positives do not help to choose the epoch


def classify_and_keep(objective: Objective, sd_weight: float, keep: Loss) -> Loss:
    """The classification term plus `sd_weight` times the contrast."""

    def loss(model: StudyModel, outputs: Outputs, batch: Batch) -> Tensor:
        logits = outputs.logits.float()
        total = objective(logits, batch.labels.to(logits.device))
        return total + sd_weight * keep(model, outputs, batch) if sd_weight else total

    return loss


def finetune(
    settings: Settings,
    model: StudyModel,
    arrays: StudyArrays,
    rows: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
    folder: Path,
) -> StageResult:
    """Fine-tune `model` in place on `rows`, keeping the epoch with the best macro AUROC on `validation`.

    Where no finding has enough positives and negatives there, the lowest validation loss decides.
    """
    stage = settings.training.finetune
    seed = sample_seed(settings.seed, STAGE)
    freeze(model, stage, "finetune")
    batches = stage_batches(settings, stage, arrays, rows, views=stage.views, seed=seed)
    known = arrays.labels[rows]
    # A finding that is not taught would choose the epoch by chance.
    taught = np.where(enough(known, 1), arrays.labels[validation], np.float32(np.nan))
    objective = build_objective(stage.objective, torch.from_numpy(known), stage.label_smoothing)

    def validate(current: StudyModel) -> dict[str, float]:
        logits, _ = read_studies(current, arrays, validation)
        loss = masked_cross_entropy(torch.from_numpy(logits), torch.from_numpy(taught))
        probs = expit(logits.astype(np.float64))
        return {FALLBACK: float(loss), KEY: macro(auroc(taught, probs, minimum_positives=FEW)).value}

    torch.manual_seed(seed)
    loss = classify_and_keep(objective, stage.sd_weight, contrast(settings.loss, known, arrays.sentences))
    loss = with_each_modality(loss, objective, stage.modality_weight)
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
        key=KEY,
        fallback=FALLBACK,
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
