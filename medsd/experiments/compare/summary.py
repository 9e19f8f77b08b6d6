"""The figures of a comparison as plain data: what results.json holds, and all that the report and its plots show.

Start at `summarise`. Means and intervals are over the seeds; NaN is None.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from medsd.experiments.compare.cells import GROUPS
from medsd.experiments.compare.results import SetResult
from medsd.experiments.compare.settings import TITLES, CompareSettings
from medsd.experiments.compare.statistics import SeedMean, compare_paired, patient_intervals, seed_mean

MAIN: Mapping[str, str] = {
    "ndcg": "nDCG@{k}",
    "recall": "recall@{k}",
    "map": "mAP",
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "auroc": "macro AUROC",
}
BY_FREQUENCY: Mapping[str, str] = {
    f"{metric}_{group}": f"{title}, {group}"
    for metric, title in (("map", "mAP"), ("macro_f1", "macro-F1"), ("auroc", "AUROC"))
    for group in GROUPS
}
BEFORE_PROJECTION = {"ndcg_embedding": "nDCG@{k}, embedding"}
ALL_METRICS: Mapping[str, str] = {**MAIN, **BY_FREQUENCY, **BEFORE_PROJECTION}
_PACKAGES = ("medsd", "torch", "numpy", "scipy", "scikit-learn")
_DIGITS = 6

Summary = dict[str, Any]


def summarise(results: list[SetResult], settings: CompareSettings, command: str) -> Summary:
    """Everything about a comparison, the same bytes for the same pieces."""
    shown = settings.model_dump(mode="json", exclude={"root", "output", "workers"})
    return _plain(
        {
            "name": settings.name,
            "command": command,
            "settings": shown,
            "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES},
            "titles": {str(loss): TITLES[loss] for loss in settings.losses},
            "metrics": {name: title.format(k=settings.k) for name, title in ALL_METRICS.items()},
            "sets": [_of_set(result, settings) for result in results],
        }
    )


def _of_set(result: SetResult, settings: CompareSettings) -> Summary:
    data, first = result.data, result.cells[settings.reference][0]
    return {
        "name": data.name,
        "title": data.title,
        "origin": data.origin,
        "digest": data.digest(),
        "findings_per_sample": float(data.labels.sum(1).mean()),
        "without_finding": float((data.labels.sum(1) == 0).mean()),
        "train": len(data.train),
        "test": len(data.test),
        "fitted_in_trials": len(data.divided(settings.grid.validation)[0]),
        "groups": result.groups(),
        "random": first["random"],
        "losses": {loss: _of_loss(result, loss, settings) for loss in settings.losses},
        "tests": {metric: _tests(result, metric, settings) for metric in ALL_METRICS},
        "over_test_samples": _over_test_samples(result, settings),
        "relations": {
            "random": first["relations"]["random"],
            "ideal": first["relations"]["ideal"],
            "found": {loss: _mean_relations(result, loss, "found") for loss in settings.losses},
            "right": {loss: _mean_relations(result, loss, "right") for loss in settings.losses},
        },
    }


def _of_loss(result: SetResult, loss: str, settings: CompareSettings) -> Summary:
    choice = result.choices[loss]
    means = {name: seed_mean(result.values(loss, name), settings.confidence).as_dict() for name in ALL_METRICS}
    return {
        "chosen": choice.trial.as_dict() | {"probe_penalty": None if loss == "bce" else choice.penalty}
        | {"threshold": choice.threshold},
        "validation_ndcg": choice.ndcg,
        "means": means,
        "seeds": {name: result.values(loss, name) for name in ALL_METRICS},
    }  # fmt: skip


def _tests(result: SetResult, metric: str, settings: CompareSettings) -> dict[str, Summary]:
    compared = compare_paired(
        result.values(settings.reference, metric),
        [result.values(rival, metric) for rival in settings.rivals],
        settings.confidence,
    )
    return {
        rival: {
            "difference": found.difference.as_dict(),
            "p": found.p,
            "p_holm": found.p_holm,
            "verdict": found.verdict(1 - settings.confidence),
        }
        for rival, found in zip(settings.rivals, compared, strict=True)
    }


def _over_test_samples(result: SetResult, settings: CompareSettings) -> Summary:
    """nDCG of the mean over seeds, and the reference's lead, with intervals over the test patients."""
    by_loss: dict[str, Any] = {
        loss: np.mean([_queries(cell) for cell in result.cells[loss]], axis=0) for loss in settings.losses
    }
    columns = np.column_stack(
        [*by_loss.values(), *(by_loss[settings.reference] - by_loss[rival] for rival in settings.rivals)]
    )
    counted = ~np.isnan(columns).any(1)
    patients = result.data.patients[result.data.test][counted]
    found = patient_intervals(columns[counted], patients, settings.bootstrap, settings.confidence)
    values, leads = found[: len(by_loss)], found[len(by_loss) :]
    return {
        "queries": int(counted.sum()),
        "ndcg": _named(settings.losses, values),
        "lead": _named(settings.rivals, leads),
    }


def _named(names: tuple[str, ...], values: list[SeedMean]) -> dict[str, Summary]:
    return {name: value.as_dict() for name, value in zip(names, values, strict=True)}


def _queries(cell: Mapping[str, Any]) -> Any:
    return np.array(cell["query_ndcg"], dtype=np.float64)


def _mean_relations(result: SetResult, loss: str, name: str) -> Any:
    """(5, k), mean over the seeds; None stays None for each of them, because it hangs on the labels alone."""
    return np.mean([np.array(cell["relations"][name], dtype=np.float64) for cell in result.cells[loss]], axis=0)


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    if isinstance(tree, np.ndarray):
        return _plain(tree.tolist())
    if isinstance(tree, float):
        return None if np.isnan(tree) else float(f"{tree:.{_DIGITS}g}")
    return tree
