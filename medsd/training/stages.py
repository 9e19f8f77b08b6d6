"""The two stages of training, and what a model says of studies.

Pretraining draws two views of each study together as far as their findings agree (the SD loss). Fine-tuning adds a
classification term over the known labels; a small SD term keeps the learned space. Rounds of pseudo-labels may follow
(CAP, Xie et al., NeurIPS 2023): the model labels what is unknown, and is fine-tuned on both.
"""

import copy
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit

from medsd.errors import DataError
from medsd.metrics.metrics import auroc, enough, macro
from medsd.networks.fusion import StudyModel
from medsd.settings import Settings, StageSettings
from medsd.training.augment import sample_seed
from medsd.training.contrast import Contrast
from medsd.training.distributed import this_share
from medsd.training.engine import FALLBACK, KEY, Stage, StageResult, Validate, merit
from medsd.training.layers import freeze
from medsd.training.loaders import Rows, StudyArrays, TrainingBatches, plain_batches
from medsd.training.objectives import build_objective, finetuning_loss, masked_cross_entropy
from medsd.training.pseudo_labels import is_labelled, pseudo_labelled
from medsd.training.step import Loss

log = logging.getLogger(__name__)

MINIMUM_POSITIVES = 4  # a finding with fewer in the validation studies does not help to choose the epoch
ROUNDS = "rounds"  # folder of the checkpoints of the rounds
_PRETRAIN, _FINETUNE, _ROUNDS = 1, 2, 3  # parts of the stages' seeds


def stage_batches(
    settings: Settings, stage: StageSettings, arrays: StudyArrays, rows: Rows, *, views: int, seed: int
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


def pretrain(settings: Settings, model: StudyModel, arrays: StudyArrays, rows: Rows, folder: Path) -> StageResult:
    """Pretrain `model` in place on the studies `rows`; resumes from `folder`."""
    seed = sample_seed(settings.seed, _PRETRAIN)
    torch.manual_seed(seed)
    contrast = Contrast(settings.loss, arrays.labels[rows], arrays.sentences, settings.network.projection)
    return _train("pretrain", settings, model, arrays, rows, folder, contrast, contrast, views=2, seed=seed)


def finetune(
    settings: Settings, model: StudyModel, arrays: StudyArrays, rows: Rows, validation: Rows, folder: Path
) -> StageResult:
    """Fine-tune `model` in place on `rows`, keeping the epoch with the best macro AUROC on `validation`.

    Where no finding has enough positives and negatives there, the lowest validation loss decides.
    """
    stage = settings.training.finetune
    seed = sample_seed(settings.seed, _FINETUNE)
    known = arrays.labels[rows]
    # A finding that is not trained would choose the epoch by chance.
    target = np.where(enough(known, 1), arrays.labels[validation], np.float32(np.nan))
    objective = build_objective(stage.objective, torch.from_numpy(known), stage.label_smoothing)

    def validate(current: StudyModel) -> dict[str, float]:
        logits, _ = read_studies(current, arrays, validation)
        loss = masked_cross_entropy(torch.from_numpy(logits), torch.from_numpy(target))
        probs = expit(logits.astype(np.float64))
        return {FALLBACK: float(loss), KEY: macro(auroc(target, probs, minimum_positives=MINIMUM_POSITIVES))}

    torch.manual_seed(seed)
    contrast = Contrast(settings.loss, arrays.labels[rows], arrays.sentences, settings.network.projection)
    loss = finetuning_loss(objective, stage.sd_weight, contrast, stage.modality_weight)
    views = stage.views
    return _train(
        "finetune", settings, model, arrays, rows, folder, loss, contrast, views=views, seed=seed, validate=validate
    )


def _train(
    name: str,
    settings: Settings,
    model: StudyModel,
    arrays: StudyArrays,
    rows: Rows,
    folder: Path,
    loss: Loss,
    contrast: Contrast,
    *,
    views: int,
    seed: int,
    validate: Validate | None = None,
) -> StageResult:
    stage, training = getattr(settings.training, name), settings.training
    freeze(model, stage, name)
    batches = stage_batches(settings, stage, arrays, rows, views=views, seed=seed)
    return Stage(
        name, model, loss, batches, stage, training, folder, seed=seed, validate=validate, learned=contrast
    ).run()


def read_studies(
    model: StudyModel, arrays: StudyArrays, rows: Rows, *, use_image: bool = True, use_note: bool = True
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Logits float32 (N, F) and unit embeddings float32 (N, D) of `rows`, without augmentation."""
    with model.reading() as device:
        inputs = plain_batches(arrays, rows, use_image=use_image, use_note=use_note)
        outputs = (model(part.to(device)) for part in inputs)
        parts = [(each.logits.float().cpu().numpy(), each.embedding.float().cpu().numpy()) for each in outputs]
    logits, embeddings = (np.concatenate(column) for column in zip(*parts, strict=True))
    return logits, embeddings


def read_images(
    model: StudyModel, pixels: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Logits (N, F) and unit embeddings (N, D) of images uint8 (N, S, S) without notes."""
    there = np.ones(len(pixels), dtype=bool)
    arrays = StudyArrays(pixels, np.empty((len(pixels), 0), np.float32), there, ~there)
    return read_studies(model, arrays, np.arange(len(pixels)))


def labelled_rows(labels: npt.NDArray[np.float32], rows: Rows) -> Rows:
    """Those of `rows` with at least one known finding; DataError where there is none."""
    known = rows[is_labelled(labels[rows])]
    if not len(known):
        raise DataError("no training study has a known finding; label some, for instance those of `medsd suggest`")
    return known


def self_train(
    settings: Settings,
    model: StudyModel,
    arrays: StudyArrays,
    rows: Rows,
    validation: Rows,
    folder: Path,
    first: StageResult,
) -> list[StageResult]:
    """Train `model`, which is fine-tuned on the labelled studies, in place; resumes from `<folder>/rounds/<number>`.

    The model begins as the teacher of the first round, and ends as the best on `validation`, be it without any round
    (`first` is the result of the fine-tuning before). `rows` are labelled and unlabelled. Returns one result a round.
    """
    chosen, stage = settings.training.pseudo_labels, settings.training.finetune
    stage = stage.model_copy(update={"epochs": chosen.epochs or stage.epochs})
    training = settings.training.model_copy(update={"finetune": stage})
    best, weights = _reached(first), copy.deepcopy(model.state_dict())
    results = []
    for number in range(1, chosen.rounds + 1):
        seed = sample_seed(settings.seed, _ROUNDS, number)
        round_settings = settings.model_copy(update={"training": training, "seed": seed})
        labelled, where = _pseudo_labelled(settings, model, arrays, rows), folder / ROUNDS / str(number)
        if chosen.pretrain:
            pretrain(round_settings, model, labelled, rows, where)
        results.append(finetune(round_settings, model, labelled, rows, validation, where))
        if _reached(results[-1]) > best:
            best, weights = _reached(results[-1]), copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return results


def _pseudo_labelled(settings: Settings, model: StudyModel, arrays: StudyArrays, rows: Rows) -> StudyArrays:
    chosen, labels = settings.training.pseudo_labels, arrays.labels.copy()
    logits, _ = read_studies(model, arrays, rows)
    probs = expit(logits.astype(np.float64))
    labels[rows] = pseudo_labelled(
        probs,
        arrays.labels[rows],
        positive=chosen.positive,
        negative=chosen.negative,
        minimum_positives=chosen.minimum_positives,
    )
    added = labels[rows][np.isnan(arrays.labels[rows])]
    present, absent, unknown = int((added == 1).sum()), int((added == 0).sum()), int(np.isnan(added).sum())
    log.info("pseudo-labels: %d present, %d absent, %d stay unknown", present, absent, unknown)
    return replace(arrays, labels=labels)


def _reached(result: StageResult) -> tuple[int, float]:
    """The merit of the best epoch of a stage."""
    return merit(result.history[result.best_epoch]) if result.history else (0, 0.0)
