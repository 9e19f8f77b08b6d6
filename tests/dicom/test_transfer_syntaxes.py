"""One radiograph in every transfer syntax that pydicom and its plugins decode: the same pixels, the same prediction.

The image is a phantom. `data/` holds it as it is, as HTJ2K (by OpenJPH) and as 12-bit extended JPEG (by
libjpeg-turbo), for which no encoder is among the dependencies.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    UID_dictionary,
)

from medsd import Predictor
from medsd.dicom.read import Radiograph, read_radiograph
from medsd.preprocessing.pixels import to_pixels
from medsd.settings import PixelSpec
from tests.conftest import dx_dataset, file_bytes
from tests.dicom.encoders import compress_jpeg_lossless

BUNDLE = Path(__file__).resolve().parents[2] / "models" / "phantom"
DATA = Path(__file__).with_name("data")
SIZES = (32, 128)  # with and without the reduction by whole factors
Encode = Callable[[Dataset, np.ndarray], None]


def plain(syntax: UID) -> Encode:
    def encode(ds: Dataset, stored: np.ndarray) -> None:
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = stored.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()

    return encode


def packed(syntax: UID, **options: Any) -> Encode:
    return lambda ds, _: ds.compress(syntax, generate_instance_uid=False, **options)


def stream(syntax: UID, content: bytes | str) -> Encode:
    def encode(ds: Dataset, _: np.ndarray) -> None:
        ds.PixelData = encapsulate([(DATA / content).read_bytes() if isinstance(content, str) else content])
        ds["PixelData"].VR = "OB"
        ds.file_meta.TransferSyntaxUID = syntax

    return encode


def predicted_from(predictor: int) -> Encode:
    return lambda ds, stored: compress_jpeg_lossless(ds, stored, predictor)


LOSSLESS: dict[str, Encode] = {
    "implicit little endian": plain(ImplicitVRLittleEndian),
    "explicit little endian": plain(ExplicitVRLittleEndian),
    "explicit big endian": plain(ExplicitVRBigEndian),
    "deflated": plain(DeflatedExplicitVRLittleEndian),
    "RLE": packed(RLELossless),
    "JPEG-LS": packed(JPEGLSLossless),
    "JPEG 2000": packed(JPEG2000Lossless),
    "HTJ2K": stream(HTJ2KLossless, "phantom_htj2k_lossless.j2c"),
    "HTJ2K RPCL": stream(HTJ2KLosslessRPCL, "phantom_htj2k_lossless.j2c"),
    "JPEG lossless, first-order prediction": predicted_from(1),
    **{f"JPEG lossless, predictor {predictor}": predicted_from(predictor) for predictor in range(2, 8)},
}
# Encoding → grey levels of 255 by which a pixel of the model's may differ.
LOSSY: dict[str, tuple[Encode, int]] = {
    "JPEG extended, 12 bits": (stream(JPEGExtended12Bit, "phantom_extended_12bit.jpg"), 2),
    "JPEG-LS near-lossless": (packed(JPEGLSNearLossless, jls_error=4), 1),
    "JPEG 2000": (packed(JPEG2000, j2k_psnr=[60]), 3),
    "HTJ2K": (stream(HTJ2K, "phantom_htj2k_lossy.j2c"), 5),
}


@pytest.fixture(scope="module")
def stored() -> np.ndarray:
    return np.asarray(Image.open(DATA / "phantom.png"), dtype=np.uint16)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(BUNDLE, provider="cpu")


def image(stored: np.ndarray, encode: Encode | None = None, bits: int = 12) -> bytes:
    ds = dx_dataset(stored, bits, WindowCenter=2 ** (bits - 1), WindowWidth=int(0.83 * 2**bits))
    if encode is not None:
        encode(ds, stored)
    return file_bytes(ds)


def squares(radiograph: Radiograph) -> list[np.ndarray]:
    return [to_pixels(radiograph, PixelSpec(size=size)) for size in SIZES]


@pytest.fixture(scope="module")
def original(stored: np.ndarray) -> Radiograph:
    return read_radiograph(image(stored))


@pytest.mark.parametrize("encoding", LOSSLESS)
def test_a_lossless_encoding_changes_nothing(
    stored: np.ndarray, original: Radiograph, predictor: Predictor, encoding: str
) -> None:
    content = image(stored, LOSSLESS[encoding])
    radiograph = read_radiograph(content)
    np.testing.assert_array_equal(radiograph.pixels, original.pixels)
    for found, expected in zip(squares(radiograph), squares(original), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert predictor(content).probabilities == predictor(image(stored)).probabilities


@pytest.mark.parametrize("encoding", LOSSY)
def test_a_lossy_encoding_stays_within_its_tolerance(
    stored: np.ndarray, original: Radiograph, predictor: Predictor, encoding: str
) -> None:
    encode, levels = LOSSY[encoding]
    content = image(stored, encode)
    radiograph = read_radiograph(content)
    assert not np.array_equal(radiograph.pixels, original.pixels)
    for found, expected in zip(squares(radiograph), squares(original), strict=True):
        assert np.abs(found.astype(int) - expected).max() <= levels
    differ_little(predictor(content).probabilities, predictor(image(stored)).probabilities)


def test_baseline_jpeg_of_8_bits_stays_within_its_tolerance(stored: np.ndarray, predictor: Predictor) -> None:
    grey = (stored >> 4).astype(np.uint8)
    picture = io.BytesIO()
    Image.fromarray(grey).save(picture, "JPEG", quality=99)
    content, bare = image(grey, stream(JPEGBaseline8Bit, picture.getvalue()), 8), image(grey, bits=8)
    pairs = zip(squares(read_radiograph(content)), squares(read_radiograph(bare)), strict=True)
    assert max(np.abs(found.astype(int) - expected).max() for found, expected in pairs) <= 6
    differ_little(predictor(content).probabilities, predictor(bare).probabilities)


def differ_little(found: dict[str, float], expected: dict[str, float]) -> None:
    assert max(abs(found[finding] - expected[finding]) for finding in expected) < 0.03


def test_every_syntax_that_pydicom_decodes_is_among_those_tested(stored: np.ndarray) -> None:
    tested = {JPEGBaseline8Bit}
    for encode in (*LOSSLESS.values(), *(encode for encode, _ in LOSSY.values())):
        ds = dx_dataset(stored, 12)
        encode(ds, stored)
        tested.add(ds.file_meta.TransferSyntaxUID)
    assert decodable() <= tested


def decodable() -> set[str]:
    found = set()
    for uid in UID_dictionary:
        try:
            found |= {uid} if get_decoder(uid).is_available else set()
        except NotImplementedError:
            continue
    return found
