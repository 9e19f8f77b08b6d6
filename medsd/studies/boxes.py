"""Boxes that radiologists drew around findings of ChestX-ray14, for judging evidence maps.

NIH publishes them as `BBox_List_2017.csv`, for about 900 images of 1,024 × 1,024 pixels and eight of the fourteen
findings; a subset called `boxes.csv` is read, too. Wang et al., ChestX-ray8, CVPR 2017, section 3.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medsd.errors import DataError, explained
from medsd.findings import FindingSet

SIDE = 1024.0  # of the images that the boxes were drawn on
_TABLES = ("BBox_List_2017*.csv", "boxes.csv")
_COLUMNS = {0: "image", 1: "finding", 2: "left", 3: "top", 4: "width", 5: "height"}
_OTHER_NAMES = {"Infiltrate": "Infiltration"}


@dataclass(frozen=True)
class Box:
    """Where a finding lies in an image: shares 0…1 of its sides from its upper left corner."""

    study: str  # the name of the image, without its ending
    finding: str
    left: float
    top: float
    right: float
    bottom: float


def boxes_tables(root: Path) -> list[Path]:
    """The tables of boxes that stand beside the images, in `root` and in the folders of its parts."""
    return [path for pattern in _TABLES for place in ("", "*/") for path in sorted(root.glob(place + pattern))]


def read_boxes(root: Path, findings: FindingSet) -> tuple[Box, ...]:
    """The boxes of `findings` in `boxes_tables`; DataError if one cannot be read, or a box lies outside its image."""
    return tuple(box for path in boxes_tables(root) for box in _read_table(path, findings))


def _read_table(path: Path, findings: FindingSet) -> Iterator[Box]:
    with explained(f"{path}: cannot be read as NIH's table of boxes", OSError, ValueError):  # pandas' are ValueErrors
        # The header has commas inside its brackets, "Bbox [x,y,w,h]", so columns go by position.
        table = pd.read_csv(path, header=None, skiprows=1, usecols=list(_COLUMNS)).rename(columns=_COLUMNS)
        numbers = table[["left", "top", "width", "height"]].astype(float) / SIDE
    for row, (image, finding) in enumerate(zip(table["image"], table["finding"], strict=True), start=2):
        left, top, width, height = numbers.iloc[row - 2]
        inside = left >= 0 and top >= 0 and width > 0 and height > 0 and left + width <= 1 and top + height <= 1
        if not inside:
            raise DataError(f"{path}, line {row}: the box lies outside an image of {SIDE:.0f} pixels")
        name = _OTHER_NAMES.get(str(finding), str(finding))
        if name in findings:
            yield Box(Path(str(image)).stem, name, left, top, left + width, top + height)
