"""What a picture says if no header speaks: a lateral chest, no chest at all, or bright and dark exchanged.

No model is asked. The picture is correlated with a chest drawn by formula and, reduced to 16 × 16 ranks of grey, which
no exposure, window or gamma changes, with the two tables of chests.yaml. tests/bench/bench_gate.py makes the tables,
the limits and the figures below.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsd.dicom.policy import Concern, GatePolicy, concern
from medsd.dicom.terms import packaged

FloatImage = npt.NDArray[np.float32]

GRID = 16
_SIDE = 64
_FLAT = 0.15  # a row or column that varies by less than this share of the image's deviation is a shutter or border
_WEAK, _STRONG = 0.1, 0.3  # upside down is only believed if upright says nothing and upside down says much
_LATERAL_LIMIT = 0.072
_SCHEMATIC_LIMIT = 0.14
_FRONTAL_LIMIT = 0.311
_TURNED = 0.3  # agreement that an image must have, and gain, when it is turned upside down


@dataclass(frozen=True)
class Appearance:
    """What a picture looks like."""

    small: FloatImage  # the picture (64, 64) without shutters and borders

    @classmethod
    def of(cls, pixels: FloatImage) -> Self:
        """Of an image (H, W) in 0…1, or of every so many of its pixels (`sketch_step`)."""
        return cls(_shrink(inside_borders(_shrink(pixels))))

    @cached_property
    def likeness(self) -> float:
        """Correlation with a schematic frontal chest, −1…1: negative for a negative, 0 without contrast.

        On 1,905 frontal radiographs (1,763 of ChestX-ray14, 142 of the COVID-19 image data collection) and on their
        negatives the sign was always right. The schematic chest was fitted to the mean of the same images.
        """
        chest = _schematic_chest()
        upright, upside_down = _correlation(self.small, chest), _correlation(self.small, chest[::-1])
        return upside_down if abs(upright) < _WEAK and abs(upside_down) > _STRONG else upright

    @cached_property
    def ranks(self) -> FloatImage:
        """The picture as ranks of grey, (16, 16), mean 0 and mean square 1."""
        return grey_ranks(self.small)

    def _agreements(self, table: str) -> tuple[float, float]:
        """The correlation with a table, upright and upside down."""
        pattern = _table(table)
        return float(np.mean(self.ranks * pattern)), float(np.mean(self.ranks[::-1] * pattern))

    @property
    def laterality(self) -> float:
        """Correlation with a lateral rather than a frontal chest, −1…1, in the less likely of both ways up."""
        return min(self._agreements("lateral"))

    @property
    def frontality(self) -> float:
        """Correlation with the mean frontal chest or with its negative, 0…1, in the more likely of both ways up."""
        return max(map(abs, self._agreements("frontal")))

    @property
    def no_chest(self) -> bool:
        """Unlike an upright chest, frontal or lateral, and unlike the negative of one.

        Conservative: wrong in 3 of 926 frontal radiographs, and said of 51 of 9,250 unselected images of ChestX-ray14
        (12 are turned or upside down). It notices 92 % of frontal radiographs rotated by 90°, 93 % upside down, all
        noise, 65 % of 49 CT slices, two photographs in five, and no drawings of hands.
        """
        upright, turned = self._agreements("frontal")
        upside_down = turned > max(_TURNED, abs(upright) + _TURNED)
        unlike = abs(self.likeness) < _SCHEMATIC_LIMIT or self.frontality < _FRONTAL_LIMIT
        return not self.lateral and (upside_down or unlike)

    @property
    def lateral(self) -> bool:
        """Somewhat like a chest, and rather a lateral one.

        Fitted on generated laterals, it sees 35 of 37 real ones of the COVID-19 image data collection and is wrong in 1
        of 926 frontal radiographs (cropped: 4). Of 46 such images in 9,250 of ChestX-ray14, 16 are laterals by eye.
        """
        return self.likeness > _SCHEMATIC_LIMIT and self.laterality > _LATERAL_LIMIT


def look_concerns(pixels: FloatImage, policy: GatePolicy, *, view: str = "") -> list[Concern]:
    """What the picture (H, W) in 0…1, or every so many of its pixels (`sketch_step`), says against scoring it.

    It is one thing at most, and nothing that `policy` accepts. `view` is what the header says; if it says anything, the
    picture is not asked for its view.
    """
    if {policy.not_a_chest, policy.lateral_look, policy.inverted_look} == {"accept"}:
        return []
    seen = Appearance.of(pixels)
    if policy.not_a_chest != "accept" and seen.no_chest:
        return [concern("not_a_chest")]
    if policy.lateral_look != "accept" and not view and seen.lateral:
        return [replace(concern("view", value="looks lateral, and no header says otherwise"), setting="lateral_look")]
    if policy.inverted_look != "accept" and seen.likeness < 0:
        return [concern("inverted_look")]
    return []


def sketch_step(shape: tuple[int, ...]) -> int:
    """Every how many pixels of an image (H, W) are enough; ``pixels[::step, ::step]`` is judged as `pixels` are."""
    return max(1, min(shape) // (4 * _SIDE))


def inside_borders(image: FloatImage) -> FloatImage:
    """The part of an image (H, W) inside flat rows and columns at its edges, a third on each side at most."""
    flat = _FLAT * float(image.std())
    top, bottom = _flat_edges(image.std(axis=1) < flat)
    image = image[top:bottom]
    left, right = _flat_edges(image.std(axis=0) < flat)
    return image[:, left:right]


def grey_ranks(small: FloatImage) -> FloatImage:
    """A picture (H, W) as the ranks of its mean greys in 16 × 16 cells: mean 0 and mean square 1."""
    cells = np.asarray(Image.fromarray(np.ascontiguousarray(small)).resize((GRID, GRID), Image.Resampling.BOX)).ravel()
    ranks = np.empty(cells.size, dtype=np.float32)
    ranks[cells.argsort(kind="stable")] = np.linspace(-1, 1, cells.size, dtype=np.float32)
    ranks /= np.sqrt(np.mean(ranks**2))
    return ranks.reshape(GRID, GRID)


@cache
def _table(name: str) -> FloatImage:
    """A table of chests.yaml, of which the left half is written down: (16, 16), mean 0 and mean square 1."""
    left = np.array(packaged("chests.yaml")[name].split(), dtype=np.float32).reshape(GRID, -1)
    table = np.concatenate([left, left[:, ::-1]], axis=1)
    table = table - table.mean()
    return np.asarray(table / np.sqrt(np.mean(table**2)), dtype=np.float32)


@cache
def _schematic_chest() -> FloatImage:
    """Brighter towards the abdomen; dark lungs, dark air above the shoulders and beside the waist."""
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / (_SIDE - 1)

    def pair(centre_x: float, centre_y: float, width: float, height: float) -> npt.NDArray[np.float64]:
        left, right = ((x - centre_x) / width) ** 2, ((x - 1 + centre_x) / width) ** 2
        return (np.exp(-left) + np.exp(-right)) * np.exp(-(((y - centre_y) / height) ** 2))

    lungs, shoulders, waist = pair(0.3, 0.4, 0.12, 0.28), pair(0.0, 0.0, 0.3, 0.15), pair(0.0, 1.0, 0.12, 0.5)
    return (0.2 * y - 0.25 * lungs - 0.4 * shoulders - 0.45 * waist).astype(np.float32)


def _shrink(pixels: FloatImage) -> FloatImage:
    step = sketch_step(pixels.shape)
    image = Image.fromarray(np.ascontiguousarray(pixels[::step, ::step], dtype=np.float32))
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))


def _flat_edges(flat: npt.NDArray[np.bool_]) -> tuple[int, int]:
    most = len(flat) // 3
    first = most if flat[:most].all() else int(np.argmin(flat[:most]))
    last = most if flat[::-1][:most].all() else int(np.argmin(flat[::-1][:most]))
    return first, len(flat) - last


def _correlation(image: FloatImage, pattern: FloatImage) -> float:
    deviation, shape = image - image.mean(), pattern - pattern.mean()
    norm = float(np.sqrt((deviation**2).sum() * (shape**2).sum()))
    return float((deviation * shape).sum()) / norm if norm > 1e-9 else 0.0
