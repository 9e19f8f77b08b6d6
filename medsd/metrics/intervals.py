"""How sure the metrics are: percentile intervals of a bootstrap over patients (Efron and Tibshirani 1993).

Start at `metric_intervals`. A patient is drawn with all images, because images of one patient are not independent.
A resample is a row of whole-number weights, so that every metric is one matrix product or one cumulated sum for all
resamples at once; the tests hold the weighted metrics against scikit-learn's `sample_weight`. The interval is moved by
the bootstrap's estimate of its own bias (ibid., chapter 10), without which calibration error and average precision,
which rise when images are drawn twice, would have intervals beside their value. Its percentiles are expanded as a t
interval is wider than a normal one (Hesterberg, The American Statistician 69, 2015), by the number of patients of the
rarer class, without which few cases give intervals that cover too seldom; `tests/bench/bench_intervals.py` counts how
often they do. The interval of the calibration error is that of the error which sets of this size show: by chance it is
above that of the population, the more so the fewer cases a bin has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.stats import norm, t

from medsd.errors import DataError
from medsd.metrics.metrics import BINS, FloatArray, bin_of, checked, enough

_BLOCK = 4_000_000  # weights in memory at a time: 32 MB
THRESHOLD_FREE = ("auroc", "average_precision", "brier", "calibration_error")
AT_THRESHOLD = ("sensitivity", "specificity", "ppv", "npv", "f1")


class Interval(BaseModel):
    """A value with its percentile interval; None throughout where there is too little to tell.

    Attributes:
        value: on the set itself.
        low, high: ends of the interval; None as well when fewer than half of the resamples give a value.
        undefined: resamples that gave no value, because a finding lost all its positives or all its negatives; for
            a macro figure, resamples in which it is the mean over fewer findings than in the set itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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


class MetricIntervals(BaseModel):
    """One metric, for each finding and as their mean.

    Attributes:
        findings: in column order.
        macro: the mean over the findings that can be told.
        over: how many those are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    findings: tuple[Interval, ...]
    macro: Interval
    over: int


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of patients.

    Attributes:
        counts: (R, P) how often each patient is drawn; rows sum to P.
        patient_of: (N,) the column of each image's patient.
    """

    counts: npt.NDArray[np.uint16]
    patient_of: npt.NDArray[np.int64]

    @classmethod
    def draw(cls, patients: Sequence[str] | npt.NDArray[np.str_], count: int = 1000, seed: int = 0) -> Resamples:
        """Draw `count` resamples; the same patients and seed give the same draws, whatever the order of the images.

        Args:
            patients: (N,) the patient key of each image.

        Raises:
            DataError: there are no images.
        """
        names, patient_of = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
        if names.size == 0:
            raise DataError("patients: there are none, so there is nothing to resample")
        rng = np.random.default_rng(seed)
        counts = np.zeros((count, names.size), dtype=np.uint16)
        for row in counts:
            row += np.bincount(rng.integers(names.size, size=names.size), minlength=names.size).astype(np.uint16)
        return cls(counts, patient_of)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def patients(self) -> int:
        """How many patients there are to draw from."""
        return self.counts.shape[1]

    def blocks(self) -> Iterator[FloatArray]:
        """The weights of the images, (r, N) at a time, in the order of the resamples."""
        step = max(1, _BLOCK // max(1, self.patient_of.size))
        for start in range(0, len(self.counts), step):
            yield self.counts[start : start + step, self.patient_of].astype(np.float64)


Statistic = Callable[[FloatArray], FloatArray]  # weights (R, N) → values (R, K), NaN where undefined


def bootstrap(
    statistic: Statistic,
    resamples: Resamples,
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    cases: int | Sequence[int] | None = None,
) -> tuple[Interval, ...]:
    """Intervals of the K values that `statistic` gives for image weights.

    Args:
        statistic: takes weights (R, N) and gives (R, K); a weight of 2 means that the image is there twice.
        resamples: of the N images' patients.
        confidence: the share of the interval, for instance 0.95.
        bounds: what the values can be; the interval does not leave them.
        cases: how many patients the values hang on, for `expanded`, or each of the K; all of them when None.
    """
    value = statistic(np.ones((1, resamples.patient_of.size)))[0]
    samples = np.concatenate([statistic(weights) for weights in resamples.blocks()])
    counts = np.broadcast_to(resamples.patients if cases is None else cases, value.shape).tolist()
    return tuple(
        _interval(value[k], samples[:, k], expanded(confidence, count), bounds) for k, count in enumerate(counts)
    )


def expanded(confidence: float, cases: int) -> float:
    """The share between the percentiles of a bootstrap that makes an interval of `confidence` from so many cases.

    2 Φ(√(n / (n − 1)) t) − 1 with t the quantile of Student's distribution with n − 1 degrees of freedom (Hesterberg
    2015, section 3.3); two cases at least.

    >>> round(expanded(0.95, 10), 3), round(expanded(0.95, 1000), 3)
    (0.983, 0.95)
    """
    n = max(cases, 2)
    return float(2 * norm.cdf(np.sqrt(n / (n - 1)) * t.ppf((1 + confidence) / 2, n - 1)) - 1)


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
    n = max(cases, 2)
    half = (difference.high - difference.low) / 2
    if half == 0:
        return 1.0 if difference.value == 0 else 0.0
    return float(2 * t.sf(abs(difference.value) / half * t.ppf((1 + confidence) / 2, n - 1), n - 1))


def metric_intervals(
    target: npt.ArrayLike,
    probs: npt.ArrayLike,
    patients: Sequence[str] | npt.NDArray[np.str_],
    *,
    thresholds: npt.ArrayLike | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    minimum_positives: int = 10,
    bins: int = BINS,
    seed: int = 0,
) -> dict[str, MetricIntervals]:
    """The metrics of `medsd.metrics.metrics` with patient-level intervals.

    Args:
        target: (N, F) 1, 0 or NaN for unknown.
        probs: (N, F) in 0…1.
        patients: (N,) patient keys.
        thresholds: (F,) operating points, NaN where there is none; None leaves the metrics at a threshold out.
        resamples: how many bootstrap resamples.
        confidence: the share of the interval.
        minimum_positives: findings with fewer positives or negatives in the set itself are «too few to tell».
        bins: of the calibration error.
        seed: of the resampling.

    Returns:
        By name: auroc, average_precision, brier, calibration_error and, with thresholds, sensitivity, specificity,
        ppv, npv, f1 and micro_f1 (whose one value stands under `macro`; it sums over all findings with a threshold).
    """
    target, probs = checked(target, probs)
    drawn = Resamples.draw(_as_many(patients, target), resamples, seed)
    limits = None if thresholds is None else np.asarray(thresholds, dtype=np.float64)

    def statistic(weights: FloatArray) -> dict[str, FloatArray]:
        return weighted_metrics(target, probs, weights, thresholds=limits, bins=bins)

    shares = _shares(target, drawn, confidence)
    return _summaries(statistic, drawn, enough(target, minimum_positives), shares, _number(limits), (0, 1))


def paired_difference(
    target: npt.ArrayLike,
    probs: npt.ArrayLike,
    other: npt.ArrayLike,
    patients: Sequence[str] | npt.NDArray[np.str_],
    *,
    thresholds: npt.ArrayLike | None = None,
    other_thresholds: npt.ArrayLike | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    minimum_positives: int = 10,
    bins: int = BINS,
    seed: int = 0,
) -> dict[str, MetricIntervals]:
    """How much better `probs` are than `other`, both measured on the same resamples of the same images.

    Takes and gives what `metric_intervals` does; each value is the metric of `probs` minus that of `other`. An
    interval that leaves out 0 speaks for a difference at the level 1 − confidence.
    """
    target, probs = checked(target, probs)
    _, other = checked(target, other)
    drawn = Resamples.draw(_as_many(patients, target), resamples, seed)
    limits = None if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    other_limits = limits if other_thresholds is None else np.asarray(other_thresholds, dtype=np.float64)

    def statistic(weights: FloatArray) -> dict[str, FloatArray]:
        first = weighted_metrics(target, probs, weights, thresholds=limits, bins=bins)
        second = weighted_metrics(target, other, weights, thresholds=other_limits, bins=bins)
        return {name: first[name] - second[name] for name in first if name in second}

    shares = _shares(target, drawn, confidence)
    return _summaries(statistic, drawn, enough(target, minimum_positives), shares, _number(limits), (-1, 1))


def weighted_metrics(
    target: FloatArray,
    probs: FloatArray,
    weights: FloatArray,
    *,
    thresholds: FloatArray | None = None,
    bins: int = BINS,
) -> dict[str, FloatArray]:
    """All metrics for R rows of image weights.

    Args:
        target, probs: (N, F), as in `metric_intervals`.
        weights: (R, N), 0 or more.

    Returns:
        (R, F) by name, NaN where a resample has only one class of a finding; micro_f1 is (R, 1).
    """
    shape = (len(weights), target.shape[1])
    values = {name: np.full(shape, np.nan) for name in THRESHOLD_FREE}
    for f in range(shape[1]):
        known = ~np.isnan(target[:, f])
        truth, probability, weight = target[known, f], probs[known, f], weights[:, known]
        both = (weight @ truth > 0) & (weight @ (1 - truth) > 0)
        values["auroc"][:, f] = weighted_auroc(truth, probability, weight)
        values["average_precision"][:, f] = weighted_average_precision(truth, probability, weight)
        values["brier"][:, f] = _where(both, weight @ (truth - probability) ** 2, weight.sum(1))
        members = np.eye(bins)[bin_of(probability, bins)]  # (n, bins)
        gaps = np.abs(weight @ (members * (truth - probability)[:, None])).sum(1)
        values["calibration_error"][:, f] = _where(both, gaps, weight.sum(1))
    return values if thresholds is None else values | _weighted_calls(target, probs, weights, thresholds)


def weighted_auroc(truth: FloatArray, probs: FloatArray, weights: FloatArray) -> FloatArray:
    """Area under the ROC curve for each row of weights.

    The weighted Mann-Whitney statistic: the weight of the pairs in which the positive has the higher score, and half
    that of the ties, over the weight of all pairs.

    Args:
        truth: (n,) 1 or 0.
        probs: (n,) scores.
        weights: (R, n).

    Returns:
        (R,), NaN where only one class has weight.
    """
    positive, negative = _weights_by_score(truth, probs, weights, descending=False)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(1) * negative.sum(1)
    return _where(pairs > 0, (positive * (below + negative / 2)).sum(1), pairs)


def weighted_aurocs(target: FloatArray, scores: FloatArray, weights: FloatArray) -> FloatArray:
    """(R, F) AUROC of each finding of target (N, F); NaN where a resample leaves one without positives or negatives."""
    areas = np.full((len(weights), target.shape[1]), np.nan)
    for finding in range(target.shape[1]):
        known = ~np.isnan(target[:, finding])
        areas[:, finding] = weighted_auroc(target[known, finding], scores[known, finding], weights[:, known])
    return areas


def weighted_macro_auroc(target: FloatArray, scores: FloatArray, weights: FloatArray) -> FloatArray:
    """(R,) mean over the findings of target (N, F); NaN where a resample leaves one without positives or negatives."""
    return weighted_aurocs(target, scores, weights).mean(axis=1)


def weighted_average_precision(truth: FloatArray, probs: FloatArray, weights: FloatArray) -> FloatArray:
    """Average precision Σ (R_n − R_{n−1}) P_n for each row of weights; arguments and result as `weighted_auroc`."""
    positive, negative = _weights_by_score(truth, probs, weights, descending=True)
    true_positives = np.cumsum(positive, axis=1)
    called = true_positives + np.cumsum(negative, axis=1)
    precision = np.divide(true_positives, called, out=np.zeros_like(called), where=called > 0)
    both = (positive.sum(1) > 0) & (negative.sum(1) > 0)
    return _where(both, (positive * precision).sum(1), positive.sum(1))


def _weights_by_score(
    truth: FloatArray, probs: FloatArray, weights: FloatArray, *, descending: bool
) -> tuple[FloatArray, FloatArray]:
    """Weights of positives and of negatives, summed over equal scores, (R, distinct scores) in the order of scores."""
    if truth.size == 0:
        return np.zeros((len(weights), 0)), np.zeros((len(weights), 0))
    order = np.argsort(-probs if descending else probs, kind="stable")
    starts = np.flatnonzero(np.diff(probs[order], prepend=np.nan) != 0)
    sorted_weights = weights[:, order]
    positive = np.add.reduceat(sorted_weights * truth[order], starts, axis=1)
    return positive, np.add.reduceat(sorted_weights, starts, axis=1) - positive


def _weighted_calls(
    target: FloatArray, probs: FloatArray, weights: FloatArray, thresholds: FloatArray
) -> dict[str, FloatArray]:
    if thresholds.shape != target.shape[1:]:
        raise DataError(
            f"thresholds have shape {thresholds.shape}; one is needed for each of {target.shape[1]} findings"
        )
    called = probs >= thresholds  # False where the threshold is NaN
    present, absent = (target == 1) & ~np.isnan(thresholds), (target == 0) & ~np.isnan(thresholds)
    tp, fn = weights @ (called & present), weights @ (~called & present)  # (R, F)
    fp, tn = weights @ (called & absent), weights @ (~called & absent)
    micro = [total.sum(1, keepdims=True) for total in (tp, fp, fn)]
    return {
        "sensitivity": _where(tp + fn > 0, tp, tp + fn),
        "specificity": _where(tn + fp > 0, tn, tn + fp),
        "ppv": _where(tp + fp > 0, tp, tp + fp),
        "npv": _where(tn + fn > 0, tn, tn + fn),
        "f1": _where(tp + fn > 0, 2 * tp, 2 * tp + fp + fn),
        "micro_f1": _where(micro[0] + micro[2] > 0, 2 * micro[0], 2 * micro[0] + micro[1] + micro[2]),
    }


def _summaries(
    statistic: Callable[[FloatArray], dict[str, FloatArray]],
    resamples: Resamples,
    told: npt.NDArray[np.bool_],
    shares: FloatArray,
    called: int,
    bounds: tuple[float, float],
) -> dict[str, MetricIntervals]:
    value = {name: v[0] for name, v in statistic(np.ones((1, resamples.patient_of.size))).items()}
    blocks = [statistic(weights) for weights in resamples.blocks()]
    result = {}
    for name, of_set in value.items():
        samples = np.concatenate([block[name] for block in blocks])
        if name == "micro_f1":
            only = _interval(of_set[0], samples[:, 0], _widest(shares, told), bounds)
            result[name] = MetricIntervals(findings=(), macro=only, over=called)
        else:
            result[name] = _summary(np.where(told, of_set, np.nan), samples, shares, bounds)
    return result


def _shares(target: FloatArray, resamples: Resamples, confidence: float) -> FloatArray:
    """The expanded share of each finding (F,)."""
    return np.array([expanded(confidence, int(n)) for n in rarer_patients(target, resamples.patient_of)])


def _summary(
    value: FloatArray, samples: FloatArray, shares: FloatArray, bounds: tuple[float, float]
) -> MetricIntervals:
    """Intervals of each finding and of the mean over those that have a value in the set itself.

    The mean is expanded like the rarest finding in it, which its spread hangs on the most.
    """
    findings = tuple(_interval(value[f], samples[:, f], shares[f], bounds) for f in range(value.size))
    of_mean = samples[:, ~np.isnan(value)]
    over = of_mean.shape[1]
    if over == 0:
        return MetricIntervals(findings=findings, macro=Interval(), over=0)
    defined = ~np.isnan(of_mean)
    means = _where(np.asarray(defined.any(1)), np.where(defined, of_mean, 0).sum(1), defined.sum(1))
    macro = _interval(float(np.nanmean(value)), means, float(shares[~np.isnan(value)].max()), bounds)
    incomplete = int((~defined.all(1)).sum())
    return MetricIntervals(findings=findings, macro=macro.model_copy(update={"undefined": incomplete}), over=over)


def _widest(shares: FloatArray, told: npt.NDArray[np.bool_]) -> float:
    """The share for a figure over all findings: of the rarest that can be told, of the most frequent where none can."""
    return float(shares[told].max() if told.any() else shares.min())


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


def _number(thresholds: FloatArray | None) -> int:
    return 0 if thresholds is None else int((~np.isnan(thresholds)).sum())


def _where(condition: npt.NDArray[np.bool_], part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=condition)


def _as_many(patients: Sequence[str] | npt.NDArray[np.str_], target: FloatArray) -> npt.NDArray[np.str_]:
    keys = np.asarray(patients, dtype=np.str_)
    if keys.shape != target.shape[:1]:
        raise DataError(
            f"patients has shape {keys.shape} for {len(target)} images; give one patient key for each image"
        )
    return keys
