"""How good probabilities and calls are, finding by finding, with unknown labels left out.

Targets are (N, F) with 1, 0 and NaN for unknown, probabilities (N, F) in 0…1. A finding with too few positives or
negatives gives NaN ("too few to tell"). Each metric is computed for R rows of image weights at once, which a bootstrap
needs; the value of a set is that of one row of ones. The tests compare each with scikit-learn's `sample_weight`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Keys = Sequence[str] | npt.NDArray[np.str_]  # of patients, one for each image

FEWEST_POSITIVES = 5  # below, figures and calls say nothing, and the settings allow them for rehearsals alone
BINS = 10  # of the calibration error and the reliability curves
THRESHOLD_FREE = ("auroc", "average_precision", "brier", "calibration_error")
AT_THRESHOLD = ("sensitivity", "specificity", "ppv", "npv", "f1")


def auroc(target: npt.ArrayLike, probs: npt.ArrayLike, *, minimum_positives: int = 1) -> FloatArray:
    """Area under the ROC curve of each finding (F,), ties counted as half; `probs` may be any scores."""
    return _per_finding(weighted_auroc, *checked(target, probs, probabilities=False), minimum_positives)


def average_precision(target: npt.ArrayLike, probs: npt.ArrayLike, *, minimum_positives: int = 1) -> FloatArray:
    """Average precision of each finding (F,): Σ (R_n − R_{n−1}) P_n, as scikit-learn has it, without interpolation."""
    return _per_finding(weighted_average_precision, *checked(target, probs, probabilities=False), minimum_positives)


def brier(target: npt.ArrayLike, probs: npt.ArrayLike, *, minimum_positives: int = 1) -> FloatArray:
    """Mean squared difference of probability and truth, per finding (F,); 0 is perfect."""
    return _per_finding(weighted_brier, *checked(target, probs), minimum_positives)


def calibration_error(target: npt.ArrayLike, probs: npt.ArrayLike, *, minimum_positives: int = 1) -> FloatArray:
    """Expected calibration error of each finding (F,); see `weighted_calibration_error`."""
    return _per_finding(weighted_calibration_error, *checked(target, probs), minimum_positives)


def calls(target: npt.ArrayLike, probs: npt.ArrayLike, thresholds: npt.ArrayLike) -> dict[str, FloatArray]:
    """The metrics of `AT_THRESHOLD` by name (F,), and micro_f1 (1,), of calling "present" from a threshold on.

    Arguments as everywhere here; thresholds (F,) are NaN for a finding that is not called, whose metrics are NaN.
    """
    target, probs = checked(target, probs)
    ones = np.ones((1, len(target)))
    return {name: values[0] for name, values in weighted_calls(target, probs, ones, np.asarray(thresholds)).items()}


def macro(values: npt.ArrayLike) -> float:
    """The unweighted mean over the findings that have a value; NaN where none has."""
    values = np.asarray(values, dtype=np.float64)
    told = values[~np.isnan(values)]
    return float(told.mean()) if told.size else float("nan")


def class_counts(target: npt.ArrayLike) -> tuple[IntArray, IntArray]:
    """Known positives and known negatives of each finding, (F,) each."""
    target = np.asarray(target)
    return (target == 1).sum(0), (target == 0).sum(0)


def enough(target: npt.ArrayLike, minimum_positives: int) -> BoolArray:
    """(F,) True where there are at least `minimum_positives`, and at least one, of positives and of negatives."""
    positives, negatives = class_counts(target)
    return np.minimum(positives, negatives) >= max(minimum_positives, 1)


def bin_of(probs: FloatArray, bins: int = BINS) -> IntArray:
    """The bin of equal width, 0…bins − 1, that each probability falls into; edges belong to the lower bin."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probs)


def checked(
    target: npt.ArrayLike, probs: npt.ArrayLike, findings: Sequence[str] | None = None, *, probabilities: bool = True
) -> tuple[FloatArray, FloatArray]:
    """Both as (N, F) float64.

    Raises DataError: other shapes, another number of `findings`, a target not 0, 1 or NaN, a probability not in 0…1.
    """
    target, probs = np.asarray(target, dtype=np.float64), np.asarray(probs, dtype=np.float64)
    if target.ndim != 2 or target.shape != probs.shape or 0 in target.shape:
        raise DataError(
            f"target has shape {target.shape} and probs {probs.shape}; both need (images, findings), one or more each"
        )
    if findings is not None and target.shape[1] != len(findings):
        raise DataError(f"target has {target.shape[1]} columns for {len(findings)} findings; give one name for each")
    if not ((target == 0) | (target == 1) | np.isnan(target)).all():
        raise DataError("target: values must be 1 (present), 0 (absent) or NaN (unknown)")
    if not np.isfinite(probs).all():
        raise DataError("probs: a value is NaN or infinite; look for images that the model could not read")
    if probabilities and (probs.min() < 0 or probs.max() > 1):
        raise DataError("probs: values must lie in 0…1; apply the calibration to logits first")
    return target, probs


def checked_patients(patients: npt.ArrayLike, target: FloatArray) -> npt.NDArray[np.str_]:
    """The patient keys (N,) of target (N, F); another number of them is a DataError."""
    keys = np.asarray(patients, dtype=np.str_)
    if keys.shape != target.shape[:1]:
        raise DataError(
            f"patients has shape {keys.shape} for {len(target)} images; give one patient key for each image"
        )
    return keys


def weighted_metrics(
    target: FloatArray, probs: FloatArray, weights: FloatArray, thresholds: FloatArray | None = None
) -> dict[str, FloatArray]:
    """All metrics for R rows of image weights (R, N): (R, F) by name, NaN where a row has one class only of a finding.

    `target`, `probs` are (N, F) as of `checked`. With thresholds (F,) the metrics of `calls` are among them, micro_f1
    as (R, 1).
    """
    values = {
        "auroc": _of_findings(weighted_auroc, target, probs, weights),
        "average_precision": _of_findings(weighted_average_precision, target, probs, weights),
        "brier": _of_findings(weighted_brier, target, probs, weights),
        "calibration_error": _of_findings(weighted_calibration_error, target, probs, weights),
    }
    return values if thresholds is None else values | weighted_calls(target, probs, weights, thresholds)


def weighted_auroc(truth: FloatArray, probs: FloatArray, weights: FloatArray) -> FloatArray:
    """Area under the ROC curve for each row of weights: the weighted Mann-Whitney statistic, ties counted as half.

    Takes truth (n,) 1 or 0, scores (n,) and weights (R, n); gives (R,), NaN where only one class has weight.
    """
    positive, negative = _weights_by_score(truth, probs, weights, descending=False)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(1) * negative.sum(1)
    return ratio((positive * (below + negative / 2)).sum(1), pairs)


def weighted_average_precision(truth: FloatArray, probs: FloatArray, weights: FloatArray) -> FloatArray:
    """Average precision Σ (R_n − R_{n−1}) P_n for each row of weights; arguments and result as `weighted_auroc`."""
    positive, negative = _weights_by_score(truth, probs, weights, descending=True)
    true_positives = np.cumsum(positive, axis=1)
    called = true_positives + np.cumsum(negative, axis=1)
    precision = np.divide(true_positives, called, out=np.zeros_like(called), where=called > 0)
    return ratio((positive * precision).sum(1), positive.sum(1), _both(truth, weights))


def weighted_brier(truth: FloatArray, probs: FloatArray, weights: FloatArray) -> FloatArray:
    """Brier score for each row of weights; arguments and result as `weighted_auroc`."""
    return ratio(weights @ (truth - probs) ** 2, weights.sum(1), _both(truth, weights))


def weighted_calibration_error(truth: FloatArray, probs: FloatArray, weights: FloatArray) -> FloatArray:
    """Expected calibration error for each row of weights; arguments and result as `weighted_auroc`.

    Σ_b n_b/n · |observed share in b − mean probability in b| over `BINS` bins of equal width (Naeini et al., AAAI
    2015, on the probability of the finding itself).
    """
    members = np.eye(BINS)[bin_of(probs)]  # (n, bins)
    gaps = np.abs(weights @ (members * (truth - probs)[:, None])).sum(1)
    return ratio(gaps, weights.sum(1), _both(truth, weights))


def weighted_aurocs(target: FloatArray, scores: FloatArray, weights: FloatArray) -> FloatArray:
    """(R, F) AUROC of each finding of target (N, F); NaN where a resample leaves one without positives or negatives."""
    return _of_findings(weighted_auroc, target, scores, weights)


def weighted_calls(
    target: FloatArray, probs: FloatArray, weights: FloatArray, thresholds: FloatArray
) -> dict[str, FloatArray]:
    """The metrics of `calls` for each row of weights, (R, F) and (R, 1)."""
    if thresholds.shape != target.shape[1:]:  # which NumPy might stretch
        raise DataError(
            f"thresholds have shape {thresholds.shape}; one is needed for each of {target.shape[1]} findings"
        )
    called = probs >= thresholds  # False where the threshold is NaN
    present, absent = (target == 1) & ~np.isnan(thresholds), (target == 0) & ~np.isnan(thresholds)
    tp, fn = weights @ (called & present), weights @ (~called & present)  # (R, F)
    fp, tn = weights @ (called & absent), weights @ (~called & absent)
    tp_all, fp_all, fn_all = (total.sum(1, keepdims=True) for total in (tp, fp, fn))
    return {
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "ppv": ratio(tp, tp + fp),
        "npv": ratio(tn, tn + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn, tp + fn > 0),
        "micro_f1": ratio(2 * tp_all, 2 * tp_all + fp_all + fn_all, tp_all + fn_all > 0),
    }


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike, where: BoolArray | None = None) -> FloatArray:
    """part / whole, NaN where `whole` is 0, or not `where`."""
    defined = np.asarray(whole) > 0 if where is None else where
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=defined)


def or_none(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)


Score = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]


def _of_findings(score: Score, target: FloatArray, probs: FloatArray, weights: FloatArray) -> FloatArray:
    """(R, F) the score of the known labels of each finding."""
    values = np.full((len(weights), target.shape[1]), np.nan)
    for f, column in enumerate(target.T):
        known = ~np.isnan(column)
        values[:, f] = score(column[known], probs[known, f], weights[:, known])
    return values


def _per_finding(score: Score, target: FloatArray, probs: FloatArray, minimum_positives: int) -> FloatArray:
    values = _of_findings(score, target, probs, np.ones((1, len(target))))[0]
    return np.where(enough(target, minimum_positives), values, np.nan)


def _both(truth: FloatArray, weights: FloatArray) -> BoolArray:
    """(R,) whether positives and negatives have weight."""
    return (weights @ truth > 0) & (weights @ (1 - truth) > 0)


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
