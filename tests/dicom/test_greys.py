"""Reduction by whole factors, against plain means of the picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsd.dicom.greys import StoredGreys, block_means
from medsd.dicom.pixels import stored_greys
from tests.conftest import dx_dataset

RNG = np.random.default_rng(11)


def means_by_loop(picture: np.ndarray, box: tuple[int, int, int, int], factors: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = box
    across, down = factors
    part = picture[top:bottom, left:right].astype(np.float64)
    rows = [part[y : y + down] for y in range(0, bottom - top, down)]
    return np.array([[row[:, x : x + across].mean() for x in range(0, right - left, across)] for row in rows])


def windowed(dtype: type, bits: int, **elements: object) -> StoredGreys:
    low = -(2 ** (bits - 1)) if np.dtype(dtype).kind == "i" else 0
    stored = RNG.integers(low, low + 2**bits, (53, 47)).astype(dtype)
    return stored_greys(stored, dx_dataset(stored, bits, **elements))


@settings(max_examples=60)
@given(st.data(), st.integers(1, 60), st.integers(1, 60), st.integers(1, 9), st.integers(1, 9))
def test_block_means_are_those_of_a_loop(data: st.DataObject, height: int, width: int, across: int, down: int) -> None:
    picture = np.random.default_rng(height).random((height, width)).astype(np.float32)
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (left, top, data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height)))
    found = block_means(picture, box, (across, down))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, means_by_loop(picture, box, (across, down)), atol=1e-6)


@settings(max_examples=150)
@given(
    st.sampled_from([(np.uint8, 8), (np.uint16, 10), (np.uint16, 12), (np.uint16, 16), (np.int16, 12), (np.int16, 16)]),
    st.integers(-3000, 70000),
    st.integers(2, 70000),
    st.sampled_from([0, 0.5, 0.3]),
    st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    st.sampled_from([(2, 2), (3, 5), (8, 8), (16, 20)]),
)
def test_means_of_stored_values_are_those_of_the_picture(
    kind: tuple[type, int], centre: int, width: int, part: float, photometric: str, factors: tuple[int, int]
) -> None:
    window = {"WindowCenter": centre + part, "WindowWidth": width, "PhotometricInterpretation": photometric}
    greys = windowed(*kind, **window)
    box = (3, 1, 47, 52)
    expected = means_by_loop(greys.picture(), box, factors)
    np.testing.assert_allclose(greys.means(box, factors), expected, atol=5e-7)


def test_means_are_those_of_the_picture_to_the_last_bit() -> None:
    greys = windowed(np.uint16, 12, WindowCenter=2048, WindowWidth=3372)
    means = greys.means((0, 0, 47, 53), (4, 4))
    np.testing.assert_array_equal(means, block_means(greys.picture(), (0, 0, 47, 53), (4, 4)))


def test_every_so_many_pixels_are_those_of_the_picture() -> None:
    greys = windowed(np.int16, 12, WindowCenter=0, WindowWidth=900)
    np.testing.assert_array_equal(greys.every(7), greys.picture()[::7, ::7])


@pytest.mark.parametrize(("odd", "flat"), [(5, True), (3000, False)])
def test_one_pixel_decides_whether_a_picture_is_flat(odd: int, flat: bool) -> None:
    stored = np.full((300, 300), 5, dtype=np.uint16)
    stored[1, 1] = odd
    assert stored_greys(stored, dx_dataset(stored, 12, WindowCenter=2000, WindowWidth=4000)).is_flat() == flat


RESCALED = {"RescaleSlope": 2, "RescaleIntercept": -1000}
WINDOW = {"WindowCenter": 1200, "WindowWidth": 3000}


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_ends_are_those_of_the_window_in_the_units_of_the_file(function: str, photometric: str) -> None:
    greys = windowed(
        np.uint16, 12, **RESCALED, **WINDOW, VOILUTFunction=function, PhotometricInterpretation=photometric
    )
    ends = (-300.0, 2700.0) if photometric == "MONOCHROME2" else (2700.0, -300.0)
    assert greys.ends == pytest.approx(ends, abs=1e-3)


def test_without_a_window_the_ends_are_where_the_greys_end() -> None:
    greys = windowed(np.int16, 12, **RESCALED)
    assert greys.ends is not None
    black, white = greys.ends
    picture, values = greys.picture(), greys.stored * 2.0 - 1000
    inside = (picture > 0) & (picture < 1)
    np.testing.assert_allclose(picture[inside], ((values - black) / (white - 1 - black))[inside], atol=1e-4)


@pytest.mark.parametrize("elements", [{}, WINDOW | {"VOILUTFunction": "SIGMOID"}])
def test_where_nothing_gives_units_or_greys_lie_on_a_curve_there_are_no_ends(elements: dict[str, object]) -> None:
    assert windowed(np.uint16, 12, **elements).ends is None
