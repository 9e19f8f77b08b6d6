"""Look-up tables of a header (PS3.3 C.11.1.1, C.11.2.1.1, C.11.6, C.7.6.3.1.5), which may be described wrongly."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from medsd.dicom.content import UnreadableError

_DEEPEST = 16  # bits of an entry


@dataclass(frozen=True)
class Table:
    first: int  # the value that leads to the first entry; what lies beyond an end leads to the entry of that end
    entries: npt.NDArray[np.int64]  # (N,), N ≥ 1
    white: int  # the entry that is shown white
    note: str = ""  # in which way the table contradicts its descriptor

    def at(self, values: npt.NDArray[np.float64 | np.integer]) -> npt.NDArray[np.float64]:
        """The entries of `values`, rounded to whole numbers, of the same shape."""
        index = np.rint(values).astype(np.int64) - self.first
        return self.entries[np.clip(index, 0, len(self.entries) - 1)].astype(np.float64)

    def greys(self, values: npt.NDArray[np.float64 | np.integer]) -> npt.NDArray[np.float64]:
        """The entries of `values` as grey in 0…1."""
        return self.at(values) / self.white


def read_table(item: Dataset, span: tuple[float, float], little_endian: bool, colour: str = "") -> Table:
    """The look-up table of a sequence item, or of one colour ("Red", "Green", "Blue") of the palette of a header.

    Entries come as 16-bit words, as words that hold two entries of 8 bits each, or as bytes; the length tells which. Of
    the first value read signed and unsigned, the one that puts the table over `span`, the least and greatest value that
    is looked up, is taken. White is the greatest value of the declared depth, or the greatest entry if it is larger, or
    less than half of that. Raises UnreadableError: the descriptor or the data are missing, of no use, or end before the
    values that occur.
    """
    prefix = f"{colour}PaletteColorLookupTable" if colour else "LUT"
    count, first, depth = _descriptor(item.get(f"{prefix}Descriptor"), "(0028,1101)" if colour else "(0028,3002)")
    entries = _entries(item.get(f"{prefix}Data"), count, depth, little_endian)[:count]
    if not len(entries):
        raise UnreadableError("(0028,3006) LUT Data are missing")
    first = _placed(first, count, span)
    if len(entries) < count and span[1] >= first + len(entries):
        raise UnreadableError(f"it declares {count} entries and has {len(entries)}, too few for the pixel values")
    note = ""
    largest, declared = int(entries.max()), 2 ** min(depth, _DEEPEST) - 1
    white = largest if largest > declared or largest <= declared // 2 else declared
    if white != declared:
        note = f"it declares {depth} bits and its greatest entry is {largest}, which is shown white"
    return Table(first, entries, max(white, 1), note)


def _descriptor(value: object, tag: str) -> tuple[int, int, int]:
    """Number of entries, first value, depth in bits."""
    try:
        count, first, depth = (int(part) for part in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise UnreadableError(f"{tag} LUT Descriptor is missing or has not three values") from None
    if depth < 1:
        raise UnreadableError(f"{tag} LUT Descriptor declares entries of {depth} bits")
    return (count & 0xFFFF) or 2**16, first, depth


def _entries(data: object, count: int, depth: int, little_endian: bool) -> npt.NDArray[np.int64]:
    if isinstance(data, (bytes, bytearray)):
        if len(data) == count and count % 2:
            return np.frombuffer(data, dtype="u1").astype(np.int64)
        words = np.frombuffer(data[: len(data) // 2 * 2], dtype="<u2" if little_endian else ">u2")
        packed = len(data) in (count, count + 1)
    else:
        numbers = [data] if isinstance(data, int) else list(data or ())  # type: ignore[call-overload]
        words = np.array([int(number) & 0xFFFF for number in numbers], dtype=np.uint16)
        packed = depth <= 8 and len(words) == (count + 1) // 2 < count
    return (words.astype("<u2").view("u1") if packed else words).astype(np.int64)


def _placed(first: int, count: int, span: tuple[float, float]) -> int:
    """`first`, or what it is when its 16 bits are read with the other sign, if only that lies over `span`."""
    if 0 <= first < 2**15:
        return first
    other = first + 2**16 if first < 0 else first - 2**16

    def overlap(start: int) -> float:
        return min(span[1], start + count - 1) - max(span[0], start)

    return other if overlap(other) > max(overlap(first), 0.0) else first
