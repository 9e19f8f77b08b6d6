"""The report of a comparison of recipes: figures over seeds and over patients, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from medsd.errors import DataError
from medsd.experiments.compare.statistics import Comparison, SeedMean, compare_paired, patient_intervals, seed_mean
from medsd.metrics.intervals import Interval, Resamples, bootstrap, weighted_auroc
from medsd.metrics.metrics import auroc, average_precision, enough, macro

if TYPE_CHECKING:
    from medsd.experiments.recipes_settings import RecipesSettings

METRICS = ("auroc", "average_precision", "micro_f1", "ndcg")
TITLES = {
    "auroc": "macro AUROC",
    "average_precision": "macro average precision",
    "micro_f1": "micro-F1",
    "ndcg": "nDCG@10",
}


@dataclass(frozen=True)
class Trained:
    """What one training says of the patients that are measured.

    Attributes:
        logits: (N, F).
        ndcg: (N,) of each study as a query among the training studies, NaN where nothing is relevant.
        labels, patients: of the studies; the same in every training.
        seconds: of both stages.
        threshold: on the probability, one for all findings, where micro-F1 is highest on the validation patients.
    """

    logits: npt.NDArray[np.float32]
    ndcg: npt.NDArray[np.float64]
    labels: npt.NDArray[np.float32]
    patients: npt.NDArray[np.str_]
    seconds: float
    threshold: float = 0.5

    def figures(self, minimum_positives: int) -> dict[str, float]:
        """The metrics, by name."""
        probs = expit(self.logits.astype(np.float64))
        return {
            "auroc": macro(auroc(self.labels, probs, minimum_positives=minimum_positives)).value,
            "average_precision": macro(
                average_precision(self.labels, probs, minimum_positives=minimum_positives)
            ).value,
            "micro_f1": micro_f1(self.labels, probs >= self.threshold),
            "ndcg": float(self.ndcg[counted].mean()) if (counted := ~np.isnan(self.ndcg)).any() else float("nan"),
        }


def micro_f1(labels: npt.NDArray[np.floating], calls: npt.NDArray[np.bool_]) -> float:
    """F1 over all known labels (N, F) at once; NaN where nothing is present and nothing called."""
    known = ~np.isnan(labels)
    right = float((calls & (labels == 1)).sum())
    total = float((calls & known).sum() + (labels == 1).sum())
    return 2 * right / total if total else float("nan")


def best_threshold(labels: npt.NDArray[np.floating], logits: npt.NDArray[np.floating]) -> float:
    """The probability that, as the one threshold of all findings, gives the highest micro-F1 on labels (N, F)."""
    known = ~np.isnan(labels)
    target, probs = labels[known] == 1, expit(logits[known].astype(np.float64))
    order = np.argsort(-probs, kind="stable")
    right, called = np.cumsum(target[order]), np.arange(1, len(order) + 1)
    last = np.append(np.diff(probs[order]) != 0, True)  # equal probabilities are called together
    f1 = np.where(last, 2 * right / np.maximum(called + target.sum(), 1), -1.0)
    return float(probs[order][int(f1.argmax())])


def patient_difference(
    first: Sequence[Trained], second: Sequence[Trained], minimum_positives: int, resamples: int, confidence: float
) -> dict[str, Interval]:
    """How much better `first` is than `second` over resampled patients, each the mean over its seeds.

    The seeds' interval tells of the training, this one of the choice of patients.
    """
    labels, patients = first[0].labels.astype(np.float64), first[0].patients
    told = np.flatnonzero(enough(labels, minimum_positives))
    drawn = Resamples.draw(patients, resamples)

    def mean_auroc(trained: Sequence[Trained], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        areas = []
        for one in trained:
            for finding in told:
                known = ~np.isnan(labels[:, finding])
                scores = one.logits[known, finding].astype(np.float64)
                areas.append(weighted_auroc(labels[known, finding], scores, weights[:, known]))
        return np.mean(areas, axis=0)  # NaN where a resample leaves a finding without positives or negatives

    difference = bootstrap(
        lambda weights: (mean_auroc(first, weights) - mean_auroc(second, weights))[:, None], drawn, confidence
    )
    gain = np.mean([one.ndcg for one in first], axis=0) - np.mean([one.ndcg for one in second], axis=0)
    counted = ~np.isnan(gain)
    (ndcg,) = patient_intervals(gain[counted, None], patients[counted], resamples, confidence)
    return {
        "auroc": difference[0],
        "micro_f1": bootstrap(
            lambda weights: (_mean_f1(first, weights) - _mean_f1(second, weights))[:, None], drawn, confidence
        )[0],
        "ndcg": Interval(value=ndcg.mean, low=ndcg.low, high=ndcg.high),
    }


def _mean_f1(trained: Sequence[Trained], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(R,) micro-F1 of weighted studies, the mean over the trainings."""
    figures = []
    for one in trained:
        calls = expit(one.logits.astype(np.float64)) >= one.threshold
        known, present = ~np.isnan(one.labels), one.labels == 1
        right = weights @ (calls & present).sum(1)
        total = weights @ ((calls & known).sum(1) + present.sum(1))
        figures.append(np.divide(2 * right, total, out=np.full_like(right, np.nan), where=total > 0))
    return np.mean(figures, axis=0)


def write_report(
    settings: RecipesSettings, trained: dict[tuple[str, int], Trained], minimum_positives: int, command: str
) -> Path:
    """Write <name>.md and <name>.results.json into the comparison's folder.

    Args:
        settings: of the comparison.
        trained: by arm and seed.
        minimum_positives: findings with fewer positives or negatives are left out of the macro figures.
        command: that gives these figures.

    Returns:
        The Markdown file.

    Raises:
        DataError: no finding has enough positives and negatives to tell anything.
    """
    if not enough(next(iter(trained.values())).labels, minimum_positives).any():
        raise DataError(
            f"{settings.name}: no finding has {minimum_positives} positives and negatives among the "
            f"{settings.measured_on} patients; take more data, or lower evaluation.minimum_positives"
        )
    values = {
        arm: {
            metric: [trained[arm, seed].figures(minimum_positives)[metric] for seed in settings.seeds]
            for metric in METRICS
        }
        for arm in settings.arms
    }  # fmt: skip
    rivals = [arm for arm in settings.arms if arm != settings.reference]
    tests: dict[str, dict[str, Comparison]] = {}
    for metric in METRICS:
        found = compare_paired(
            values[settings.reference][metric], [values[arm][metric] for arm in rivals], settings.confidence
        )
        tests[metric] = dict(zip(rivals, found, strict=True))
    of_arm = {arm: [trained[arm, seed] for seed in settings.seeds] for arm in settings.arms}
    patients = {
        arm: patient_difference(
            of_arm[settings.reference], of_arm[arm], minimum_positives, settings.bootstrap, settings.confidence
        )
        for arm in rivals
    }  # fmt: skip
    seconds = {arm: [one.seconds for one in of_arm[arm]] for arm in settings.arms}
    settings.folder.mkdir(parents=True, exist_ok=True)
    tree: dict[str, Any] = {
        "command": command,
        "settings": settings.model_dump(mode="json", exclude={"output", "workers"}),
        "values": values,
        "seconds": seconds,
        "over_seeds": {metric: {arm: _dump(each) for arm, each in tests[metric].items()} for metric in METRICS},
        "over_patients": {arm: {k: v.model_dump() for k, v in each.items()} for arm, each in patients.items()},
    }
    figures = settings.folder / f"{settings.name}.results.json"
    figures.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    one = next(iter(trained.values()))
    path = settings.folder / f"{settings.name}.md"
    path.write_text(
        _markdown(settings, values, tests, patients, seconds, one, minimum_positives, command), encoding="utf-8"
    )
    return path


def _markdown(
    settings: RecipesSettings,
    values: dict[str, dict[str, list[float]]],
    tests: dict[str, dict[str, Comparison]],
    patients: dict[str, dict[str, Interval]],
    seconds: dict[str, list[float]],
    one: Trained,
    minimum_positives: int,
    command: str,
) -> str:
    told = int(enough(one.labels, minimum_positives).sum())
    lines = [
        f"# Recipes side by side: {settings.name}",
        "",
        f"{len(settings.arms)} recipes, {len(settings.seeds)} seeds, one split by patient; measured on the "
        f"{settings.measured_on} patients ({len(one.labels)} studies of {len(np.unique(one.patients))} patients, "
        f"{told} findings with {minimum_positives} positives and negatives or more){_read_from(settings.reading)}. "
        f"Means over the seeds with {settings.confidence:.0%} t intervals. Micro-F1 sums the calls of all "
        "findings, at one threshold for all of them, chosen on the validation patients.",
        "",
        f"    {command}",
        "",
        "| recipe | " + " | ".join(TITLES[metric] for metric in METRICS) + " | minutes |",
        "| --- |" + " --- |" * (len(METRICS) + 1),
    ]
    for arm in settings.arms:
        cells = [_shown(seed_mean(values[arm][metric], settings.confidence)) for metric in METRICS]
        name = f"**{arm}**" if arm == settings.reference else arm
        lines.append(f"| {name} | {' | '.join(cells)} | {np.mean(seconds[arm]) / 60:.0f} |")
    lines += [
        "",
        f"{settings.reference} minus each other recipe. «Over seeds»: paired by seed, Holm's correction; it tells of "
        "training. «Over patients»: bootstrap of the patients with the mean over the seeds; it tells of the choice of "
        "patients.",
        "",
        "| minus | metric | over seeds | p (Holm) | over patients |",
        "| --- | --- | --- | --- | --- |",
    ]
    for arm, each in patients.items():
        for metric in METRICS:
            test = tests[metric][arm]
            over = _signed(each[metric]) if metric in each else "–"
            lines.append(f"| {arm} | {TITLES[metric]} | {_shown(test.difference, '+')} | {test.p_holm:.2f} | {over} |")
    lines += ["", *(f"- **{arm}**: {', '.join(f'`{each}`' for each in laid) or 'the base'}"
                    for arm, laid in settings.arms.items())]  # fmt: skip
    lines += [f"- all: {', '.join(f'`{each}`' for each in settings.common) or 'the base'}", ""]
    return "\n".join(lines)


def _read_from(reading: str) -> str:
    return "" if reading == "all" else f", each read from its {reading} alone"


def _shown(value: SeedMean, sign: str = "") -> str:
    if np.isnan(value.low):
        return f"{value.mean:{sign}.3f}"
    return f"{value.mean:{sign}.3f} ({value.low:{sign}.3f} to {value.high:{sign}.3f})"


def _dump(comparison: Comparison) -> dict[str, Any]:
    return {**comparison.difference.as_dict(), "p": comparison.p, "p_holm": comparison.p_holm}


def _signed(interval: Interval) -> str:
    if interval.value is None or interval.low is None or interval.high is None:
        return str(interval)
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
