"""A radiograph as stored values and the grey of each, and its reduction by whole factors without the full picture.

A film has millions of pixels and the model sees some ten thousand. `StoredGreys` looks the whole picture up only for
those who want to see it; for the model it averages blocks, a few rows at a time, so that they stay in the cache.
`block_means` does the same with a picture that is there already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

Stored = npt.NDArray[np.integer]
Greys = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]

_CHUNK = 200_000  # pixels reduced at a time: with their sums they stay in a core's cache
_LINE_TOLERANCE = 2.5e-7  # float32 greys lie within half a unit in the last place, 3e-8, of their line, as its ends do


@dataclass(frozen=True)
class _Line:
    """grey = slope · clip(2ˢ v, low, high) + intercept, s being `shift`: what a window makes of a stored value v."""

    low: int
    high: int
    shift: int
    cuts: bool  # whether there is a plateau at all
    slope: float  # of the clipped value
    intercept: float


@dataclass(frozen=True)
class StoredGreys:
    """One frame before its grey values are looked up.

    Attributes:
        stored: (H, W) integers of 16 bits at most.
        greys: float32 (N,) in 0…1, the grey of the stored values ``first``, ``first + 1``, …; covers all that occur.
        first: the stored value that ``greys[0]`` belongs to.
        notes: what of the header was passed over or assumed.
        coloured: whether a palette gives colours.
    """

    stored: Stored
    greys: Greys
    first: int
    notes: tuple[str, ...] = ()
    coloured: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
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
        few = self.every(max(1, min(self.shape) // 64))
        if few.min() != few.max():
            return False
        shown = self.picture()
        return bool(shown.min() == shown.max())

    def means(self, box: Box, factors: tuple[int, int]) -> Greys:
        """`block_means` of the picture, which need not exist.

        Where the greys are a window (a straight line between two plateaus), blocks of stored values are summed and the
        line is applied to their means: the mean of a line is the line of the mean. It differs from the mean of the
        float32 greys by their rounding alone, less than 5e-7. Other curves are looked up first and come out the same
        to the last bit.
        """
        line = self._line
        if line is None:
            return _means(self.stored, box, factors, np.dtype(np.float32), self._look_up)
        work: np.dtype[Any] = np.dtype(np.int32)
        if line.low >= 0 and line.high * factors[1] < 2**16:
            work = np.dtype(np.uint16)  # twice as many at a time
        clip = partial(_clipped, line=line, work=work)
        return _means(self.stored, box, factors, work, clip, line.slope, line.intercept)

    def _look_up(self, chunk: Stored, out: Greys | None = None) -> Greys:
        index = chunk if self.first == 0 else chunk.astype(np.int32) - self.first
        # "raise" would buffer; no value is out of range
        return np.take(self.greys, index, out=np.empty(chunk.shape, np.float32) if out is None else out, mode="clip")

    @cached_property
    def _line(self) -> _Line | None:
        return _line_of(self.greys, self.first)


def block_means(picture: Greys, box: Box, factors: tuple[int, int]) -> Greys:
    """The means of whole blocks of a picture.

    Args:
        picture: float32 (H, W).
        box: left, top, right, bottom of the part that is wanted.
        factors: columns and rows of a block; the last block of a row or column may be smaller.

    Returns:
        float32 array, ceil(height of the box / rows) × ceil(width of the box / columns).
    """
    return _means(picture, box, factors, np.dtype(np.float32), lambda chunk: chunk)


def _means(
    values: npt.NDArray[Any],
    box: Box,
    factors: tuple[int, int],
    work: np.dtype[Any],
    prepare: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    slope: float = 1.0,
    intercept: float = 0.0,
) -> Greys:
    """slope · mean + intercept of the blocks of ``prepare(values)``, summed down in the type `work` and then across."""
    left, top, right, bottom = box
    across, down = factors
    columns, rows = _counts(right - left, across), _counts(bottom - top, down)
    means = np.empty((len(rows), len(columns)), dtype=np.float32)
    for block, chunk in _chunks(values[top:bottom, left:right], down):
        height = int(rows[block])
        tall = prepare(chunk).reshape(-1, height, chunk.shape[1]).sum(axis=1, dtype=work)
        shown = _sum_across(tall, across, len(columns)).astype(np.float64)
        shown *= slope / (height * columns)
        shown += intercept
        means[block : block + len(shown)] = shown
    return means


def _counts(length: int, factor: int) -> npt.NDArray[np.int64]:
    """How many of `length` pixels each block holds."""
    counts = np.full(math.ceil(length / factor), factor)
    counts[-1] = length - factor * (len(counts) - 1)
    return counts


def _chunks(values: npt.NDArray[Any], down: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Rows in portions of whole blocks, the rest alone; each with the number of its first block."""
    height, width = values.shape
    whole = height // down
    portion = max(1, _CHUNK // (width * down))
    for block in range(0, whole, portion):
        yield block, values[block * down : min(block + portion, whole) * down]
    if whole * down < height:
        yield whole, values[whole * down :]


def _sum_across(tall: npt.NDArray[Any], across: int, blocks: int) -> npt.NDArray[Any]:
    """Sums of `across` neighbours in each row, the last of what is left."""
    whole = tall.shape[1] // across
    wide = np.dtype(np.float64) if tall.dtype.kind == "f" else np.dtype(np.int64) if tall.itemsize > 2 else np.uint32
    sums = np.empty((len(tall), blocks), dtype=wide)
    sums[:, :whole] = tall[:, : whole * across : across]
    for column in range(1, across):
        sums[:, :whole] += tall[:, column : whole * across : across]
    if whole < blocks:
        sums[:, whole] = tall[:, whole * across :].sum(axis=1, dtype=wide)
    return sums


def _clipped(chunk: Stored, line: _Line, work: np.dtype[Any]) -> Stored:
    """``clip(2ˢ v, low, high)`` in the type `work`, which holds the clipped values but perhaps not all stored ones."""
    low, high = line.low >> line.shift, -(-line.high >> line.shift)  # rounded outwards
    clipped = (np.clip(chunk, low, high) if line.cuts else chunk).astype(work, copy=False)
    return clipped if line.shift == 0 else np.clip(np.left_shift(clipped, line.shift), line.low, line.high)


def _line_of(greys: Greys, first: int) -> _Line | None:
    """The line between two plateaus that `greys` are, or None.

    The ends of a window fall on stored values or half-way between two (PS3.3 C.11.2.1.2.1 with whole centre and width),
    so that twice the stored values can be clipped exactly. Whatever is found is held against every grey.
    """
    curve = greys.astype(np.float64)
    inside = np.flatnonzero((curve != curve[0]) & (curve != curve[-1]))
    if len(inside) < 2:
        return None
    start, stop = int(inside[0]), int(inside[-1])
    slope = (curve[stop] - curve[start]) / (stop - start)
    if slope == 0.0:
        return None
    ends = [start + (curve[end] - curve[start]) / slope for end in (0, -1)]  # where the plateaus meet the line
    for shift in (0, 1):
        last = (len(curve) - 1) << shift
        low, high = (min(max(round(end * 2**shift), 0), last) for end in ends)
        if high <= low:
            continue
        rise = (curve[-1] - curve[0]) / (high - low)
        clipped = np.clip(np.arange(len(curve)) << shift, low, high)
        if np.abs(curve[0] + (clipped - low) * rise - curve).max() < _LINE_TOLERANCE:
            offset = first << shift
            cuts = (low, high) != (0, last)
            intercept = float(curve[0] - (low + offset) * rise)
            return _Line(low + offset, high + offset, shift, cuts, float(rise), intercept)
    return None
