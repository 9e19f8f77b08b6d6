"""NIH ChestX-ray14: 112,120 frontal radiographs of 30,805 patients, fourteen labels mined from the reports.

Layout, as NIH publishes it: `Data_Entry_2017.csv` or `Data_Entry_2017_v2020.csv`, `images/` or `images_001/` to
`images_012/` (each with an `images/` folder inside), and the official `test_list.txt`. A subset with its table called
`labels.csv` is read too, and Kaggle's sample (`sample_labels.csv`, `images/` or `sample/images/`). A finding that is
not listed is absent. Several such folders are read as one data set by `data.parts`; NIH's patient numbers hold over all
of them, so a patient of two folders stands in one split.

Wang et al., ChestX-ray8, CVPR 2017. Provided by the NIH Clinical Center, which asks to be named; no restriction on use.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from medsd.errors import DataError
from medsd.findings import FindingSet, finding_set
from medsd.settings import Nih14Source, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources.cells import LabelCells, agreed
from medsd.studies.sources.tables import OLDEST, find_table, limited, manifest_of, read_table

_OWNER = "NIH ChestX-ray14"
_TABLES = (
    "Data_Entry_2017_v2020.csv", "Data_Entry_2017*.csv", "sample_labels.csv", "sample/sample_labels.csv", "labels.csv",
)  # fmt: skip


def read(settings: Nih14Source, splits: SplitSettings) -> Manifest:
    root = settings.root
    findings = finding_set("nih14")
    parts = [
        _read_part(root, part.folder, findings).assign(use="" if part.use == "all" else part.use)
        for part in settings.parts
    ] or [_read_part(root, None, findings).assign(use="")]
    entries = pd.concat(parts, ignore_index=True).drop_duplicates("Image Index", ignore_index=True)
    table = limited(entries.rename(columns={"Patient ID": "patient"}), settings.limit)
    official = _official_test(root, table["Image Index"]) if settings.official_split else None
    table = table.assign(
        study=table["Image Index"].map(lambda name: Path(name).stem),
        view=table["View Position"].where(table["View Position"].isin(["PA", "AP"]), ""),
        age=_ages(table["Patient Age"]),
        sex=table["Patient Gender"].where(table["Patient Gender"].isin(["F", "M"]), ""),
    )
    return manifest_of(table, findings, root, splits, official)


def _read_part(root: Path, folder: Path | None, findings: FindingSet) -> pd.DataFrame:
    """The entries of a folder that have an image, with its `path` below `root` and the name of the `source`."""
    place = root if folder is None else root / folder
    entries = _read_entries(find_table(place, _TABLES, _OWNER), findings)
    homes = sorted([*place.glob("images"), *place.glob("images_[0-9]*"), *place.glob("sample/images")])
    images = {path.name: path for home in homes for path in home.rglob("*.png")}
    if not images:
        raise DataError(f"{place}: no images in images/ or images_001/ …; unpack NIH's archives there")
    entries = entries[entries["Image Index"].isin(images.keys())]
    if entries.empty:
        raise DataError(f"{place}: none of the images is listed in the table; they belong to different data sets")
    paths = entries["Image Index"].map(lambda name: images[name].relative_to(root).as_posix())
    return entries.assign(path=paths, source="nih14" if folder is None else f"nih14/{folder.as_posix()}")


def _read_entries(path: Path, findings: FindingSet) -> pd.DataFrame:
    """The columns medsd needs and the findings, a row an image; NIH's headers with a comma in brackets do no harm."""
    needed = ["Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position"]
    table = read_table(path, needed, _OWNER)
    rows, names = np.arange(1, len(table) + 1), list(findings)
    cells = LabelCells()
    listed = cells.read_lists(table["Finding Labels"], rows, findings)
    cells.tell(path)
    labels = pd.DataFrame(listed, index=table["Image Index"], columns=names)
    first = table.loc[~table.duplicated("Image Index"), needed].set_index("Image Index")
    return first.join(labels if labels.index.is_unique else agreed(labels, rows, path)).reset_index()


def _ages(column: pd.Series) -> pd.Series:
    """Years; the first release writes "058Y", and months or days for infants."""
    parts = column.str.extract(r"^\s*0*(\d+)\s*([YMD]?)\s*$")
    years = pd.to_numeric(parts[0], errors="coerce") / parts[1].map({"M": 12.0, "D": 365.25}).fillna(1.0)
    return years.where(years <= OLDEST)


def _official_test(root: Path, images: pd.Series) -> np.ndarray | None:
    path = root / "test_list.txt"
    if not path.is_file():
        return None
    listed = set(path.read_text(encoding="utf-8").split())
    return images.isin(listed).to_numpy()
