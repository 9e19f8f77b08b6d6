"""The pieces of a comparison: one trial on the validation part, one cell on the test part, kept as JSON.

A `Worker` does a `Task` and returns plain data, so that tasks can run in other processes and an interrupted comparison
resumes. A piece is used again only if everything it depends on is unchanged.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medsd.evaluation.space import survey
from medsd.experiments.compare import training
from medsd.experiments.compare.labelled_set import IntArray, LabelledSet
from medsd.experiments.compare.measured import GROUPS, RANKINGS
from medsd.experiments.compare.neighbours import relation_table
from medsd.experiments.compare.settings import CompareSettings, Trial
from medsd.experiments.engine import DIGITS, as_plain
from medsd.metrics import metrics
from medsd.metrics.retrieval import FIGURES, Cases, score_queries, score_rankings

RECIPE = 2  # raise it when training or measuring changes, so that kept pieces are not mixed with new ones
_MAPPED = 500  # test samples in the picture of the space
_THRESHOLDS = np.round(np.arange(0.05, 0.96, 0.05), 2)

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One training and its measurement."""

    kind: Literal["trial", "cell"]  # a trial is fitted on a part of the training rows, and measured on the rest
    loss: str
    trial: Trial
    seed: int
    penalty: float | None = None  # of the linear probe; cells only
    threshold: float | None = None  # a finding is called at this probability; cells only

    def fingerprint(self, settings: CompareSettings, digest: str) -> str:
        """sha256 over all that the outcome depends on."""
        depends = {
            "recipe": RECIPE,
            "task": asdict(self),
            "budget": settings.budget.model_dump(),
            "penalties": settings.grid.probe_penalty,
            "validation": settings.grid.validation,
            "k": settings.k,
            "data": digest,
        }
        if self.kind == "cell":
            depends["drawn"] = self.seed == settings.seeds[0]
        if self.loss in settings.variants:
            depends["variant"] = settings.variants[self.loss].model_dump(exclude={"title"})
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class HeldOut:
    """A set as one kind of task sees it: all inputs, scaled by the rows `fit`, measured on the rows `held`."""

    data: LabelledSet
    inputs: training.FloatArray
    fit: IntArray
    held: IntArray

    def cases(self, rows: IntArray, space: Callable[[training.FloatArray], training.FloatArray]) -> Cases:
        """`rows` where `space` puts them."""
        return Cases(space(self.inputs[rows]), self.data.labels[rows], self.data.patients[rows])


class Worker:
    """Does the tasks of one set; what they share is made once."""

    def __init__(self, data: LabelledSet, settings: CompareSettings) -> None:
        self._data, self._settings = data, settings
        self._part = cache(self._made_part)

    def __call__(self, task: Task) -> Outcome:
        """Train and measure; the outcome is plain data, rounded."""
        start = time.perf_counter()
        part = self._part(task.kind)
        labels = self._data.labels[part.fit]
        variant, budget = self._settings.variant(task.loss), self._settings.budget
        network = training.train(variant, task.trial, part.inputs[part.fit], labels, budget, task.seed)
        measure = _measure_trial if task.kind == "trial" else _measure_cell
        outcome = measure(task, network, part, self._settings)
        return as_plain(outcome, DIGITS) | {"seconds": round(time.perf_counter() - start, 1)}

    def _made_part(self, kind: Literal["trial", "cell"]) -> HeldOut:
        data = self._data
        fit, held = data.divided(self._settings.grid.validation) if kind == "trial" else (data.train, data.test)
        return HeldOut(data, data.inputs(fit), fit, held)


def _measure_trial(task: Task, network: training.Network, part: HeldOut, settings: CompareSettings) -> Outcome:
    """Retrieval in the learned space; for each probe penalty the mean average precision and the best threshold."""
    queries, index = (part.cases(rows, _learned_space(task.loss, network)) for rows in (part.held, part.fit))
    truth, found = part.data.labels[part.held], []
    for penalty in settings.grid.probe_penalty:
        probs = _probabilities(task.loss, network, part, penalty)
        limits = np.tile(_THRESHOLDS[:, None], truth.shape[1])
        best = max(limits, key=lambda each: metrics.calls(truth, probs, each)["micro_f1"][0])[0]
        found.append((metrics.macro(metrics.average_precision(truth, probs)), float(best)))
    ndcg = score_queries(queries, index, k=settings.k).ndcg
    return {"ndcg": np.nanmean(ndcg), "map": [m for m, _ in found], "thresholds": [t for _, t in found]}


def _measure_cell(task: Task, network: training.Network, part: HeldOut, settings: CompareSettings) -> Outcome:
    assert task.penalty is not None and task.threshold is not None
    queries, index = (part.cases(rows, _learned_space(task.loss, network)) for rows in (part.held, part.fit))
    embedded = [part.cases(rows, partial(training.embed, network)) for rows in (part.held, part.fit)]
    scores = score_queries(queries, index, k=settings.k)
    relations = relation_table(queries, index, min(settings.k, len(part.fit)))
    probs = _probabilities(task.loss, network, part, task.penalty)
    labels, groups = part.data.labels, finding_groups(part.data.labels[part.fit])
    is_drawn = task.seed == settings.seeds[0]
    return {
        "metrics": {
            "ndcg": np.nanmean(scores.ndcg),
            "recall": np.nanmean(scores.recall),
            "ndcg_embedding": np.nanmean(score_queries(embedded[0], embedded[1], k=settings.k).ndcg),
            **ranking_figures(queries, index, groups),
            **_classification(labels[part.held], probs, task.threshold, groups),
        },
        "random": {"ndcg": np.nanmean(scores.random_ndcg), "recall": np.nanmean(scores.random_recall)},
        "relations": {name: getattr(relations, name) for name in ("found", "ideal", "random", "right")},
        "query_ndcg": scores.ndcg,
        "space": asdict(survey(queries.embeddings, queries.target, most=_MAPPED)) if is_drawn else None,
    }


def ranking_figures(queries: Cases, index: Cases, groups: dict[str, IntArray]) -> dict[str, float]:
    """Precision and mean average precision of the whole ranking, over all findings and for those of each group."""
    overall, by_finding = score_rankings(queries, index)
    found: dict[str, float] = {}
    for name, figure in RANKINGS.items():
        column = FIGURES.index(figure)
        each = np.array([metrics.macro(values) for values in by_finding[:, :, column]])  # (F,)
        found |= {name: metrics.macro(overall[:, column])}
        found |= {f"{name}_{group}": metrics.macro(each[columns]) for group, columns in groups.items()}
    return found


def _learned_space(loss: str, network: training.Network) -> Callable[[training.FloatArray], training.FloatArray]:
    """Where the loss compares; cross-entropy compares nowhere and gives its penultimate features."""
    return partial(training.embed if loss == "bce" else training.project, network)


def _probabilities(loss: str, network: training.Network, part: HeldOut, penalty: float) -> npt.NDArray[np.float32]:
    """Of the held rows: from cross-entropy's own head, or from a probe on the frozen embeddings of the fitted rows."""
    embeddings = training.embed(network, part.inputs[part.held])
    if loss == "bce":
        return training.head_probabilities(network, embeddings)
    fitted = training.embed(network, part.inputs[part.fit])
    return training.probe(fitted, part.data.labels[part.fit], penalty)(embeddings)


def _classification(
    truth: npt.NDArray[np.float32], probs: npt.NDArray[np.float32], threshold: float, groups: dict[str, IntArray]
) -> dict[str, float]:
    told = metrics.enough(truth, 1)
    calls = metrics.calls(truth, probs, np.full(truth.shape[1], threshold))
    per_finding = {
        "map": metrics.average_precision(truth, probs),
        "macro_f1": np.where(told, calls["f1"], np.nan),
        "auroc": metrics.auroc(truth, probs),
    }
    found = {name: metrics.macro(values) for name, values in per_finding.items()} | {
        "micro_f1": float(calls["micro_f1"][0])
    }
    for group, columns in groups.items():
        found |= {f"{name}_{group}": metrics.macro(values[columns]) for name, values in per_finding.items()}
    return found


def finding_groups(labels: npt.NDArray[np.float32]) -> dict[str, IntArray]:
    """Head, middle and tail: the columns in three parts by how often they occur in the training rows (N, F)."""
    order = np.argsort(-labels.sum(0), kind="stable")
    return dict(zip(GROUPS, np.array_split(order, len(GROUPS)), strict=True))


def read_piece(path: Path, fingerprint: str) -> Outcome | None:
    """The outcome kept at `path`, or None if there is none, it is damaged, or it is of other settings or data."""
    try:
        piece = json.loads(path.read_text(encoding="utf-8"))
        return piece["outcome"] if piece["fingerprint"] == fingerprint else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
