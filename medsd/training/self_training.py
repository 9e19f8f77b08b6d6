"""Rounds of pseudo-labels: the fine-tuned model labels what is unknown, and is fine-tuned on both.

The schedule of CAP (Xie et al., NeurIPS 2023): first the labelled studies alone, then in each round all of them, with
pseudo-labels of the model of the round before.
"""

import copy
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from medsd.errors import DataError
from medsd.networks.fusion import StudyModel
from medsd.settings import Settings
from medsd.training.augment import sample_seed
from medsd.training.engine import StageResult, merit
from medsd.training.loaders import Rows, StudyArrays
from medsd.training.pseudo_labels import is_labelled, pseudo_labelled
from medsd.training.stages import FALLBACK, KEY, finetune, pretrain, read_studies

log = logging.getLogger(__name__)

FOLDER = "rounds"
_SEED = 3  # beside those of the stages


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

    The model begins as the teacher of the first round, and ends as the best on `validation`, be it without any round.

    Args:
        rows: the training studies, labelled and unlabelled.
        validation: studies whose labels choose the epoch and the round; never pseudo-labelled.
        first: the result of the fine-tuning before.

    Returns:
        One result a round.
    """
    chosen, stage = settings.training.pseudo_labels, settings.training.finetune
    stage = stage.model_copy(update={"epochs": chosen.epochs or stage.epochs})
    training = settings.training.model_copy(update={"finetune": stage})
    best, weights = _reached(first), copy.deepcopy(model.state_dict())
    results = []
    for number in range(1, chosen.rounds + 1):
        seed = sample_seed(settings.seed, _SEED, number)
        round_settings = settings.model_copy(update={"training": training, "seed": seed})
        labelled, where = _pseudo_labelled(settings, model, arrays, rows), folder / FOLDER / str(number)
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
    return merit(result.history[result.best_epoch], KEY, FALLBACK) if result.history else (0, 0.0)
