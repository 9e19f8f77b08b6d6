"""DeLong's test against a published worked example, written-out components, and the bootstrap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, norm
from sklearn.metrics import roc_auc_score

from medsd.errors import DataError
from medsd.metrics.delong import delong, structural_components
from medsd.metrics.intervals import IntervalOptions, metric_intervals

# The example of DeLong, DeLong and Clarke-Pearson (1988), the 43 complete ones of its 49 patients, as the SAS/STAT
# User's Guide prints them ("Comparing Receiver Operating Characteristic Curves", PROC LOGISTIC): albumin, total
# protein, K-G score, and whether the patient died within two months of surgery.
PRINTED = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""
OVARIAN = np.array([float(value) for value in PRINTED.split()]).reshape(43, 4)
ALBUMIN, PROTEIN, SCORE = OVARIAN[:, :1], OVARIAN[:, 1:2], 10 - OVARIAN[:, 2:3]
DIED = OVARIAN[:, 3:]


def random_case(seed: int, n: int = 90, f: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first = np.round(rng.random((n, f)), 1)  # with ties
    target = (rng.random((n, f)) < first).astype(float)
    target[rng.random((n, f)) < 0.1] = np.nan
    second = np.round(np.clip(first + rng.normal(0, 0.3, (n, f)), 0, 1), 2)
    return target, first, second, np.array([f"p{i}" for i in rng.integers(n // 2, size=n)])


def slow_covariance(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas and their covariance, written out over all pairs; DeLong et al. (1988), equations 3 to 5."""
    positive, negative = scores[:, truth == 1], scores[:, truth == 0]
    wins = (positive[:, :, None] > negative[:, None]) + 0.5 * (positive[:, :, None] == negative[:, None])
    tens, ones = wins.mean(2), wins.mean(1)
    return wins.mean((1, 2)), np.cov(tens) / tens.shape[1] + np.cov(ones) / ones.shape[1]


@pytest.mark.parametrize(
    ("other", "area", "difference", "error", "chi_square", "p"),
    [(ALBUMIN, 0.7366, 0.0108, 0.0953, 0.0127, 0.9102), (PROTEIN, 0.6478, -0.0780, 0.1046, 0.5554, 0.4561)],
    ids=["albumin", "total protein"],
)
def test_the_published_comparison_with_the_score_comes_out(
    other: np.ndarray, area: float, difference: float, error: float, chi_square: float, p: float
) -> None:
    test = delong(DIED, other, SCORE, np.arange(43)).findings[0]
    assert (round(test.first, 4), round(test.second, 4)) == (area, 0.7258)
    assert round(test.difference.value, 4) == difference
    assert round(test.standard_error, 4) == error
    assert round((test.difference.value / test.standard_error) ** 2, 4) == chi_square
    assert round(test.p, 4) == p


def test_the_published_test_of_all_three_at_once_comes_out() -> None:
    pairs = [structural_components(DIED[:, 0], each[:, 0]) for each in (ALBUMIN, SCORE, PROTEIN)]
    tens, ones = (np.stack(part) for part in zip(*pairs, strict=True))
    contrast = np.array([[1, -1, 0], [0, -1, 1]])
    difference = contrast @ tens.mean(1)
    covariance = contrast @ (np.cov(tens) / tens.shape[1] + np.cov(ones) / ones.shape[1]) @ contrast.T
    statistic = difference @ np.linalg.solve(covariance, difference)
    assert (round(statistic, 4), round(chi2.sf(statistic, 2), 4)) == (2.5340, 0.2817)


@pytest.mark.parametrize("seed", range(4))
def test_the_fast_variance_is_the_written_out_one_and_unknowns_are_left_out(seed: int) -> None:
    target, first, second, _ = random_case(seed)
    for f, test in enumerate(delong(target, first, second, np.arange(90)).findings):
        known = ~np.isnan(target[:, f])
        areas, covariance = slow_covariance(target[known, f], np.stack([first[known, f], second[known, f]]))
        contrast = np.array([1, -1])
        assert (test.first, test.second) == pytest.approx(tuple(areas))
        assert test.standard_error == pytest.approx(np.sqrt(contrast @ covariance @ contrast))
        assert test.p == pytest.approx(2 * norm.sf(abs((areas[0] - areas[1]) / test.standard_error)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=30))
def test_components_average_to_scikit_learns_auroc_whatever_the_ties(cases: list[tuple[bool, int]]) -> None:
    truth, scores = np.array(cases, dtype=float).T
    if 0 < truth.sum() < truth.size:
        tens, ones = structural_components(truth, scores)
        assert tens.mean() == pytest.approx(roc_auc_score(truth, scores))
        assert ones.mean() == pytest.approx(tens.mean())


@pytest.mark.parametrize("seed", range(3))
def test_the_variance_of_clustered_studies_is_the_written_out_one_of_obuchowski(seed: int) -> None:
    target, first, second, patients = random_case(seed, f=1)
    known = ~np.isnan(target[:, 0])
    truth, patient = target[known, 0], patients[known]
    sums = {}
    for name, scores in (("a", first[known, 0]), ("b", second[known, 0])):
        wins = np.where(scores[:, None] > scores, 1.0, np.where(scores[:, None] == scores, 0.5, 0.0))
        ten, one = wins[truth == 1][:, truth == 0].mean(1), wins[truth == 1][:, truth == 0].mean(0)
        area = ten.mean()
        sums[name] = [
            (
                sum(v - area for v, p in zip(ten, patient[truth == 1], strict=True) if p == each),
                sum(v - area for v, p in zip(one, patient[truth == 0], strict=True) if p == each),
            )
            for each in np.unique(patient)
        ]
    m, n = (truth == 1).sum(), (truth == 0).sum()
    tens, ones, all_ = (len(set(p)) for p in (patient[truth == 1], patient[truth == 0], patient))

    def covariance(x: str, y: str) -> float:
        pairs = list(zip(sums[x], sums[y], strict=True))
        s10 = tens / ((tens - 1) * m) * sum(a[0] * b[0] for a, b in pairs)
        s01 = ones / ((ones - 1) * n) * sum(a[1] * b[1] for a, b in pairs)
        s11 = all_ / (all_ - 1) * sum(a[0] * b[1] + a[1] * b[0] for a, b in pairs)
        return s10 / m + s01 / n + s11 / (m * n)

    expected = covariance("a", "a") + covariance("b", "b") - 2 * covariance("a", "b")
    assert delong(target, first, second, patients).findings[0].standard_error ** 2 == pytest.approx(expected)


def test_studies_given_four_times_double_the_error_when_they_are_said_to_be_one_patients() -> None:
    target, first, second, _ = random_case(6)
    again = [np.tile(part, (4, 1)) for part in (target, first, second)]
    apart, together = (delong(*again, patients) for patients in (np.arange(360), np.tile(np.arange(90), 4)))
    ratio = together.findings[0].standard_error / apart.findings[0].standard_error
    assert ratio == pytest.approx(2, rel=0.02)


def test_a_model_against_itself_and_against_one_as_perfect_have_p_one() -> None:
    target, first, _, patients = random_case(1)
    same = delong(target, first, first, patients)
    assert all((t.difference.value, t.p) == (0, 1) for t in (*same.findings, same.macro))
    perfect = np.nan_to_num(target, nan=0.5)
    assert delong(target, perfect, perfect / 2, patients).findings[0].p == 1


def test_a_difference_without_any_spread_has_no_p() -> None:
    target = np.repeat([[0.0], [1.0]], 12, axis=0)
    test = delong(target, target, np.full_like(target, 0.5), np.arange(24)).findings[0]
    assert (test.difference.value, test.standard_error) == (0.5, 0)
    assert test.p is None


def test_too_few_cases_and_findings_of_one_class_are_too_few_to_tell() -> None:
    target, first, second, patients = random_case(2)
    target[:, 0], target[:, 1] = np.nan, 1
    found = delong(target, first, second, patients)
    assert [str(t.difference) for t in found.findings[:2]] == ["too few to tell"] * 2
    assert found.over == 1
    assert found.macro.difference.value == pytest.approx(found.findings[2].difference.value)
    nothing = delong(target[:1], first[:1], second[:1], patients[:1])
    assert nothing.over == 0 and nothing.macro.difference.value is None


def test_positives_that_are_all_one_patients_have_no_interval() -> None:
    target = np.repeat([[1.0], [0.0]], 12, axis=0)
    scores = np.random.default_rng(0).random((2, 24, 1))
    test = delong(target, *scores, ["one"] * 12 + [f"p{i}" for i in range(12)]).findings[0]
    assert test.difference.low is None and test.p is None


def test_bootstrap_and_delong_agree_where_there_is_enough() -> None:
    target, first, second, patients = random_case(7, n=500)
    drawn = metric_intervals(target, first, patients, IntervalOptions(resamples=500), other=second)["auroc"]
    test = delong(target, first, second, patients)
    for one, other in ((drawn.macro, test.macro.difference), (drawn.findings[0], test.findings[0].difference)):
        assert one.value == pytest.approx(other.value)
        assert one.high - one.low == pytest.approx(other.high - other.low, rel=0.12)


def test_swapping_the_models_changes_the_sign_alone() -> None:
    target, first, second, patients = random_case(8)
    one, other = delong(target, first, second, patients), delong(target, second, first, patients)
    assert one.macro.difference.value == pytest.approx(-other.macro.difference.value)
    assert one.macro.p == pytest.approx(other.macro.p)


def test_patients_that_do_not_match_the_studies_are_refused() -> None:
    target, first, second, patients = random_case(1)
    with pytest.raises(DataError, match="one patient key for each"):
        delong(target, first, second, patients[:-1])
