from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from medsd.errors import DataError
from medsd.inference.descriptors import CELLS, DIRECTIONS, orientation_histograms, thumbnails, without_borders

Films = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def films(chest: npt.NDArray[np.float64]) -> Films:
    rng = np.random.default_rng(0)
    noisy = [np.clip(np.resize(chest, (192, 192)) * 200 + rng.normal(0, 9, (192, 192)), 0, 255) for _ in range(3)]
    return np.stack(noisy).astype(np.uint8)


def cells(film: Films) -> npt.NDArray[np.float32]:
    return orientation_histograms(film[None]).reshape(CELLS, CELLS, DIRECTIONS)


def test_a_thumbnail_has_no_mean_and_unit_length(films: Films) -> None:
    small = thumbnails(films)
    np.testing.assert_allclose(small.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(small, axis=1), 1, rtol=1e-5)


def test_borders_are_taken_off_and_nothing_else(films: Films) -> None:
    framed = np.zeros_like(films)
    framed[:, 32:160, 48:144] = films[:, 32:160, 48:144]
    found = without_borders(np.concatenate([framed, films]))
    inside = [Image.fromarray(film[32:160, 48:144]).resize((192, 192), Image.Resampling.BILINEAR) for film in films]
    assert np.abs(found[:3].astype(int) - np.stack(inside)).max() <= 1
    np.testing.assert_array_equal(found[3:], films)
    assert without_borders(films[:0]).shape == (0, 192, 192)


def test_a_film_of_another_side_is_an_error() -> None:
    with pytest.raises(DataError, match="multiple of 32"):
        thumbnails(np.zeros((1, 50, 50), np.uint8))


def test_a_step_from_dark_to_bright_stands_in_its_cells_and_its_direction() -> None:
    film = np.zeros((192, 192), np.uint8)
    film[:, 112:] = 200  # in the fourth column of cells, brighter to the right
    found = cells(film)
    assert np.argwhere(found.sum(axis=0) > 0.1).tolist() == [[3, 0]]
    assert np.argwhere(cells(255 - film).sum(axis=0) > 0.1).tolist() == [[3, DIRECTIONS // 2]]


def test_a_film_turned_has_its_cells_and_directions_turned(films: Films) -> None:
    turned = cells(np.ascontiguousarray(np.rot90(films[0])))
    expected = np.roll(np.rot90(cells(films[0])), -DIRECTIONS // 4, axis=2)
    np.testing.assert_allclose(turned, expected, atol=1e-3)


def test_shares_add_up_to_one_whatever_the_contrast(films: Films) -> None:
    found, faint = orientation_histograms(films), orientation_histograms(films // 2)
    np.testing.assert_allclose((found**2).sum(axis=1), 1, atol=0.01)
    np.testing.assert_allclose(found, faint, atol=0.02)


def test_a_film_without_edges_has_none() -> None:
    assert not orientation_histograms(np.full((1, 64, 64), 90, np.uint8)).any()
    assert orientation_histograms(np.zeros((0, 64, 64), np.uint8)).shape == (0, 288)


def test_a_film_is_described_alone_as_among_others(films: Films) -> None:
    np.testing.assert_allclose(orientation_histograms(films[1:2])[0], orientation_histograms(films)[1], rtol=1e-5)
