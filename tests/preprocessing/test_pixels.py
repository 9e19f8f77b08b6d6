"""The one preprocessing: geometry, quantising, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medsd.dicom.pixels import stored_greys
from medsd.dicom.read import Radiograph
from medsd.preprocessing.pixels import evidence_to_image, to_batch, to_pixels
from medsd.settings import PixelSpec
from medsd.studies.phantom import generate_study
from tests.conftest import dx_dataset

FITS = ["stretch", "pad", "crop"]


def blob(height: int, width: int, row: float, column: float, radius: float = 0.05) -> np.ndarray:
    """A bright spot at (row, column), given as shares of the sides, on black."""
    y, x = np.mgrid[0:height, 0:width]
    side = min(height, width)
    distance = np.hypot(y - row * height, x - column * width) / side
    return np.exp(-((distance / radius) ** 2)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(FITS), st.sampled_from(["none", "percentile"]))
def test_any_shape_becomes_the_square(height: int, width: int, fit: str, contrast: str) -> None:
    image = np.random.default_rng(height).random((height, width))
    pixels = to_pixels(image, PixelSpec(size=32, fit=fit, contrast=contrast))  # type: ignore[arg-type]
    assert pixels.shape == (32, 32)
    assert pixels.dtype == np.uint8


def test_a_radiograph_and_its_array_are_the_same_pixels() -> None:
    image = np.random.default_rng(0).random((70, 90)).astype(np.float32)
    spec = PixelSpec(size=64)
    np.testing.assert_array_equal(to_pixels(Radiograph(image), spec), to_pixels(image, spec))


def whole(image: np.ndarray, size: int) -> np.ndarray:
    """One antialiased resize from the full size, as films of any size had it before reduction by whole factors."""
    resized = Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
    return np.rint(np.clip(np.asarray(resized), 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize(("side", "size"), [(320, 192), (384, 128), (511, 128), (100, 96), (40, 96)])
def test_films_under_four_times_the_square_are_resized_at_once(side: int, size: int) -> None:
    image = np.random.default_rng(side).random((side, side)).astype(np.float32)
    np.testing.assert_array_equal(to_pixels(image, PixelSpec(size=size)), whole(image, size))


@pytest.mark.parametrize(("shape", "size"), [((1024, 1024), 224), ((2000, 1700), 224), ((1955, 1841), 96)])
def test_reduction_by_whole_factors_looks_like_one_resize(shape: tuple[int, int], size: int) -> None:
    study = generate_study(5, size=512).pixels
    image = np.asarray(Image.fromarray(study).resize(shape[::-1], Image.Resampling.BICUBIC)).clip(0, 1)
    difference = np.abs(to_pixels(image, PixelSpec(size=size)).astype(int) - whole(image, size))
    assert 0 < difference.mean() < 0.6
    assert np.percentile(difference, 99) <= 3


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("contrast", ["none", "percentile"])
def test_a_film_and_its_full_picture_differ_by_a_rounding_at_most(fit: str, bits: int, contrast: str) -> None:
    stored = np.random.default_rng(bits).integers(0, 2**bits, (700, 813)).astype(np.uint8 if bits == 8 else np.uint16)
    greys = stored_greys(
        stored, dx_dataset(stored, bits, WindowCenter=2 ** (bits - 1), WindowWidth=2**bits - 300 * (bits > 8))
    )
    spec = PixelSpec(size=96, fit=fit, contrast=contrast)  # type: ignore[arg-type]
    film = Radiograph(greys=greys)
    reduced = to_pixels(film, spec)
    assert "pixels" not in vars(film)
    difference = np.abs(reduced.astype(int) - to_pixels(film.pixels, spec))
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= difference.size * (1e-4 if contrast == "none" else 2e-3)
    np.testing.assert_array_equal(to_pixels(film, spec), reduced)


@pytest.mark.parametrize("elements", [{"VOILUTFunction": "SIGMOID"}, {"PixelPaddingValue": 1800}])
def test_a_film_of_another_curve_and_its_full_picture_are_the_same_bytes(elements: dict[str, object]) -> None:
    stored = np.random.default_rng(9).integers(0, 4096, (700, 813)).astype(np.uint16)
    film = Radiograph(
        greys=stored_greys(stored, dx_dataset(stored, 12, WindowCenter=2048, WindowWidth=3000, **elements))
    )
    for fit in FITS:
        spec = PixelSpec(size=96, fit=fit)  # type: ignore[arg-type]
        np.testing.assert_array_equal(to_pixels(film, spec), to_pixels(film.pixels, spec))


def test_an_8_bit_square_of_the_right_size_passes_unchanged() -> None:
    grey = np.random.default_rng(1).integers(0, 256, (96, 96)).astype(np.uint8)
    np.testing.assert_array_equal(to_pixels(grey.astype(np.float32) / 255, PixelSpec(size=96)), grey)


def test_downscaling_averages_instead_of_skipping() -> None:
    checkers = np.indices((256, 256)).sum(axis=0) % 2
    assert np.abs(to_pixels(checkers, PixelSpec(size=32)).astype(int) - 127.5).max() < 3


def test_padding_is_black_and_centred() -> None:
    pixels = to_pixels(np.ones((100, 50)), PixelSpec(size=64, fit="pad"))
    assert (pixels[:, :16] == 0).all()
    assert (pixels[:, 48:] == 0).all()
    assert (pixels[:, 16:48] == 255).all()


def test_cropping_keeps_the_central_square() -> None:
    image = np.zeros((64, 128))
    image[:, 32:96] = 1.0
    assert (to_pixels(image, PixelSpec(size=32, fit="crop")) == 255).all()


@pytest.mark.parametrize("fit", FITS)
def test_percentile_contrast_uses_the_whole_range_of_the_film_alone(fit: str) -> None:
    image = np.random.default_rng(2).uniform(0.4, 0.5, (120, 80))
    pixels = to_pixels(image, PixelSpec(size=64, fit=fit, contrast="percentile"))  # type: ignore[arg-type]
    film = pixels[:, 12:52] if fit == "pad" else pixels
    assert (film.min(), film.max()) == (0, 255)
    assert 90 < np.median(film) < 165


def test_a_flat_film_stays_flat_under_percentile_contrast() -> None:
    assert (to_pixels(np.full((40, 40), 0.5), PixelSpec(size=32, contrast="percentile")) == 128).all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(200, 120), (120, 200), (160, 160), (161, 99)])
def test_evidence_comes_back_over_the_spot_that_made_it(fit: str, shape: tuple[int, int]) -> None:
    spec = PixelSpec(size=64, fit=fit)  # type: ignore[arg-type]
    image = blob(*shape, row=0.45, column=0.6)
    evidence = to_pixels(image, spec).astype(np.float32)
    back = evidence_to_image(evidence, shape, spec)
    assert back.shape == shape
    found = np.unravel_index(back.argmax(), shape)
    assert np.hypot(found[0] - 0.45 * shape[0], found[1] - 0.6 * shape[1]) <= 3


def test_what_a_crop_cut_away_has_no_evidence() -> None:
    back = evidence_to_image(np.ones((7, 7)), (100, 60), PixelSpec(size=32, fit="crop"))
    assert (back[:20] == 0).all()
    assert (back[80:] == 0).all()
    np.testing.assert_allclose(back[20:80], 1.0)


def test_a_coarse_map_keeps_its_values_where_it_is_stretched() -> None:
    back = evidence_to_image(np.array([[-2.0, 5.0]]), (10, 200), PixelSpec(size=32))
    np.testing.assert_allclose(back[:, [0, -1]], np.tile([-2.0, 5.0], (10, 1)))


def test_a_batch_is_scaled_and_has_a_channel() -> None:
    batch = to_batch([np.full((32, 32), 255, np.uint8), np.zeros((32, 32), np.uint8)])
    assert (batch.shape, batch.dtype) == ((2, 1, 32, 32), np.float32)
    assert (batch[0] == 1).all()
    assert (batch[1] == 0).all()


def test_values_that_are_no_number_become_black() -> None:
    assert to_pixels(np.full((32, 32), np.nan), PixelSpec(size=32)).max() == 0


@pytest.mark.parametrize("wrong", [np.zeros((3, 4, 5)), np.zeros((0, 4)), np.zeros(7)])
def test_an_array_that_is_no_image_is_named(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="array \\(H, W\\)"):
        to_pixels(wrong, PixelSpec(size=32))
