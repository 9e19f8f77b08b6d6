"""The figures of a comparison of losses: what results.json holds, and all that the report and its plots show."""

import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from medsd.experiments.compare.cells import Outcome, finding_groups
from medsd.experiments.compare.labelled_set import LabelledSet
from medsd.experiments.compare.measured import ALL_METRICS
from medsd.experiments.compare.settings import CompareSettings, Trial
from medsd.experiments.statistics import SeedMean, compare_pairs, patient_intervals, seed_mean
from medsd.metrics.metrics import FloatArray

_PACKAGES = ("medsd", "torch", "numpy", "scipy", "scikit-learn")

Summary = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """What the validation part decided for one loss."""

    trial: Trial  # the point of the grid with the highest nDCG, mean over the trial seeds
    ndcg: tuple[float, ...]  # that mean, for each point of the grid in its order
    penalty: float  # of the probe, by mean average precision; unused by cross-entropy
    threshold: float  # by micro-F1, mean over the trial seeds


@dataclass(frozen=True)
class SetResult:
    """One set: the choice and the cells, seed after seed, of each loss."""

    data: LabelledSet
    choices: dict[str, Choice]
    cells: dict[str, list[Outcome]]

    def values(self, loss: str, metric: str) -> list[float]:
        """The metric of each seed; NaN where there was too little to tell."""
        return [float("nan") if (v := cell["metrics"][metric]) is None else v for cell in self.cells[loss]]

    def query_ndcg(self, loss: str) -> FloatArray:
        """nDCG of each test sample, mean over the seeds; NaN where nothing is relevant to it."""
        return np.mean([np.array(cell["query_ndcg"], dtype=np.float64) for cell in self.cells[loss]], axis=0)

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Names of the head, middle and tail findings."""
        found = finding_groups(self.data.labels[self.data.train])
        return {group: tuple(self.data.findings[c] for c in columns) for group, columns in found.items()}


def summarise(results: list[SetResult], settings: CompareSettings, command: str) -> Summary:
    """Everything about a comparison."""
    return {
        "name": settings.name,
        "command": command,
        "settings": settings.model_dump(mode="json", exclude={"root", "output", "workers"}),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES},
        "titles": {loss: settings.title(loss) for loss in settings.losses},
        "metrics": {name: title.format(k=settings.k) for name, title in ALL_METRICS.items()},
        "sets": [_of_set(result, settings) for result in results],
    }


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
    means = {name: asdict(seed_mean(result.values(loss, name), settings.confidence)) for name in ALL_METRICS}
    return {
        "chosen": asdict(choice.trial) | {"probe_penalty": None if loss == "bce" else choice.penalty}
        | {"threshold": choice.threshold},
        "validation_ndcg": choice.ndcg,
        "means": means,
        "seeds": {name: result.values(loss, name) for name in ALL_METRICS},
    }  # fmt: skip


def _tests(result: SetResult, metric: str, settings: CompareSettings) -> dict[str, Summary]:
    own = result.values(settings.reference, metric)
    compared = compare_pairs([(own, result.values(rival, metric)) for rival in settings.rivals], settings.confidence)
    return {
        rival: asdict(found) | {"verdict": found.verdict(1 - settings.confidence)}
        for rival, found in zip(settings.rivals, compared, strict=True)
    }


def _over_test_samples(result: SetResult, settings: CompareSettings) -> Summary:
    """nDCG of the mean over seeds, and the reference's lead, with intervals over the test patients."""
    by_loss = {loss: result.query_ndcg(loss) for loss in settings.losses}
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
    return {name: asdict(value) for name, value in zip(names, values, strict=True)}


def _mean_relations(result: SetResult, loss: str, name: str) -> Any:
    """(5, k), mean over the seeds; None stays None for each of them, because it depends on the labels alone."""
    return np.mean([np.array(cell["relations"][name], dtype=np.float64) for cell in result.cells[loss]], axis=0)
