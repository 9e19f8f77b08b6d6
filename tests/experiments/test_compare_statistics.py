"""Means over seeds, paired tests and their correction, against SciPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medsd.experiments.statistics import (
    Comparison,
    SeedMean,
    compare_pairs,
    patient_intervals,
    seed_mean,
)


def test_the_interval_of_the_mean_is_students() -> None:
    values = [0.51, 0.49, 0.53, 0.50, 0.52]
    found = seed_mean(values, 0.95)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((0.51, low, high))


def test_one_seed_has_no_interval() -> None:
    found = seed_mean([0.5], 0.95)
    assert (found.mean, found.low, found.high) == (0.5, None, None)


def test_the_paired_test_is_scipys() -> None:
    rng = np.random.default_rng(0)
    sd, any_, jaccard = rng.normal(0.5, 0.01, (3, 6))
    found = compare_pairs([(sd, any_), (sd, jaccard)], 0.95)
    assert [each.p for each in found] == pytest.approx([stats.ttest_rel(sd, other).pvalue for other in (any_, jaccard)])
    assert found[0].difference.mean == pytest.approx(np.mean(sd - any_))
    assert all(each.p_holm >= each.p for each in found)


def test_equal_figures_are_never_told_apart() -> None:
    found = compare_pairs([([0.5, 0.6], [0.5, 0.6])], 0.95)[0]
    assert found.p == 1.0 and found.verdict(0.05) == "ties"


@pytest.mark.parametrize(
    ("difference", "p_holm", "verdict"),
    [(0.02, 0.01, "wins"), (-0.02, 0.01, "loses"), (0.02, 0.2, "ties"), (0.02, float("nan"), "ties")],
)
def test_a_verdict_needs_the_corrected_test(difference: float, p_holm: float, verdict: str) -> None:
    assert Comparison(SeedMean(difference, 0, 0), 0.001, p_holm).verdict(0.05) == verdict


def test_a_patient_with_many_samples_widens_the_interval() -> None:
    values = np.random.default_rng(1).normal(size=(40, 1)).repeat(5, axis=0)
    alone = patient_intervals(values, np.arange(200).astype(str), 500, 0.95)[0]
    together = patient_intervals(values, np.arange(40).repeat(5).astype(str), 500, 0.95)[0]
    assert alone.mean == pytest.approx(together.mean)
    assert together.high - together.low > 1.7 * (alone.high - alone.low)
