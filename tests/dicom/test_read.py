"""Reading: encodings, missing parts, facts of the header, plain images."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medsd.dicom.gate import GatePolicy, admit
from medsd.dicom.read import Radiograph, read_radiograph, stream_size
from medsd.errors import ImageError
from tests.conftest import dx_dataset, file_bytes

Build = Callable[..., bytes]


@pytest.fixture
def stored(chest: np.ndarray) -> np.ndarray:
    return np.rint(chest * 4095).astype(np.uint16)


def reason_of(content: bytes | Path, **policy: object) -> str:
    with pytest.raises(ImageError) as caught:
        read_radiograph(content, policy=GatePolicy(**policy))  # type: ignore[arg-type]
    return caught.value.reason


def png(array: np.ndarray, file_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, file_format, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def test_a_radiograph_carries_the_facts_of_its_header(build_dx: Build, stored: np.ndarray) -> None:
    film = read_radiograph(build_dx(stored, 12, ImagerPixelSpacing=[0.2, 0.3], WindowCenter=2048, WindowWidth=4096))
    assert (film.modality, film.body_part, film.view, film.sex, film.age_years) == ("DX", "CHEST", "PA", "F", 61.0)
    assert (film.spacing_mm, film.photometric, film.kind) == ((0.2, 0.3), "MONOCHROME2", "dicom")
    assert (film.study_uid, film.patient_id) == ("1.2.3.4", "PH-0042")
    assert film.pixels.dtype == np.float32
    np.testing.assert_allclose(film.pixels, stored / 4095, atol=1e-3)


def test_identities_never_stand_in_a_repr(build_dx: Build, stored: np.ndarray) -> None:
    film = read_radiograph(build_dx(stored, 12))
    assert "PH-0042" not in repr(film)
    assert "1.2.3.4" not in repr(film)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_every_lossless_encoding_gives_the_same_pixels(build_dx: Build, stored: np.ndarray, syntax: str) -> None:
    ds = dx_dataset(stored, 12)
    ds.compress(syntax, generate_instance_uid=False)
    compressed = read_radiograph(file_bytes(ds))
    np.testing.assert_array_equal(compressed.pixels, read_radiograph(build_dx(stored, 12)).pixels)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_plain_encoding_gives_the_same_pixels(build_dx: Build, stored: np.ndarray, syntax: str) -> None:
    ds = dx_dataset(stored, 12)
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = stored.astype(">u2").tobytes()
    film = read_radiograph(file_bytes(ds))
    np.testing.assert_array_equal(film.pixels, read_radiograph(build_dx(stored, 12)).pixels)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_without_preamble_and_meta_is_read(build_dx: Build, stored: np.ndarray, syntax: str) -> None:
    ds = dx_dataset(stored, 12)
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = stored.astype(">u2").tobytes()
    film = read_radiograph(file_bytes(ds, meta=False))
    np.testing.assert_array_equal(film.pixels, read_radiograph(build_dx(stored, 12)).pixels)


def test_values_high_in_the_word_read_as_those_low_in_it(build_dx: Build, stored: np.ndarray) -> None:
    high = ((stored << 4) | 9).astype(np.uint16)
    film = read_radiograph(build_dx(high, 12, HighBit=15))
    np.testing.assert_array_equal(film.pixels, read_radiograph(build_dx(stored, 12)).pixels)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(build_dx: Build, stored: np.ndarray, share: float) -> None:
    content = build_dx(stored, 12)
    assert reason_of(content[: int(len(content) * share)]) == "cannot_decode"


def test_a_header_cut_off_is_refused(build_dx: Build, stored: np.ndarray) -> None:
    assert reason_of(build_dx(stored, 12)[:400]) == "no_pixels"


@pytest.mark.parametrize(
    ("elements", "view"),
    [
        ({"ViewPosition": "AP"}, "AP"),
        ({"ViewPosition": None, "SeriesDescription": "Chest PA upright"}, "PA"),
        ({"ViewPosition": None}, ""),
    ],
)
def test_the_view_is_found_where_a_header_holds_it(
    build_dx: Build, stored: np.ndarray, elements: dict[str, object], view: str
) -> None:
    assert read_radiograph(build_dx(stored, 12, **elements)).view == view


@pytest.mark.parametrize(("age", "years"), [("061Y", 61.0), ("006M", 0.5), ("62", 62.0), ("old", None)])
def test_ages_come_in_years(build_dx: Build, stored: np.ndarray, age: str, years: float | None) -> None:
    with pytest.warns(UserWarning) if age in ("62", "old") else pytest.MonkeyPatch.context():
        content = build_dx(stored, 12, PatientAge=age)
    assert read_radiograph(content).age_years == years


def test_a_png_and_a_dicom_file_of_the_same_grey_levels_are_the_same(build_dx: Build, chest: np.ndarray) -> None:
    grey = np.rint(chest * 255).astype(np.uint8)
    np.testing.assert_array_equal(read_radiograph(png(grey)).pixels, read_radiograph(build_dx(grey)).pixels)


def test_a_png_of_16_bits_is_shown_between_robust_percentiles(stored: np.ndarray) -> None:
    film = read_radiograph(png(stored))
    assert (film.kind, film.pixels.min(), film.pixels.max()) == ("image", 0.0, 1.0)


def test_a_png_is_known_by_its_content_not_its_name(tmp_path: Path, chest: np.ndarray) -> None:
    path = tmp_path / "film.dcm"
    path.write_bytes(png(np.rint(chest * 255).astype(np.uint8)))
    assert read_radiograph(path).kind == "image"


def test_grey_saved_as_colour_is_grey_and_colour_is_refused(chest: np.ndarray) -> None:
    grey = np.repeat(np.rint(chest * 255).astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_allclose(read_radiograph(png(grey, "JPEG", quality=95)).pixels, chest, atol=0.05)
    coloured = grey.copy()
    coloured[..., 0] //= 2
    assert reason_of(png(coloured)) == "not_a_radiograph"
    assert isinstance(read_radiograph(png(coloured), policy=GatePolicy(not_a_radiograph="accept")), Radiograph)


def test_a_decompression_bomb_is_refused_before_it_goes_off(stored: np.ndarray) -> None:
    bomb = png(np.zeros((4000, 4000), dtype=np.uint8))
    assert reason_of(bomb, max_pixels=1_000_000) == "too_large"


def test_a_deflated_file_that_inflates_beyond_the_limit_is_refused(stored: np.ndarray) -> None:
    ds = dx_dataset(stored, 12)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    content = file_bytes(ds)
    start = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = content[:start] + packer.compress(bytes(30_000_000)) + packer.flush()
    assert reason_of(bomb, max_file_bytes=1_000_000) == "too_large"


def test_a_stream_larger_than_its_header_says_is_not_decoded(stored: np.ndarray) -> None:
    ds = dx_dataset(stored, 12)
    ds.compress(JPEG2000Lossless)
    ds.Rows = 70
    assert reason_of(file_bytes(ds)) == "cannot_decode"


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_the_size_of_a_code_stream_is_read_from_its_markers(stored: np.ndarray, syntax: str) -> None:
    from pydicom.encaps import get_frame

    ds = dx_dataset(stored, 12)
    ds.compress(syntax)
    assert stream_size(get_frame(ds.PixelData, 0, number_of_frames=1)) == stored.shape
    assert stream_size(png(stored.astype(np.uint8), "JPEG")) == stored.shape
    assert stream_size(b"\x00\x01") is None


def test_a_missing_file_is_a_reason(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "none.dcm") == "file_error"
    assert reason_of(tmp_path) == "file_error"


def test_a_picture_of_another_format_is_named() -> None:
    assert admit(b"GIF89a" + bytes(100)).reason == "not_an_image"
    assert admit(b"", name="empty.png").reason == "not_an_image"
    assert admit(b"", name="empty.dcm").reason == "not_dicom"
