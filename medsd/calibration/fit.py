"""From logits to calibrated probabilities, and from probabilities to calls.

`choose_calibration` and `choose_operating_points` are run on the validation split and give what the bundle carries;
`calibrated` applies the first as the exported graph does, `reliability` shows whether it worked.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_curve

from medsd.calibration.types import (
    KNOTS,
    UNCALIBRATED,
    Calibration,
    CalibrationChoice,
    CalibrationMethod,
    IsotonicCalibration,
    OperatingPoint,
    PlattCalibration,
    as_hinges,
)
from medsd.metrics.metrics import BINS, FloatArray, bin_of, calls, checked, class_counts, enough, or_none
from medsd.strict import Described

# Standard deviations of the prior on log(slope): wide for the pooled fit, narrower for one finding around it.
_POOLED_SPREAD = 1.0
_FINDING_SPREAD = 0.5
# Below this many cases of the rarer class one parameter is fitted better than two: in simulations with findings that
# differ from the pool by 0.4 in intercept and 0.25 in log slope (standard deviations), the log loss of Platt's fit
# falls below that of a temperature between 20 and 30.
PLATT_CASES = 25
# Isotonic regression overtakes Platt's from about 1000 cases on (Niculescu-Mizil and Caruana, ICML 2005, section 5).
ISOTONIC_STUDIES, ISOTONIC_CASES = 1000, 100
_SHORTEST = 0.02  # logits between two knots: a jump over less is steeper than single precision computes well
_TILT = 0.01
_SURE = 1e-12  # probabilities are kept this far off 0 and 1 where their logarithm is taken


def choose_calibration(
    logits: npt.ArrayLike,
    target: npt.ArrayLike,
    findings: Sequence[str],
    *,
    minimum_positives: int = 10,
    method: str = "by_size",
) -> tuple[dict[str, Calibration], dict[str, CalibrationChoice]]:
    """The calibration of each finding on the validation split, as rich as its cases allow, and why it was chosen.

    By the number of the rarer class: below `minimum_positives` the fit of all findings pooled; below `PLATT_CASES` a
    temperature, one parameter, on top of that; then Platt's slope and intercept; from `ISOTONIC_STUDIES` known studies
    with `ISOTONIC_CASES` of the rarer class on, an isotonic curve. All of them keep the ranking.

    `logits` and `target` are (N, F), the latter 1, 0 or NaN for unknown. The `method` is ``by_size``, or ``platt`` for
    Platt's whatever the size (pooled below `minimum_positives`). Shapes or values that do not fit are a DataError.
    """
    target, logits = checked(target, logits, findings, probabilities=False)
    known, pooled = ~np.isnan(target), UNCALIBRATED
    if enough(target[known][:, None], minimum_positives)[0]:
        pooled = _fit(logits[known], target[known], 1.0, _POOLED_SPREAD)
    calibration: dict[str, Calibration] = {}
    choices = {}
    for finding, column, logit_of, positives, negatives in zip(
        findings, target.T, logits.T, *class_counts(target), strict=True
    ):
        cases, rarer = int(positives + negatives), int(min(positives, negatives))
        chosen, reason = _method(method, cases, rarer, minimum_positives)
        known, calibration[finding] = ~np.isnan(column), pooled
        if chosen == "pooled" and pooled == UNCALIBRATED:
            chosen, reason = "none", f"fewer than {minimum_positives} cases of a class over all findings together"
        elif chosen == "temperature":
            calibration[finding] = _fit_temperature(logit_of[known], column[known], pooled)
        elif chosen != "pooled":
            platt = _fit(logit_of[known], column[known], pooled.slope, _FINDING_SPREAD)
            isotonic = chosen == "isotonic"
            calibration[finding] = fit_isotonic(logit_of[known], column[known], platt) if isotonic else platt
        choices[finding] = CalibrationChoice(
            method=chosen, positives=int(positives), negatives=int(negatives), reason=reason
        )
    return calibration, choices


def _method(wanted: str, cases: int, rarer: int, minimum_positives: int) -> tuple[CalibrationMethod, str]:
    fewest = max(minimum_positives, 1)
    if rarer < fewest:
        return "pooled", f"{rarer} cases of the rarer class, fewer than {fewest}: the fit of all findings together"
    if wanted == "platt":
        return "platt", "asked for"
    if rarer < PLATT_CASES:
        return "temperature", f"{rarer} cases of the rarer class, fewer than {PLATT_CASES}: one parameter"
    if cases < ISOTONIC_STUDIES or rarer < ISOTONIC_CASES:
        return "platt", f"{cases} studies, {rarer} of the rarer class: enough for two parameters, not for a curve"
    return "isotonic", f"{cases} studies, {rarer} of the rarer class: enough for a curve"


def fit_isotonic(logits: FloatArray, truth: FloatArray, platt: PlattCalibration) -> IsotonicCalibration:
    """A rising curve of at most `KNOTS` knots through the observed shares of one finding, (n,) known validation cases.

    The logits are cut into `KNOTS` groups of equal size; each group's share of positives, with its mean probability by
    `platt` added as one case more, so that none is 0 or 1, goes through isotonic regression (pool adjacent violators).
    The curve is drawn in log-odds between the groups' mean logits, beyond them with Platt's slope. A hundredth of
    Platt's log-odds is added, so that it rises where the regression is flat and ties no two logits.
    """
    order = np.argsort(logits, kind="stable")
    parts = np.array_split(order, min(KNOTS, len(order)))
    centres = np.array([logits[part].mean() for part in parts])
    prior = np.array([expit(platt.slope * logits[part] + platt.intercept).mean() for part in parts])
    sizes = np.array([part.size for part in parts])
    shares = (np.array([truth[part].sum() for part in parts]) + prior) / (sizes + 1)
    pooled = IsotonicRegression().fit_transform(np.arange(len(parts)), shares, sample_weight=sizes)
    kept = [0]
    for i in range(1, len(parts)):
        if centres[i] - centres[kept[-1]] >= _SHORTEST:
            kept.append(i)
    inside = np.clip(pooled[kept], _SURE, 1 - _SURE)  # a prior of 1 to the last digit leaves a share of 1
    rising = logit(inside) + _TILT * platt.slope * (centres[kept] - centres.mean())
    return IsotonicCalibration(knots=tuple(centres[kept].tolist()), log_odds=tuple(rising.tolist()), slope=platt.slope)


def calibrated(logits: npt.ArrayLike, calibration: Mapping[str, Calibration], findings: Sequence[str]) -> FloatArray:
    """Probabilities (N, F) of logits (N, F), as the exported graph computes them.

    They are NaN for a finding without a calibration, which is one that was not trained.
    """
    z, probs = np.asarray(logits, dtype=np.float64), np.full(np.shape(logits), np.nan)
    for f, name in enumerate(findings):
        if name in calibration:
            probs[:, f] = expit(log_odds(z[:, f], calibration[name]))
    return probs


def log_odds(logits: FloatArray, calibration: Calibration) -> FloatArray:
    """Calibrated log-odds (N,) of the logits (N,) of one finding."""
    hinges = as_hinges(calibration)
    straight = logits * hinges.slope + hinges.intercept
    if not hinges.knots:
        return straight
    return straight + np.maximum(logits[:, None] - np.array(hinges.knots), 0) @ np.array(hinges.bends)


def choose_operating_points(
    probs: npt.ArrayLike,
    target: npt.ArrayLike,
    findings: Sequence[str],
    *,
    minimum_positives: int = 10,
    rule: str = "youden",
) -> dict[str, OperatingPoint]:
    """The threshold of each finding on the validation split.

    Arguments as `choose_calibration`, with probabilities. A threshold lies half-way between two neighbouring
    probabilities, so that rounding at export changes no call; of equally good ones the lowest is taken, which misses
    the fewest. With fewer positives or negatives than `minimum_positives` there is none, and every call is "undecided".
    `rule` is ``youden`` (highest sensitivity + specificity), ``f1``, ``sensitivity:0.9`` (the highest specificity with
    at least that sensitivity) or ``specificity:0.9``. Shapes or values that do not fit are a DataError.
    """
    target, probs = checked(target, probs, findings)
    limits = np.full(len(findings), np.nan)
    for f in np.flatnonzero(enough(target, minimum_positives)):
        known = ~np.isnan(target[:, f])
        limits[f] = _threshold(target[known, f], probs[known, f], rule)
    reached = calls(target, probs, limits)
    positives, negatives = class_counts(target)
    return {
        finding: OperatingPoint(
            threshold=or_none(limits[f]),
            rule=rule,
            sensitivity=or_none(reached["sensitivity"][f]),
            specificity=or_none(reached["specificity"][f]),
            positives=int(positives[f]),
            negatives=int(negatives[f]),
        )
        for f, finding in enumerate(findings)
    }


def thresholds_of(points: Mapping[str, OperatingPoint], findings: Sequence[str]) -> FloatArray:
    """The thresholds (F,) in column order, NaN where there is none."""
    values = (points[name].threshold if name in points else None for name in findings)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


class Reliability(Described):
    """A reliability curve: mean probability, share of positives and number of cases (b,) of each bin that has cases."""

    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    counts: tuple[int, ...]


def reliability(target: npt.ArrayLike, probs: npt.ArrayLike) -> Reliability:
    """The reliability curve over `BINS` bins of equal width, of one finding (N,) or of all findings together (N, F).

    `target` is 1, 0 or NaN for unknown, `probs` in 0…1 and of the same shape.
    """
    truth, probability = checked(np.reshape(target, (-1, 1)), np.reshape(probs, (-1, 1)))
    known = ~np.isnan(truth)
    truth, probability = truth[known], probability[known]
    index = bin_of(probability)
    counts = np.bincount(index, minlength=BINS)
    filled = counts > 0
    predicted = np.bincount(index, weights=probability, minlength=BINS)[filled] / counts[filled]
    observed = np.bincount(index, weights=truth, minlength=BINS)[filled] / counts[filled]
    return Reliability(
        predicted=tuple(predicted.tolist()), observed=tuple(observed.tolist()), counts=tuple(counts[filled].tolist())
    )


def log_loss(target: npt.ArrayLike, probs: npt.ArrayLike) -> float:
    """Mean negative log-likelihood (natural logarithm) over all known labels; probabilities are kept off 0 and 1."""
    target, probs = checked(target, probs)
    known = ~np.isnan(target)
    if not known.any():
        return float("nan")
    p = np.clip(probs[known], _SURE, 1 - _SURE)
    return float(-(target[known] * np.log(p) + (1 - target[known]) * np.log1p(-p)).mean())


def _fit_temperature(logits: FloatArray, truth: FloatArray, pooled: PlattCalibration) -> PlattCalibration:
    """Log-odds of the pooled fit divided by one temperature (Guo et al., ICML 2017), whose logarithm has a prior."""
    z = pooled.slope * logits + pooled.intercept

    def loss(log_inverse: float) -> float:
        scaled = np.exp(log_inverse) * z
        return float(np.logaddexp(0, scaled).sum() - (truth * scaled).sum() + (log_inverse / _FINDING_SPREAD) ** 2 / 2)

    factor = float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))
    return PlattCalibration(slope=factor * pooled.slope, intercept=factor * pooled.intercept)


def _fit(logits: FloatArray, truth: FloatArray, towards: float, spread: float) -> PlattCalibration:
    """Slope and intercept, for probability = sigmoid(slope · logit + intercept); the slope is drawn towards another.

    Maximum a posteriori (Platt 1999 with a prior instead of smoothed targets): log(slope) has a normal prior, so that
    every slope is above 0. The pooled fit of all findings is drawn towards slope 1, each finding towards the pool's.
    """

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


def _threshold(truth: FloatArray, probs: FloatArray, rule: str) -> float:
    name, _, share = rule.partition(":")
    wanted = float(share or 1) - 1e-12
    false_rate, true_rate, scores = roc_curve(truth, probs, drop_intermediate=False)
    # The first point calls nothing present: a threshold just above the highest probability.
    positives, negatives = truth.sum(), (1 - truth).sum()
    tp, fp = np.rint(true_rate * positives), np.rint(false_rate * negatives)
    specific = 1 - false_rate
    merit = {
        "youden": tp * negatives - fp * positives,  # whole numbers, so that ties are ties
        "f1": 2 * tp / (tp + fp + positives),
        "sensitivity": np.where(true_rate >= wanted, specific, -1 + true_rate),
        "specificity": np.where(specific >= wanted, true_rate, -1 + specific),
    }[name]
    best = len(merit) - 1 - int(np.argmax(merit[::-1]))
    above = scores[best] if best else 1.0 + 1e-6
    below = scores[best + 1] if best + 1 < len(scores) else 0.0
    middle = (above + below) / 2
    return float(middle if middle > below else above)
