"""Pretraining: two views of each study, drawn together as far as their findings agree (the SD loss)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medsd.errors import SettingsError
from medsd.networks.fusion import Outputs, StudyModel
from medsd.sd import loss_by_name
from medsd.settings import LossSettings, Settings, StageSettings
from medsd.training.across import with_contrast_across
from medsd.training.augment import sample_seed
from medsd.training.distributed import this_share
from medsd.training.engine import Loss, Stage, StageResult
from medsd.training.layers import freeze
from medsd.training.loaders import Batch, Sentences, StudyArrays, TrainingBatches
from medsd.training.objectives import long_tail_weights

STAGE = 1


def contrast(settings: LossSettings, labels: npt.NDArray[np.float32], sentences: Sentences | None = None) -> Loss:
    """The loss of the settings, taken behind the projection, in float32; `labels` (N, F) of the training studies give
    the weights of the findings where the settings ask for them. Where they ask for contrast across modalities, images
    meet notes and `sentences` in the learned space itself."""
    weights = long_tail_weights(torch.from_numpy(labels), settings.finding_weights, settings.finding_power)
    criterion = loss_by_name(
        settings.name,
        temperature=settings.temperature,
        finding_weights=weights,
        negatives=settings.negatives,
        gather=True,
        **settings.options,
    )
    if any(True for _ in criterion.parameters()):
        raise SettingsError(
            f"loss: {settings.name} with these options has parameters of its own, which this training does not learn; "
            "use it from Python, or choose another loss"
        )

    def loss(model: StudyModel, outputs: Outputs, batch: Batch) -> Tensor:
        projected = model.project(outputs.features.float())
        return criterion.to(projected.device)(projected, batch.labels.to(projected.device))

    return with_contrast_across(loss, criterion, settings.cross_modal_weight, sentences)


def stage_batches(
    settings: Settings,
    stage: StageSettings,
    arrays: StudyArrays,
    rows: npt.NDArray[np.int64],
    *,
    views: int,
    seed: int,
) -> TrainingBatches:
    """The batches of a stage as the settings describe them."""
    return TrainingBatches(
        arrays,
        rows,
        batch_size=stage.batch_size,
        views=views,
        augment=settings.training.augment,
        modality_dropout=settings.network.modality_dropout,
        seed=seed,
        workers=settings.training.workers,
        share=this_share(),
    )


def pretrain(
    settings: Settings, model: StudyModel, arrays: StudyArrays, rows: npt.NDArray[np.int64], folder: Path
) -> StageResult:
    """Pretrain `model` in place on the studies `rows`; resumes from `folder`."""
    stage = settings.training.pretrain
    seed = sample_seed(settings.seed, STAGE)
    freeze(model, stage, "pretrain")
    batches = stage_batches(settings, stage, arrays, rows, views=2, seed=seed)
    loss = contrast(settings.loss, arrays.labels[rows], arrays.sentences)
    torch.manual_seed(seed)
    return Stage("pretrain", model, loss, batches, stage, settings.training, folder, seed=seed).run()
