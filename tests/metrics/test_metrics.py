"""Metrics against scikit-learn, finding by finding, on random and degenerate inputs with unknown labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from medsd.errors import DataError
from medsd.metrics import metrics
from medsd.metrics.intervals import IntervalOptions, metric_intervals
from medsd.metrics.metrics import AT_THRESHOLD, THRESHOLD_FREE
from tests.metrics.measured import measure


def random_case(seed: int, n: int = 120, f: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probs = np.round(rng.random((n, f)), 2)  # with ties
    target = (rng.random((n, f)) < probs * 0.6).astype(float)
    target[rng.random((n, f)) < 0.2] = np.nan
    return target, probs


@pytest.mark.parametrize("seed", range(4))
def test_every_threshold_free_metric_equals_scikit_learns_on_the_known_labels(seed: int) -> None:
    target, probs = random_case(seed)
    for f in range(target.shape[1]):
        known = ~np.isnan(target[:, f])
        truth, probability = target[known, f], probs[known, f]
        assert metrics.auroc(target, probs)[f] == pytest.approx(sk.roc_auc_score(truth, probability))
        assert metrics.average_precision(target, probs)[f] == pytest.approx(
            sk.average_precision_score(truth, probability)
        )
        assert metrics.brier(target, probs)[f] == pytest.approx(np.mean((truth - probability) ** 2))


@pytest.mark.parametrize("seed", range(4))
def test_every_metric_at_a_threshold_equals_scikit_learns_on_the_known_labels(seed: int) -> None:
    target, probs = random_case(seed)
    limits = np.full(5, 0.4)
    result = measure(target, probs, limits)
    for f in range(5):
        known = ~np.isnan(target[:, f])
        truth, called = target[known, f], probs[known, f] >= 0.4
        assert result.sensitivity[f] == pytest.approx(sk.recall_score(truth, called))
        assert result.specificity[f] == pytest.approx(sk.recall_score(truth, called, pos_label=0))
        assert result.ppv[f] == pytest.approx(sk.precision_score(truth, called))
        assert result.npv[f] == pytest.approx(sk.precision_score(truth, called, pos_label=0))
        assert result.f1[f] == pytest.approx(sk.f1_score(truth, called))


def test_micro_and_macro_f1_equal_scikit_learns_without_unknown_labels() -> None:
    target, probs = random_case(7)
    target = np.nan_to_num(target)
    result = measure(target, probs, np.full(5, 0.4))
    called = probs >= 0.4
    assert result.micro_f1 == pytest.approx(sk.f1_score(target, called, average="micro"))
    assert metrics.macro(result.f1) == pytest.approx(sk.f1_score(target, called, average="macro"))


def test_micro_f1_equals_scikit_learns_over_all_known_labels() -> None:
    target, probs = random_case(8)
    known = ~np.isnan(target)
    expected = sk.f1_score(target[known], probs[known] >= 0.4)
    assert measure(target, probs, np.full(5, 0.4)).micro_f1 == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_the_written_out_sum_over_bins(seed: int) -> None:
    target, probs = random_case(seed)
    for f, value in enumerate(metrics.calibration_error(target, probs)):
        known = ~np.isnan(target[:, f])
        truth, probability = target[known, f], probs[known, f]
        total = 0.0
        for low, high in zip(np.linspace(0, 1, 11)[:-1], np.linspace(0, 1, 11)[1:], strict=True):
            inside = (probability > low) & (probability <= high) | (low == 0) & (probability == 0)
            if inside.any():
                total += inside.mean() * abs(truth[inside].mean() - probability[inside].mean())
        assert value == pytest.approx(total)


def test_a_perfectly_calibrated_set_has_no_calibration_error_and_a_reversed_one_has_all_of_it() -> None:
    target = np.array([[0], [0], [1], [1]])
    assert metrics.calibration_error(target, target.astype(float))[0] == 0
    assert metrics.calibration_error(target, 1.0 - target)[0] == 1


def test_a_finding_with_too_few_positives_is_nan_everywhere_and_left_out_of_the_mean() -> None:
    target, probs = random_case(1)
    target[:, 2] = 0
    target[:9, 2] = 1
    result = measure(target, probs, np.full(5, 0.4), minimum_positives=10)
    assert metrics.enough(target, 10).tolist() == [True, True, False, True, True]
    for name in ("auroc", "average_precision", "brier", "calibration_error", "sensitivity", "ppv", "npv", "f1"):
        assert np.isnan(getattr(result, name)).tolist() == [False, False, True, False, False]
    others = np.delete(result.auroc, 2)
    assert metrics.macro(result.auroc) == pytest.approx(others.mean())


def test_just_enough_positives_or_negatives_are_enough() -> None:
    target = np.zeros((25, 2))
    target[:10, 0], target[:15, 1] = 1, 1
    assert metrics.enough(target, 10).all()
    assert not metrics.enough(target, 11).any()


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_a_finding_of_one_class_or_of_none_gives_nan_without_a_warning(value: float) -> None:
    target, probs = random_case(2)
    target[:, 0] = value
    result = measure(target, probs, np.full(5, 0.4), minimum_positives=1)
    assert np.isnan(result.auroc[0])
    assert np.isnan(result.f1[0])
    assert np.isfinite(result.auroc[1:]).all()


def test_findings_of_one_class_only_leave_a_mean_over_none() -> None:
    result = measure(np.zeros((3, 2)), np.full((3, 2), 0.5))
    assert np.isnan(metrics.macro(result.auroc))
    assert np.isnan(result.micro_f1)


Column = list[tuple[float, int]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, float("nan")]), st.integers(0, 4)), min_size=1, max_size=25))
def test_every_metric_equals_scikit_learns_whatever_is_unknown_tied_or_of_one_class(column: Column) -> None:
    target, probs = np.array(column).T[:, :, None] / [
        [[1]],
        [[4]],
    ]  # one study, all unknown, constant scores: all occur
    result = measure(target, probs, [0.5], minimum_positives=1)
    known = ~np.isnan(target[:, 0])
    truth, probability = target[known, 0], probs[known, 0]
    called = probability >= 0.5
    positives, negatives = metrics.class_counts(target)
    assert (positives[0], negatives[0]) == ((truth == 1).sum(), (truth == 0).sum())
    if len(np.unique(truth)) < 2:
        assert all(np.isnan(getattr(result, name)[0]) for name in THRESHOLD_FREE + AT_THRESHOLD)
        return
    expected = {
        "auroc": sk.roc_auc_score(truth, probability),
        "average_precision": sk.average_precision_score(truth, probability),
        "brier": sk.brier_score_loss(truth, probability),
        "sensitivity": sk.recall_score(truth, called),
        "specificity": sk.recall_score(truth, called, pos_label=0),
        "ppv": sk.precision_score(truth, called, zero_division=np.nan),
        "npv": sk.precision_score(truth, called, pos_label=0, zero_division=np.nan),
        "f1": sk.f1_score(truth, called),
    }
    for name, value in expected.items():
        assert getattr(result, name)[0] == pytest.approx(value, nan_ok=True), name
    assert result.micro_f1 == pytest.approx(expected["f1"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, float("nan")]), st.integers(0, 4)), min_size=1, max_size=12))
def test_intervals_of_degenerate_sets_are_too_few_to_tell_or_hold_their_value(column: Column) -> None:
    target, probs = np.array(column).T[:, :, None] / [[[1]], [[4]]]
    patients, options = np.arange(len(target)).astype(str), IntervalOptions(resamples=30, minimum_positives=2)
    found = metric_intervals(target, probs, patients, options, thresholds=[0.5])
    too_few = not metrics.enough(target, 2)[0]
    for name in ("auroc", "average_precision", "brier", "sensitivity", "specificity", "f1"):
        interval = found[name].findings[0]
        assert (interval.value is None) == too_few, name
        if interval.low is not None:
            assert 0 <= interval.low <= interval.high <= 1


def test_a_constant_score_has_the_prevalence_as_its_average_precision_and_calibration_error() -> None:
    target = np.array([[1.0], [0.0], [0.0], [0.0], [np.nan]])
    assert metrics.average_precision(target, np.full((5, 1), 0.9))[0] == 0.25
    assert metrics.calibration_error(target, np.full((5, 1), 0.9))[0] == pytest.approx(0.65)


def test_equal_probabilities_give_half_an_area() -> None:
    target = np.array([[1], [0], [1], [0]])
    assert metrics.auroc(target, np.full((4, 1), 0.3))[0] == 0.5
    assert metrics.average_precision(target, np.full((4, 1), 0.3))[0] == 0.5


def test_a_probability_on_the_threshold_is_a_call() -> None:
    calls = metrics.calls(np.array([[1], [0]]), np.array([[0.5], [0.49]]), [0.5])
    assert (calls["sensitivity"][0], calls["specificity"][0]) == (1, 1)


def test_a_finding_without_threshold_is_not_called() -> None:
    target, probs = random_case(3)
    result = measure(target, probs, [0.4, np.nan, 0.4, 0.4, 0.4])
    assert np.isnan(result.sensitivity).tolist() == [False, True, False, False, False]
    assert np.isfinite(result.auroc[1])
    rest = measure(np.delete(target, 1, 1), np.delete(probs, 1, 1), np.full(4, 0.4))
    assert result.micro_f1 == rest.micro_f1


@pytest.mark.parametrize(
    ("target", "probs", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), "shape"),
        (np.zeros(3), np.zeros(3), "images, findings"),
        (np.full((3, 2), 0.5), np.zeros((3, 2)), "1 \\(present\\)"),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), "NaN"),
        (np.zeros((3, 2)), np.full((3, 2), 1.5), "0…1"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "one or more"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_a_reason(target: np.ndarray, probs: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        metrics.brier(target, probs)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_metrics_do_not_depend_on_the_order_of_images_or_findings(seed: int) -> None:
    target, probs = random_case(seed, n=40, f=3)
    rows, columns = np.random.default_rng(seed).permutation(40), [2, 0, 1]
    first = measure(target, probs, np.full(3, 0.4), minimum_positives=2)
    second = measure(target[rows][:, columns], probs[rows][:, columns], np.full(3, 0.4), minimum_positives=2)
    for name in ("auroc", "average_precision", "brier", "calibration_error", "f1", "npv"):
        np.testing.assert_allclose(getattr(first, name)[columns], getattr(second, name), rtol=1e-9)


def test_a_threshold_is_needed_for_each_finding() -> None:
    with pytest.raises(DataError, match="one is needed for each of 3 findings"):
        metrics.calls(np.ones((4, 3)), np.ones((4, 3)), [0.5])
