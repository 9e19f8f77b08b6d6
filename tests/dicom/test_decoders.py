"""JPEG streams against the headers they come with: signs, words, colours, and what is malformed."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medsd.dicom.decoders import decoder_of, decodes
from tests.conftest import dx_dataset
from tests.dicom.encoders import jpeg_lossless

EXTENDED = (Path(__file__).with_name("data") / "phantom_extended_12bit.jpg").read_bytes()


def dataset(stored: npt.NDArray[np.integer], syntax: str, stream: bytes, bits: int = 16) -> Dataset:
    ds = dx_dataset(stored.astype(np.uint16), bits, PixelRepresentation=int(stored.dtype.kind == "i"))
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([stream])
    return ds


def decoded(ds: Dataset) -> npt.NDArray[np.integer]:
    return pixel_array(ds, index=0, raw=True, decoding_plugin=decoder_of(ds.file_meta.TransferSyntaxUID))


@pytest.mark.parametrize("bits", range(2, 17))
def test_lossless_jpeg_of_every_precision_gives_every_value(bits: int) -> None:
    stored = np.random.default_rng(bits).integers(0, 2**bits, (40, 60)).astype(np.uint16)
    stored[0, :2] = 0, 2**bits - 1
    found = decoded(dataset(stored, JPEGLosslessSV1, jpeg_lossless(stored, bits), bits))
    np.testing.assert_array_equal(found, stored)


@pytest.mark.parametrize("bits", [12, 16])
def test_signed_values_keep_their_signs(bits: int) -> None:
    stored = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (40, 60)).astype(np.int16)
    unsigned = (stored.astype(np.int64) % 2**bits).astype(np.uint16)
    np.testing.assert_array_equal(
        decoded(dataset(stored, JPEGLosslessSV1, jpeg_lossless(unsigned, bits), bits)), stored
    )


def test_a_stream_of_8_bits_fills_words_of_16() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (40, 60)).astype(np.uint16)
    np.testing.assert_array_equal(decoded(dataset(stored, JPEGLosslessSV1, jpeg_lossless(stored, 8), 12)), stored)


def test_more_bits_than_the_header_allots_are_refused() -> None:
    ds = dataset(np.zeros((128, 128), np.uint16), JPEGExtended12Bit, EXTENDED, 12)
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    with pytest.raises(RuntimeError, match="declare different samples"):
        decoded(ds)


def test_a_stream_of_another_size_is_refused_before_it_is_decoded() -> None:
    stream = bytearray(jpeg_lossless(np.zeros((40, 60), np.uint16), 16))
    place = stream.index(b"\xff\xc3") + 5
    stream[place : place + 4] = b"\xff\xff\xff\xff"  # 4 billion pixels
    with pytest.raises(RuntimeError, match="declare different sizes"):
        decoded(dataset(np.zeros((40, 60), np.uint16), JPEGLosslessSV1, bytes(stream)))


def test_a_sequential_scan_over_part_of_the_coefficients_is_malformed() -> None:
    zeros = np.zeros((128, 128), np.uint16)
    assert decoded(dataset(zeros, JPEGExtended12Bit, EXTENDED, 12)).max() > 3000
    place = EXTENDED.index(b"\xff\xda") + 8  # Se, behind marker, length, one component
    broken = EXTENDED[:place] + b"\0" + EXTENDED[place + 1 :]
    assert EXTENDED[place] == 63
    with pytest.raises(RuntimeError, match="not from 0 to 63"):
        decoded(dataset(zeros, JPEGExtended12Bit, broken, 12))


def test_colours_stay_as_they_are_stored() -> None:
    picture = np.zeros((32, 48, 3), np.uint8) + np.uint8([200, 60, 20])
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=98, subsampling=0)
    ds = dataset(picture[..., 0], JPEGBaseline8Bit, content.getvalue(), 8)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "YBR_FULL", 0
    ds.BitsAllocated, ds.HighBit = 8, 7
    expected = np.asarray(Image.fromarray(picture).convert("YCbCr"), np.int64)
    assert np.abs(decoded(ds) - expected).max() <= 2
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    with pytest.raises(RuntimeError):
        decoded(ds)


def test_each_syntax_has_the_decoder_that_is_known_to_be_best() -> None:
    jpeg = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1)
    assert [decoder_of(syntax) for syntax in (*jpeg, JPEGLSLossless)] == ["medsd"] * 3 + ["pyjpegls"]
    assert {decoder_of(syntax) for syntax in (ExplicitVRLittleEndian, JPEG2000, HTJ2K, RLELossless)} == {""}
    assert all(map(decodes, (*jpeg, JPEGLSLossless, JPEG2000, HTJ2K, RLELossless)))
    assert "medsd" not in get_decoder(JPEGLSLossless).available_plugins
