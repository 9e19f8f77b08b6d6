"""A radiograph as stored values and the grey of each, and its reduction by whole factors without the full picture."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Stored = npt.NDArray[np.integer]
Greys = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]

_CHUNK = 200_000  # pixels reduced at a time, which stay in a core's cache


@dataclass(frozen=True)
class StoredGreys:
    """One frame before its grey values are looked up."""

    stored: Stored  # (H, W), 16 bits at most
    greys: Greys  # (N,) in 0…1 of the stored values `first`, `first` + 1, …; covers all that occur
    first: int
    notes: tuple[str, ...] = ()  # what of the header was passed over or assumed
    coloured: bool = False  # a palette gives colours
    # The window of the greys 0 and 1 in the image's own units, after modality LUT or rescale: its end at 0 and its end
    # at 1, the former above the latter where the image is inverted. None where the header gives no units, or greys do
    # not lie along a line.
    ends: tuple[float, float] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.shape[0], self.stored.shape[1]

    def picture(self) -> Greys:
        """The presentation-ready picture, float32 (H, W) in 0…1."""
        shown = np.empty(self.stored.shape, dtype=np.float32)
        rows = max(1, 40_000 // self.stored.shape[1])  # NumPy widens indices to 8 bytes: these stay in the cache
        for top in range(0, self.stored.shape[0], rows):
            self._look_up(self.stored[top : top + rows], shown[top : top + rows])
        return shown

    def every(self, step: int) -> Greys:
        """``picture()[::step, ::step]``."""
        return self._look_up(self.stored[::step, ::step])

    def is_flat(self) -> bool:
        """Whether the picture holds a single grey value."""
        shown = self.picture()
        return bool(shown.min() == shown.max())

    def means(self, box: Box, factors: tuple[int, int]) -> Greys:
        """`block_means` of the picture, of which few rows are made at a time."""
        left, top, right, bottom = box
        rows = factors[1] * max(1, _CHUNK // (factors[1] * (right - left)))
        chunks = (self.stored[y : min(y + rows, bottom), left:right] for y in range(top, bottom, rows))
        return np.concatenate([block_means(self._look_up(chunk), None, factors) for chunk in chunks])

    def _look_up(self, chunk: Stored, out: Greys | None = None) -> Greys:
        index = chunk if self.first == 0 else chunk.astype(np.int32) - self.first
        # "raise" would buffer; no value is out of range
        return np.take(self.greys, index, out=np.empty(chunk.shape, np.float32) if out is None else out, mode="clip")


def block_means(picture: Greys, box: Box | None, factors: tuple[int, int]) -> Greys:
    """The means of whole blocks, of `factors` columns and rows, of a float32 picture (H, W) or of the `box` of it.

    The result is float32, ceil(height / rows) × ceil(width / columns): the last block of a row or column may be
    smaller.
    """
    return np.asarray(Image.fromarray(picture).reduce(factors, box))
