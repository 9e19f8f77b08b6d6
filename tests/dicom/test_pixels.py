"""The grey-scale pipeline against pydicom's own functions, value by value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from medsd.dicom.pixels import align_bits, present
from tests.conftest import dx_dataset

RNG = np.random.default_rng(7)


def ramp(bits: int = 12) -> np.ndarray:
    return RNG.integers(0, 2**bits, (40, 30)).astype(np.uint16 if bits > 8 else np.uint8)


def lut(entries: list[int], first: int, depth: int) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, depth]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = entries
    item["LUTData"].VR = "US"
    return [item]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (2.5, -300.0), (0.25, 17.0)])
def test_windows_equal_those_of_pydicom(function: str, slope: float, intercept: float) -> None:
    stored = ramp()
    ds = dx_dataset(
        stored, 12, WindowCenter=1800, WindowWidth=2100, VOILUTFunction=function,
        RescaleSlope=slope, RescaleIntercept=intercept,
    )  # fmt: skip
    expected = apply_voi_lut(apply_modality_lut(stored, ds), ds)
    expected = (expected - intercept) / (4095 * slope)
    np.testing.assert_allclose(present(stored, ds), expected, atol=1e-6)


@given(
    bits=st.integers(8, 16),
    center=st.floats(-100, 70000, allow_nan=False),
    width=st.floats(2, 70000, allow_nan=False),
)
def test_any_window_keeps_order_and_range(bits: int, center: float, width: float) -> None:
    stored = np.arange(2**bits, dtype=np.uint16).reshape(16, -1)
    shown = present(stored, dx_dataset(stored, bits, WindowCenter=f"{center:.2f}", WindowWidth=f"{width:.2f}"))
    assert shown.dtype == np.float32
    assert 0.0 <= shown.min() <= shown.max() <= 1.0
    assert (np.diff(shown.ravel()) >= 0).all()


def test_the_first_of_several_windows_is_used() -> None:
    stored = ramp()
    several = dx_dataset(stored, 12, WindowCenter=[1000, 3000], WindowWidth=[500, 900])
    one = dx_dataset(stored, 12, WindowCenter=1000, WindowWidth=500)
    np.testing.assert_array_equal(present(stored, several), present(stored, one))


def test_a_falling_rescale_does_not_turn_the_window_round() -> None:
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    ds = dx_dataset(stored, 12, WindowCenter=-2000, WindowWidth=4000, RescaleSlope=-1, RescaleIntercept=0)
    assert present(stored, ds)[0, 0] > present(stored, ds)[-1, -1]


def test_a_window_of_no_width_is_passed_over() -> None:
    stored = ramp()
    broken = dx_dataset(stored, 12, WindowCenter=2000, WindowWidth=0)
    np.testing.assert_array_equal(present(stored, broken), present(stored, dx_dataset(stored, 12)))


def test_a_voi_lut_equals_that_of_pydicom_and_wins_over_the_window() -> None:
    stored = ramp(10)
    table = np.sort(RNG.integers(0, 4096, 900)).tolist()
    ds = dx_dataset(stored, 10, VOILUTSequence=lut(table, 50, 12), WindowCenter=500, WindowWidth=100)
    np.testing.assert_allclose(present(stored, ds), apply_voi_lut(stored, ds) / 4095, atol=1e-6)


def test_a_voi_lut_with_8_bit_entries_longer_than_256_does_not_wrap() -> None:
    stored = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    ds = dx_dataset(stored, 10, VOILUTSequence=lut([v // 4 for v in range(1024)], 0, 8))
    np.testing.assert_allclose(present(stored, ds).ravel(), np.arange(1024) // 4 / 255, atol=1e-6)


def test_a_modality_lut_comes_before_the_window() -> None:
    stored = ramp(10)
    table = [4095 - 4 * value for value in range(1024)]
    ds = dx_dataset(stored, 10, ModalityLUTSequence=lut(table, 0, 16), WindowCenter=2048, WindowWidth=4096)
    expected = (np.array(table)[stored] - 2047.5) / 4095 + 0.5
    np.testing.assert_allclose(present(stored, ds), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [None, "INVERSE"])
def test_monochrome1_is_inverted_once_and_after_the_window(shape: str | None) -> None:
    stored = ramp()
    window = {"WindowCenter": 1000, "WindowWidth": 800}
    plain = present(stored, dx_dataset(stored, 12, **window))
    extra = {"PresentationLUTShape": shape} if shape else {}
    negative = present(stored, dx_dataset(stored, 12, PhotometricInterpretation="MONOCHROME1", **window, **extra))
    np.testing.assert_allclose(negative, 1.0 - plain, atol=1e-6)


def test_the_inverse_shape_alone_inverts() -> None:
    stored = ramp(8)
    shown = present(stored, dx_dataset(stored, PresentationLUTShape="INVERSE"))
    np.testing.assert_allclose(shown, 1.0 - stored / 255, atol=1e-6)


def test_a_presentation_lut_is_not_stretched_over_the_values_that_occur() -> None:
    stored = np.full((8, 8), 51, dtype=np.uint8)
    stored[0, 0] = 102
    item = lut([round(255 * (v / 255) ** 2) for v in range(256)], 0, 8)
    shown = present(stored, dx_dataset(stored, PresentationLUTSequence=item))
    np.testing.assert_allclose([shown[1, 1], shown[0, 0]], [0.04, 0.16], atol=0.01)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_counts_for_no_percentile(photometric: str) -> None:
    stored = RNG.integers(1000, 2000, (60, 60)).astype(np.uint16)
    stored[:, :30] = 4000
    ds = dx_dataset(
        stored, 12, PixelPaddingValue=3900, PixelPaddingRangeLimit=4095, PhotometricInterpretation=photometric
    )
    shown = present(stored, ds)
    assert (shown[:, :30] == 0).all()
    assert shown[:, 30:].min() == 0.0
    assert shown[:, 30:].max() == 1.0


def test_deep_values_without_a_window_are_shown_between_robust_percentiles() -> None:
    stored = RNG.normal(9000, 500, (200, 200)).astype(np.uint16)
    stored[0, :5] = 65535
    shown = present(stored, dx_dataset(stored))
    low, high = np.percentile(stored, [0.5, 99.5])
    np.testing.assert_allclose(shown, np.clip((stored - low) / (high - low), 0, 1), atol=2e-3)


def test_eight_bit_values_without_a_window_are_taken_as_those_of_a_png() -> None:
    stored = RNG.integers(30, 200, (20, 20)).astype(np.uint8)
    np.testing.assert_allclose(present(stored, dx_dataset(stored)), stored / 255, atol=1e-6)


def test_eight_bit_values_for_processing_are_shown_by_their_own_range() -> None:
    stored = RNG.integers(30, 200, (20, 20)).astype(np.uint8)
    shown = present(stored, dx_dataset(stored, PresentationIntentType="FOR PROCESSING"))
    assert (shown.min(), shown.max()) == (0.0, 1.0)


@pytest.mark.parametrize("signed", [False, True])
def test_what_stands_above_the_bits_stored_is_dropped(signed: bool) -> None:
    values = RNG.integers(-2048, 2048, (20, 20)) if signed else RNG.integers(0, 4096, (20, 20))
    word = values.astype(np.int16) if signed else values.astype(np.uint16)
    window = {"WindowCenter": 100, "WindowWidth": 3000}
    clean, dirty = dx_dataset(word, 12, **window), word ^ word.dtype.type(0x5000)
    np.testing.assert_array_equal(present(dirty, clean), present(word, clean))


def test_signed_values_are_windowed_by_their_own_zero() -> None:
    stored = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)
    shown = present(stored, dx_dataset(stored, 12, WindowCenter=0, WindowWidth=4096))
    np.testing.assert_allclose(shown.ravel(), np.arange(4096) / 4095, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_high_in_the_word_are_moved_down_and_the_others_dropped(signed: bool) -> None:
    values = np.array([[-5, 3], [7, 100]] if signed else [[5, 3], [7, 1000]])
    word = ((values << 4) | 0b0110).astype(np.int16 if signed else np.uint16)
    ds = dx_dataset(word, 12, HighBit=15)
    np.testing.assert_array_equal(align_bits(word, ds), values)
