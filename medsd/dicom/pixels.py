"""From stored values to presentation-ready grey: modality, VOI and presentation look-up, by pydicom's own functions.

The grey-scale pipeline of PS3.3 C.11 treats every stored value alike, so it is applied once to the list of stored
values that occur (at most 65,536) and the image is looked up in the result: exact, and quicker than the decoding.
Start at `present`, or at `stored_greys` where the picture itself may not be needed.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut, apply_presentation_lut, apply_voi, apply_windowing

from medsd.dicom.greys import Stored, StoredGreys

Curve = npt.NDArray[np.float64]

DEFAULT_PERCENTILES = (0.5, 99.5)
_SAMPLE_PIXELS = 500_000  # enough for percentiles; the pixels of a film are ten times as many
_VOI_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def present(stored: Stored, ds: Dataset) -> npt.NDArray[np.float32]:
    """Presentation-ready grey values of one frame, float32 (H, W) in 0…1, 0 black; see `stored_greys`."""
    return stored_greys(stored, ds).picture()


def stored_greys(stored: Stored, ds: Dataset) -> StoredGreys:
    """The presentation-ready grey of every stored value of one frame.

    In order: modality LUT or rescale (PS3.3 C.11.1), VOI LUT or window (C.11.2), presentation LUT (C.11.6), one
    inversion for MONOCHROME1 (C.7.6.3.1.2) or presentation LUT shape INVERSE, pixel padding to black (C.7.5.1.1.2).
    Where the header gives neither VOI LUT nor window, values of up to 8 bits are taken as they are, like those of a
    PNG, and deeper ones are shown between the percentiles 0.5 and 99.5 of the pixels that are not padding.

    Args:
        stored: (H, W) integers as decoded, 16 bits at most, bits in place; bits above Bits Stored are dropped.
        ds: the header.

    Returns:
        the frame with its greys in 0…1, 0 black; `StoredGreys.picture` looks it up.

    Raises:
        ValueError, KeyError, AttributeError, TypeError, IndexError: a look-up table that cannot be used.
    """
    stored, lowest, highest = _within_bits(stored, ds)
    first = min(lowest, 0)
    domain = np.arange(first, highest + 1, dtype=np.int32)
    padding = _padding_mask(domain, ds)
    curve = _voi(domain, stored, padding, ds)
    curve = _presentation(curve, ds)
    if _shown_inverted(ds):
        curve = 1.0 - curve
    curve[padding] = 0.0
    greys = np.clip(np.nan_to_num(curve), 0.0, 1.0).astype(np.float32)
    return StoredGreys(stored, greys, first)


def align_bits(stored: Stored, ds: Dataset) -> Stored:
    """Move values that are stored high in the word (High Bit above Bits Stored − 1) down, and drop what is beside them.

    Early detectors kept overlays or noise in the other bits (PS3.5 8.1.1, annex D).
    """
    bits_stored = int(ds.BitsStored)
    spare = int(ds.get("HighBit", bits_stored - 1)) + 1 - bits_stored
    top = stored.dtype.itemsize * 8 - bits_stored - spare
    if spare <= 0 or top < 0:
        return stored
    return np.right_shift(np.left_shift(stored, top), top + spare)


def _within_bits(stored: Stored, ds: Dataset) -> tuple[Stored, int, int]:
    """`stored` without what stands in the bits above Bits Stored, a bound of its least value, its greatest value."""
    signed = stored.dtype.kind == "i"
    bits = int(ds.BitsStored) - int(signed)
    lowest, highest = int(stored.min()) if signed else 0, int(stored.max())
    if -(2**bits) <= lowest and highest < 2**bits:
        return stored, lowest, highest
    spare = stored.dtype.itemsize * 8 - int(ds.BitsStored)
    stored = np.right_shift(np.left_shift(stored, spare), spare)
    return stored, int(stored.min()) if signed else 0, int(stored.max())


def _padding_mask(domain: Stored, ds: Dataset) -> npt.NDArray[np.bool_]:
    low = ds.get("PixelPaddingValue")
    if not isinstance(low, int):
        return np.zeros(domain.shape, dtype=np.bool_)
    limit = ds.get("PixelPaddingRangeLimit")
    high = limit if isinstance(limit, int) else low
    return (domain >= min(low, high)) & (domain <= max(low, high))


def _shown_inverted(ds: Dataset) -> bool:
    # DX and MG write MONOCHROME1 and INVERSE together and mean one inversion (PS3.3 C.8.11.3.1.2), so: either, once.
    shape = str(ds.get("PresentationLUTShape") or "").strip().upper()
    return str(ds.get("PhotometricInterpretation", "")).strip() == "MONOCHROME1" or shape == "INVERSE"


def _voi(domain: Stored, stored: Stored, padding: npt.NDArray[np.bool_], ds: Dataset) -> Curve:
    """Grey 0…1 of every value in `domain` after modality and VOI step."""
    steps = _pipeline_header(ds)
    values = np.asarray(apply_modality_lut(domain, steps), dtype=np.float64)
    if "VOILUTSequence" in steps:
        shown = apply_voi(np.rint(values).astype(np.int64), steps).astype(np.float64)
        return shown / _lut_top(ds.VOILUTSequence[0], steps.VOILUTSequence[0])
    if "WindowWidth" in steps:
        return _window(values, steps)
    return _without_voi(domain, values, stored, padding, ds)


def _window(values: Curve, steps: Dataset) -> Curve:
    # The far ends come back as the least and the greatest output, whatever range pydicom derives from the header
    # (which runs backwards for a negative rescale slope).
    ends = np.array([-1e15, 1e15])
    with np.errstate(over="ignore"):
        shown = apply_windowing(np.concatenate([ends, values]), steps)
    black, white = shown[0], shown[1]
    return (shown[2:] - black) / (white - black)


def _without_voi(domain: Stored, values: Curve, stored: Stored, padding: npt.NDArray[np.bool_], ds: Dataset) -> Curve:
    bits = int(ds.BitsStored)
    if bits <= 8 and not ds.get("ModalityLUTSequence") and ds.get("PresentationIntentType") != "FOR PROCESSING":
        floor = -(2 ** (bits - 1)) if int(ds.get("PixelRepresentation") or 0) else 0
        return (domain - floor) / float(2**bits - 1)
    step = max(1, math.isqrt(stored.size // _SAMPLE_PIXELS))
    counts = np.bincount(stored[::step, ::step].ravel().astype(np.int64) - int(domain[0]), minlength=domain.size)
    counts[padding] = 0
    if not counts.any():
        return np.zeros(domain.shape)
    order = np.argsort(values, kind="stable")
    share = np.cumsum(counts[order]) / counts.sum()
    low, high = values[order][np.searchsorted(share, np.array(DEFAULT_PERCENTILES) / 100.0)]
    return (values - low) / (high - low) if high > low else np.where(values > low, 1.0, 0.0)


def _presentation(curve: Curve, ds: Dataset) -> Curve:
    """Presentation LUT Sequence; a shape is a matter of `_shown_inverted`."""
    if not ds.get("PresentationLUTSequence"):
        return curve
    steps = Dataset()
    steps.PresentationLUTSequence = [_plain_lut(ds.PresentationLUTSequence[0], ds)]
    # The two ends keep pydicom from stretching the values that happen to occur over the whole table.
    ends = np.array([0.0, 1.0])
    shown = apply_presentation_lut(np.concatenate([ends, np.clip(curve, 0.0, 1.0)]), steps)
    return shown[2:].astype(np.float64) / _lut_top(ds.PresentationLUTSequence[0], steps.PresentationLUTSequence[0])


def _pipeline_header(ds: Dataset) -> Dataset:
    """The elements that pydicom's functions read, with the oddities of real files put right.

    One window out of several; no window of impossible width; look-up tables in plain unsigned shorts, because pydicom
    3.0 wraps 8-bit tables of more than 256 entries and knows no 12-bit modality table.
    """
    steps = Dataset()
    steps.PhotometricInterpretation = "MONOCHROME2"  # inversion is ours, last and once
    steps.BitsStored = int(ds.BitsStored)
    steps.PixelRepresentation = int(ds.get("PixelRepresentation") or 0)
    slope, intercept = _number(ds.get("RescaleSlope")), _number(ds.get("RescaleIntercept"))
    if ds.get("ModalityLUTSequence"):
        steps.ModalityLUTSequence = [_plain_lut(ds.ModalityLUTSequence[0], ds)]
    elif slope and intercept is not None:
        steps.RescaleSlope, steps.RescaleIntercept = slope, intercept
    if ds.get("VOILUTSequence") and ds.VOILUTSequence[0].get("LUTData") is not None:
        steps.VOILUTSequence = [_plain_lut(ds.VOILUTSequence[0], ds)]
        return steps
    function = str(ds.get("VOILUTFunction") or "LINEAR").strip().upper()
    center, width = _number(ds.get("WindowCenter")), _number(ds.get("WindowWidth"))
    smallest = 1.0 if function == "LINEAR" else 1e-12
    if center is not None and width is not None and width >= smallest:
        steps.WindowCenter, steps.WindowWidth = center, width
        steps.VOILUTFunction = function if function in _VOI_FUNCTIONS else "LINEAR"
    return steps


def _number(value: object) -> float | None:
    """The first number of a DS element, or None where there is none."""
    if value is not None and not isinstance(value, (str, bytes, int, float)) and hasattr(value, "__getitem__"):
        value = value[0] if len(cast(list[object], value)) else None
    try:
        number = float(cast(float, value))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _plain_lut(item: Dataset, ds: Dataset) -> Dataset:
    """A copy of one LUT item: entries as unsigned shorts, as many as there are, first value as it is."""
    count, first, _ = (int(part) for part in item.LUTDescriptor)
    data = item.LUTData
    count = count or 2**16
    if isinstance(data, (bytes, bytearray)):
        word = "u1" if len(data) in (count, count + 1) else ">u2" if ds.original_encoding[1] is False else "<u2"
        entries = np.frombuffer(data[: len(data) // 2 * 2], dtype=word)[:count].tolist()
    else:
        entries = [int(entry) & 0xFFFF for entry in ([data] if isinstance(data, int) else data)][:count]
    if not entries:
        raise ValueError("an empty look-up table")
    plain = Dataset()
    plain.add_new(0x00283002, "SL", [len(entries), first, 16])
    plain.add_new(0x00283006, "US", entries)
    return plain


def _lut_top(original: Dataset, plain: Dataset) -> float:
    """The output that is white: 2ⁿ − 1 of the declared depth, unless the entries go beyond."""
    data = plain.LUTData
    largest = int(data) if isinstance(data, int) else max(data)
    return float(max(2 ** min(int(original.LUTDescriptor[2]), 16) - 1, largest, 1))
