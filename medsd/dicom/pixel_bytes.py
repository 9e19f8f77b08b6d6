"""What hides in the bytes of Pixel Data beside the picture: old overlays, comments of JPEG streams, a tail.

`tidy_pixel_data` clears all of it and changes no decoded pixel; de-identification needs it, reading does not.
"""

import re

import numpy as np
from pydicom import Dataset
from pydicom.pixels.utils import get_expected_length

_ITEM, _END_OF_ITEMS = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
# Entropy-coded data hold no marker but RST0…7: JPEG stuffs a zero byte after FF, JPEG-LS a zero bit (ITU-T T.81, T.87).
_NEXT_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
_KEPT_APPLICATION_DATA = {0xE0: (b"JFIF\0", 14), 0xE8: (b"SPIFF\0", 30), 0xEE: (b"Adobe", 12)}
_WORDS = {8: "u1", 16: "u2", 32: "u4"}


def tidy_pixel_data(ds: Dataset) -> None:
    """Clear in `ds` what its pixels do not need.

    Native pixels: bits outside of Bits Stored (where overlays were kept, PS3.5 8.1.1 of 2004 and before), and bytes
    after the last frame. Encapsulated ones: comments, application data and bytes after the end of JPEG, JPEG-LS and
    JPEG 2000 streams are blanked in place, so that lengths and offset tables hold.
    """
    if "PixelData" not in ds or not ds.PixelData:
        return
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        ds["PixelData"].value = _tidy_items(ds.PixelData)
    else:
        ds["PixelData"].value = _tidy_native(ds, syntax.is_little_endian)


def _tidy_native(ds: Dataset, little_endian: bool) -> bytes:
    content = bytes(ds.PixelData)[: get_expected_length(ds)]
    allocated, stored = int(ds.BitsAllocated), int(ds.BitsStored)
    high = int(ds.get("HighBit", stored - 1))
    if allocated in _WORDS and 0 < stored < allocated and stored - 1 <= high < allocated:
        content = _clear_unused(content, (allocated, stored, high), bool(ds.get("PixelRepresentation")), little_endian)
    return content + b"\0" * (len(content) % 2)


def _clear_unused(content: bytes, bits: tuple[int, int, int], signed: bool, little_endian: bool) -> bytes:
    allocated, stored, high = bits
    width = allocated // 8
    order = "<" if little_endian else ">"
    words = np.frombuffer(content[: len(content) // width * width], dtype=order + _WORDS[allocated])
    used = ((1 << stored) - 1) << (high + 1 - stored)
    above = ((1 << allocated) - 1) ^ ((1 << (high + 1)) - 1)
    clean = words & words.dtype.type(used)
    if signed:  # the sign goes on above the high bit
        clean = np.where(words >> high & 1, clean | words.dtype.type(above), clean)
    return clean.astype(words.dtype).tobytes() if (clean != words).any() else content


def _tidy_items(content: bytes) -> bytes:
    """The items of encapsulated pixel data (PS3.5 A.4), each stream in them tidied."""
    tidy = bytearray(content)
    at, first = 0, True
    while tidy[at : at + 4] == _ITEM:
        length = int.from_bytes(tidy[at + 4 : at + 8], "little")
        start, at = at + 8, at + 8 + length
        if not first:  # the first item is the offset table
            tidy[start:at] = blank_comments(bytes(tidy[start:at]))
        first = False
    del tidy[at:]
    return bytes(tidy + _END_OF_ITEMS + b"\0" * 4)


def blank_comments(stream: bytes) -> bytes:
    """A JPEG, JPEG-LS or JPEG 2000 code stream of the same length without comments, application data and tail.

    Other streams come back as they are. Colour information of application data (JFIF, SPIFF, Adobe) stays.
    """
    tidy = bytearray(stream)
    if stream[:4] == b"\xff\x4f\xff\x51":
        _blank_jpeg2000(tidy)
    elif stream[:2] == b"\xff\xd8":
        _blank_jpeg(tidy)
    return bytes(tidy)


def _blank_jpeg(tidy: bytearray) -> None:
    """Walk the marker segments (ITU-T T.81 B.1.1)."""
    at = 2
    while at + 1 < len(tidy) and tidy[at] == 0xFF:
        marker = tidy[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xD9:
            _zero(tidy, at + 2, len(tidy))
            return
        start = at + 4
        at += 2 + int.from_bytes(tidy[at + 2 : at + 4], "big")
        if marker == 0xFE or 0xE0 <= marker <= 0xEF:
            name, length = _KEPT_APPLICATION_DATA.get(marker, (b"", 0))
            kept = length if name and tidy[start : start + len(name)] == name else 0
            _zero(tidy, min(start + kept, at), at)
        elif marker == 0xDA:
            found = _NEXT_MARKER.search(tidy, at)
            at = found.start() if found else len(tidy)


def _blank_jpeg2000(tidy: bytearray) -> None:
    """Walk the main header and the tile-part headers (ISO/IEC 15444-1 annex A)."""
    at, tile, tile_length = 2, 0, 0
    while at + 3 < len(tidy) and tidy[at] == 0xFF:
        marker, length = tidy[at + 1], int.from_bytes(tidy[at + 2 : at + 4], "big")
        if marker == 0xD9:
            break
        if marker == 0x93:  # start of data: the tile part goes on to its declared end
            end = tidy.rfind(b"\xff\xd9")
            at = tile + tile_length if tile_length else (end if end > at else len(tidy))
            continue
        if marker == 0x90:
            tile, tile_length = at, int.from_bytes(tidy[at + 6 : at + 10], "big")
        if marker == 0x64:
            _zero(tidy, at + 6, at + 2 + length)
        at += 2 + length
    if tidy[at : at + 2] == b"\xff\xd9":
        _zero(tidy, at + 2, len(tidy))


def _zero(tidy: bytearray, start: int, end: int) -> None:
    end = min(end, len(tidy))
    if start < end:
        tidy[start:end] = bytes(end - start)
