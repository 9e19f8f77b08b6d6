"""What a picture says where no header speaks: a lateral chest, no chest at all, or bright and dark exchanged.

No model is asked. The picture is reduced to 16 × 16 ranks of grey, which no exposure, window or gamma changes, and
compared with two small tables. Start at `look_concerns`; figures and their limits stand at `looks_lateral` and
`looks_like_no_chest`, and `tests/bench/bench_gate.py` makes tables and figures again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsd.dicom.look import FloatImage, likeness_of_sketch, sketch
from medsd.dicom.policy import Concern, GatePolicy, concern

GRID = 16
Ranks = npt.NDArray[np.float32]

# Left halves; the right ones are their mirror images. Fitted by tests/bench/bench_gate.py --fit.
# Bright here, dark where negative: a lateral rather than a frontal chest (a linear discriminant).
_LATERAL = """
-21  -9  17  51  79  87  68  45
-39 -29   6  55  92  99  89  78
-69 -59 -10  45  78  94  97  91
-90 -67 -16  30  64  82  80  69
-94 -59 -16  19  49  61  53  36
-82 -49 -20   3  29  38  18 -10
-64 -37 -26 -19   9  14 -18 -51
-43 -21 -26 -26   1  -5 -46 -81
-26 -10 -28 -22   4 -12 -57 -89
-16  -4 -25 -15   8 -12 -53 -79
 -8   4 -14  -4  12  -9 -46 -65
 -1  15   5  14  22   2 -24 -40
  5  28  25  26  25  10  -7 -21
  9  33  30  23  15   1 -10 -20
  9  29  23   9  -5 -19 -28 -34
 -7   3  -8 -22 -35 -44 -46 -48
"""
# The mean of frontal chests.
_FRONTAL = """
-87 -87 -87 -85 -79 -56 -18  11
-77 -68 -64 -62 -57 -43 -16   8
-51 -34 -28 -28 -33 -36 -23   2
-25  -6  -2 -13 -34 -44 -31   0
 -9   7   8 -14 -45 -56 -36   4
 -4  10  11 -17 -51 -59 -33  14
 -8   7  10 -20 -50 -52 -19  27
-18   0   7 -20 -44 -37  -1  40
-27  -5   5 -16 -31 -18  17  52
-33  -8   6  -7 -12   3  34  63
-39 -10   8   5   9  25  50  72
-44 -14  13  22  32  46  64  80
-49 -16  18  38  52  64  76  87
-53 -18  24  51  67  77  86  94
-55 -18  28  59  76  87  93  99
-53 -15  32  63  80  90  95  99
"""
_LATERAL_LIMIT = 0.072
_SCHEMATIC_LIMIT = 0.14
_FRONTAL_LIMIT = 0.311
_TURNED = 0.3  # agreement that a film must have, and gain, when it is put on its head, to stand on it


@dataclass(frozen=True)
class Appearance:
    """What a picture looks like.

    Attributes:
        small: the picture (64, 64) without shutters and borders.
    """

    small: FloatImage

    @classmethod
    def of(cls, pixels: FloatImage) -> Appearance:
        """Of an image (H, W) in 0…1, or of every so many of its pixels."""
        return cls(sketch(pixels))

    @cached_property
    def likeness(self) -> float:
        """`medsd.dicom.look.chest_likeness`."""
        return likeness_of_sketch(self.small)

    @cached_property
    def ranks(self) -> Ranks:
        """The picture as ranks of grey, (16, 16), mean 0 and mean square 1."""
        return grey_ranks(self.small)

    @property
    def laterality(self) -> float:
        """Correlation with a lateral rather than a frontal chest, −1…1, in the less likely of both ways up."""
        return min(_agreement(self.ranks, LATERAL), _agreement(self.ranks[::-1], LATERAL))

    @property
    def frontality(self) -> float:
        """Correlation with the mean frontal chest or with its negative, 0…1, in the more likely of both ways up."""
        return max(abs(_agreement(self.ranks, FRONTAL)), abs(_agreement(self.ranks[::-1], FRONTAL)))

    @property
    def upside_down(self) -> bool:
        """Much more like a frontal chest the other way up."""
        turned = _agreement(self.ranks[::-1], FRONTAL)
        return turned > _TURNED and turned > abs(_agreement(self.ranks, FRONTAL)) + _TURNED

    @property
    def no_chest(self) -> bool:
        """Unlike an upright chest, frontal or lateral, and unlike the negative of one."""
        return not self.lateral and (
            self.upside_down or abs(self.likeness) < _SCHEMATIC_LIMIT or self.frontality < _FRONTAL_LIMIT
        )

    @property
    def lateral(self) -> bool:
        """Somewhat like a chest, and rather a lateral one."""
        return self.likeness > _SCHEMATIC_LIMIT and self.laterality > _LATERAL_LIMIT


def looks_lateral(pixels: FloatImage) -> bool:
    """Whether an image (H, W) in 0…1 looks like a lateral rather than a frontal chest.

    It was fitted on generated laterals (`tests/dicom/films.py`) and sees 35 of 37 real ones of the COVID-19 image data
    collection. On frontal radiographs of patients that it was not fitted on it is wrong in 1 of 926 (cropped: 4). Of
    9,250 unselected images of ChestX-ray14, all published as frontal, it speaks of 46; by eye, 16 are laterals.
    """
    return Appearance.of(pixels).lateral


def looks_like_no_chest(pixels: FloatImage) -> bool:
    """Whether an image (H, W) in 0…1 looks like no upright chest, nor like the negative of one.

    Conservative: wrong in 3 of 926 frontal radiographs. Of 9,250 unselected images of ChestX-ray14 it speaks of 51: by
    eye, 12 are turned or upside down, and half of the others are children on a small field between borders. It notices
    92 % of frontal radiographs when they are rotated by 90°, 93 % when they are upside down, all noise, 65 % of 49 CT
    slices, but two photographs in five, and drawings of hands never (of skulls 33 %; 63 % more look lateral).
    """
    return Appearance.of(pixels).no_chest


def look_concerns(pixels: FloatImage, policy: GatePolicy, *, view: str = "") -> list[Concern]:
    """What the picture itself says against scoring it, one thing at most.

    Args:
        pixels: (H, W) in 0…1, or every so many of them (`medsd.dicom.look.sketch_step`).
        policy: what it accepts is not looked for.
        view: what the header says; where it says anything, the picture is not asked for its view.
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


def grey_ranks(small: FloatImage) -> Ranks:
    """A picture (H, W) as the ranks of its mean greys in 16 × 16 cells: mean 0 and mean square 1."""
    cells = np.asarray(Image.fromarray(np.ascontiguousarray(small)).resize((GRID, GRID), Image.Resampling.BOX)).ravel()
    ranks = np.empty(cells.size, dtype=np.float32)
    ranks[cells.argsort(kind="stable")] = np.linspace(-1, 1, cells.size, dtype=np.float32)
    ranks /= np.sqrt(np.mean(ranks**2))
    return ranks.reshape(GRID, GRID)


def mirrored(half: str) -> Ranks:
    """A table whose left half is written down, (16, 16), mean 0 and mean square 1."""
    left = np.array([line.split() for line in half.strip().splitlines()], dtype=np.float32).reshape(GRID, -1)
    table = np.concatenate([left, left[:, ::-1]], axis=1)
    table = table - table.mean()
    return np.asarray(table / max(float(np.sqrt(np.mean(table**2))), 1e-9), dtype=np.float32)


def _agreement(ranks: Ranks, table: Ranks) -> float:
    return float(np.mean(ranks * table))


LATERAL, FRONTAL = mirrored(_LATERAL), mirrored(_FRONTAL)
