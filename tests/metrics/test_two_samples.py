"""Two sets of cases: told apart where they differ, not where they are alike; prevalences from probabilities alone."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from medsd.metrics.intervals import IntervalOptions
from medsd.metrics.two_samples import FEW, adjust_p, discrepancy, estimated_prevalence, tell_apart

OPTIONS = IntervalOptions(resamples=200)


def vectors(seed: int, n: int, shift: float = 0.0) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(n, 8))
    found[:, 0] += shift
    return found


def test_images_of_one_kind_are_not_told_apart() -> None:
    area = tell_apart(vectors(0, 200), vectors(1, 80), OPTIONS)
    assert area.low < 0.5 < area.high or abs(area.value - 0.5) < 0.06


def test_images_of_another_kind_are_told_apart() -> None:
    area = tell_apart(vectors(0, 200), vectors(1, 80, 3.0), OPTIONS)
    assert area.value > 0.95 and area.low > 0.9


def test_too_few_patients_tell_nothing() -> None:
    assert tell_apart(vectors(0, 200), vectors(1, FEW - 1), OPTIONS).value is None


def test_the_discrepancy_of_a_shift_is_significant_and_that_of_chance_is_not_too_often() -> None:
    assert discrepancy(vectors(0, 60), vectors(1, 60, 2.0))[1] < 0.01
    chances = [discrepancy(vectors(2 * i, 40), vectors(2 * i + 1, 30), seed=i)[1] for i in range(30)]
    assert np.mean(np.array(chances) < 0.05) <= 0.2 and np.mean(chances) == pytest.approx(0.5, abs=0.2)


def test_the_discrepancy_is_that_of_the_formula() -> None:
    x, y = vectors(0, 5), vectors(1, 4, 1.0)
    z = np.concatenate([x, y])
    pairs = [((a - b) ** 2).sum() for i, a in enumerate(z) for b in z[i + 1 :]]

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / np.median(pairs)))

    def mean(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.mean([[kernel(a, b) for b in second] for a in first]))

    assert discrepancy(x, y)[0] == pytest.approx(mean(x, x) + mean(y, y) - 2 * mean(x, y), abs=1e-12)


@pytest.mark.parametrize("prevalence", [0.05, 0.5, 0.9])
def test_probabilities_calibrated_at_one_prevalence_tell_another(prevalence: float) -> None:
    rng, prior = np.random.default_rng(0), 0.2
    truth = rng.random(20_000) < prevalence
    score = rng.normal(np.where(truth, 1.0, -1.0), 1.0)  # the log-likelihood ratio is 2 · score
    probabilities = expit(2 * score + np.log(prior / (1 - prior)))
    assert estimated_prevalence(probabilities, prior) == pytest.approx(prevalence, abs=0.015)


def test_nothing_is_estimated_without_a_prior_or_an_image() -> None:
    assert estimated_prevalence(np.array([0.5]), 0.0) is None
    assert estimated_prevalence(np.zeros(0), 0.3) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_written_out_procedure(p_values: list[float]) -> None:
    adjusted = adjust_p(p_values, "holm")
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for place, (p, position) in enumerate(sorted((p, i) for i, p in enumerate(p_values))):
            if p * (len(p_values) - place) > level:
                break
            rejected.add(position)
        assert set(np.flatnonzero(adjusted <= level)) == rejected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_benjamini_and_hochberg_is_the_written_out_procedure(p_values: list[float]) -> None:
    adjusted = adjust_p(p_values, "benjamini-hochberg")
    for level in (0.01, 0.05, 0.2):
        ranked = sorted(p_values)
        passing = [p for place, p in enumerate(ranked, 1) if p * len(ranked) / place <= level]
        assert (adjusted <= level).tolist() == [p <= max(passing, default=-1) for p in p_values]


@pytest.mark.parametrize("method", ["holm", "benjamini-hochberg"])
def test_what_was_not_tested_has_no_p_value_and_does_not_count(method: Literal["holm", "benjamini-hochberg"]) -> None:
    adjusted = adjust_p([None, 0.01, float("nan"), 0.04], method)
    np.testing.assert_allclose(adjusted, [np.nan, 0.02, np.nan, 0.04])
    assert adjust_p([None], method).size == 1 and adjust_p([], method).size == 0
