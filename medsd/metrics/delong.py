"""Two models on the same studies: DeLong's test of their AUROCs, beside the bootstrap of every metric.

Start at `compare_models`. `delong` is the test alone: of DeLong, DeLong and Clarke-Pearson (1988) where every study is
a patient of its own, and of Obuchowski (1997) where patients have several studies, which are not independent of each
other. With one study a patient the two are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from medsd.errors import DataError
from medsd.metrics.intervals import Interval, MetricIntervals, paired_difference
from medsd.metrics.metrics import FloatArray, checked, enough


@dataclass(frozen=True)
class DeLong:
    """What DeLong's test says of one AUROC difference, first minus second model.

    Attributes:
        first, second: the two AUROCs; NaN with too few cases, as is everything else then.
        difference: with its normal interval, within −1…1; None throughout with too few cases.
        standard_error: of the difference.
        z: difference / standard error; 0 where both are 0, NaN where only the standard error is.
        p: two-sided.
    """

    first: float
    second: float
    difference: Interval
    standard_error: float
    z: float
    p: float

    def __str__(self) -> str:
        return f"{self.difference}, p = {self.p:.3g}" if self.difference.value is not None else str(self.difference)


@dataclass(frozen=True)
class DeLongTests:
    """DeLong's test of each finding, in column order, and of the mean AUROC over those that can be told (`over`)."""

    findings: tuple[DeLong, ...]
    macro: DeLong
    over: int


@dataclass(frozen=True)
class ModelComparison:
    """Two models side by side, first minus second.

    Attributes:
        bootstrap: of every metric, as `medsd.metrics.intervals.paired_difference` gives them.
        delong: of the AUROCs, on the same studies and with the same patients.
    """

    bootstrap: dict[str, MetricIntervals]
    delong: DeLongTests


def compare_models(
    target: npt.ArrayLike,
    probs_a: npt.ArrayLike,
    probs_b: npt.ArrayLike,
    patients: Sequence[str] | npt.NDArray[np.str_],
    *,
    thresholds_a: npt.ArrayLike | None = None,
    thresholds_b: npt.ArrayLike | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    minimum_positives: int = 10,
    seed: int = 0,
) -> ModelComparison:
    """How much better model a reads than model b, by a bootstrap over patients and by DeLong's test.

    The bootstrap speaks of every metric; DeLong of the AUROC, without a draw of chance. Where they disagree over an
    AUROC, there are too few patients for either.

    Args:
        target: (N, F) 1, 0 or NaN for unknown.
        probs_a, probs_b: (N, F) in 0…1, of the same studies.
        patients: (N,) patient keys.
        thresholds_a, thresholds_b: (F,) operating points of each model; None leaves the metrics at a threshold out.
        resamples, confidence, minimum_positives, seed: as for `medsd.metrics.intervals.metric_intervals`.

    Raises:
        DataError: shapes or values that do not fit.
    """
    bootstrap = paired_difference(
        target,
        probs_a,
        probs_b,
        patients,
        thresholds=thresholds_a,
        other_thresholds=thresholds_b,
        resamples=resamples,
        confidence=confidence,
        minimum_positives=minimum_positives,
        seed=seed,
    )
    return ModelComparison(
        bootstrap,
        delong(target, probs_a, probs_b, patients, confidence=confidence, minimum_positives=minimum_positives),
    )


def delong(
    target: npt.ArrayLike,
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    patients: Sequence[str] | npt.NDArray[np.str_] | None = None,
    *,
    confidence: float = 0.95,
    minimum_positives: int = 10,
) -> DeLongTests:
    """Whether the AUROCs of two models differ, finding by finding and on average.

    The variance of a difference is that of the differences of the structural components V10 of the positives and V01 of
    the negatives: S10/m + S01/n (DeLong et al. 1988, equation 5). With several studies of a patient the components are
    summed within the patient, and positives and negatives of the same patient add 2 S11/(m n) (Obuchowski 1997).
    Components come from midranks, in n log n (Sun and Xu 2014). The mean over findings adds the components of all
    findings within the patient; its patients' sums have the usual correction P / (P − 1).

    Args:
        target: (N, F) 1, 0 or NaN for unknown; unknowns are left out, finding by finding.
        scores_a, scores_b: (N, F), any scores; higher speaks for the finding.
        patients: (N,) patient keys; None: every study is a patient of its own.
        confidence: the share of the normal intervals.
        minimum_positives: fewer positives or negatives are too few to tell.

    Raises:
        DataError: shapes or values that do not fit.
    """
    target, first = checked(target, scores_a, probabilities=False)
    _, second = checked(target, scores_b, probabilities=False)
    keys = np.arange(len(target)).astype(str) if patients is None else np.asarray(patients, dtype=np.str_)
    if keys.shape != target.shape[:1]:
        raise DataError(f"patients has shape {keys.shape} for {len(target)} studies; give one patient key for each")
    names, patient_of = np.unique(keys, return_inverse=True)
    told = enough(target, max(minimum_positives, 2))
    results, influences, values = [], [], []
    for f in range(target.shape[1]):
        if not told[f]:
            results.append(_unknown())
            continue
        known = ~np.isnan(target[:, f])
        one = _compare(target[known, f], first[known, f], second[known, f], patient_of[known], len(names))
        results.append(_test(one.first, one.second, one.variance, confidence))
        influences.append(one.influence)
        values.append((one.first, one.second))
    if not values:
        return DeLongTests(tuple(results), _unknown(), 0)
    mean = np.mean(influences, axis=0)  # (P,)
    variance = len(names) / max(len(names) - 1, 1) * float((mean**2).sum())
    first_mean, second_mean = np.mean(values, axis=0)
    return DeLongTests(
        tuple(results), _test(float(first_mean), float(second_mean), variance, confidence), over=len(values)
    )


def structural_components(truth: FloatArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """V10 of the positives (m,) and V01 of the negatives (n,), whose means are the AUROC (Sun and Xu 2014, eq. 4).

    A positive's component is the share of negatives below it, ties counted as half; a negative's the share of
    positives above it.

    Args:
        truth: (m + n,) 1 or 0, both present.
        scores: (m + n,).
    """
    positive = truth == 1
    ranks = rankdata(scores)
    within_positives, within_negatives = rankdata(scores[positive]), rankdata(scores[~positive])
    m, n = int(positive.sum()), int((~positive).sum())
    return (ranks[positive] - within_positives) / n, 1 - (ranks[~positive] - within_negatives) / m


@dataclass(frozen=True)
class _Compared:
    first: float
    second: float
    variance: float
    influence: FloatArray  # (P,) what each patient adds to the difference


def _compare(
    truth: FloatArray, first: FloatArray, second: FloatArray, patient_of: npt.NDArray[np.int64], patients: int
) -> _Compared:
    positive = truth == 1
    m, n = int(positive.sum()), int((~positive).sum())
    tens, ones = zip(*(structural_components(truth, scores) for scores in (first, second)), strict=True)
    areas = [float(ten.mean()) for ten in tens]
    # Sums of the centred differences of the components within each patient (P,).
    ten = np.bincount(patient_of[positive], tens[0] - tens[1] - (areas[0] - areas[1]), patients)
    one = np.bincount(patient_of[~positive], ones[0] - ones[1] - (areas[0] - areas[1]), patients)
    with_positive = len(np.unique(patient_of[positive]))
    with_negative = len(np.unique(patient_of[~positive]))
    either = len(np.unique(patient_of))
    variance = (
        _corrected(with_positive) * float((ten**2).sum()) / m**2
        + _corrected(with_negative) * float((one**2).sum()) / n**2
        + 2 * _corrected(either) * float((ten * one).sum()) / (m * n)
    )
    return _Compared(areas[0], areas[1], max(variance, 0.0), ten / m + one / n)


def _corrected(clusters: int) -> float:
    """I / (I − 1); NaN where all positives (or negatives) are one patient's, whose spread nobody knows."""
    return clusters / (clusters - 1) if clusters > 1 else float("nan")


def _test(first: float, second: float, variance: float, confidence: float) -> DeLong:
    difference, error = first - second, float(np.sqrt(variance))
    if np.isnan(error):
        return DeLong(first, second, Interval(value=difference), error, float("nan"), float("nan"))
    if error < 1e-12:  # rounding of equal components
        z = 0.0 if abs(difference) < 1e-12 else float("nan")
        p = 1.0 if z == 0 else float("nan")
        return DeLong(first, second, Interval(value=difference, low=difference, high=difference), 0.0, z, p)
    half = float(norm.ppf((1 + confidence) / 2)) * error
    low, high = np.clip([difference - half, difference + half], -1, 1)
    z = difference / error
    interval = Interval(value=difference, low=float(low), high=float(high))
    return DeLong(first, second, interval, error, z, 2 * float(norm.sf(abs(z))))


def _unknown() -> DeLong:
    nothing = float("nan")
    return DeLong(nothing, nothing, Interval(), nothing, nothing, nothing)
