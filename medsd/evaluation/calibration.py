"""From logits to probabilities that mean what they say, and from probabilities to calls.

`fit_platt` and `choose_operating_points` are run on the validation split and give what the bundle carries; `calibrated`
applies the first as the exported graph does, `reliability` shows whether it worked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import roc_curve

from medsd.bundle.layout import OperatingPoint, PlattCalibration
from medsd.errors import DataError
from medsd.evaluation.metrics import BINS, FloatArray, IntArray, bin_of, checked, class_counts, confusion, enough

# Standard deviations of the prior on log(slope): wide for the pooled fit, narrower for one finding around it.
_POOLED_SPREAD = 1.0
_FINDING_SPREAD = 0.5


def fit_platt(
    logits: npt.ArrayLike, target: npt.ArrayLike, findings: Sequence[str], *, few: int = 10
) -> dict[str, PlattCalibration]:
    """Slope and intercept of each finding, for probability = sigmoid(slope · logit + intercept).

    Maximum a posteriori (Platt 1999 with a prior instead of smoothed targets): log(slope) has a normal prior, which
    keeps every slope above 0, so that the ranking stays. First one pooled slope and intercept for all findings, drawn
    towards slope 1; then each finding, drawn towards the pooled slope, its intercept free. A finding with fewer
    positives or negatives than `few` takes the pooled fit; so does everything when the pool itself is too small, and
    then the pooled fit is slope 1, intercept 0.

    Args:
        logits: (N, F) of the validation split.
        target: (N, F) 1, 0 or NaN for unknown.
        findings: F names, in column order.
        few: see above.

    Raises:
        DataError: shapes or values that do not fit.
    """
    target, logits = _named(target, logits, findings)
    known = ~np.isnan(target)
    pooled = _fit(logits[known], target[known], towards=1.0, spread=_POOLED_SPREAD, few=few)
    fits = (
        pooled,
        *(
            _fit(logits[known[:, f], f], target[known[:, f], f], towards=pooled.slope, spread=_FINDING_SPREAD, few=few)
            for f in range(len(findings))
        ),
    )
    told = enough(target, few)
    return {name: fits[f + 1] if told[f] else pooled for f, name in enumerate(findings)}


def calibrated(
    logits: npt.ArrayLike, calibration: Mapping[str, PlattCalibration], findings: Sequence[str]
) -> FloatArray:
    """Probabilities (N, F) of logits (N, F), as the exported graph computes them."""
    slope = np.array([calibration[name].slope for name in findings])
    intercept = np.array([calibration[name].intercept for name in findings])
    return expit(np.asarray(logits, dtype=np.float64) * slope + intercept)


def choose_operating_points(
    probs: npt.ArrayLike, target: npt.ArrayLike, findings: Sequence[str], *, few: int = 10, rule: str = "youden"
) -> dict[str, OperatingPoint]:
    """The threshold of each finding, by a rule, on the validation split.

    The threshold lies half-way between two neighbouring probabilities, so that rounding at export changes no call.
    Of equally good thresholds the lowest is taken, which misses the fewest.

    Args:
        probs: (N, F) calibrated probabilities.
        target: (N, F) 1, 0 or NaN for unknown.
        findings: F names, in column order.
        few: with fewer positives or negatives there is no threshold, and every call is «undecided».
        rule: ``youden`` (highest sensitivity + specificity), ``f1`` (highest F1), ``sensitivity:0.9`` (the highest
            specificity with at least that sensitivity) or ``specificity:0.9`` (the other way round).

    Raises:
        DataError: shapes or values that do not fit, or an unknown rule.
    """
    target, probs = _named(target, probs, findings, probabilities=True)
    name, wanted = _parse_rule(rule)
    limits = np.full(len(findings), np.nan)
    for f in np.flatnonzero(enough(target, few)):
        known = ~np.isnan(target[:, f])
        limits[f] = _threshold(target[known, f], probs[known, f], name, wanted)
    reached = confusion(target, probs, limits)
    positives, negatives = class_counts(target)
    return {
        finding: OperatingPoint(
            threshold=_or_none(limits[f]),
            rule=rule,
            sensitivity=_or_none(reached.sensitivity[f]),
            specificity=_or_none(reached.specificity[f]),
            positives=int(positives[f]),
            negatives=int(negatives[f]),
        )
        for f, finding in enumerate(findings)
    }


def thresholds_of(points: Mapping[str, OperatingPoint], findings: Sequence[str]) -> FloatArray:
    """The thresholds (F,) in column order, NaN where there is none."""
    values = (points[name].threshold for name in findings)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


@dataclass(frozen=True)
class Reliability:
    """A reliability curve; bins without cases are left out.

    Attributes:
        predicted: (b,) mean probability in the bin.
        observed: (b,) share of positives in the bin.
        counts: (b,) cases in the bin.
    """

    predicted: FloatArray
    observed: FloatArray
    counts: IntArray


def reliability(target: npt.ArrayLike, probs: npt.ArrayLike, *, bins: int = BINS) -> Reliability:
    """The reliability curve over bins of equal width, of one finding (N,) or of all findings together (N, F).

    Args:
        target: 1, 0 or NaN for unknown.
        probs: in 0…1, of the same shape.
        bins: of equal width, those of `medsd.evaluation.metrics.calibration_error`.
    """
    truth, probability = checked(np.reshape(target, (-1, 1)), np.reshape(probs, (-1, 1)))
    known = ~np.isnan(truth)
    truth, probability = truth[known], probability[known]
    index = bin_of(probability, bins)
    counts = np.bincount(index, minlength=bins)
    filled = counts > 0
    predicted = np.bincount(index, weights=probability, minlength=bins)[filled] / counts[filled]
    observed = np.bincount(index, weights=truth, minlength=bins)[filled] / counts[filled]
    return Reliability(predicted, observed, counts[filled])


def log_loss(target: npt.ArrayLike, probs: npt.ArrayLike) -> float:
    """Mean negative log-likelihood (natural logarithm) over all known labels; probabilities are kept off 0 and 1."""
    target, probs = checked(target, probs)
    known = ~np.isnan(target)
    if not known.any():
        return float("nan")
    p = np.clip(probs[known], 1e-12, 1 - 1e-12)
    return float(-(target[known] * np.log(p) + (1 - target[known]) * np.log1p(-p)).mean())


def _fit(logits: FloatArray, truth: FloatArray, *, towards: float, spread: float, few: int) -> PlattCalibration:
    """One slope and intercept, or slope `towards` and intercept 0 with too few cases."""
    if min((truth == 1).sum(), (truth == 0).sum()) < max(few, 1):
        return PlattCalibration(slope=towards, intercept=0.0)

    def loss(at: FloatArray) -> tuple[float, FloatArray]:
        slope = np.exp(at[0])
        z = slope * logits + at[1]
        residual = expit(z) - truth
        shift = (at[0] - np.log(towards)) / spread
        value = np.logaddexp(0, z).sum() - (truth * z).sum() + shift**2 / 2
        return float(value), np.array([(residual * logits).sum() * slope + shift / spread, residual.sum()])

    # Bounds keep exp() finite; a slope of 20 is a step already.
    start = np.array([np.log(towards), 0.0])
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[(-4.0, 3.0), (-50.0, 50.0)], options={"gtol": 1e-8}
    )
    return PlattCalibration(slope=float(np.exp(found.x[0])), intercept=float(found.x[1]))


def _threshold(truth: FloatArray, probs: FloatArray, rule: str, wanted: float) -> float:
    false_rate, true_rate, scores = roc_curve(truth, probs, drop_intermediate=False)
    # The first point calls nothing present: a threshold just above the highest probability.
    positives, negatives = truth.sum(), (1 - truth).sum()
    tp, fp = np.rint(true_rate * positives), np.rint(false_rate * negatives)
    specific = 1 - false_rate
    if rule == "youden":
        merit = tp * negatives - fp * positives  # whole numbers, so that ties are ties
    elif rule == "f1":
        merit = 2 * tp / (tp + fp + positives)
    elif rule == "sensitivity":
        merit = np.where(true_rate >= wanted - 1e-12, specific, -1 + true_rate)
    else:
        merit = np.where(specific >= wanted - 1e-12, true_rate, -1 + specific)
    best = len(merit) - 1 - int(np.argmax(merit[::-1]))
    above = scores[best] if best else 1.0 + 1e-6
    below = scores[best + 1] if best + 1 < len(scores) else 0.0
    middle = (above + below) / 2
    return float(middle if middle > below else above)


def _parse_rule(rule: str) -> tuple[str, float]:
    name, _, number = rule.partition(":")
    try:
        wanted = float(number) if number else float("nan")
    except ValueError:
        wanted = float("nan")
    with_number = name in ("sensitivity", "specificity") and 0 < wanted < 1
    if with_number or rule in ("youden", "f1"):
        return name, wanted
    raise DataError(f"rule '{rule}' is unknown; use youden, f1, sensitivity:0.9 or specificity:0.9")


def _named(
    target: npt.ArrayLike, values: npt.ArrayLike, findings: Sequence[str], *, probabilities: bool = False
) -> tuple[FloatArray, FloatArray]:
    target, values = checked(target, values, probabilities=probabilities)
    if target.shape[1] != len(findings):
        raise DataError(f"target has {target.shape[1]} columns for {len(findings)} findings; give one name for each")
    return target, values


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
