"""How often the 95 % intervals hold the value of the population: 500 simulated test sets, patients with several films.

Run `python -m tests.bench.bench_intervals`; two or three minutes on one core. Prints a table for frequent and for rare
findings; the exit status is 1 where a metric is more than two points from 95 %, but for those of `ABOVE`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from medsd.metrics import intervals, metrics
from medsd.metrics.metrics import FloatArray
from tests.metrics.measured import measure

FINDINGS, PATIENTS, CONFIDENCE = 3, 200, 0.95
POPULATION = 60_000  # patients
RATES = {"frequent": 0.3, "rare": 0.06}
# Held by more than the named share; what it holds is the error that sets of this size show, see intervals.py.
ABOVE = ("calibration_error",)


@dataclass(frozen=True)
class Row:
    """How often the interval of one metric's mean over findings held the truth.

    Attributes:
        name: of the metric.
        truth: of the population.
        held, repeats: in how many of how many simulated sets.
        width: mean width of the interval.
        each: share of the findings' own intervals that held their truth; NaN for a metric of all findings together.
    """

    name: str
    truth: float
    held: int
    repeats: int
    width: float
    each: float

    @property
    def share(self) -> float:
        return self.held / self.repeats


def simulate(rng: np.random.Generator, patients: int, rate: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Target, probabilities (N, F) and patient (N,): one to four films each, whose truth and logits share a part."""
    patient = np.repeat(np.arange(patients), rng.integers(1, 5, size=patients))
    shared = rng.normal(0, 0.7, (patients, FINDINGS))[patient]
    target = (rng.random(shared.shape) < expit(shared + logit(rate))).astype(float)
    z = shared + 1.2 * target + rng.normal(size=shared.shape) + logit(rate) - 0.5
    return target, expit(z), patient.astype(float)


def coverage(*, rate: float, repeats: int, resamples: int, population: int = POPULATION, seed: int = 11) -> list[Row]:
    """Simulate `repeats` test sets and count how often each interval holds the value of the population."""
    rng = np.random.default_rng(seed)
    limits = np.full(FINDINGS, min(0.4, 2 * rate))
    truth = _truth(rng, rate, limits, population)
    held: dict[str, list[bool]] = {name: [] for name in truth}
    each: dict[str, list[bool]] = {name: [] for name in truth}
    widths: dict[str, list[float]] = {name: [] for name in truth}
    for repeat in range(repeats):
        target, probs, patient = simulate(rng, PATIENTS, rate)
        found = intervals.metric_intervals(
            target,
            probs,
            patient.astype(str),
            intervals.IntervalOptions(resamples, minimum_positives=2, seed=repeat),
            thresholds=limits,
        )
        for name, metric in found.items():
            held[name] += _holds([metric.macro], [float(np.mean(truth[name]))])
            each[name] += _holds(list(metric.findings), truth[name])
            widths[name] += [i.high - i.low for i in (metric.macro,) if i.low is not None and i.high is not None]
    return [
        Row(
            name,
            float(np.mean(truth[name])),
            sum(held[name]),
            len(held[name]),
            float(np.mean(widths[name])),
            float(np.mean(each[name])) if each[name] else float("nan"),
        )
        for name in truth
    ]


def _truth(rng: np.random.Generator, rate: float, limits: FloatArray, patients: int) -> dict[str, list[float]]:
    target, probs, _ = simulate(rng, patients, rate)
    population = measure(target, probs, limits)
    names = metrics.THRESHOLD_FREE + metrics.AT_THRESHOLD
    truth = {name: list(getattr(population, name)) for name in names} | {"micro_f1": [population.micro_f1]}
    sets = [simulate(rng, PATIENTS, rate) for _ in range(max(1, patients // PATIENTS))]
    errors = [metrics.calibration_error(target, probs) for target, probs, _ in sets]
    return truth | {"calibration_error": list(np.nanmean(errors, axis=0))}


def _holds(found: list[intervals.Interval], truth: list[float]) -> list[bool]:
    return [
        i.low <= t <= i.high for i, t in zip(found, truth, strict=False) if i.low is not None and i.high is not None
    ]


def lines(rows: list[Row]) -> Iterator[str]:
    """The rows as a table."""
    yield f"{'metric':<18} {'truth':>7} {'width':>7} {'mean held':>10} {'each held':>10}"
    for row in rows:
        each = "" if np.isnan(row.each) else f"{100 * row.each:.1f} %"
        yield f"{row.name:<18} {row.truth:7.3f} {row.width:7.3f} {100 * row.share:8.1f} % {each:>10}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=500)
    given = parser.parse_args()
    far = []
    for name, rate in RATES.items():
        rows = coverage(rate=rate, repeats=given.repeats, resamples=given.resamples)
        print(f"\n{name} findings: {rate:.0%} of films, {PATIENTS} patients, {given.repeats} repeats, 95 % intervals")
        print("\n".join(lines(rows)), flush=True)
        far += [f"{name} {r.name}" for r in rows if abs(r.share - CONFIDENCE) > 0.02 and r.name not in ABOVE]
    print("\nmore than two points away: " + (", ".join(far) or "none"))
    return 1 if far else 0


if __name__ == "__main__":
    sys.exit(main())
