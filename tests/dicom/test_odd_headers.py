"""Headers that are incomplete or contradict themselves: read where one reading is left, and told."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from medsd.dicom.gate import Admission, GatePolicy, admit
from tests.conftest import dx_dataset, file_bytes
from tests.dicom.encoders import compress_jpeg_lossless

pytestmark = pytest.mark.filterwarnings("ignore:.*for VR CS")
TWELVE = np.arange(4096)
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
Make = Callable[[np.ndarray], Dataset]


@pytest.fixture(scope="module")
def chest(chest: np.ndarray) -> np.ndarray:
    """The chest over all greys, which is what its own range shows too."""
    low, high = np.percentile(chest, [0.5, 99.5])
    return np.clip((chest - low) / (high - low), 0.0, 1.0)


@pytest.fixture(scope="module")
def deep(chest: np.ndarray) -> np.ndarray:
    return np.rint(chest * 4095).astype(np.uint16)


@pytest.fixture(scope="module")
def shallow(chest: np.ndarray) -> np.ndarray:
    return np.rint(chest * 255).astype(np.uint8)


def is_scored(ds: Dataset | bytes, chest: np.ndarray, *, named: str = "", off: float = 0.005) -> Admission:
    """That an image comes out as `chest`, without a warning, or with one that has `named` in it."""
    admission = admit(ds if isinstance(ds, bytes) else file_bytes(ds))
    assert admission.reason == ("odd_header" if named else ""), admission.message
    assert named in admission.message
    assert admission.radiograph is not None
    assert np.abs(admission.radiograph.pixels - chest).mean() <= off
    return admission


def is_refused(ds: Dataset | bytes, reason: str, named: str) -> None:
    admission = admit(ds if isinstance(ds, bytes) else file_bytes(ds))
    assert (admission.status, admission.reason) == ("refused", reason), admission.message
    assert named in admission.message


def lut(
    entries: np.ndarray | bytes | None, bits: int = 12, *, first: int = 0, count: int = 4096, descriptor: str = "US"
) -> Dataset:
    """One item of a LUT sequence; entries as bytes (OW) or words (US); "" for no descriptor."""
    item = Dataset()
    if descriptor:
        item.add_new("LUTDescriptor", descriptor, [count, first, bits])
    if isinstance(entries, bytes):
        item.add_new("LUTData", "OW", entries)
    elif entries is not None:
        item.add_new("LUTData", "US", entries.tolist())
    return item


WORDS = TWELVE.astype("<u2")
BYTES = (TWELVE // 16).astype("u1")


@pytest.mark.parametrize(
    ("item", "named"),
    [
        (lut(WORDS, 16), "declares 16 bits and its greatest entry is 4095"),
        (lut(WORDS.tobytes(), 16), "declares 16 bits"),
        (lut(WORDS // 16, 10), "declares 10 bits and its greatest entry is 255"),
        (lut(WORDS, 10), "declares 10 bits and its greatest entry is 4095"),
        (lut(BYTES.tobytes(), 16), "declares 16 bits and its greatest entry is 255"),
        (lut(BYTES.tobytes(), 8), ""),
        (lut(BYTES.view("<u2"), 8), ""),
        (lut(WORDS // 16, 8), ""),
        (lut(np.append(WORDS, [9, 9])), ""),
        (lut(np.minimum(np.arange(65536), 4095).astype("<u2").tobytes(), count=0), ""),
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_voi_lut_is_read_as_its_entries_are(
    chest: np.ndarray, deep: np.ndarray, item: Dataset, named: str, photometric: str
) -> None:
    stored = deep if photometric == "MONOCHROME2" else 4095 - deep
    is_scored(dx_dataset(stored, 12, VOILUTSequence=[item], PhotometricInterpretation=photometric), chest, named=named)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(
    ("offset", "elements", "item"),
    [
        (0, {"RescaleSlope": 1, "RescaleIntercept": -2048}, lut(WORDS, first=63488)),
        (0, {"RescaleSlope": 1, "RescaleIntercept": -2048}, lut(WORDS, first=-2048, descriptor="SS")),
        (0, {"RescaleSlope": 1, "RescaleIntercept": 40000}, lut(WORDS, first=40000)),
        (50000, {}, lut(WORDS, first=50000 - 65536, descriptor="SS")),
    ],
)
def test_the_first_value_of_a_voi_lut_has_the_sign_that_puts_it_over_the_pixels(
    chest: np.ndarray, deep: np.ndarray, syntax: str, offset: int, elements: dict[str, object], item: Dataset
) -> None:
    stored = (deep + offset).astype(np.uint16)
    ds = dx_dataset(stored, 16 if offset else 12, VOILUTSequence=[item], **elements)
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = stored.astype(">u2").tobytes()
    is_scored(ds, chest)


GOOD, FAR = lut(WORDS), lut(WORDS, first=20000)


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ([lut(WORDS, descriptor="")], "(0028,3002) LUT Descriptor is missing"),
        ([lut(None)], "(0028,3006) LUT Data are missing"),
        ([Dataset()], "(0028,3002)"),
        ([lut(WORDS, 0)], "entries of 0 bits"),
        ([lut(WORDS[:2000])], "declares 4096 entries and has 2000"),
        ([lut(np.full(4096, 99))], "(0028,3010) VOI LUT Sequence does not fit"),
        ([FAR], "(0028,3010) VOI LUT Sequence does not fit the pixel values"),
        ([lut(WORDS, descriptor=""), GOOD], "(0028,3002)"),
        ([GOOD, lut(WORDS[::-1])], ""),
        ([], ""),
    ],
)
@pytest.mark.parametrize("window", [True, False])
def test_a_voi_lut_of_no_use_is_passed_over_for_the_next_the_window_or_the_range(
    chest: np.ndarray, deep: np.ndarray, items: list[Dataset], named: str, window: bool
) -> None:
    ds = dx_dataset(deep, 12, VOILUTSequence=items, **(WINDOW if window else {}))
    is_scored(ds, chest, named=named, off=0.005 if window or GOOD in items else 0.02)


@pytest.mark.parametrize(
    ("center", "width", "named"),
    [
        (30000, 1000, "(0028,1050) Window Center 30000 with (0028,1051) Window Width 1000 does not fit"),
        (-2000, 500, "does not fit the pixel values"),
        (128, 256, "does not fit the pixel values"),
        (32768, 65536, "does not fit the pixel values"),
        (2048, 0, "(0028,1051) Window Width 0 is no window"),
        (2048, -4096, "(0028,1051) Window Width -4096 is no window"),
        ([60000, 2048], [10, 4096], "Window Center 60000"),
        ([9, 2048], [0, 4096], "Window Width 0"),
        (["", 2048], ["", 4096], ""),
        (2048, 1, "Window Width 1 does not fit"),  # black and white alone
        (2048, "", "Window Width is missing or no number"),
        ("", 4096, "Window Width is missing or no number"),
        ("", "", ""),
    ],
)
@pytest.mark.parametrize("signed", [False, True])
def test_a_window_of_no_use_is_passed_over_for_the_next_or_the_range(
    chest: np.ndarray, deep: np.ndarray, center: object, width: object, named: str, signed: bool
) -> None:
    stored = (deep.astype(np.int32) - 2048).astype(np.int16) if signed else deep
    shift = {"RescaleSlope": 1, "RescaleIntercept": 2048} if signed else {}
    is_scored(dx_dataset(stored, 12, WindowCenter=center, WindowWidth=width, **shift), chest, named=named, off=0.02)


def test_a_window_for_stored_values_under_a_rescale_is_passed_over(chest: np.ndarray, deep: np.ndarray) -> None:
    ds = dx_dataset(deep, 12, RescaleSlope=10, RescaleIntercept=5000, **WINDOW)
    is_scored(ds, chest, named="does not fit the pixel values", off=0.02)


@pytest.mark.parametrize(
    ("slope", "intercept", "named"),
    [(-10, 3000, ""), (-1, None, "(0028,1052)"), (2, -100, ""), (None, 7, "(0028,1053)"), (0, 0, "Slope is 0")],
)
@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("signed", [False, True])
def test_the_modality_step_always_applies(
    chest: np.ndarray, slope: float | None, intercept: float | None, named: str, bits: int, signed: bool
) -> None:
    top = 2**bits - 1
    stored = np.rint((1 - chest if (slope or 1) < 0 else chest) * top) - (2 ** (bits - 1) if signed else 0)
    word = stored.astype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
    elements = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    ds = dx_dataset(word, bits, **{keyword: value for keyword, value in elements.items() if value is not None})
    is_scored(ds, chest, named=named, off=0.005 if bits == 8 else 0.02)


def test_padding_that_is_written_with_the_other_sign_is_padding(chest: np.ndarray, deep: np.ndarray) -> None:
    stored = (deep.astype(np.int32) - 2048).astype(np.int16)
    stored[:, :9] = -3000
    ds = dx_dataset(stored, 16, WindowCenter=0, WindowWidth=4096, PhotometricInterpretation="MONOCHROME1")
    ds.add_new("PixelPaddingValue", "US", 65536 - 3000)
    radiograph = admit(file_bytes(ds), GatePolicy(inverted_look="accept")).radiograph
    assert radiograph is not None and radiograph.pixels[:, :9].max() == 0.0


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=98)
    return stream.getvalue()


def in_jpeg(pixels: np.ndarray, **elements: object) -> Dataset:
    ds = dx_dataset(pixels[..., 0] if pixels.ndim == 3 else pixels, **elements)
    ds.PixelData = encapsulate([jpeg(pixels)])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return ds


def encoded(stored: np.ndarray, syntax: str, **elements: object) -> Dataset:
    ds = dx_dataset(stored, 8 if stored.itemsize == 1 else 12)
    if syntax == JPEGLosslessSV1:
        compress_jpeg_lossless(ds, stored)
    elif syntax == JPEGBaseline8Bit:
        ds = in_jpeg(stored)
    else:
        ds.compress(syntax)
    ds.update(elements)
    return ds


SAYS_12 = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}
ENCODINGS = [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless]


@pytest.mark.parametrize("syntax", ENCODINGS)
@pytest.mark.parametrize(
    "elements",
    [
        {"BitsAllocated": 16},
        {"BitsAllocated": 16, "WindowCenter": 128, "WindowWidth": 256},
        {**SAYS_12, **WINDOW},
        {**SAYS_12, **WINDOW, "RescaleSlope": 1, "RescaleIntercept": 0},
        {**SAYS_12, "WindowCenter": 128, "WindowWidth": 256},
        {**SAYS_12, "VOILUTSequence": [GOOD]},
        SAYS_12,
    ],
)
def test_a_stream_of_8_bits_is_read_whatever_the_header_says(
    chest: np.ndarray, shallow: np.ndarray, syntax: str, elements: dict[str, object]
) -> None:
    is_scored(encoded(shallow, syntax, **elements), chest, named="Bits Allocated is 16 and taken as 8", off=0.02)


@pytest.mark.parametrize(
    ("syntax", "bits"), [(JPEGBaseline8Bit, 7), (JPEGLosslessSV1, 10), (JPEGLSLossless, 10), (JPEG2000Lossless, 11)]
)
def test_values_beyond_bits_stored_are_those_of_the_stream(
    chest: np.ndarray, deep: np.ndarray, shallow: np.ndarray, syntax: str, bits: int
) -> None:
    stored = shallow if bits == 7 else deep
    ds = encoded(stored, syntax, BitsStored=bits, HighBit=bits - 1, **({} if bits == 7 else WINDOW))
    is_scored(ds, chest, named=f"(0028,0101) Bits Stored is {bits}, and the code stream has", off=0.01)


def test_bits_above_bits_stored_are_passed_over_with_a_warning_unless_an_overlay_is_there(
    chest: np.ndarray, deep: np.ndarray
) -> None:
    """PS3.5 8.1.1: they are no part of the values. A sign may be there or not."""
    noisy = deep | np.uint16(0x8000)
    is_scored(dx_dataset(noisy, 12, **WINDOW), chest, named="bits above (0028,0101) Bits Stored 12")
    ds = dx_dataset(noisy, 12, **WINDOW)
    ds.add_new((0x6000, 0x0102), "US", 15)
    is_scored(ds, chest)
    signed = ((deep.astype(np.int32) - 2048) & 0xFFF).astype(np.int16)
    is_scored(dx_dataset(signed, 12, WindowCenter=0, WindowWidth=4096), chest)


def test_jpeg_of_the_cosine_transform_has_no_sign(chest: np.ndarray, shallow: np.ndarray) -> None:
    """PS3.5, table 8.2.1-1."""
    named = "(0028,0103) Pixel Representation is 1 and taken as 0, as in the code stream"
    is_scored(in_jpeg(shallow, PixelRepresentation=1), chest, named=named)


def test_a_file_that_ends_within_its_code_stream_is_named(shallow: np.ndarray) -> None:
    content = file_bytes(in_jpeg(shallow))
    for cut in (8, 900):  # the sequence delimiter alone, and some of the stream
        is_refused(content[:-cut], "cannot_decode", "the file ends within (7FE0,0010) Pixel Data")


def test_an_empty_high_bit_and_bits_allocated_of_no_word_are_settled(chest: np.ndarray, deep: np.ndarray) -> None:
    is_scored(dx_dataset(deep, 12, HighBit=None, **WINDOW), chest)
    is_scored(dx_dataset(deep, 12, BitsAllocated=12, **WINDOW), chest, named="Bits Allocated is 12 and taken as 16")


@pytest.mark.parametrize("syntax", ENCODINGS[1:])
def test_a_stream_of_12_bits_is_read_though_the_header_says_8(chest: np.ndarray, deep: np.ndarray, syntax: str) -> None:
    ds = encoded(deep, syntax, BitsAllocated=8, BitsStored=8, HighBit=7, **WINDOW)
    is_scored(ds, chest, named="(0028,0101) Bits Stored is 8 and taken as 1")


def under(syntax: str, content: bytes) -> bytes:
    """`content` with the transfer syntax of its file meta written over."""
    old_length = int.from_bytes(content[140:144], "little")
    at = content.index(b"\x02\0\x10\0UI")
    end = at + 8 + int.from_bytes(content[at + 6 : at + 8], "little")
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    changed = content[:at] + b"\x02\0\x10\0UI" + len(value).to_bytes(2, "little") + value + content[end:]
    length = (old_length + len(changed) - len(content)).to_bytes(4, "little")
    return changed[:140] + length + changed[144:]


@pytest.mark.parametrize("declared", [ExplicitVRLittleEndian, JPEG2000, RLELossless, JPEGBaseline8Bit, "1.2.3.4"])
@pytest.mark.parametrize("syntax", ENCODINGS[1:])
def test_a_code_stream_is_read_as_what_it_is(chest: np.ndarray, deep: np.ndarray, syntax: str, declared: str) -> None:
    fits = syntax == declared or (syntax, declared) == (JPEG2000Lossless, JPEG2000)
    content = under(declared, file_bytes(encoded(deep, syntax, **WINDOW)))
    is_scored(content, chest, named="" if fits else "(0002,0010) Transfer Syntax UID is")


@pytest.mark.parametrize("declared", ENCODINGS)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_pixels_that_are_not_compressed_are_read_as_such(
    chest: np.ndarray, deep: np.ndarray, syntax: str, declared: str
) -> None:
    ds = dx_dataset(deep, 12, **WINDOW)
    ds.file_meta.TransferSyntaxUID = syntax
    is_scored(under(declared, file_bytes(ds)), chest, named="the pixel data are not compressed")


def test_a_bare_code_stream_is_put_into_items(chest: np.ndarray, shallow: np.ndarray) -> None:
    is_scored(dx_dataset(shallow, PixelData=jpeg(shallow) + b"\0" * (len(jpeg(shallow)) % 2)), chest, named="bare")


def test_pixels_under_a_foreign_transfer_syntax_are_refused_by_its_element(deep: np.ndarray) -> None:
    is_refused(under("1.2.3.4", file_bytes(dx_dataset(deep, 12, **WINDOW))), "cannot_decode", "(0002,0010)")


def meta_of(content: bytes) -> bytes:
    return content[132 : 144 + int.from_bytes(content[140:144], "little")]


@pytest.mark.parametrize("first", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGLosslessSV1])
@pytest.mark.parametrize("second", [ExplicitVRLittleEndian, JPEGLosslessSV1])
@pytest.mark.parametrize("preamble", [False, True])
def test_a_second_file_meta_group_does_not_hide_the_pixels(
    chest: np.ndarray, deep: np.ndarray, first: str, second: str, preamble: bool
) -> None:
    content = file_bytes(encoded(deep, JPEGLosslessSV1, **WINDOW))
    rest = content[132 + len(meta_of(content)) :]
    inner = meta_of(under(second, content))
    changed = content[:132] + meta_of(under(first, content)) + (content[:132] if preamble else b"") + inner + rest
    is_scored(changed, chest, named="" if second == JPEGLosslessSV1 else "the pixel data are lossless JPEG")


@pytest.mark.parametrize("keyword", ["SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("bits", [8, 12])
def test_a_missing_element_is_taken_from_the_pixel_data(
    chest: np.ndarray, deep: np.ndarray, shallow: np.ndarray, keyword: str, syntax: str, bits: int
) -> None:
    ds = dx_dataset(shallow if bits == 8 else deep, bits, **(WINDOW if bits == 12 else {}))
    if syntax.is_compressed:
        ds.compress(syntax)
    ds.file_meta.TransferSyntaxUID = syntax
    delattr(ds, keyword)
    is_scored(ds, chest, named="is missing and taken as")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_missing_sign_is_seen_in_the_words_or_in_the_stream(
    chest: np.ndarray, deep: np.ndarray, compressed: bool
) -> None:
    stored = (deep.astype(np.int32) - 2048).astype(np.int16)
    ds = dx_dataset(stored, 12, WindowCenter=0, WindowWidth=4096)
    if compressed:
        ds.compress(JPEG2000Lossless)
    del ds.PixelRepresentation
    is_scored(ds, chest, named="(0028,0103) Pixel Representation is missing and taken as 1")


@pytest.mark.parametrize("said", ["monochrome1", "MONOCHROME 1", "MONOCHROME_1"])
def test_a_misspelt_photometric_interpretation_is_understood(chest: np.ndarray, deep: np.ndarray, said: str) -> None:
    is_scored(dx_dataset(4095 - deep, 12, PhotometricInterpretation=said, **WINDOW), chest, named="MONOCHROME1")


@pytest.mark.parametrize(("shape", "stored"), [("IDENTITY", "MONOCHROME2"), ("INVERSE", "MONOCHROME1")])
@pytest.mark.parametrize("said", [None, "", "MONOCHROME"])
def test_the_presentation_lut_shape_stands_for_a_missing_photometric_interpretation(
    chest: np.ndarray, deep: np.ndarray, shape: str, stored: str, said: str | None
) -> None:
    pixels = deep if stored == "MONOCHROME2" else 4095 - deep
    ds = dx_dataset(pixels, 12, PhotometricInterpretation=said, PresentationLUTShape=shape, **WINDOW)
    is_scored(ds, chest, named=f"taken as {stored}")


@pytest.mark.parametrize(
    ("elements", "named"),
    [
        ({"PhotometricInterpretation": None}, "(0028,0004) Photometric Interpretation"),
        ({"Rows": None}, "(0028,0010) Rows is missing"),
        ({"Columns": None}, "(0028,0011) Columns is missing"),
        ({"PixelData": b"\0" * 100}, "(7FE0,0010) Pixel Data holds 100 bytes, 15360 are needed"),
        ({"BitsAllocated": 32, "PixelData": b"\0" * 30720}, "(0028,0100) Bits Allocated 32"),
        ({"BitsStored": 17}, "(0028,0101) Bits Stored is 17"),
    ],
)
def test_what_could_be_one_thing_or_the_other_is_refused_by_its_element(
    deep: np.ndarray, elements: dict[str, object], named: str
) -> None:
    is_refused(dx_dataset(deep, 12, **WINDOW, **elements), "cannot_decode", named)


@pytest.mark.parametrize("keyword", ["FloatPixelData", "DoubleFloatPixelData"])
def test_computed_values_are_named(deep: np.ndarray, keyword: str) -> None:
    ds = dx_dataset(deep, 12, PixelData=None)
    setattr(ds, keyword, bytes(8 * deep.size))
    is_refused(ds, "not_a_radiograph", "Float Pixel Data")


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir", "DicomDir.dcm"])
def test_a_directory_is_named_whatever_its_name(name: str) -> None:
    ds = dx_dataset(np.zeros((2, 2), np.uint8))
    for element in list(ds):
        del ds[element.tag]
    ds.FileSetID, ds.DirectoryRecordSequence = "", []
    ds.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    admission = admit(file_bytes(ds), name=name)
    assert admission.reason == "no_pixels" and "Media Storage Directory" in admission.message
