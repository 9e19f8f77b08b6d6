"""Rounds of pseudo-labels: the fine-tuned model labels what is unknown, and is fine-tuned on both; see `self_train`.

The schedule of CAP (Xie et al., NeurIPS 2023): first the labelled studies alone, then each round anew all of them, with
what the model of the round before says, its moving average where `training.finetune.weight_averaging` keeps one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from torch import Tensor

from medsd.errors import DataError
from medsd.networks.fusion import StudyModel
from medsd.settings import Settings
from medsd.training.augment import sample_seed
from medsd.training.engine import StageResult, merit
from medsd.training.finetune import FALLBACK, KEY, finetune, read_studies
from medsd.training.loaders import StudyArrays
from medsd.training.pretrain import pretrain
from medsd.training.pseudo_labels import is_labelled, pseudo_labelled

log = logging.getLogger(__name__)

FOLDER = "rounds"
_SEED = 3  # beside those of the stages


def labelled_rows(labels: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Those of `rows` of which at least one finding is known: the others teach nothing until they are pseudo-labelled.

    Raises:
        DataError: there is none.
    """
    known = rows[is_labelled(labels[rows])]
    if not len(known):
        raise DataError("no training study has a known finding; label some, for instance those of `medsd suggest`")
    return known


def self_train(
    settings: Settings,
    model: StudyModel,
    arrays: StudyArrays,
    rows: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
    folder: Path,
    first: StageResult,
) -> list[StageResult]:
    """Train `model`, which is fine-tuned on the labelled studies, in place; resumes from `folder`.

    Args:
        settings: of the run; the rounds are `training.pseudo_labels`.
        model: begins as the teacher of the first round; ends as the best round on `validation`, which may be none.
        arrays: all studies; their labels stay as they are.
        rows: the training studies, labelled and unlabelled.
        validation: studies whose labels choose the epoch and the round; never pseudo-labelled.
        folder: of the run; each round keeps its checkpoints in `<folder>/rounds/<number>`.
        first: of the fine-tuning before.

    Returns:
        One result a round.
    """
    best, weights = _reached(first), _weights(model)
    results = []
    for number, (round_, taught) in enumerate(_rounds(settings, model, arrays, rows), start=1):
        where = folder / FOLDER / str(number)
        if settings.training.pseudo_labels.pretrain:
            pretrain(round_, model, taught, rows, where)
        results.append(finetune(round_, model, taught, rows, validation, where))
        if _reached(results[-1]) > best:
            best, weights = _reached(results[-1]), _weights(model)
    model.load_state_dict(weights)
    return results


def _rounds(
    settings: Settings, model: StudyModel, arrays: StudyArrays, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[Settings, StudyArrays]]:
    """The settings of each round, and the studies as the model labels them when it begins."""
    chosen = settings.training.pseudo_labels
    stage = settings.training.finetune
    stage = stage.model_copy(update={"epochs": chosen.epochs or stage.epochs})
    training = settings.training.model_copy(update={"finetune": stage})
    for number in range(1, chosen.rounds + 1):
        seed = sample_seed(settings.seed, _SEED, number)
        yield (
            settings.model_copy(update={"training": training, "seed": seed}),
            _pseudo_labelled(settings, model, arrays, rows),
        )


def _pseudo_labelled(
    settings: Settings, model: StudyModel, arrays: StudyArrays, rows: npt.NDArray[np.int64]
) -> StudyArrays:
    chosen, labels = settings.training.pseudo_labels, arrays.labels.copy()
    logits, _ = read_studies(model, arrays, rows)
    labels[rows] = pseudo_labelled(
        expit(logits.astype(np.float64)),
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
    """How good the best epoch of a stage is."""
    return merit(result.history[result.best_epoch], KEY, FALLBACK) if result.history else (0, 0.0)


def _weights(model: StudyModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
