"""Which decoder reads a transfer syntax, and one of our own for JPEG: baseline, extended and lossless, 2 to 16 bits.

Pillow and GDCM lack extended JPEG of 12 bits, and the plugin that has it is under the GPL. libjpeg-turbo 3, which
imagecodecs brings, reads them all, in a quarter of the time. Importing this module adds the decoder to pydicom's.
"""

from importlib.util import find_spec

from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1

from medsd.dicom.stream import SCAN, read_stream, segments

_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
DECODER_DEPENDENCIES = dict.fromkeys(_JPEG, ("imagecodecs",))  # pydicom looks for this name and `is_available`
_PREFERRED = ("medsd", "pyjpegls")  # libjpeg-turbo and CharLS, each faster than what pydicom takes first
_SPACES = {1: "GRAYSCALE", 3: "YCBCR"}  # in and out alike: colours stay as stored, for pydicom to convert


def is_available(uid: str) -> bool:
    """Whether `decode_jpeg` decodes this transfer syntax here."""
    return uid in DECODER_DEPENDENCIES and find_spec("imagecodecs") is not None


def decodes(syntax: str) -> bool:
    """Whether pixels in this transfer syntax can be decoded here."""
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:  # video, and what came after this pydicom
        return False


def decoder_of(syntax: str) -> str:
    """The one decoder that `pydicom.pixels.pixel_array` shall use, "" for pydicom's choice.

    Another decoder would fill up with invented pixels what this one calls damaged.
    """
    plugins = get_decoder(syntax).available_plugins
    return next((name for name in _PREFERRED if name in plugins), "")


def decode_jpeg(src: bytes, runner: DecodeRunner) -> bytes:
    """The samples of one frame, little endian and interleaved, in words of Bits Allocated.

    Raises ValueError: the stream is malformed, or differs from the header; imagecodecs.Jpeg8Error: it is damaged.
    """
    from imagecodecs import jpeg8_decode  # takes 40 ms, and few files need it

    found = dict(segments(src))
    # libjpeg-turbo decodes a sequential scan over part of the coefficients as if it were whole (T.81, B.2.3).
    if not {0xC0, 0xC1}.isdisjoint(found) and found.get(SCAN, b"")[-3:] != b"\0\x3f\0":
        raise ValueError("the JPEG stream is malformed: its scan is not from 0 to 63")
    declared = read_stream(src)
    # Before libjpeg-turbo makes room for what a stream claims.
    if (declared.rows, declared.columns) != (runner.rows, runner.columns):
        raise ValueError("the JPEG stream and the header declare different sizes")
    space = _SPACES.get(runner.samples_per_pixel)
    values = jpeg8_decode(src, colorspace=space, outcolorspace=space)
    if values[0, 0].size != runner.samples_per_pixel or values.itemsize * 8 > runner.bits_allocated:
        raise ValueError("the JPEG stream and the header declare different samples")
    if values.ndim > 2:
        runner.set_option("planar_configuration", 0)
    return values.astype(f"<u{runner.bits_allocated // 8}", copy=False).tobytes()


for _syntax in _JPEG:
    get_decoder(_syntax).add_plugin(_PREFERRED[0], (__name__, decode_jpeg.__name__))
