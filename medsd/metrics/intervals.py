"""Intervals of the metrics: percentile intervals of a bootstrap over patients (Efron and Tibshirani 1993).

A patient is drawn with all images. A resample is a row of whole-number weights, so that every metric is one matrix
product or cumulated sum for all resamples at once. The interval is moved by the bootstrap's estimate of its own bias
(ibid., chapter 10), because calibration error and average precision rise when images are drawn twice. It is expanded as
a t interval is wider than a normal one (Hesterberg, The American Statistician 69, 2015), by the number of patients of
the rarer class; `tests/bench/bench_intervals.py` counts how often intervals hold the value of the population.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.metrics.metrics import FloatArray, Keys, checked, checked_patients, enough, ratio, weighted_metrics
from medsd.strict import Described

_BLOCK = 4_000_000  # weights in memory at a time: 32 MB


class Interval(Described):
    """A value on the set itself with its percentile interval; None throughout where there is too little to tell.

    `undefined` counts the resamples that gave no value, because a finding lost all its positives or negatives (of a
    macro figure: in which a finding is missing); where they are more than half, there is no interval.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    undefined: int = 0

    def __str__(self) -> str:
        if self.value is None:
            return "too few to tell"
        if self.low is None or self.high is None:
            return f"{self.value:.3f} (no interval)"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def within(self, low: float, high: float) -> Self:
        """The same with its ends inside what the figure can be."""
        if self.low is None or self.high is None:
            return self
        return self.model_copy(update={"low": max(self.low, low), "high": min(self.high, high)})


class MetricIntervals(Described):
    """One metric of each finding, in column order, and its mean over the `over` findings with enough cases."""

    findings: tuple[Interval, ...]
    macro: Interval
    over: int


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of patients."""

    counts: npt.NDArray[np.uint16]  # (R, P) how often each patient is drawn; rows sum to P
    patient_of: npt.NDArray[np.int64]  # (N,) the column of each image's patient

    @classmethod
    def draw(cls, patients: Keys, count: int = 1000, seed: int = 0) -> Self:
        """Draw `count` resamples for patient keys (N,); the same patients and seed give the same draws in any order."""
        names, patient_of = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
        if names.size == 0:
            raise DataError("patients: there are none, so there is nothing to resample")
        rng = np.random.default_rng(seed)
        counts = np.zeros((count, names.size), dtype=np.uint16)
        for row in counts:
            row += np.bincount(rng.integers(names.size, size=names.size), minlength=names.size).astype(np.uint16)
        return cls(counts, patient_of)

    def blocks(self) -> Iterator[FloatArray]:
        """The weights of the images, (r, N) at a time, in the order of the resamples."""
        step = max(1, _BLOCK // max(1, self.patient_of.size))
        for start in range(0, len(self.counts), step):
            yield self.counts[start : start + step, self.patient_of].astype(np.float64)


@dataclass(frozen=True)
class IntervalOptions:
    """How intervals are made."""

    resamples: int = 1000  # of the patients
    confidence: float = 0.95
    minimum_positives: int = 10  # a finding with fewer positives or negatives is "too few to tell"
    seed: int = 0  # of the resampling

    def draw(self, patients: Keys) -> Resamples:
        """The resamples of patients (N,)."""
        return Resamples.draw(patients, self.resamples, self.seed)


Statistic = Callable[[FloatArray], FloatArray]  # weights (R, N) → values (R, K), NaN where undefined


def bootstrap(
    statistic: Statistic,
    resamples: Resamples,
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    cases: int | Sequence[int] | None = None,
) -> tuple[Interval, ...]:
    """Intervals of the K values that `statistic` gives for image weights (R, N), as (R, K).

    They do not leave `bounds`. `cases` is on how many patients all values, or each of the K, depend (see `expanded`);
    all patients when None.
    """
    value = statistic(np.ones((1, resamples.patient_of.size)))[0]
    samples = np.concatenate([statistic(weights) for weights in resamples.blocks()])
    counts = np.broadcast_to(resamples.counts.shape[1] if cases is None else cases, value.shape).tolist()
    return tuple(
        _interval(value[k], samples[:, k], expanded(confidence, count), bounds) for k, count in enumerate(counts)
    )


def expanded(confidence: float, cases: int) -> float:
    """The share between the percentiles of a bootstrap that makes an interval of `confidence` from so many cases.

    2 Φ(√(n / (n − 1)) t) − 1, t of Student's distribution with n − 1 degrees of freedom (Hesterberg 2015, section 3.3).

    >>> round(expanded(0.95, 10), 3), round(expanded(0.95, 1000), 3)
    (0.983, 0.95)
    """
    from scipy.stats import norm, t  # of the extra train; what was measured is read without it

    n = max(cases, 2)
    return float(2 * norm.cdf(np.sqrt(n / (n - 1)) * t.ppf((1 + confidence) / 2, n - 1)) - 1)


def patient_means(values: FloatArray, patients: npt.NDArray[np.str_]) -> FloatArray:
    """The mean (P,) of each patient's values (n,); patients in the order of their keys."""
    _, patient_of = np.unique(patients, return_inverse=True)
    return np.bincount(patient_of, values) / np.bincount(patient_of)


def one_a_patient(rows: npt.NDArray[np.int64], patients: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    """Of some rows the first of each patient; `patients` (N,) are the keys of all rows."""
    return rows[np.unique(patients[rows], return_index=True)[1]]


def rarer_patients(target: FloatArray, patient_of: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many patients have positives of each finding, or have negatives, whichever are fewer (F,)."""
    return np.array(
        [min(len(np.unique(patient_of[target[:, f] == label])) for label in (0, 1)) for f in range(target.shape[1])]
    )


def p_value(difference: Interval, confidence: float, cases: int) -> float | None:
    """Two-sided p of no difference, by the t interval that an interval of `bootstrap` stands for; None without one.

    The value lies so many standard errors from 0 as its distance makes of half of the interval; `cases` as there.
    """
    if difference.value is None or difference.low is None or difference.high is None:
        return None
    from scipy.stats import t

    n = max(cases, 2)
    half = (difference.high - difference.low) / 2
    if half == 0:
        return 1.0 if difference.value == 0 else 0.0
    return float(2 * t.sf(abs(difference.value) / half * t.ppf((1 + confidence) / 2, n - 1), n - 1))


def metric_intervals(
    target: npt.ArrayLike,
    probs: npt.ArrayLike,
    patients: Keys,
    options: IntervalOptions | None = None,
    *,
    other: npt.ArrayLike | None = None,
    thresholds: npt.ArrayLike | None = None,
) -> dict[str, MetricIntervals]:
    """The metrics of `medsd.metrics.metrics` with patient-level intervals.

    `target` (N, F) is 1, 0 or NaN, `probs` (N, F) in 0…1, `patients` (N,) are keys. With `other` (N, F), of another
    model, each value is the metric of `probs` minus that of `other` on the same resamples. `thresholds` (F,) are
    operating points, NaN where there is none; None leaves the metrics at a threshold out.

    Returns:
        By name: auroc, average_precision, brier, calibration_error and, with thresholds, sensitivity, specificity, ppv,
        npv, f1 and micro_f1 (whose one value is `macro`; it sums over all findings with a threshold).
    """
    options, (target, probs) = options or IntervalOptions(), checked(target, probs)
    second = None if other is None else checked(target, other)[1]
    drawn = options.draw(checked_patients(patients, target))
    limits = None if thresholds is None else np.asarray(thresholds, dtype=np.float64)

    def statistic(weights: FloatArray) -> dict[str, FloatArray]:
        values = weighted_metrics(target, probs, weights, limits)
        if second is None:
            return values
        less = weighted_metrics(target, second, weights, limits)
        return {name: values[name] - less[name] for name in values}

    shares = np.array([expanded(options.confidence, int(n)) for n in rarer_patients(target, drawn.patient_of)])
    called = 0 if limits is None else int((~np.isnan(limits)).sum())
    bounds = (0.0, 1.0) if second is None else (-1.0, 1.0)
    value = {name: v[0] for name, v in statistic(np.ones((1, len(target)))).items()}
    blocks = [statistic(weights) for weights in drawn.blocks()]
    told, result = enough(target, options.minimum_positives), {}
    for name, of_set in value.items():
        samples = np.concatenate([block[name] for block in blocks])
        if name == "micro_f1":
            # As wide as for the rarest finding that can be told; where none can, for the most frequent.
            widest = float(shares[told].max() if told.any() else shares.min())
            only = _interval(of_set[0], samples[:, 0], widest, bounds)
            result[name] = MetricIntervals(findings=(), macro=only, over=called)
        else:
            result[name] = _summary(np.where(told, of_set, np.nan), samples, shares, bounds)
    return result


def _summary(
    value: FloatArray, samples: FloatArray, shares: FloatArray, bounds: tuple[float, float]
) -> MetricIntervals:
    """Intervals of each finding, and of the mean over those that have a value in the set itself.

    The mean is expanded like the rarest finding in it, on which its spread depends most.
    """
    findings = tuple(_interval(value[f], samples[:, f], shares[f], bounds) for f in range(value.size))
    of_mean = samples[:, ~np.isnan(value)]
    over = of_mean.shape[1]
    if over == 0:
        return MetricIntervals(findings=findings, macro=Interval(), over=0)
    widest = float(shares[~np.isnan(value)].max())
    macro = _interval(float(np.nanmean(value)), row_means(of_mean), widest, bounds)
    incomplete = int(np.isnan(of_mean).any(1).sum())
    return MetricIntervals(findings=findings, macro=macro.model_copy(update={"undefined": incomplete}), over=over)


def _interval(value: float, samples: FloatArray, share: float, bounds: tuple[float, float]) -> Interval:
    if np.isnan(value):
        return Interval()
    defined = samples[~np.isnan(samples)]
    undefined = samples.size - defined.size
    if 2 * defined.size < samples.size or defined.size == 0:
        return Interval(value=float(value), undefined=undefined)
    bias = defined.mean() - value
    low, high = np.clip(np.quantile(defined, [(1 - share) / 2, (1 + share) / 2]) - bias, *bounds)
    return Interval(value=float(value), low=float(low), high=float(high), undefined=undefined)


def row_means(values: FloatArray) -> FloatArray:
    """The mean of each row (R, K) over what is defined, NaN where nothing is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0).sum(1), defined.sum(1))
