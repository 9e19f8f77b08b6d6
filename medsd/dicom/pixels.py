"""From stored values to presentation-ready grey: modality, VOI and presentation look-up.

The grey-scale pipeline of PS3.3 C.11 treats equal stored values alike, so it is applied once to the list of stored
values that occur (at most 65,536) and the image is looked up in the result. Start at `stored_greys`.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels import apply_color_lut

from medsd.dicom.content import UnreadableError
from medsd.dicom.greys import Stored, StoredGreys
from medsd.dicom.header import MONOCHROME
from medsd.dicom.tables import read_table

Curve = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

DEFAULT_PERCENTILES = (0.5, 99.5)
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
GREY_TOLERANCE = 3 / 255  # of full scale: channels of a grey picture differ by the rounding of a JPEG's colour space
_SAMPLE_PIXELS = 500_000  # enough for percentiles; the pixels of an image are ten times as many
_CHECK_PIXELS = 65_536
_VOI_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
# A window or VOI LUT that shows the middle 99 % of the pixels in less than an eighth of the greys, or more of them in
# full white, or in full white and black together, than any radiograph has, belongs to other pixel values.
_LEAST_SPAN, _MOST_WHITE, _MOST_BLACK = 1 / 8, 0.8, 0.97
_WINDOW = "(0028,1050) Window Center"
_UNIT_STEPS = ("WindowCenter", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")  # each gives units
_STRAIGHT = 1e-6  # of the greys that a window shows along a line
# Steps for single samples.
_GREY_STEPS = (
    "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "VOILUTSequence", "WindowCenter", "WindowWidth",
    "PresentationLUTSequence",
)  # fmt: skip


def present(stored: Stored, ds: Dataset) -> npt.NDArray[np.float32]:
    """Presentation-ready grey values of one frame, float32 (H, W) in 0…1, 0 black; see `stored_greys`."""
    return stored_greys(stored, ds).picture()


def stored_greys(stored: Stored, ds: Dataset) -> StoredGreys:
    """The presentation-ready grey of every stored value of one frame.

    In order: modality LUT or rescale (PS3.3 C.11.1), VOI LUT or window (C.11.2), presentation LUT (C.11.6), one
    inversion for MONOCHROME1 (C.7.6.3.1.2) or presentation LUT shape INVERSE, pixel padding to black (C.7.5.1.1.2).
    The first VOI LUT or window that shows the image is taken. Without one, values of up to 8 bits are shown over their
    whole range, and deeper ones between the percentiles 0.5 and 99.5 of the pixels that are not padding. A palette
    replaces all of these steps.

    `stored` are (H, W) integers as decoded, 16 bits at most, bits in place; bits above Bits Stored are dropped. Greys
    are in 0…1, 0 black; `StoredGreys.notes` say what was passed over or assumed. A look-up table that cannot be used
    raises ValueError, KeyError, AttributeError, TypeError or IndexError.
    """
    notes: list[str] = []
    stored, lowest, highest = _within_bits(stored, ds, notes)
    first = min(lowest, 0)
    domain = np.arange(first, highest + 1, dtype=np.int32)
    padding = _padding_mask(domain, ds, signed=stored.dtype.kind == "i")
    coloured, ends = False, None
    if _photometric(ds) == "PALETTE COLOR":
        curve, coloured = _palette(domain, stored, ds)
    else:
        curve = _presentation(_voi(domain, stored, padding, ds, notes), ds)
        curve = 1.0 - curve if _shown_inverted(ds) else curve
        ends = _ends(domain, curve, ds)
    curve[padding] = 0.0
    greys = np.clip(np.nan_to_num(curve), 0.0, 1.0).astype(np.float32)
    return StoredGreys(stored, greys, first, tuple(notes), coloured, ends)


def align_bits(stored: Stored, ds: Dataset) -> Stored:
    """Move values that are stored high in the word (High Bit above Bits Stored − 1) down.

    Early detectors kept overlays or noise in the other bits (PS3.5 8.1.1, annex D), which are dropped.
    """
    bits_stored = int(ds.BitsStored)
    spare = int(ds.get("HighBit", bits_stored - 1)) + 1 - bits_stored
    top = stored.dtype.itemsize * 8 - bits_stored - spare
    if spare <= 0 or top < 0:
        return stored
    return np.right_shift(np.left_shift(stored, top), top + spare)


def beyond_bits(stored: Stored, ds: Dataset) -> bool:
    """Whether values need more than Bits Stored."""
    lowest, highest = _bounds(stored)
    bits = int(ds.BitsStored) - int(stored.dtype.kind == "i")
    return lowest < -(2**bits) or highest >= 2**bits


def _bounds(stored: Stored) -> tuple[int, int]:
    """A bound of the least value, and the greatest value."""
    return int(stored.min()) if stored.dtype.kind == "i" else 0, int(stored.max())


def _within_bits(stored: Stored, ds: Dataset, notes: list[str]) -> tuple[Stored, int, int]:
    """`stored` without what stands in the bits above Bits Stored, a bound of its least value, its greatest value."""
    if beyond_bits(stored, ds):
        no_sign = stored.dtype.kind == "i" and stored.min() >= 0 and stored.max() < 2 ** int(ds.BitsStored)
        # Overlay Bit Position: an overlay in these bits is no part of the picture (PS3.3 C.9.2, retired).
        overlay = any((group, 0x0102) in ds and ds[group, 0x0102].value for group in range(0x6000, 0x6020, 2))
        if not no_sign and not overlay:
            notes.append(f"pixels have bits above (0028,0101) Bits Stored {ds.BitsStored}, which are passed over")
        spare = stored.dtype.itemsize * 8 - int(ds.BitsStored)
        stored = np.right_shift(np.left_shift(stored, spare), spare)
    return stored, *_bounds(stored)


def _padding_mask(domain: Stored, ds: Dataset, *, signed: bool) -> npt.NDArray[np.bool_]:
    low = ds.get("PixelPaddingValue")
    if not isinstance(low, int):
        return np.zeros(domain.shape, dtype=np.bool_)
    limit = ds.get("PixelPaddingRangeLimit")
    ends = [low, limit if isinstance(limit, int) else low]
    # Written with the other sign than the pixels have: the 16 bits are the same.
    ends = [end - 2**16 if signed and end >= 2**15 else end + 2**16 if not signed and end < 0 else end for end in ends]
    return (domain >= min(ends)) & (domain <= max(ends))


def _photometric(ds: Dataset) -> str:
    return str(ds.get("PhotometricInterpretation", "")).strip()


def _shown_inverted(ds: Dataset) -> bool:
    # DX and MG write MONOCHROME1 and INVERSE together and mean one inversion (PS3.3 C.8.11.3.1.2), so: either, once.
    shape = str(ds.get("PresentationLUTShape") or "").strip().upper()
    return _photometric(ds) == "MONOCHROME1" or shape == "INVERSE"


def _voi(domain: Stored, stored: Stored, padding: npt.NDArray[np.bool_], ds: Dataset, notes: list[str]) -> Curve:
    """Grey 0…1 of every value in `domain` after modality and VOI step."""
    values = _modality(domain, ds, notes)
    counts = _counts(stored, domain, padding, _CHECK_PIXELS)
    for name, greys in _ways(values, ds, notes):
        curve = greys(values)
        if _shows(1.0 - curve if _shown_inverted(ds) else curve, counts):
            return curve
        seen = values[counts > 0]
        span = f"{seen.min():g} to {seen.max():g}"
        notes.append(f"{name} does not fit the pixel values, which are {span}, and is passed over")
    return _without_voi(domain, values, stored, padding, ds)


def _modality(domain: Stored, ds: Dataset, notes: list[str]) -> Curve:
    """The values after modality LUT or rescale."""
    if ds.get("ModalityLUTSequence"):
        table = read_table(ds.ModalityLUTSequence[0], (int(domain[0]), int(domain[-1])), _little_endian(ds))
        return table.at(domain)
    slope, intercept = rescale(ds)
    given = [_number(ds.get(keyword)) for keyword in ("RescaleSlope", "RescaleIntercept")]
    if given[0] is None and given[1] is not None:
        notes.append("(0028,1053) Rescale Slope is missing and taken as 1")
    elif given[1] is None and given[0] is not None:
        notes.append("(0028,1052) Rescale Intercept is missing and taken as 0")
    if given[0] == 0.0:
        notes.append("(0028,1053) Rescale Slope is 0 and is passed over")
    return domain.astype(np.float64) * slope + intercept


def rescale(ds: Dataset) -> tuple[float, float]:
    """Rescale Slope and Rescale Intercept, 1 and 0 if they are missing or of no use."""
    slope, intercept = _number(ds.get("RescaleSlope")), _number(ds.get("RescaleIntercept"))
    return (1.0, 0.0) if slope == 0.0 else (1.0 if slope is None else slope, intercept or 0.0)


def voi_reach(ds: Dataset) -> float | None:
    """The stored value at the upper end of the first VOI LUT or window, None if there is neither."""
    slope, intercept = rescale(ds)
    if ds.get("VOILUTSequence"):
        descriptor = ds.VOILUTSequence[0].get("LUTDescriptor")
        return (sum(int(part) for part in descriptor[:2]) - intercept) / slope if descriptor else None
    center, width = _number(ds.get("WindowCenter")), _number(ds.get("WindowWidth"))
    return None if center is None or width is None else (center + width / 2 - intercept) / slope


def _ways(values: Curve, ds: Dataset, notes: list[str]) -> Iterator[tuple[str, Callable[[Curve], Curve]]]:
    """The VOI LUTs and then the windows of the header that can be used, each with its name."""
    span = float(values.min()), float(values.max())
    for item in ds.get("VOILUTSequence") or ():
        try:
            table = read_table(item, span, _little_endian(ds))
        except UnreadableError as error:
            notes.append(f"an item of (0028,3010) VOI LUT Sequence is passed over: {error}")
            continue
        if table.note:
            notes.append(f"(0028,3010) VOI LUT Sequence: {table.note}")
        yield "(0028,3010) VOI LUT Sequence", table.greys
    function = str(ds.get("VOILUTFunction") or "LINEAR").strip().upper()
    function = function if function in _VOI_FUNCTIONS else "LINEAR"
    for center, width in zip(_numbers(ds.get("WindowCenter")), _numbers(ds.get("WindowWidth")), strict=False):
        if center is None or width is None:
            if center is not None or width is not None:
                notes.append(f"{_WINDOW} or (0028,1051) Window Width is missing or no number")
            continue
        name = f"{_WINDOW} {center:g} with (0028,1051) Window Width {width:g}"
        if width >= 1.0 or (width > 0.0 and function != "LINEAR"):
            yield name, partial(_window, center=center, width=width, function=function)
        else:
            notes.append(f"{name} is no window and is passed over")


def _window(values: Curve, center: float, width: float, function: str) -> Curve:
    """The window functions of PS3.3 C.11.2.1.2 and C.11.2.1.3, from 0 to 1."""
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1.0 / (1.0 + np.exp(-4.0 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0.0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def _shows(curve: Curve, counts: Counts) -> bool:
    """Whether a curve shows the pixels, of which `counts` are there of each stored value, by a usual part of greys."""
    total = counts.sum()
    share = np.cumsum(counts) / max(total, 1)
    low, high = np.searchsorted(share, np.array(DEFAULT_PERCENTILES) / 100.0)
    if not total or low == high:
        return True  # nothing to see, whatever the curve
    greys = np.clip(curve, 0.0, 1.0)
    middle = greys[low : high + 1][counts[low : high + 1] > 0]
    white, black = counts[greys >= 1.0].sum() / total, counts[greys <= 0.0].sum() / total
    return bool(np.ptp(middle) >= _LEAST_SPAN and white <= _MOST_WHITE and white + black <= _MOST_BLACK)


def _counts(stored: Stored, domain: Stored, padding: npt.NDArray[np.bool_], pixels: int) -> Counts:
    """How often each value of `domain` occurs among about so many pixels; padding does not count."""
    step = max(1, math.isqrt(stored.size // pixels))
    counts = np.bincount(stored[::step, ::step].ravel().astype(np.int64) - int(domain[0]), minlength=domain.size)
    counts[padding] = 0
    return counts


def _without_voi(domain: Stored, values: Curve, stored: Stored, padding: npt.NDArray[np.bool_], ds: Dataset) -> Curve:
    bits = int(ds.BitsStored)
    if bits <= 8 and not ds.get("ModalityLUTSequence") and ds.get("PresentationIntentType") != "FOR PROCESSING":
        floor = -(2 ** (bits - 1)) if int(ds.get("PixelRepresentation") or 0) else 0
        ends = _modality(np.array([floor, floor + 2**bits - 1]), ds, [])
        return (values - ends.min()) / np.ptp(ends)
    counts = _counts(stored, domain, padding, _SAMPLE_PIXELS)
    if not counts.any():
        return np.zeros(domain.shape)
    order = np.argsort(values, kind="stable")
    share = np.cumsum(counts[order]) / counts.sum()
    low, high = values[order][np.searchsorted(share, np.array(DEFAULT_PERCENTILES) / 100.0)]
    return (values - low) / (high - low) if high > low else np.where(values > low, 1.0, 0.0)


def _ends(domain: Stored, curve: Curve, ds: Dataset) -> tuple[float, float] | None:
    """The ends of the window that the greys 0 and 1 are, in the units that the header gives; see `StoredGreys.ends`."""
    if not any(keyword in ds for keyword in _UNIT_STEPS):
        return None
    values, inside = _modality(domain, ds, []), np.flatnonzero((curve > 0.0) & (curve < 1.0))
    if len(inside) < 2 or values[inside[0]] == values[inside[-1]]:
        return None
    first, last = inside[0], inside[-1]
    slope = (curve[last] - curve[first]) / (values[last] - values[first])
    straight = curve[first] + (values[inside] - values[first]) * slope
    if slope == 0.0 or np.abs(straight - curve[inside]).max() > _STRAIGHT:
        return None
    ends = [float(values[first] + (grey - curve[first]) / slope) for grey in (0.0, 1.0)]
    # The upper end of a LINEAR window is the value above the first white one (C.11.2.1.2.1).
    exact = str(ds.get("VOILUTFunction") or "").strip().upper() == "LINEAR_EXACT"
    ends[int(slope > 0)] += 0.0 if exact else 1.0
    return ends[0], ends[1]


def _presentation(curve: Curve, ds: Dataset) -> Curve:
    """Presentation LUT Sequence; a shape is a matter of `_shown_inverted`."""
    if not ds.get("PresentationLUTSequence"):
        return curve
    table = read_table(ds.PresentationLUTSequence[0], (0, 0), _little_endian(ds))
    return table.greys(np.clip(curve, 0.0, 1.0) * (len(table.entries) - 1) + table.first)


def _palette(domain: Stored, stored: Stored, ds: Dataset) -> tuple[Curve, bool]:
    """Grey 0…1 of every index in `domain`, and whether colours occur."""
    span = int(domain[0]), int(domain[-1])
    if ds.get("RedPaletteColorLookupTableData"):
        tables = [read_table(ds, span, _little_endian(ds), colour) for colour in ("Red", "Green", "Blue")]
        white = max(table.white for table in tables)
        colours = np.stack([table.at(domain) for table in tables], axis=-1) / white
    else:
        shown = apply_color_lut(domain, ds)[:, :3]
        colours = shown / np.iinfo(shown.dtype).max
    occurs = np.bincount(stored.ravel().astype(np.int64) - span[0], minlength=domain.size) > 0
    return cast(Curve, colours @ LUMA), bool(np.ptp(colours[occurs], axis=-1).max() > GREY_TOLERANCE)


def _little_endian(ds: Dataset) -> bool:
    return ds.original_encoding[1] is not False


def _numbers(value: object) -> list[float | None]:
    """The numbers of a DS element; None for what is no number."""
    several = value is not None and not isinstance(value, (str, bytes, int, float)) and hasattr(value, "__getitem__")
    return [_finite(part) for part in (cast(list[object], value) if several else [value])]


def _number(value: object) -> float | None:
    """The first number of a DS element, or None."""
    return next(iter(_numbers(value)), None)


def _finite(value: object) -> float | None:
    try:
        number = float(cast(float, value))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def grey_of_colours(colours: npt.NDArray[np.integer], ds: Dataset) -> tuple[Stored, bool]:
    """The grey of a picture (H, W, 3), and whether it has colour.

    Grey are equal channels, and a first channel beside two in the middle of their range, as luminance and chroma are if
    a header calls them RGB. `ds` becomes the header of the grey picture. The window and look-up steps are for single
    samples (PS3.3 C.7.6.3.1.2), so the 8 highest bits are shown as they are: the grey has 8 bits, or is as deep as it
    is under MONOCHROME1 and 2.
    """
    bits = int(ds.BitsStored)
    top = 2**bits - 1
    first, middle = colours[..., 0], (top + 1) // 2
    coloured = min(_most_off(colours, first), _most_off(colours, middle)) > GREY_TOLERANCE * top
    grey = np.rint(colours @ LUMA).astype(colours.dtype) if coloured else np.ascontiguousarray(first)
    ds.SamplesPerPixel = 1
    if ds.PhotometricInterpretation not in MONOCHROME:
        ds.PhotometricInterpretation = "MONOCHROME2"
        for keyword in _GREY_STEPS:
            ds.pop(keyword, None)
        ds.BitsStored = min(bits, 8)
        grey = grey >> max(bits - 8, 0)
    return grey, coloured


def _most_off(colours: npt.NDArray[np.integer], reference: npt.NDArray[np.integer] | int) -> int:
    """The greatest difference of second and third channel from `reference`."""
    return max(int(np.abs(colours[..., channel].astype(np.int32) - reference).max()) for channel in (1, 2))
