"""Reading: encodings, missing parts, facts of the header, plain images."""

import io
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
)

from medsd.dicom.appearance import Appearance
from medsd.dicom.gate import GatePolicy, admit
from medsd.dicom.header import read_header
from medsd.dicom.pixels import present
from medsd.dicom.read import Radiograph, read_radiograph
from medsd.dicom.stream import Stream, read_stream
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
    content = build_dx(stored, 12, ImagerPixelSpacing=[0.2, 0.3], WindowCenter=2048, WindowWidth=4096)
    image, header = read_radiograph(content), read_header(dcmread(io.BytesIO(content)))
    assert (header.modality, header.body_part, header.sex, header.age_years) == ("DX", "CHEST", "F", 61.0)
    assert (image.view, image.spacing_mm, image.spacing_from) == ("PA", (0.2, 0.3), "Imager Pixel Spacing")
    assert (image.study_uid, image.patient_id) == ("1.2.3.4", "PH-0042")
    assert image.pixels.dtype == np.float32
    np.testing.assert_allclose(image.pixels, stored / 4095, atol=1e-3)


def test_identities_never_stand_in_a_repr(build_dx: Build, stored: np.ndarray) -> None:
    image = read_radiograph(build_dx(stored, 12))
    assert "PH-0042" not in repr(image)
    assert "1.2.3.4" not in repr(image)


def copied(content: bytes) -> np.ndarray:
    """The stored values as pydicom's own pipeline makes them."""
    return dcmread(io.BytesIO(content)).pixel_array


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize("unused", [0, 3])
def test_bare_values_are_viewed_in_the_file_and_equal_those_of_pydicom(syntax: UID, dtype: type, unused: int) -> None:
    word = (
        np.random.default_rng(5)
        .integers(0, 256 ** np.dtype(dtype).itemsize, (97, 81))
        .astype(f"u{np.dtype(dtype).itemsize}")
    )
    ds = dx_dataset(word.view(dtype), word.dtype.itemsize * 8 - unused, WindowCenter=20, WindowWidth=90)
    ds.file_meta.TransferSyntaxUID = syntax
    content = file_bytes(ds)
    radiograph = read_radiograph(content, policy=GatePolicy(inverted_look="accept"))
    assert radiograph.greys is not None
    np.testing.assert_array_equal(radiograph.greys.stored, copied(content))
    assert (radiograph.greys.stored.base is None) == bool(unused)  # what stands in unused bits is cleared in a copy


def test_what_follows_the_pixels_or_is_missing_before_them_changes_nothing(build_dx: Build, stored: np.ndarray) -> None:
    plain = read_radiograph(build_dx(stored, 12)).pixels
    padded = build_dx(stored, 12, DataSetTrailingPadding=bytes(64))
    without = build_dx(stored, 12, HighBit=None)
    for content in (padded, without):
        np.testing.assert_array_equal(read_radiograph(content).pixels, plain)


def test_identities_behind_the_pixels_are_still_found(build_dx: Build, stored: np.ndarray) -> None:
    late = build_dx(stored, 12, PatientID=None)[:] + b"\x10\x00\x20\x00LO\x06\x00PH-77 "
    assert read_radiograph(late).patient_id == "PH-77"


def test_pixels_are_made_when_they_are_asked_for_and_then_kept(build_dx: Build, stored: np.ndarray) -> None:
    image = read_radiograph(build_dx(stored, 12))
    assert "pixels" not in vars(image)
    assert image.pixels is image.pixels
    copy = pickle.loads(pickle.dumps(image))  # noqa: S301 our own bytes, as between the processes of a batch
    np.testing.assert_array_equal(copy.pixels, image.pixels)
    with pytest.raises(AttributeError, match="colour"):
        _ = image.colour  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "file",
    [
        "cr_chest_mono1_j2k_lossy",
        "cr_chest_mono1_jpegls",
        "cr_chest_mono2_jpeg",
        *(f"dx_nih_{number}" for number in range(1, 7)),
        "cr_chest_false_mono1",
        "rg_jpeg_extended",
    ],
)
def test_real_images_equal_pydicoms_own_pipeline(data_root: Path, file: str) -> None:
    path = data_root / "dicom" / f"{file}.dcm"
    anything = GatePolicy(modality="accept", body_part="accept", inverted_look="accept", not_a_radiograph="accept")
    image, ds = read_radiograph(path, policy=anything), dcmread(path)
    expected = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds) / (2**ds.BitsStored - 1)
    expected = 1 - expected if ds.PhotometricInterpretation == "MONOCHROME1" else expected
    np.testing.assert_allclose(image.pixels, expected, atol=1e-6)
    assert image.greys is not None
    np.testing.assert_array_equal(image.greys.stored, ds.pixel_array)


def test_an_inverse_shape_with_monochrome1_is_one_inversion_of_pydicoms_values(data_root: Path) -> None:
    ds = dcmread(data_root / "dicom" / "dx_thorax_animal.dcm")
    expected = 1 - apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds) / 255
    np.testing.assert_allclose(present(ds.pixel_array, ds), expected, atol=1e-6)


@pytest.mark.parametrize("file", ["cr_chest_mono1_j2k_lossy.dcm", "cr_chest_mono1_jpegls.dcm"])
def test_real_monochrome1_images_come_out_with_dark_air_and_bright_bone(data_root: Path, file: str) -> None:
    path = data_root / "dicom" / file
    raw = dcmread(path).pixel_array / 2**15
    assert Appearance.of(raw.astype(np.float32)).likeness < 0
    assert Appearance.of(read_radiograph(path).pixels).likeness > 0


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_without_preamble_and_meta_is_read(build_dx: Build, stored: np.ndarray, syntax: str) -> None:
    ds = dx_dataset(stored, 12)
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = stored.astype(">u2").tobytes()
    image = read_radiograph(file_bytes(ds, meta=False))
    np.testing.assert_array_equal(image.pixels, read_radiograph(build_dx(stored, 12)).pixels)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(8, 17))
def test_values_anywhere_in_the_word_read_as_those_at_its_end(build_dx: Build, bits: int, signed: bool) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    values = (
        np.random.default_rng(bits).integers(low, low + 2**bits, (96, 80)).astype(np.int16 if signed else np.uint16)
    )
    window = {"WindowCenter": low + 2 ** (bits - 1), "WindowWidth": 2**bits - 40}
    accept = GatePolicy(inverted_look="accept")
    expected = read_radiograph(build_dx(values, bits, **window), policy=accept).pixels
    for spare in range(1, 17 - bits):
        noise = np.random.default_rng(spare).integers(0, 2**16, values.shape).astype(np.uint16)
        inside = np.uint16(((1 << bits) - 1) << spare)
        word = (values.view(np.uint16) << spare) & inside | noise & ~inside
        content = build_dx(word.view(values.dtype), bits, HighBit=bits - 1 + spare, **window)
        np.testing.assert_array_equal(read_radiograph(content, policy=accept).pixels, expected)


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
        assert read_header(dcmread(io.BytesIO(content))).age_years == years


def test_a_png_and_a_dicom_file_of_the_same_grey_levels_are_the_same(build_dx: Build, chest: np.ndarray) -> None:
    grey = np.rint(chest * 255).astype(np.uint8)
    np.testing.assert_array_equal(read_radiograph(png(grey)).pixels, read_radiograph(build_dx(grey)).pixels)


def test_a_png_of_16_bits_is_shown_between_robust_percentiles(stored: np.ndarray) -> None:
    image = read_radiograph(png(stored))
    assert (image.pixels.min(), image.pixels.max()) == (0.0, 1.0)


def test_a_png_is_known_by_its_content_not_its_name(tmp_path: Path, chest: np.ndarray) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(png(np.rint(chest * 255).astype(np.uint8)))
    assert read_radiograph(path).shown is not None


def test_grey_saved_as_colour_is_grey_and_colour_is_refused(chest: np.ndarray) -> None:
    grey = np.repeat(np.rint(chest * 255).astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_allclose(read_radiograph(png(grey, "JPEG", quality=95)).pixels, chest, atol=0.05)
    coloured = grey.copy()
    coloured[..., 0] //= 2
    assert reason_of(png(coloured)) == "not_a_radiograph"
    assert isinstance(read_radiograph(png(coloured), policy=GatePolicy(not_a_radiograph="accept")), Radiograph)


ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize(("file_format", "deep"), [("JPEG", False), ("PNG", False), ("PNG", True)])
def test_a_picture_is_turned_as_its_exif_data_say(
    chest: np.ndarray, orientation: int, file_format: str, deep: bool
) -> None:
    """Stored so that its orientation puts it upright again (EXIF 2.32, tag 0112); 0 and 9 say nothing."""
    upright = Image.fromarray(
        np.rint(chest * 255).astype(np.uint16) * 257 if deep else np.rint(chest * 255).astype("u1")
    )
    stored = upright.transpose(ROTATIONS[orientation]) if orientation in ROTATIONS else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned, plain = io.BytesIO(), io.BytesIO()
    stored.save(turned, file_format, exif=exif, quality=100)
    upright.save(plain, file_format, quality=100)
    image, expected = read_radiograph(turned.getvalue()), read_radiograph(plain.getvalue())
    assert [item.reason for item in image.concerns] == (["turned"] if orientation in ROTATIONS else [])
    np.testing.assert_allclose(image.pixels, expected.pixels, atol=0.03)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_grey_is_read_from_every_kind_of_picture(chest: np.ndarray, mode: str) -> None:
    grey = np.rint(chest * 255).astype(np.uint8)
    picture = Image.fromarray(grey)
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "1":
        picture = picture.convert("1", dither=Image.Dither.FLOYDSTEINBERG)
    else:
        picture = picture.convert(mode) if mode != "CMYK" else picture.convert("RGB").convert(mode)
    stream = io.BytesIO()
    picture.save(stream, "JPEG" if mode == "CMYK" else "PNG", quality=98)
    pixels = read_radiograph(stream.getvalue(), policy=GatePolicy(not_a_chest="accept")).pixels
    assert np.abs(pixels.mean() - chest.mean()) < (0.2 if mode == "I;16" else 0.02)  # 16 bits: shown by their own range
    assert np.corrcoef(pixels.ravel(), chest.ravel())[0, 1] > (0.3 if mode == "1" else 0.99)


def test_an_animated_png_is_refused_for_its_frames(chest: np.ndarray) -> None:
    frame = Image.fromarray(np.rint(chest * 255).astype(np.uint8))
    stream = io.BytesIO()
    frame.save(stream, "PNG", save_all=True, append_images=[frame.point(lambda grey: 255 - grey)])
    assert reason_of(stream.getvalue()) == "frames"


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "BMP", "WEBP"])
def test_pictures_of_other_formats_are_named(chest: np.ndarray, file_format: str) -> None:
    admission = admit(png(np.rint(chest * 255).astype(np.uint8), file_format))
    assert admission.reason == "not_an_image" and file_format.lower() in admission.message.lower()


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
    stream = read_stream(get_frame(ds.PixelData, 0, number_of_frames=1))
    assert (stream.rows, stream.columns) == stored.shape
    assert (stream.bits, stream.components, syntax in stream.syntaxes) == (12, 1, True)
    jpeg = read_stream(png(stored.astype(np.uint8), "JPEG"))
    assert (jpeg.rows, jpeg.columns, jpeg.bits) == (*stored.shape, 8)
    assert read_stream(b"\x00\x01") == Stream()


def test_a_missing_file_is_a_reason(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "none.dcm") == "file_error"
    assert reason_of(tmp_path) == "file_error"


def test_a_picture_of_another_format_is_named() -> None:
    assert admit(b"GIF89a" + bytes(100)).reason == "not_an_image"
    assert admit(b"", name="empty.png").reason == "not_an_image"
    assert admit(b"", name="empty.dcm").reason == "not_dicom"
