"""Calibration that makes held-out probabilities truer, and thresholds that do what their rule says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score

from medsd.calibration import fit as calibration
from medsd.calibration.fit import (
    calibrated,
    choose_calibration,
    choose_operating_points,
    fit_isotonic,
    log_loss,
)
from medsd.calibration.types import KNOTS, IsotonicCalibration, OperatingPoint, PlattCalibration, call
from medsd.errors import DataError
from medsd.metrics import metrics
from medsd.settings import EvaluationSettings

NAMES = ("a", "b", "c", "d")


def fit_platt(*arguments: object, **options: object) -> dict[str, PlattCalibration]:
    return choose_calibration(*arguments, method="platt", **options)[0]  # type: ignore[arg-type, return-value]


def overconfident(seed: int, n: int, shift: float = 1.0, scale: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `scale` times too large and `shift` too high, and the truth."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1.5, 1.2, (n, 4))
    target = (rng.random((n, 4)) < expit(z)).astype(float)
    target[rng.random((n, 4)) < 0.1] = np.nan
    return scale * z + shift, target


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [80, 300])
def test_calibration_lowers_the_log_loss_and_the_calibration_error_of_held_out_logits(seed: int, n: int) -> None:
    fit = fit_platt(*overconfident(seed, n), NAMES)
    logits, target = overconfident(seed + 100, 2000)
    before, after = expit(logits), calibrated(logits, fit, NAMES)
    assert log_loss(target, after) < log_loss(target, before) - 0.05
    assert metrics.calibration_error(target, after).mean() < metrics.calibration_error(target, before).mean()


def test_calibration_finds_the_slope_and_intercept_that_made_the_labels() -> None:
    fit = fit_platt(*overconfident(0, 20_000, shift=1.0, scale=2.5), NAMES)
    for name in NAMES:
        assert fit[name].slope == pytest.approx(1 / 2.5, rel=0.08)
        assert fit[name].intercept == pytest.approx(-1.0 / 2.5, abs=0.08)


def test_the_fit_is_the_minimum_of_its_written_out_objective() -> None:
    logits, target = overconfident(3, 150)
    fit = fit_platt(logits, target, NAMES)
    known = ~np.isnan(target)

    def objective(z: np.ndarray, y: np.ndarray, towards: float, spread: float) -> tuple[float, float]:
        def value(at: np.ndarray) -> float:
            p = expit(np.exp(at[0]) * z + at[1])
            prior = ((at[0] - np.log(towards)) / spread) ** 2 / 2
            return float(-(y * np.log(p) + (1 - y) * np.log1p(-p)).sum() + prior)

        best = minimize(value, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}).x
        return float(np.exp(best[0])), float(best[1])

    pooled, _ = objective(logits[known], target[known], 1.0, 1.0)
    for f, name in enumerate(NAMES):
        slope, intercept = objective(logits[known[:, f], f], target[known[:, f], f], pooled, 0.5)
        assert fit[name].slope == pytest.approx(slope, rel=1e-3)
        assert fit[name].intercept == pytest.approx(intercept, abs=1e-3)


def test_findings_with_too_few_positives_share_the_pooled_fit() -> None:
    logits, target = overconfident(1, 300)
    for f in (0, 2):
        target[np.flatnonzero(target[:, f] == 1)[5:], f] = 0
    fit = fit_platt(logits, target, NAMES)
    assert fit["a"] == fit["c"]
    assert fit["a"].intercept != 0
    assert len({fit["a"], fit["b"], fit["d"]}) == 3


def test_without_any_positive_the_probabilities_stay_as_they_are() -> None:
    fit = fit_platt(np.random.default_rng(0).normal(size=(50, 4)), np.zeros((50, 4)), NAMES)
    assert all((f.slope, f.intercept) == (1.0, 0.0) for f in fit.values())


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_the_slope_is_positive_and_finite_for_separable_and_for_reversed_logits(direction: float) -> None:
    target = (np.arange(80)[:, None] % 2 == np.zeros(4)).astype(float)
    fit = fit_platt(direction * (target * 2 - 1) * 5, target, NAMES)
    assert all(0 < f.slope < 50 and np.isfinite(f.intercept) for f in fit.values())


def test_calibration_does_not_change_the_ranking() -> None:
    logits, target = overconfident(5, 200)
    fit = fit_platt(logits, target, NAMES)
    np.testing.assert_array_equal(
        np.argsort(logits, axis=0, kind="stable"), np.argsort(calibrated(logits, fit, NAMES), axis=0, kind="stable")
    )


def sized(positives: int, negatives: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One column with so many positives and negatives, beside three frequent ones for the pool."""
    logits, target = overconfident(seed, positives + negatives)
    target[:, 0] = np.nan
    order = np.argsort(-(logits[:, 0] + 4 * np.random.default_rng(seed).normal(size=len(logits))))
    target[order[:positives], 0], target[order[positives:], 0] = 1, 0
    return logits, target


@pytest.mark.parametrize(
    ("positives", "negatives", "method"),
    [
        (9, 300, "pooled"),
        (10, 300, "temperature"),
        (24, 300, "temperature"),
        (25, 300, "platt"),
        (120, 870, "platt"),
        (99, 1200, "platt"),
        (120, 880, "isotonic"),
    ],
)
def test_the_calibration_is_as_rich_as_its_cases_allow(positives: int, negatives: int, method: str) -> None:
    found, choices = choose_calibration(*sized(positives, negatives), NAMES)
    assert choices["a"].method == method
    assert (choices["a"].positives, choices["a"].negatives) == (positives, negatives)
    assert str(min(positives, negatives)) in choices["a"].reason
    assert isinstance(found["a"], IsotonicCalibration) == (method == "isotonic")


def test_platt_can_be_asked_for_whatever_the_size() -> None:
    found, choices = choose_calibration(*sized(120, 880), NAMES, method="platt")
    assert isinstance(found["a"], PlattCalibration) and choices["a"].method == "platt"
    assert choose_calibration(*sized(120, 880), NAMES)[1]["a"].method == "isotonic"
    with pytest.raises(ValidationError, match="calibration"):
        EvaluationSettings(calibration="beta")


def test_a_temperature_scales_the_pooled_log_odds_and_minimises_its_written_out_objective() -> None:
    logits, target = sized(15, 200)
    found, _ = choose_calibration(logits, target, NAMES)
    pooled = fit_platt(logits, target, NAMES, minimum_positives=30)["a"]  # too few for a fit of its own
    assert found["a"].slope / pooled.slope == pytest.approx(found["a"].intercept / pooled.intercept)
    z, y = pooled.slope * logits[:, 0] + pooled.intercept, target[:, 0]

    def objective(factor: float) -> float:
        p = expit(factor * z)
        return float(-(y * np.log(p) + (1 - y) * np.log1p(-p)).sum() + (np.log(factor) / 0.5) ** 2 / 2)

    best = objective(found["a"].slope / pooled.slope)
    assert all(best <= objective(factor * found["a"].slope / pooled.slope) for factor in (0.98, 1.02))


def test_without_any_positive_nothing_is_calibrated_and_the_reason_says_so() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4))
    found, choices = choose_calibration(logits, np.zeros((50, 4)), NAMES)
    np.testing.assert_allclose(calibrated(logits, found, NAMES), expit(logits))
    assert {c.method for c in choices.values()} == {"none"}


@pytest.mark.parametrize("seed", range(3))
def test_an_isotonic_curve_follows_what_no_slope_can(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        z = rng.normal(0, 2, (n, 1))
        return z, (rng.random((n, 1)) < np.where(z > 1, 0.8, 0.15)).astype(float)  # a step

    logits, target = draw(3000)
    platt = fit_platt(logits, target, "a")
    curve, choices = choose_calibration(logits, target, "a")
    assert choices["a"].method == "isotonic"
    assert len(curve["a"].knots) <= KNOTS
    logits, target = draw(5000)
    before, after = calibrated(logits, platt, "a"), calibrated(logits, curve, "a")
    assert log_loss(target, after) < log_loss(target, before) - 0.01
    assert metrics.calibration_error(target, after)[0] < 0.5 * metrics.calibration_error(target, before)[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(0.0, 1.0))
def test_an_isotonic_curve_rises_everywhere_and_stays_inside(seed: int, n: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(0, 3, n), 1)  # with ties
    curve = fit_isotonic(logits, (rng.random(n) < rate).astype(float), PlattCalibration(slope=0.7, intercept=-0.2))
    grid = np.linspace(-15, 15, 301)[:, None]
    values = calibrated(grid, {"a": curve}, "a")[:, 0]
    assert (np.diff(values) > 0).all()
    assert values.min() > 0 and values.max() < 1


def test_an_isotonic_curve_of_logits_that_decide_everything_is_finite() -> None:
    logits = np.linspace(-400, 400, 200)
    curve = fit_isotonic(logits, (logits > 0).astype(float), PlattCalibration(slope=1.0, intercept=0.0))
    assert np.isfinite(curve.log_odds).all() and curve.log_odds[0] < -20 and curve.log_odds[-1] > 20


def test_the_hinges_of_an_isotonic_curve_are_its_interpolation() -> None:
    curve = IsotonicCalibration(knots=(-2.0, 0.5, 1.0), log_odds=(-3.0, -1.0, 2.0), slope=0.5)
    inside = np.linspace(-2, 1, 40)
    values = logit(calibrated(inside[:, None], {"a": curve}, "a")[:, 0])
    np.testing.assert_allclose(values, np.interp(inside, curve.knots, curve.log_odds), atol=1e-12)
    np.testing.assert_allclose(
        logit(calibrated([[-4.0], [3.0]], {"a": curve}, "a")[:, 0]), [-3 - 0.5 * 2, 2 + 0.5 * 2], atol=1e-12
    )


@pytest.mark.parametrize("log_odds", [(0.0, 0.0), (1.0, 0.0), (0.0,)])
def test_a_curve_that_does_not_rise_is_no_calibration(log_odds: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="each above the one before"):
        IsotonicCalibration(knots=(0.0, 1.0), log_odds=log_odds, slope=1.0)


def test_youden_maximises_sensitivity_plus_specificity_over_every_threshold() -> None:
    logits, target = overconfident(7, 250)
    probs = expit(logits)
    for f, point in enumerate(choose_operating_points(probs, target, NAMES).values()):
        known = ~np.isnan(target[:, f])
        truth, probability = target[known, f] == 1, probs[known, f]
        sums = [(probability[truth] >= t).mean() + (probability[~truth] < t).mean() for t in np.unique(probability)]
        assert point.sensitivity + point.specificity == pytest.approx(max(sums))
        assert point.sensitivity == pytest.approx((probability[truth] >= point.threshold).mean())
        assert (point.positives, point.negatives) == (truth.sum(), (~truth).sum())


def test_the_f1_rule_maximises_f1_over_every_threshold() -> None:
    logits, target = overconfident(8, 250)
    probs = expit(logits)
    for f, point in enumerate(choose_operating_points(probs, target, NAMES, rule="f1").values()):
        known = ~np.isnan(target[:, f])
        truth, probability = target[known, f], probs[known, f]
        called = probability >= np.unique(probability)[:, None]  # (thresholds, n)
        best = (2 * called @ truth / (called.sum(1) + truth.sum())).max()
        assert f1_score(truth, probability >= point.threshold) == pytest.approx(best)


@pytest.mark.parametrize(("rule", "fixed", "free"), [("sensitivity:0.9", 0, 1), ("specificity:0.8", 1, 0)])
def test_a_fixed_rate_is_reached_and_the_other_is_the_best_that_leaves_it(rule: str, fixed: int, free: int) -> None:
    logits, target = overconfident(9, 250)
    probs, wanted = expit(logits), float(rule.split(":")[1])
    for f, point in enumerate(choose_operating_points(probs, target, NAMES, rule=rule).values()):
        known = ~np.isnan(target[:, f])
        truth, probability = target[known, f] == 1, probs[known, f]
        levels = [*np.unique(probability), 1.01]
        rates = np.array([((probability[truth] >= t).mean(), (probability[~truth] < t).mean()) for t in levels])
        reached = (point.sensitivity, point.specificity)
        assert reached[fixed] >= wanted
        assert reached[free] == pytest.approx(rates[rates[:, fixed] >= wanted - 1e-12][:, free].max())


def test_too_few_cases_have_no_threshold_and_every_call_is_undecided() -> None:
    logits, target = overconfident(2, 200)
    target[np.flatnonzero(target[:, 1] == 1)[9:], 1] = 0
    point = choose_operating_points(expit(logits), target, NAMES)["b"]
    assert point == OperatingPoint(threshold=None, rule="youden", positives=9, negatives=point.negatives)
    assert call(0.99, point) == "undecided"


@pytest.mark.parametrize("rule", ["youden", "f1", "sensitivity:0.9", "specificity:0.9"])
def test_rounding_the_probabilities_to_single_precision_changes_no_call(rule: str) -> None:
    logits, target = overconfident(4, 300)
    probs = expit(logits)
    limits = calibration.thresholds_of(choose_operating_points(probs, target, NAMES, rule=rule), NAMES)
    np.testing.assert_array_equal(probs >= limits, probs.astype(np.float32) >= limits)


def test_of_equally_good_thresholds_the_lowest_is_taken() -> None:
    probs = np.array([[0.8], [0.6], [0.4], [0.2]])
    point = choose_operating_points(probs, np.array([[1.0], [0.0], [1.0], [0.0]]), "a", minimum_positives=1)["a"]
    assert (point.sensitivity, point.specificity) == (1, 0.5)
    assert point.threshold == pytest.approx(0.3)


def test_thresholds_at_the_ends_of_the_scale_call_as_they_were_chosen() -> None:
    target = np.array([[1.0], [0.0], [1.0], [0.0]])
    strict = choose_operating_points(
        np.array([[0.0], [1.0], [0.0], [1.0]]), target, "a", minimum_positives=1, rule="specificity:0.9"
    )
    assert (strict["a"].sensitivity, strict["a"].specificity) == (0, 1)
    assert call(1.0, strict["a"]) == "absent"


def test_thresholds_come_in_column_order_with_nan_for_none() -> None:
    points = {
        "b": OperatingPoint(threshold=0.3, rule="f1", positives=1, negatives=1),
        "a": OperatingPoint(threshold=None, rule="f1", positives=0, negatives=1),
    }
    np.testing.assert_array_equal(calibration.thresholds_of(points, ("a", "b")), [np.nan, 0.3])


def test_the_reliability_curve_equals_scikit_learns() -> None:
    logits, target = overconfident(6, 400)
    known = ~np.isnan(target)
    curve = calibration.reliability(target, expit(logits))
    observed, predicted = calibration_curve(target[known], expit(logits)[known], n_bins=10)
    np.testing.assert_allclose(curve.observed, observed)
    np.testing.assert_allclose(curve.predicted, predicted)
    assert sum(curve.counts) == known.sum()


@pytest.mark.parametrize("rule", ["best", "sensitivity", "sensitivity:high", "specificity:1.5", "youden:0.5"])
def test_an_unknown_rule_is_refused_with_the_known_ones(rule: str) -> None:
    with pytest.raises(ValidationError, match="youden"):
        EvaluationSettings(operating_points=rule)


def test_columns_without_a_name_and_unreadable_logits_are_refused() -> None:
    with pytest.raises(DataError, match="4 columns for 3 findings"):
        fit_platt(np.zeros((5, 4)), np.zeros((5, 4)), NAMES[:3])
    with pytest.raises(DataError, match="NaN or infinite"):
        fit_platt(np.full((5, 4), np.inf), np.zeros((5, 4)), NAMES)
