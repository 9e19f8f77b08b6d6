"""Weighted metrics against scikit-learn's sample_weight, and intervals that cover."""

import numpy as np
import pytest
from scipy.stats import binom, norm, t
from sklearn.metrics import average_precision_score, roc_auc_score

from medsd.errors import DataError
from medsd.metrics import intervals, metrics
from medsd.metrics.intervals import IntervalOptions, Resamples
from tests.bench.bench_intervals import ABOVE, coverage
from tests.metrics.measured import measure


def random_case(seed: int, n: int = 80, f: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probs = np.round(rng.random((n, f)), 1 + seed % 2)  # with ties
    target = (rng.random((n, f)) < probs * 0.7).astype(float)
    target[rng.random((n, f)) < 0.15] = np.nan
    return target, probs, np.array([f"p{i}" for i in rng.integers(n // 2, size=n)])


@pytest.mark.parametrize("seed", range(6))
def test_weighted_auroc_and_average_precision_equal_scikit_learns_sample_weight(seed: int) -> None:
    target, probs, patients = random_case(seed)
    known = ~np.isnan(target[:, 0])
    truth, scores = target[known, 0], probs[known, 0]
    weights = next(Resamples.draw(patients, 30, seed).blocks())[:, known]
    auroc = metrics.weighted_auroc(truth, scores, weights)
    precision = metrics.weighted_average_precision(truth, scores, weights)
    for row, weight in enumerate(weights):
        assert auroc[row] == pytest.approx(roc_auc_score(truth, scores, sample_weight=weight), abs=1e-12)
        assert precision[row] == pytest.approx(average_precision_score(truth, scores, sample_weight=weight), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_every_weighted_metric_equals_the_metric_of_the_images_repeated(seed: int) -> None:
    target, probs, patients = random_case(seed)
    limits = np.array([0.4, 0.6, np.nan, 0.2])
    for weights in next(Resamples.draw(patients, 5, seed).blocks()):
        values = metrics.weighted_metrics(target, probs, weights[None], limits)
        repeated = np.repeat(np.arange(len(target)), weights.astype(int))
        expected = measure(target[repeated], probs[repeated], limits, minimum_positives=1)
        for name in metrics.THRESHOLD_FREE + metrics.AT_THRESHOLD:
            np.testing.assert_allclose(values[name][0], getattr(expected, name), atol=1e-12, err_msg=name)
        assert values["micro_f1"][0, 0] == pytest.approx(expected.micro_f1)


def test_values_are_those_of_the_metrics_module_and_lie_in_their_intervals() -> None:
    target, probs, patients = random_case(1, n=200)
    limits = np.full(4, 0.5)
    measured = measure(target, probs, limits)
    for name, found in intervals.metric_intervals(
        target, probs, patients, IntervalOptions(resamples=200), thresholds=limits
    ).items():
        value = measured.micro_f1 if name == "micro_f1" else metrics.macro(getattr(measured, name))
        assert found.macro.value == pytest.approx(value)
        assert found.over == 4
        for interval in (*found.findings, found.macro):
            assert interval.low is not None
            assert interval.low <= interval.value <= interval.high


def test_the_interval_is_that_of_the_expanded_percentiles_moved_by_the_bias() -> None:
    values = np.random.default_rng(0).normal(size=40)
    drawn = Resamples.draw([f"p{i}" for i in range(40)], 300, seed=5)

    def variance(weights: np.ndarray) -> np.ndarray:  # the plain variance of a resample is too small on average
        mean = weights @ values / 40
        return ((weights @ values**2) / 40 - mean**2)[:, None]

    samples = variance(next(drawn.blocks()))[:, 0]
    (interval,) = intervals.bootstrap(variance, drawn, 0.9)
    assert samples.mean() < values.var()
    tail = norm.sf(np.sqrt(40 / 39) * t.ppf(0.95, 39))  # a little below 0.05
    assert interval.low == pytest.approx(np.quantile(samples, tail) + values.var() - samples.mean())
    assert interval.high == pytest.approx(np.quantile(samples, 1 - tail) + values.var() - samples.mean())


def test_the_calibration_error_of_a_calibrated_model_lies_in_its_interval() -> None:
    rng = np.random.default_rng(0)
    probs = rng.random((300, 6))
    target = (rng.random((300, 6)) < probs).astype(float)
    macro = intervals.metric_intervals(target, probs, np.arange(300).astype(str), IntervalOptions(resamples=200))
    found = macro["calibration_error"].macro
    assert 0 <= found.low < found.value < found.high


def test_a_patient_is_drawn_with_all_images() -> None:
    drawn = Resamples.draw(["b", "a", "b", "c"], 50, seed=3)
    weights = next(drawn.blocks())
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(1), np.full(50, 3))


def test_resamples_depend_on_the_seed_and_not_on_the_order_of_the_images() -> None:
    patients = np.array(["c", "a", "b", "a", "d"])
    order = np.array([4, 2, 0, 1, 3])
    first, again = next(Resamples.draw(patients, 20, 1).blocks()), next(Resamples.draw(patients[order], 20, 1).blocks())
    np.testing.assert_array_equal(first[:, order], again)
    assert (first != next(Resamples.draw(patients, 20, 2).blocks())).any()


def test_blocks_of_resamples_join_to_the_same_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(2)
    whole = intervals.metric_intervals(*case, IntervalOptions(resamples=60))
    monkeypatch.setattr(intervals, "_BLOCK", 800)
    for name, found in intervals.metric_intervals(*case, IntervalOptions(resamples=60)).items():
        assert [str(i) for i in (*found.findings, found.macro)] == [
            str(i) for i in (*whole[name].findings, whole[name].macro)
        ]


def test_images_of_one_patient_widen_the_interval() -> None:
    target, probs, _ = random_case(4, n=60)
    apart = [f"p{i}" for i in range(240)]
    together = [f"p{i % 60}" for i in range(240)]  # every image four times
    wide, narrow = (
        intervals.metric_intervals(np.tile(target, (4, 1)), np.tile(probs, (4, 1)), patients)["auroc"].macro
        for patients in (together, apart)
    )
    assert 1.7 < (wide.high - wide.low) / (narrow.high - narrow.low) < 2.8  # √4, and the fewer patients


def test_resamples_that_lose_a_class_are_counted_and_left_out() -> None:
    target = np.zeros((30, 1))
    target[:2] = 1
    probs = np.linspace(1, 0, 30)[:, None]
    patients = [f"p{i}" for i in range(30)]
    found = intervals.metric_intervals(target, probs, patients, IntervalOptions(minimum_positives=1, resamples=400))[
        "auroc"
    ]
    share = (1 - 2 / 30) ** 30  # neither of two patients is drawn
    assert 0.6 * share < found.findings[0].undefined / 400 < 1.6 * share
    assert found.findings[0].low == found.findings[0].high == 1
    assert found.macro.undefined == found.findings[0].undefined


def test_a_finding_whose_positives_are_one_patient_has_no_interval_when_most_resamples_lose_it() -> None:
    values = intervals.bootstrap(
        lambda w: np.where(w[:, :1] > 1, 1.0, np.nan) if len(w) > 1 else np.ones((1, 1)),
        Resamples.draw(["a", "b", "c", "d"], 200, 0),
    )
    assert values[0].value == 1
    assert values[0].low is None
    assert values[0].undefined > 100
    assert str(values[0]) == "1.000 (no interval)"


def test_too_few_cases_have_no_value_and_say_so() -> None:
    target, probs, patients = random_case(5)
    target[:, 1] = np.where(np.arange(80) < 3, 1, 0)
    found = intervals.metric_intervals(target, probs, patients, IntervalOptions(resamples=50, minimum_positives=10))[
        "auroc"
    ]
    assert str(found.findings[1]) == "too few to tell"
    assert found.over == 3
    kept = np.delete(metrics.auroc(target, probs), 1)
    assert found.macro.value == pytest.approx(kept.mean())


def test_a_model_does_not_differ_from_itself_and_differs_from_a_better_one() -> None:
    target, probs, patients = random_case(6, n=200)
    better = np.clip(probs + 0.2 * (np.nan_to_num(target, nan=0.5) - 0.5), 0, 1)
    same = intervals.metric_intervals(target, probs, patients, IntervalOptions(resamples=100), other=probs)[
        "auroc"
    ].macro
    assert (same.value, same.low, same.high) == (0, 0, 0)
    gain = intervals.metric_intervals(target, better, patients, IntervalOptions(resamples=200), other=probs)[
        "auroc"
    ].macro
    assert gain.value == pytest.approx(metrics.auroc(target, better).mean() - metrics.auroc(target, probs).mean())
    assert gain.low > 0


def test_the_paired_interval_is_narrower_than_that_of_unpaired_models() -> None:
    target, probs, patients = random_case(7, n=200)
    near = np.clip(probs + np.random.default_rng(0).normal(0, 0.02, probs.shape), 0, 1)
    paired = intervals.metric_intervals(target, near, patients, IntervalOptions(resamples=200), other=probs)[
        "auroc"
    ].macro
    alone = intervals.metric_intervals(target, probs, patients, IntervalOptions(resamples=200))["auroc"].macro
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_patients_that_do_not_match_the_images_are_refused() -> None:
    target, probs, patients = random_case(1)
    with pytest.raises(DataError, match="one patient key for each image"):
        intervals.metric_intervals(target, probs, patients[:-1])
    with pytest.raises(DataError, match="nothing to resample"):
        Resamples.draw([])


def test_a_thousand_resamples_of_fourteen_findings_are_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    target, probs, patients = random_case(3, n=400, f=14)
    rows: list[int] = []

    def counted(target: np.ndarray, probs: np.ndarray, weights: np.ndarray, limits: object) -> dict[str, np.ndarray]:
        rows.append(len(weights))
        return metrics.weighted_metrics(target, probs, weights, limits)

    monkeypatch.setattr(intervals, "weighted_metrics", counted)
    intervals.metric_intervals(target, probs, patients, IntervalOptions(resamples=1000), thresholds=np.full(14, 0.5))
    assert rows == [1, 1000]


def test_the_interval_of_a_mean_is_as_wide_as_students() -> None:
    values = np.random.default_rng(1).normal(size=12)
    (found,) = intervals.bootstrap(
        lambda w: (w @ values / 12)[:, None], Resamples.draw(np.arange(12).astype(str), 20_000)
    )
    half = t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.04)


def test_the_fewer_the_patients_of_the_rarer_class_the_more_the_percentiles_are_expanded() -> None:
    target = np.zeros((40, 2))
    target[:20, 0], target[:20, 1] = 1, 1
    patients = np.where(np.arange(40) < 20, np.arange(40) // 5, np.arange(40))  # the positives are four patients'
    np.testing.assert_array_equal(intervals.rarer_patients(target, patients), [4, 4])
    assert intervals.expanded(0.95, 4) > intervals.expanded(0.95, 40) > 0.95


@pytest.mark.parametrize("rate", [0.3, 0.06])
def test_intervals_cover_in_a_small_simulation(rate: float) -> None:
    repeats = 60
    for row in coverage(rate=rate, repeats=repeats, resamples=100, population=10_000):
        # Two-sided binomial limits at 0.1 %, around the five points of the full simulation.
        low, high = binom.ppf([0.0005, 0.9995], repeats, [0.93, 0.97])
        assert low <= row.held <= high or row.name in ABOVE, str(row)
        assert row.held >= low, str(row)
