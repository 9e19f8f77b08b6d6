"""VinDr-CXR: 18,000 frontal radiographs of two hospitals in Hanoi, labelled by radiologists.

Layout: `annotations/image_labels_train.csv` and `annotations/image_labels_test.csv` (or both beside the images'
folders), `train/` and `test/` with the images as `.dicom`, or converted. Three radiologists read each training image, a
row each: what the majority saw is present. The test labels are a consensus of five, a row an image. Kaggle's copy of
the training part has `train.csv` instead, a row a box with its class and radiologist: of thirteen findings, who drew no
box of one did not see it; the others are unknown.

All images are PA. No patient numbers are published, so each image counts as a patient of its own.

Nguyen et al., VinDr-CXR, Scientific Data 2022;9:429. PhysioNet Credentialed Health Data License 1.5.0.
"""

from pathlib import Path

import pandas as pd

from medsd.errors import DataError
from medsd.findings import FindingSet, finding_set
from medsd.settings import SplitSettings, VindrSource
from medsd.studies.manifest import Manifest
from medsd.studies.sources.tables import find_table, manifest_of_present, numbers, read_table, require

_OWNER = "VinDr-CXR"
_SUFFIXES = (".dicom", ".dcm", ".png", ".jpg")
# Of Kaggle's copy; its fourteenth class is "Other lesion".
_BOXED = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "ILD", "Infiltration",
    "Lung Opacity", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis",
)  # fmt: skip
_RENAMED = {"Other disease": "Other diseases"}  # the name differs between the two tables


def read(settings: VindrSource, splits: SplitSettings) -> Manifest:
    root, findings = settings.root, finding_set("vindr")
    boxed = next((path for path in (root / "train.csv", root / "annotations/train.csv") if path.is_file()), None)
    whole = any(root.glob("**/image_labels_train.csv"))
    parts = [_read_boxed(boxed, root, findings) if boxed and not whole else _read_part(root, "train", findings)]
    if any(root.glob("**/image_labels_test.csv")):
        parts.append(_read_part(root, "test", findings))
    table = pd.concat(parts)
    return manifest_of_present(table, findings, settings, splits, "test")


def _read_part(root: Path, name: str, findings: FindingSet) -> pd.DataFrame:
    file = f"image_labels_{name}.csv"
    path = find_table(root, (f"annotations/{file}", file), _OWNER)
    entries = read_table(path, ["image_id"], _OWNER).rename(columns=_RENAMED)
    require(path, list(entries.columns), findings, _OWNER)
    votes = pd.DataFrame(numbers(entries, list(findings), path), columns=list(findings))
    return _part(root, name, votes.groupby(entries["image_id"]).mean())


def _read_boxed(path: Path, root: Path, findings: FindingSet) -> pd.DataFrame:
    """The training part as Kaggle has it: a row a box, or a row that says "No finding"."""
    entries = read_table(path, ["image_id", "class_name", "rad_id"], f"Kaggle's copy of {_OWNER}")
    entries = entries[["image_id", "class_name", "rad_id"]].drop_duplicates()
    if strange := sorted(set(entries["class_name"]) - {*_BOXED, "Other lesion", "No finding"}):
        raise DataError(f"{path}: '{strange[0]}' is no class of {_OWNER}; fetch the table again")
    readers = entries.groupby("image_id")["rad_id"].nunique()
    seen = pd.crosstab(entries["image_id"], entries["class_name"])
    share = seen.reindex(columns=list(_BOXED), fill_value=0).div(readers, axis=0)
    return _part(root, "train", share.reindex(columns=list(findings)))


def _part(root: Path, name: str, share: pd.DataFrame) -> pd.DataFrame:
    """Studies of the share of readers who saw each finding, a row an image."""
    labels = (share > 0.5).astype("float32").where(share.notna())
    images = labels.index.to_series()
    found = {path.stem: path.name for path in (root / name).glob("*") if path.suffix in _SUFFIXES}
    table = pd.DataFrame(
        {
            "study": images,
            "patient": images,
            # The first of the known endings.
            "path": images.map(lambda image: f"{name}/{found.get(image, f'{image}.dicom')}"),
            "view": "PA",
            "source": "vindr",
            "part": name,
        }
    )
    return pd.concat([table, labels], axis=1).reset_index(drop=True)
