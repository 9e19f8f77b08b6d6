"""VinDr-CXR: 18,000 frontal radiographs of two hospitals in Hanoi, labelled by radiologists.

Layout: `annotations/image_labels_train.csv` and `annotations/image_labels_test.csv` (or both beside the films'
folders), `train/` and `test/` with the films as `.dicom`, or converted. Three radiologists read each training film, a
row each: what the majority saw is present. The test labels are a consensus of five, a row a film; their table spells
«Other disease», the other «Other diseases». Every film was read for every label, so there are no uncertain and no
unmentioned ones; should a cell be empty, the readers who filled it in decide. All films are PA. No patient numbers are
published, so each film counts as a patient of its own, and sex and age stand in the DICOM headers at best.

Nguyen HQ, Lam K, Le LT, et al. VinDr-CXR: an open dataset of chest X-rays with radiologist's annotations. Scientific
Data 2022;9:429. PhysioNet Credentialed Health Data License 1.5.0.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medsd.errors import DataError
from medsd.findings import FindingSet, finding_set
from medsd.settings import SplitSettings, VindrSource
from medsd.studies.manifest import Manifest
from medsd.studies.sources.tables import find_table, limited, manifest_of, numbers, present_files, read_table

CITATION = "Nguyen et al., VinDr-CXR, Scientific Data 2022;9:429"
_OWNER = "VinDr-CXR"
_SUFFIXES = (".dicom", ".dcm", ".png", ".jpg")
_RENAMED = {"Other disease": "Other diseases"}  # the name differs between the two tables


def read(settings: VindrSource, splits: SplitSettings) -> Manifest:
    """Read the data set below `settings.root`; see the module for the layout.

    Raises:
        DataError: the folder, a table, a column or every film is missing.
    """
    root, findings = settings.root, finding_set("vindr")
    parts = [_read_part(root, "train", findings)]
    if any(root.glob("**/image_labels_test.csv")):
        parts.append(_read_part(root, "test", findings))
    table = pd.concat(parts)
    table = limited(table[present_files(root, table["path"])], settings.limit)
    official = (table["part"] == "test").to_numpy() if settings.official_split else None
    return manifest_of(table, findings, root, splits, fixed_test=official)


def _read_part(root: Path, name: str, findings: FindingSet) -> pd.DataFrame:
    file = f"image_labels_{name}.csv"
    path = find_table(root, (f"annotations/{file}", file), _OWNER)
    entries = read_table(path, ["image_id"], _OWNER).rename(columns=_RENAMED)
    missing = [column for column in findings if column not in entries]
    if missing:
        raise DataError(f"{path}: the columns {', '.join(missing)} are missing; {_OWNER} has them")
    votes = pd.DataFrame(numbers(entries, list(findings), path), columns=list(findings))
    share = votes.groupby(entries["image_id"]).mean()
    labels = (share > 0.5).astype("float32").where(share.notna())
    images = labels.index.to_series()
    table = pd.DataFrame(
        {
            "study": images,
            "patient": images,
            "path": _films(root / name, images),
            "view": "PA",
            "source": "vindr",
            "part": name,
        }
    )
    return pd.concat([table, labels], axis=1).reset_index(drop=True)


def _films(folder: Path, images: pd.Series) -> pd.Series:
    """Where each film is, relative to the root; the first of the known endings."""
    found = {path.stem: path.name for path in folder.glob("*") if path.suffix in _SUFFIXES}
    return images.map(lambda image: f"{folder.name}/{found.get(image, f'{image}.dicom')}")
