"""Grey pictures that are stored in colour: three samples a pixel, RGB or luminance and chroma."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from medsd.dicom.greys import Stored
from medsd.dicom.header import MONOCHROME
from medsd.dicom.pixels import GREY_TOLERANCE, LUMA

_GREY_STEPS = (
    "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "VOILUTSequence", "WindowCenter", "WindowWidth",
    "PresentationLUTSequence",
)  # fmt: skip


def grey_of_colours(colours: npt.NDArray[np.integer], ds: Dataset) -> tuple[Stored, bool]:
    """The grey of a picture (H, W, 3), and whether it has colour.

    Grey are equal channels, and a first channel beside two that stand in the middle of their range, as luminance and
    chroma do where a header calls them RGB. `ds` becomes the header of the grey picture: the window and look-up steps
    are for single samples (PS3.3 C.7.6.3.1.2), so the 8 highest bits are shown as they are.

    Returns:
        stored values (H, W) of 8 bits, or as deep as they are under MONOCHROME1 and 2; whether there is colour.
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
