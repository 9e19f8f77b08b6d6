"""What a compressed code stream says of itself, and which transfer syntaxes it belongs to.

Decoders allocate what the stream declares, not what the header does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom import uid

SCAN = 0xDA  # the marker before the coded values
ITEM = b"\xfe\xff\x00\xe0"
_JPEG2000 = b"\xff\x4f\xff\x51"
# By the marker of the frame header: SOF0, SOF1 and SOF2, SOF3, SOF55 (ISO/IEC 10918-1 B.1.1.3, ISO/IEC 14495-1 C.1.1).
_JPEG: dict[int, tuple[str, tuple[uid.UID, ...]]] = {
    0xC0: ("JPEG baseline", (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)),
    0xC1: ("JPEG extended", (uid.JPEGExtended12Bit,)),
    0xC3: ("lossless JPEG", (uid.JPEGLossless, uid.JPEGLosslessSV1)),
    0xF7: ("JPEG-LS", (uid.JPEGLSNearLossless, uid.JPEGLSLossless)),
}
_JPEG2000_SYNTAXES = (uid.JPEG2000, uid.JPEG2000Lossless, uid.JPEG2000MC, uid.JPEG2000MCLossless)
_HTJ2K_SYNTAXES = (uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL)
_OTHER_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # not DHT, JPG, DAC


@dataclass(frozen=True)
class Stream:
    """The first frame of compressed pixel data."""

    kind: str = ""  # the encoding in words, "" for one that is not known here
    syntaxes: tuple[uid.UID, ...] = ()  # that it may stand under, the most general first; none if it is not known
    rows: int = 0  # what it declares, 0 if it does not; the next three likewise
    columns: int = 0
    bits: int = 0
    components: int = 0
    signed: bool = False  # it declares signed values, as JPEG 2000 alone can


def first_fragment(content: bytes) -> bytes:
    """The first fragment of encapsulated pixel data (PS3.5 A.4), behind the offset table; b"" if there is none."""
    at = 0
    for _ in range(2):
        start, length = at + 8, int.from_bytes(content[at + 4 : at + 8], "little")
        if content[at : at + 4] != ITEM:
            return b""
        at = start + length
    return content[start:at]


def read_stream(frame: bytes, samples: int = 1) -> Stream:
    """What JPEG, JPEG-LS, JPEG 2000 and RLE streams declare; `samples` are those of the header, for RLE."""
    if frame[:4] == _JPEG2000:
        return _jpeg2000(frame)
    if frame[:2] == b"\xff\xd8":
        return _jpeg(frame)
    segments = int.from_bytes(frame[:4], "little")
    if 1 <= segments <= 15 and frame[4:8] == b"\x40\0\0\0" and len(frame) > 64:  # PS3.5 G.5
        components = samples if segments % samples == 0 else segments
        return Stream("RLE", (uid.RLELossless,), bits=8 * (segments // components), components=components)
    return Stream()


def is_stream(content: bytes) -> bool:
    """Whether pixel data are a bare JPEG, JPEG-LS or JPEG 2000 code stream."""
    return content[:3] == b"\xff\xd8\xff" or content[:4] == _JPEG2000


def _jpeg2000(frame: bytes) -> Stream:
    """SOC, SIZ: Xsiz, Ysiz, XOsiz, YOsiz, Csiz, Ssiz (ISO/IEC 15444-1, A.5.1); CAP follows in HTJ2K."""
    across, down, left, top = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
    high_throughput = bool(frame[6] & 0x40) if len(frame) > 6 else False
    known = _HTJ2K_SYNTAXES if high_throughput else _JPEG2000_SYNTAXES
    depth = frame[42] if len(frame) > 42 else 0  # less one, and the sign in the highest bit
    components = int.from_bytes(frame[40:42], "big")
    return Stream("JPEG 2000", known, down - top, across - left, (depth & 0x7F) + 1, components, depth > 0x7F)


def _jpeg(frame: bytes) -> Stream:
    for marker, content in segments(frame):
        if (marker in _JPEG or marker in _OTHER_FRAMES) and len(content) > 5:
            kind, syntaxes = _JPEG.get(marker, ("", ()))
            rows, columns = (int.from_bytes(content[place : place + 2], "big") for place in (1, 3))
            return Stream(kind, syntaxes, rows, columns, content[0], content[5])
    return Stream()


def segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment of a JPEG or JPEG-LS stream (ITU-T T.81, B.1.1), to the header of its scan."""
    at = 2 if stream[:2] == b"\xff\xd8" else len(stream)
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        yield marker, stream[at + 4 : at + 2 + length]
        at = len(stream) if marker == SCAN else at + 2 + length
