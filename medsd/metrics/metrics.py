"""How good probabilities and calls are, per finding and over all findings, with unknown labels left out.

Start at `measure`. Targets are (N, F) with 1, 0 and NaN for unknown, probabilities (N, F) in 0…1. scikit-learn does the
counting; what medsd adds is the mask per finding, and the rule that a finding with too few positives or negatives gives
NaN («too few to tell») instead of a number that means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, roc_auc_score

from medsd.errors import DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

BINS = 10  # of the calibration error and the reliability curves


@dataclass(frozen=True)
class Macro:
    """A mean over findings, and over how many: those with too few cases are left out.

    Attributes:
        value: the unweighted mean, NaN when no finding can be told.
        over: the number of findings in it.
    """

    value: float
    over: int


@dataclass(frozen=True)
class Confusion:
    """Counts of calls against the known truth, (F,) each; 0 everywhere for a finding without a threshold.

    A ratio whose denominator is 0 is NaN.
    """

    true_positives: IntArray
    false_positives: IntArray
    true_negatives: IntArray
    false_negatives: IntArray

    @property
    def sensitivity(self) -> FloatArray:
        """TP / (TP + FN) (F,)."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> FloatArray:
        """TN / (TN + FP) (F,)."""
        return _ratio(self.true_negatives, self.true_negatives + self.false_positives)

    @property
    def ppv(self) -> FloatArray:
        """Positive predictive value, TP / (TP + FP) (F,), at the prevalence of this set."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def npv(self) -> FloatArray:
        """Negative predictive value, TN / (TN + FN) (F,), at the prevalence of this set."""
        return _ratio(self.true_negatives, self.true_negatives + self.false_negatives)

    @property
    def f1(self) -> FloatArray:
        """2 TP / (2 TP + FP + FN) (F,)."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    @property
    def micro_f1(self) -> float:
        """F1 of the counts summed over all findings that have a threshold."""
        tp, fp, fn = (int(c.sum()) for c in (self.true_positives, self.false_positives, self.false_negatives))
        return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else float("nan")


@dataclass(frozen=True)
class Metrics:
    """All metrics of one set, (F,) each, NaN where there is too little to tell.

    Attributes:
        positives, negatives: (F,) known cases.
        too_few: (F,) bool, True where there are fewer positives or negatives than `minimum_positives`.
        auroc, average_precision, brier, calibration_error: (F,), free of any threshold.
        sensitivity, specificity, ppv, npv, f1: (F,), at the operating points.
        micro_f1: F1 of the summed counts of all findings with an operating point.
    """

    positives: IntArray
    negatives: IntArray
    too_few: BoolArray
    auroc: FloatArray
    average_precision: FloatArray
    brier: FloatArray
    calibration_error: FloatArray
    sensitivity: FloatArray
    specificity: FloatArray
    ppv: FloatArray
    npv: FloatArray
    f1: FloatArray
    micro_f1: float

    def macro(self, name: str) -> Macro:
        """The mean of the metric called `name` over the findings that can be told."""
        return macro(getattr(self, name))


def measure(
    target: npt.ArrayLike,
    probs: npt.ArrayLike,
    thresholds: npt.ArrayLike | None = None,
    *,
    minimum_positives: int = 10,
    bins: int = BINS,
) -> Metrics:
    """Every metric of this module at once.

    Args:
        target: (N, F) 1, 0 or NaN for unknown.
        probs: (N, F) in 0…1.
        thresholds: (F,) a probability at or above it is called present; NaN: no call. None: no calls at all.
        minimum_positives: fewer positives or negatives than this give NaN.
        bins: of the calibration error.

    Raises:
        DataError: shapes or values that do not fit.
    """
    target, probs = checked(target, probs)
    positives, negatives = class_counts(target)
    told = enough(target, minimum_positives)
    calls = confusion(target, probs, np.full(target.shape[1], np.nan) if thresholds is None else thresholds)

    def where_told(values: FloatArray) -> FloatArray:
        return np.where(told, values, np.nan)

    return Metrics(
        positives=positives,
        negatives=negatives,
        too_few=~told,
        auroc=auroc(target, probs, minimum_positives=minimum_positives),
        average_precision=average_precision(target, probs, minimum_positives=minimum_positives),
        brier=brier(target, probs, minimum_positives=minimum_positives),
        calibration_error=calibration_error(target, probs, bins=bins, minimum_positives=minimum_positives),
        sensitivity=where_told(calls.sensitivity),
        specificity=where_told(calls.specificity),
        ppv=where_told(calls.ppv),
        npv=where_told(calls.npv),
        f1=where_told(calls.f1),
        micro_f1=calls.micro_f1,
    )


def auroc(target: npt.ArrayLike, probs: npt.ArrayLike, *, minimum_positives: int = 1) -> FloatArray:
    """Area under the ROC curve of each finding (F,), ties counted as half; any monotone score will do for `probs`."""
    return _per_finding(roc_auc_score, *checked(target, probs, probabilities=False), minimum_positives)


def average_precision(target: npt.ArrayLike, probs: npt.ArrayLike, *, minimum_positives: int = 1) -> FloatArray:
    """Average precision of each finding (F,): Σ (R_n − R_{n−1}) P_n, as scikit-learn has it, without interpolation."""
    return _per_finding(average_precision_score, *checked(target, probs, probabilities=False), minimum_positives)


def brier(target: npt.ArrayLike, probs: npt.ArrayLike, *, minimum_positives: int = 1) -> FloatArray:
    """Mean squared difference of probability and truth, per finding (F,); 0 is perfect."""
    return _per_finding(brier_score_loss, *checked(target, probs), minimum_positives)


def calibration_error(
    target: npt.ArrayLike, probs: npt.ArrayLike, *, bins: int = BINS, minimum_positives: int = 1
) -> FloatArray:
    """Expected calibration error of each finding (F,).

    Σ_b n_b/n · |observed share in b − mean probability in b| over `bins` bins of equal width (Naeini et al., AAAI
    2015, on the probability of the finding itself).
    """

    def error(truth: FloatArray, probability: FloatArray) -> float:
        gap = np.bincount(bin_of(probability, bins), weights=truth - probability, minlength=bins)
        return float(np.abs(gap).sum() / truth.size)

    return _per_finding(error, *checked(target, probs), minimum_positives)


def confusion(target: npt.ArrayLike, probs: npt.ArrayLike, thresholds: npt.ArrayLike) -> Confusion:
    """Counts of the calls «probability ≥ threshold» against the known truth.

    Args:
        target: (N, F) 1, 0 or NaN for unknown.
        probs: (N, F) in 0…1.
        thresholds: (F,), NaN for a finding that is not called.
    """
    target, probs = checked(target, probs)
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.shape != target.shape[1:]:
        raise DataError(f"thresholds have shape {limits.shape}; it needs one for each of {target.shape[1]} findings")
    counts = np.zeros((target.shape[1], 4), dtype=np.int64)
    for f in np.flatnonzero(~np.isnan(limits)):
        known = ~np.isnan(target[:, f])
        if known.any():
            counts[f] = confusion_matrix(
                target[known, f] == 1, probs[known, f] >= limits[f], labels=[False, True]
            ).ravel()
    tn, fp, fn, tp = counts.T
    return Confusion(true_positives=tp, false_positives=fp, true_negatives=tn, false_negatives=fn)


def macro(values: npt.ArrayLike) -> Macro:
    """The mean over the findings that are not NaN."""
    values = np.asarray(values, dtype=np.float64)
    told = values[~np.isnan(values)]
    return Macro(float(told.mean()) if told.size else float("nan"), int(told.size))


def class_counts(target: npt.ArrayLike) -> tuple[IntArray, IntArray]:
    """Known positives and known negatives of each finding, (F,) each."""
    target = np.asarray(target)
    return (target == 1).sum(0), (target == 0).sum(0)


def enough(target: npt.ArrayLike, minimum_positives: int) -> BoolArray:
    """(F,) True where there are at least `minimum_positives` (and at least one) positives and negatives."""
    positives, negatives = class_counts(target)
    return np.minimum(positives, negatives) >= max(minimum_positives, 1)


def bin_of(probs: FloatArray, bins: int) -> IntArray:
    """The bin of equal width, 0…bins − 1, that each probability falls into; edges belong to the lower bin."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probs)


def checked(
    target: npt.ArrayLike, probs: npt.ArrayLike, *, probabilities: bool = True
) -> tuple[FloatArray, FloatArray]:
    """Both as (N, F) float64.

    Raises:
        DataError: other shapes, a target that is not 0, 1 or NaN, a NaN probability or one outside 0…1.
    """
    target, probs = np.asarray(target, dtype=np.float64), np.asarray(probs, dtype=np.float64)
    if target.ndim != 2 or target.shape != probs.shape or 0 in target.shape:
        raise DataError(
            f"target has shape {target.shape} and probs {probs.shape}; both need (images, findings), one or more each"
        )
    if not ((target == 0) | (target == 1) | np.isnan(target)).all():
        raise DataError("target: values must be 1 (present), 0 (absent) or NaN (unknown)")
    if not np.isfinite(probs).all():
        raise DataError("probs: a value is NaN or infinite; look for images that the model could not read")
    if probabilities and (probs.min() < 0 or probs.max() > 1):
        raise DataError("probs: values must lie in 0…1; apply the calibration to logits first")
    return target, probs


def _per_finding(
    score: Callable[[FloatArray, FloatArray], float], target: FloatArray, probs: FloatArray, minimum_positives: int
) -> FloatArray:
    values = np.full(target.shape[1], np.nan)
    for f in np.flatnonzero(enough(target, minimum_positives)):
        known = ~np.isnan(target[:, f])
        values[f] = score(target[known, f], probs[known, f])
    return values


def _ratio(part: IntArray, whole: IntArray) -> FloatArray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
