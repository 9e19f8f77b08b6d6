"""Conformal calls: the promise holds for new patients, with few patients nothing is decided, and sets become calls."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import expit
from scipy.stats import binomtest

from medsd.calibration.conformal import (
    RANKS,
    ConformalScores,
    Limits,
    call_of,
    kept_rank,
    rank,
    rank_of_kept,
    read_conformal,
    write_conformal,
)
from medsd.calibration.conformal_fit import clopper_pearson, conformal_scores, measure_conformal
from medsd.errors import BundleError, DataError
from medsd.metrics.intervals import IntervalOptions

NAMES = ("a", "b")


def draw(rng: np.random.Generator, patients: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, target and patients; one to five films each that share much of what they show."""
    patient = np.repeat(np.arange(patients), rng.integers(1, 6, size=patients))
    shared = rng.normal(0, 1.5, (patients, 2))[patient]
    target = (rng.random((patients, 2))[patient] < 0.3).astype(float)
    probs = expit(shared + 2 * target + rng.normal(0, 0.5, shared.shape) - 1 + shift)
    target[rng.random(target.shape) < 0.1] = np.nan
    return probs, target, patient.astype(str)


def test_new_patients_are_covered_at_the_named_rate_for_each_class() -> None:
    rng = np.random.default_rng(0)
    covered: dict[float, list[float]] = {0.8: [], 0.9: []}
    for seed in range(150):
        scores = conformal_scores(*draw(rng, 60), NAMES, seed=seed)
        new = draw(rng, 60)
        for coverage, shares in covered.items():
            report = measure_conformal(*new, scores, NAMES, coverage=coverage)
            shares += [c.covered.value for f in report.findings for c in (f.present, f.absent) if f.enough]
    for coverage, shares in covered.items():
        assert coverage - 0.01 < np.mean(shares) < coverage + 0.04  # ⌈(n + 1) c⌉ / (n + 1) is above c with few patients


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_a_limit_is_the_score_of_the_written_out_rank(coverage: float) -> None:
    probs, target, patients = draw(np.random.default_rng(1), 80)
    for f, scores in enumerate(conformal_scores(probs, target, patients, NAMES).values()):
        positive = np.array(scores.present)
        assert len(positive) == len(set(patients[target[:, f] == 1]))
        wanted = math.ceil((len(positive) + 1) * coverage)
        limits = scores.limits(coverage)
        if wanted > len(positive):
            assert limits is None
        else:
            assert (positive >= limits.present).sum() == wanted
            assert limits.absent == sorted(scores.absent)[math.ceil((scores.absent_patients + 1) * coverage) - 1]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.floats(0.05, 0.99))
def test_a_coverage_needs_as_many_patients_as_can_be_wrong_once(patients: int, coverage: float) -> None:
    possible = rank(patients, coverage) is not None
    assert possible == ((patients + 1) * coverage <= patients + 1e-9)
    assert rank(math.ceil(1 / (1 - coverage) - 1e-9) - 1 or 1, coverage) is not None


def test_with_too_few_positives_there_are_no_limits_and_every_call_is_undecided() -> None:
    probs, target, patients = draw(np.random.default_rng(2), 120)
    few = np.flatnonzero(target[:, 0] == 1)
    kept = np.isin(patients, np.unique(patients[few])[:8])
    target[few[~kept[few]], 0] = 0
    scores = conformal_scores(probs, target, patients, NAMES)
    assert scores["a"].present_patients == 8
    assert scores["a"].limits(0.9) is None and scores["a"].limits(0.8) is not None
    report = measure_conformal(probs, target, patients, scores, NAMES, coverage=0.9).findings[0]
    assert (report.enough, report.decided, report.present.expected) == (False, 0, None)
    assert str(report.covered) == "too few to tell"


def test_each_patient_gives_one_film_whatever_the_order_of_the_films() -> None:
    probs, target, patients = draw(np.random.default_rng(3), 50)
    order = np.random.default_rng(4).permutation(len(probs))
    first = conformal_scores(probs, target, patients, NAMES, seed=5)
    assert conformal_scores(probs[order], target[order], patients[order], NAMES, seed=5) == first
    assert conformal_scores(probs, target, patients, NAMES, seed=6) != first
    drawn = {round(p, 4) for p in first["a"].absent}
    each = [{round(float(p), 4) for p in probs[(patients == k) & (target[:, 0] == 0), 0]} for k in set(patients)]
    assert sum(len(drawn & films) for films in each) <= sum(bool(films) for films in each) + 1


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3000), st.floats(0.5, 0.999))
def test_thinned_scores_never_promise_less_than_all_of_them(patients: int, coverage: float) -> None:
    kept, wanted = min(patients, RANKS), rank(patients, coverage)
    if wanted is not None:
        taken = rank_of_kept(kept_rank(wanted, patients, kept), patients, kept)
        assert wanted <= taken <= min(patients, wanted + math.ceil(patients / kept))


def test_many_patients_are_thinned_and_cover_as_all_of_them_would() -> None:
    rng = np.random.default_rng(7)
    probs, patients = rng.random((3000, 1)), np.arange(3000).astype(str)
    scores = conformal_scores(probs, np.ones((3000, 1)), patients, "a")["a"]
    assert (len(scores.present), scores.present_patients, scores.absent) == (RANKS, 3000, ())
    assert scores.present[-1] == pytest.approx(probs.min(), abs=1e-6)


@pytest.mark.parametrize(
    ("probability", "limits", "found", "call"),
    [
        (0.7, Limits(0.3, 0.5), "present", "present"),
        (0.2, Limits(0.3, 0.5), "absent", "absent"),
        (0.4, Limits(0.3, 0.5), "both", "undecided"),
        (0.4, Limits(0.5, 0.3), "neither", "undecided"),
        (0.3, Limits(0.3, 0.3), "both", "undecided"),
    ],
)
def test_a_set_of_one_is_a_call_and_every_other_is_undecided(
    probability: float, limits: Limits, found: str, call: str
) -> None:
    assert limits.set_of(probability) == found
    assert call_of(limits.set_of(probability)) == call


def test_measured_coverage_is_counted_by_patients() -> None:
    scores = {"a": ConformalScores(present=(0.9, 0.8), absent=(0.1, 0.2), present_patients=2, absent_patients=2)}
    probs, target = np.array([[0.9], [0.1], [0.9], [0.5]]), np.array([[1.0], [1.0], [1.0], [0.0]])
    report = measure_conformal(probs, target, ["p", "p", "q", "q"], scores, "a", coverage=0.5).findings[0]
    assert report.present.covered.value == 0.75  # p half, q whole
    assert report.absent.covered.value == 0
    assert report.covered.value == pytest.approx((0.5 + 0.5) / 2)
    assert (report.decided, report.neither) == (0.75, 0.25)


def test_the_exact_interval_is_scipys_and_full_coverage_keeps_a_width() -> None:
    found = clopper_pearson(np.array([1.0] * 27 + [0.0] * 3), 0.95)
    exact = binomtest(27, 30).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    all_of_them = clopper_pearson(np.ones(30), 0.95)
    assert all_of_them.low < 0.9 < all_of_them.high == 1
    assert clopper_pearson(np.zeros(0), 0.95).value is None


def test_the_expected_range_holds_what_is_measured_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(8), []
    for seed in range(120):
        scores = conformal_scores(*draw(rng, 50), NAMES, seed=seed)
        for finding in measure_conformal(*draw(rng, 70), scores, NAMES, coverage=0.8).findings:
            for each in (finding.present, finding.absent):
                if each.expected is not None:
                    inside.append(each.expected[0] - 1e-9 <= each.covered.value <= each.expected[1] + 1e-9)
    assert np.mean(inside) > 0.93


def test_groups_whose_probabilities_are_shifted_are_told_by_their_coverage() -> None:
    rng = np.random.default_rng(9)
    scores = conformal_scores(*draw(rng, 400), NAMES)
    (one, other), groups = (draw(rng, 150), draw(rng, 150, shift=-2.5)), []
    patients = np.concatenate([np.char.add("x", one[2]), np.char.add("y", other[2])])
    probs, target = (np.concatenate([one[i], other[i]]) for i in (0, 1))
    view = np.where(np.char.startswith(patients, "x"), "PA", "AP")
    groups = measure_conformal(
        probs, target, patients, scores, NAMES, IntervalOptions(resamples=200), groups={"view": view}
    ).groups
    assert [(g.attribute, g.value, g.patients) for g in groups] == [("view", "AP", 150), ("view", "PA", 150)]
    assert groups[0].covered_present.high < 0.8 < groups[1].covered_present.low
    small = measure_conformal(
        probs, target, patients, scores, NAMES, IntervalOptions(resamples=20), groups={"view": patients}
    ).groups
    assert {str(g.covered) for g in small} == {"too few to tell"}


def test_scores_read_back_are_equal_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    scores = conformal_scores(*draw(np.random.default_rng(10), 30), NAMES)
    write_conformal(tmp_path / "conformal.json", scores)
    assert read_conformal(tmp_path / "conformal.json") == scores
    (tmp_path / "conformal.json").write_text('{"a": {"present": [0.1, 0.9]}}')
    with pytest.raises(BundleError, match="holds no conformal scores"):
        read_conformal(tmp_path / "conformal.json")
    with pytest.raises(ValidationError, match="must fall"):
        ConformalScores(present=(0.1, 0.9), absent=(), present_patients=2, absent_patients=0)


@pytest.mark.parametrize("coverage", [0.0, 1.0, 90.0, float("nan")])
def test_a_coverage_that_is_no_share_is_refused(coverage: float) -> None:
    probs, target, patients = draw(np.random.default_rng(11), 30)
    scores = conformal_scores(probs, target, patients, NAMES)
    with pytest.raises(DataError, match="no share between 0 and 1"):
        measure_conformal(probs, target, patients, scores, NAMES, coverage=coverage)


def test_a_finding_without_scores_and_patients_that_do_not_match_are_refused() -> None:
    probs, target, patients = draw(np.random.default_rng(12), 30)
    scores = conformal_scores(probs, target, patients, NAMES)
    with pytest.raises(DataError, match="nothing for c"):
        measure_conformal(probs, target, patients, scores, ("a", "c"))
    with pytest.raises(DataError, match="one patient key for each image"):
        conformal_scores(probs, target, patients[1:], NAMES)
