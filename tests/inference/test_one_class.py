from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsd.inference.one_class import PrincipalGaussian, tail_quantile

Doubles = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def cloud() -> Doubles:
    rng = np.random.default_rng(0)
    spread = np.r_[5.0, 3.0, 2.0, np.full(9, 0.5)]
    return rng.normal(size=(4000, 12)) * spread @ np.linalg.qr(rng.normal(size=(12, 12)))[0] + 7


def test_the_distance_is_mahalanobis_where_the_covariance_has_that_form(cloud: Doubles) -> None:
    fitted = PrincipalGaussian.fit(cloud, most=3)
    centred = cloud - cloud.mean(axis=0)
    expected = np.einsum("nd,de,ne->n", centred, np.linalg.inv(np.cov(cloud.T)), centred)
    np.testing.assert_allclose(np.expm1(fitted.distance(cloud)), expected, rtol=0.1)
    assert fitted.noise == pytest.approx(0.25, rel=0.05)


def test_the_arrays_give_the_same_distances(cloud: Doubles) -> None:
    fitted = PrincipalGaussian.fit(cloud)
    again = PrincipalGaussian.from_arrays("edges", fitted.arrays("edges"))
    np.testing.assert_allclose(again.distance(cloud), fitted.distance(cloud), rtol=1e-5)


@pytest.mark.parametrize("change", [{"edges_noise": np.zeros(1)}, {"edges_mean": np.zeros(5)}])
def test_arrays_that_are_no_gaussian_are_an_error(cloud: Doubles, change: dict[str, Doubles]) -> None:
    with pytest.raises(ValueError, match="edges"):
        PrincipalGaussian.from_arrays("edges", PrincipalGaussian.fit(cloud).arrays("edges") | change)


def test_cases_that_are_all_the_same_still_have_a_distance_to_others() -> None:
    fitted = PrincipalGaussian.fit(np.ones((30, 8)))
    assert fitted.distance(np.ones((1, 8)))[0] < 0.01 < 5 < fitted.distance(np.zeros((1, 8)))[0] < np.inf


@pytest.mark.parametrize("name", ["normal", "exponential", "gumbel"])
def test_a_tail_quantile_is_closer_to_the_truth_than_the_empirical_one(name: str) -> None:
    rng = np.random.default_rng(1)
    truth = {"normal": 2.3263, "exponential": 4.6052, "gumbel": 4.6001}[name]
    draws = getattr(rng, name)(size=(400, 200))
    fitted = np.array([tail_quantile(values, 0.99) for values in draws])
    empirical = np.quantile(draws, 0.99, axis=1)
    assert np.sqrt(np.mean((fitted - truth) ** 2)) < np.sqrt(np.mean((empirical - truth) ** 2))
    assert abs(fitted.mean() - truth) < 0.05 * truth


def test_a_tail_that_ends_is_followed_to_its_end() -> None:
    draws = np.random.default_rng(2).uniform(size=(50, 200))
    assert np.mean([tail_quantile(values, 0.99) for values in draws]) == pytest.approx(0.99, abs=0.02)


def test_few_values_have_their_empirical_quantile() -> None:
    values = np.arange(20.0)
    assert tail_quantile(values, 0.99) == pytest.approx(np.quantile(values, 0.99))
    assert tail_quantile(np.arange(1000.0), 0.5) == pytest.approx(499.5)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=200), st.floats(0.01, 100), st.floats(-50, 50))
def test_a_tail_quantile_moves_with_its_values(values: list[float], scale: float, shift: float) -> None:
    one = tail_quantile(np.array(values), 0.99)
    moved = tail_quantile(np.array(values) * scale + shift, 0.99)
    assert np.isfinite(one)
    assert moved == pytest.approx(one * scale + shift, rel=1e-4, abs=1e-4 * scale * (1 + max(map(abs, values))))
