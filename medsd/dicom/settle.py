"""What a header leaves out or contradicts, settled if the pixel data or the standard leave one reading.

`settle` corrects the header in place and says what it did. If two readings are left, it names the missing element, and
the image is refused.
"""

import re
from dataclasses import dataclass, field

import numpy as np
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, AllTransferSyntaxes

from medsd.dicom.content import syntax_without_meta
from medsd.dicom.header import COLOURS, MONOCHROME
from medsd.dicom.pixels import rescale, voi_reach
from medsd.dicom.policy import Concern, concern
from medsd.dicom.stream import Stream, first_fragment, is_stream, read_stream

_SHAPES = {"IDENTITY": "MONOCHROME2", "INVERSE": "MONOCHROME1"}
_LAYOUTS = {1: (8, 1), 2: (16, 1), 3: (8, 3), 6: (16, 3)}  # bytes of a pixel: bits allocated, samples
_NAMES = {
    "SamplesPerPixel": "(0028,0002) Samples per Pixel",
    "PhotometricInterpretation": "(0028,0004) Photometric Interpretation",
    "Rows": "(0028,0010) Rows",
    "Columns": "(0028,0011) Columns",
    "BitsAllocated": "(0028,0100) Bits Allocated",
    "BitsStored": "(0028,0101) Bits Stored",
    "PixelRepresentation": "(0028,0103) Pixel Representation",
}
_UNSIGNED = ("JPEG baseline", "JPEG extended")  # PS3.5, table 8.2.1-1
_AS_STREAM = ", as in the code stream"
_PALETTES = ("", "Segmented")
_SIGNED_VALUES = ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue")


@dataclass
class _Settler:
    """One header: what was assumed, and what is missing and cannot be told."""

    ds: Dataset
    notes: list[str] = field(default_factory=list)
    lacks: list[Concern] = field(default_factory=list)

    def number(self, keyword: str) -> int | None:
        value = self.ds.get(keyword)
        return value if isinstance(value, int) else None

    def lack(self, detail: str) -> None:
        self.lacks.append(concern("cannot_decode", detail=detail))

    def put(self, keyword: str, value: int | str, why: str = "") -> None:
        """Set an element, and say so if it was missing or said something else."""
        before = self.ds.get(keyword)
        if before == value:
            return
        setattr(self.ds, keyword, value)
        known = isinstance(before, int) or before in (*COLOURS, *MONOCHROME)
        was = before if known else "no value of the standard" if before else "missing"
        self.notes.append(f"{_NAMES[keyword]} is {was} and taken as {value}{why}")

    @property
    def area(self) -> int:
        """Pixels of all frames, 0 if the header does not tell."""
        rows, columns = self.number("Rows") or 0, self.number("Columns") or 0
        frames = str(self.ds.get("NumberOfFrames") or 1)
        return rows * columns * (int(frames) if frames.isdigit() else 1)

    @property
    def photometric(self) -> str:
        return str(self.ds.get("PhotometricInterpretation") or "").strip().upper()


def settle(ds: Dataset) -> tuple[list[str], list[Concern]]:
    """Correct `ds`, whose file meta names a transfer syntax, in place; its Pixel Data may be absent.

    Settled are the transfer syntax, Samples per Pixel, Bits Allocated, Bits Stored, Photometric Interpretation and
    Pixel Representation. Returns a note on each assumption, and `cannot_decode` for what is missing and cannot be told.
    """
    it = _Settler(ds)
    content = ds.get("PixelData")
    if isinstance(content, bytes) and content:
        _settle_syntax(it)
        if ds.file_meta.TransferSyntaxUID not in AllTransferSyntaxes:
            it.lack("(0002,0010) Transfer Syntax UID is none of the standard's")
        elif _compressed(ds):
            _settle_stream(it)
        else:
            _settle_native(it)
    missing = [_NAMES[keyword] for keyword in ("Rows", "Columns") if not it.number(keyword)]
    if missing:
        it.lack(f"{' and '.join(missing)} is missing or 0")
    _settle_photometric(it)
    if it.number("HighBit") is None:
        ds.pop("HighBit", None)  # empty is as good as missing
    if it.number("PixelRepresentation") is None:
        it.put("PixelRepresentation", int(_signed(it)))
    if it.number("SamplesPerPixel") == 3 and it.number("PlanarConfiguration") is None:
        ds.PlanarConfiguration = int(not _compressed(ds) and _in_planes(ds))
    return it.notes, it.lacks


def _signed(it: _Settler) -> bool:
    """Whether the stream or other elements are signed, or the bits above Bits Stored of all words repeat a sign."""
    if "PixelData" in it.ds and _compressed(it.ds) and frame_stream(it.ds).signed:
        return True
    if any(key in it.ds and it.ds[key].VR == "SS" for key in _SIGNED_VALUES):
        return True
    bits, allocated = it.number("BitsStored") or 0, it.number("BitsAllocated")
    if it.lacks or "PixelData" not in it.ds or _compressed(it.ds) or allocated != 16 or not 0 < bits < 16:
        return False
    order = "<" if it.ds.file_meta.TransferSyntaxUID.is_little_endian else ">"
    words = np.frombuffer(it.ds.PixelData[: len(it.ds.PixelData) // 2 * 2], dtype=f"{order}i2")
    return bool(words.min() < 0 and -(2 ** (bits - 1)) <= words.min() and words.max() < 2 ** (bits - 1))


def _in_planes(ds: Dataset) -> bool:
    """Whether native pixel data are three equal planes."""
    plane = len(ds.PixelData) // 3
    first, second, third = (ds.PixelData[start * plane : (start + 1) * plane] for start in range(3))
    return bool(plane) and first == second == third


def frame_stream(ds: Dataset) -> Stream:
    """What the code stream of the first frame of compressed pixel data declares."""
    samples = ds.get("SamplesPerPixel")
    return read_stream(first_fragment(ds.PixelData), samples if samples in (1, 3, 4) else 1)


def _compressed(ds: Dataset) -> bool:
    syntax = ds.file_meta.TransferSyntaxUID
    return bool(syntax.is_transfer_syntax and syntax.is_compressed and not syntax.is_deflated)


def _settle_syntax(it: _Settler) -> None:
    """Hold the transfer syntax against the pixel data: code streams in items, or as many bytes as pixels need."""
    ds, declared = it.ds, it.ds.file_meta.TransferSyntaxUID
    size = it.area * (it.number("BitsAllocated") or 0) // 8 * (it.number("SamplesPerPixel") or 1)
    whole = size > 0 and len(ds.PixelData) in (size, size + size % 2)
    if whole and not _compressed(ds):
        return
    if is_stream(ds.PixelData):
        ds.PixelData = encapsulate([ds.PixelData])
        it.notes.append("(7FE0,0010) Pixel Data is a bare code stream, not in items")
    stream = frame_stream(ds)
    if stream.syntaxes and declared not in stream.syntaxes:
        _change_syntax(it, stream.syntaxes[0], stream.kind)
    elif whole and not first_fragment(ds.PixelData):
        _change_syntax(it, syntax_without_meta(ds), "not compressed")


def _change_syntax(it: _Settler, syntax: UID, kind: str) -> None:
    declared = it.ds.file_meta.TransferSyntaxUID
    name = declared.name if declared.is_transfer_syntax else "not a transfer syntax"
    it.notes.append(f"(0002,0010) Transfer Syntax UID is {name}, and the pixel data are {kind}")
    it.ds.file_meta.TransferSyntaxUID = syntax


def _settle_stream(it: _Settler) -> None:
    """Samples and bits as the code stream has them; decoders go by the header and fail if it is wrong."""
    stream = frame_stream(it.ds)
    if stream.rows and stream.columns and not it.area:
        it.put("Rows", stream.rows, _AS_STREAM)
        it.put("Columns", stream.columns, _AS_STREAM)
    if stream.components in (1, 3):
        it.put("SamplesPerPixel", stream.components, _AS_STREAM)
    if stream.kind in _UNSIGNED and it.number("PixelRepresentation"):
        it.put("PixelRepresentation", 0, _AS_STREAM)
    if not stream.bits:
        return
    allocated, stored = it.number("BitsAllocated"), it.number("BitsStored")
    if allocated in (8, 16, None) and allocated != (8 if stream.bits <= 8 else 16):
        it.put("BitsAllocated", 8 if stream.bits <= 8 else 16, _AS_STREAM)
    if stored is None or (stored > 8 >= stream.bits) or (allocated == 8 < stream.bits):
        if stored is not None:
            _scale_to(it, stored, stream.bits)
        it.put("BitsStored", stream.bits, _AS_STREAM)
        it.ds.HighBit = stream.bits - 1


def _scale_to(it: _Settler, declared: int, bits: int) -> None:
    """Where VOI LUT or window are for values of the declared depth, the modality step brings the pixels there."""
    reach = voi_reach(it.ds)
    if reach is not None and reach > 1.5 * 2**bits and declared > bits and not it.ds.get("ModalityLUTSequence"):
        slope, intercept = rescale(it.ds)
        it.ds.RescaleSlope, it.ds.RescaleIntercept = slope * 2 ** (declared - bits), intercept


def _settle_native(it: _Settler) -> None:
    """Samples and bits allocated follow from the number of bytes; Bits Stored then from High Bit or the word."""
    ds, length, area = it.ds, len(it.ds.PixelData), it.area
    layout = _LAYOUTS.get(length // area) if area and length - length // area * area <= 1 else None
    allocated, samples = it.number("BitsAllocated"), it.number("SamplesPerPixel")
    needed = -(-area * (allocated or 1) // 8) * (samples or 1)
    subsampled = "422" in it.photometric or "420" in it.photometric
    in_one = samples == 1 and it.photometric in COLOURS and layout == (allocated, 3)  # three samples are there
    unsettled = None in (allocated, samples) or length < needed or allocated == 12 or in_one
    if unsettled and layout and not subsampled and layout[0] >= (it.number("BitsStored") or 1):
        it.put("BitsAllocated", layout[0])
        it.put("SamplesPerPixel", layout[1])
        needed = length
    missing = [_NAMES[key] for key in ("BitsAllocated", "SamplesPerPixel") if it.number(key) is None]
    if missing:
        it.lack(f"{' and '.join(missing)} missing")
    elif length < needed and not subsampled:
        it.lack(f"(7FE0,0010) Pixel Data holds {length} bytes, {needed} are needed")
    elif it.number("BitsStored") is None:
        high = it.number("HighBit")
        it.put("BitsStored", high + 1 if high is not None and high < int(ds.BitsAllocated) else int(ds.BitsAllocated))


def _settle_photometric(it: _Settler) -> None:
    said, samples = it.photometric, it.number("SamplesPerPixel")
    compact = re.sub(r"[\s_-]", "", said)
    if compact in MONOCHROME:
        said = compact
    elif said in ("", "MONOCHROME"):
        said = _SHAPES.get(str(it.ds.get("PresentationLUTShape") or "").strip().upper(), "RGB" if samples == 3 else "")
        if not said:
            it.lack("(0028,0004) Photometric Interpretation does not say whether low values are black or white")
            return
    elif said in COLOURS and samples == 1:
        said = "MONOCHROME2"  # the least value is black in all of them
    elif said == "PALETTE COLOR" and not any(f"{kind}RedPaletteColorLookupTableData" in it.ds for kind in _PALETTES):
        it.lacks.append(concern("not_a_radiograph", detail="palette colour without a palette"))
    if said != str(it.ds.get("PhotometricInterpretation") or "").strip():
        it.put("PhotometricInterpretation", said)
