"""MIMIC-CXR-JPG: 377,110 radiographs of 65,379 patients of Beth Israel Deaconess, labels mined from the reports.

Layout: `mimic-cxr-2.0.0-metadata.csv`, `mimic-cxr-2.0.0-chexpert.csv` (or `-negbio.csv`) and
`mimic-cxr-2.0.0-split.csv`, gzipped or not, of whatever release, and `files/p10/p10000032/s50414267/<dicom_id>.jpg`.
Labels are CheXpert's: 1, 0, −1 (uncertain) or empty (not mentioned). A study that the labeller left out is unknown
throughout. The official split is followed in all three parts. Where MIMIC-CXR's reports are unpacked, too
(`files/p10/p10000032/s50414267.txt`), what they say was known before the film was read is the note: indication,
history and comparison, and no more, since the rest gives the answer away.

Johnson AEW, Pollard TJ, Greenbaum NR, et al. MIMIC-CXR-JPG, a large publicly available database of labeled chest
radiographs. arXiv:1901.07042.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medsd.findings import finding_set
from medsd.settings import MimicSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.notes import read_note
from medsd.studies.sources.chexpert import read_labels
from medsd.studies.sources.tables import VIEWS, find_table, limited, manifest_of, present_files, read_table, words

CITATION = "Johnson et al., MIMIC-CXR-JPG, arXiv:1901.07042; PhysioNet"
_OWNER = "MIMIC-CXR-JPG"
_SPLITS = {"train": "train", "validate": "validation", "test": "test"}
_LATERAL = {"lateral": "LATERAL", "ll": "LATERAL"}


def read(settings: MimicSource, splits: SplitSettings) -> Manifest:
    """Read the data set below `settings.root`; see the module for the layout.

    Raises:
        DataError: the folder, a table, a column or every film is missing.
    """
    root, findings = settings.root, finding_set("chexpert14")
    films = _read(root, "metadata", ["dicom_id", "subject_id", "study_id", "ViewPosition"])
    films["view"] = words(films["ViewPosition"], VIEWS | _LATERAL)
    if settings.frontal_only:
        films = films[films["view"].isin(["PA", "AP"])]
    films = films.merge(_labels(settings), on="study_id", how="left")
    if settings.official_split:
        split = _read(root, "split", ["dicom_id", "split"])
        films = films.merge(split[["dicom_id", "split"]], on="dicom_id", how="inner")
        films["split"] = films["split"].map(_SPLITS)
    patient = "p" + films["subject_id"]
    folder = "files/" + patient.str[:3] + "/" + patient + "/s" + films["study_id"]
    films = films.assign(
        study="s" + films["study_id"], patient=patient, path=folder + "/" + films["dicom_id"] + ".jpg", source="mimic"
    )
    films = limited(films[present_files(root, films["path"])], settings.limit)
    if settings.notes:
        films["note"] = [_note(root / Path(path).parent.with_suffix(".txt")) for path in films["path"]]
    return manifest_of(films, findings, root, splits)


def _read(root: Path, kind: str, needed: list[str]) -> pd.DataFrame:
    return read_table(_table(root, kind), needed, _OWNER)


def _table(root: Path, kind: str) -> Path:
    return find_table(root, (f"mimic-cxr-*-{kind}.csv", f"mimic-cxr-*-{kind}.csv.gz"), _OWNER)


def _note(report: Path) -> str | None:
    """What was known before reading; None where there is no report or it says nothing of it."""
    if not report.is_file():
        return None
    return read_note(report.read_text(encoding="utf-8", errors="replace")).before_reading or None


def _labels(settings: MimicSource) -> pd.DataFrame:
    """A row a study: study_id and the findings."""
    findings = finding_set("chexpert14")
    path = _table(settings.root, settings.labeller)
    entries = read_table(path, ["study_id", "No Finding", *findings], _OWNER).drop_duplicates("study_id")
    table = entries[["study_id"]].copy()
    table[list(findings)] = read_labels(entries, findings, path, settings.uncertain, settings.unmentioned)
    return table
