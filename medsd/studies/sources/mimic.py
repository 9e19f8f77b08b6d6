"""MIMIC-CXR and MIMIC-CXR-JPG: 377,110 radiographs of 65,379 patients of Beth Israel Deaconess, with their reports.

Two data sets with the same films. MIMIC-CXR has them as DICOM, `files/p10/p10000032/s50414267/<dicom_id>.dcm`, and the
reports (`files/p10/p10000032/s50414267.txt` out of `mimic-cxr-reports.zip`); MIMIC-CXR-JPG has JPEGs of the same names,
labels and splits. Either way the folder needs three tables of MIMIC-CXR-JPG, gzipped or not, of whatever release:
`mimic-cxr-2.0.0-metadata.csv`, `-chexpert.csv` (or `-negbio.csv`) and `-split.csv`. `cxr-record-list.csv` and
`cxr-study-list.csv` of MIMIC-CXR say nothing that these do not.

Labels are mined from the reports, CheXpert's kind: 1, 0, −1 (uncertain) or empty (not mentioned); the settings say what
the last two mean. A study that the labeller left out is unknown throughout. The official split (train, validate, test)
is followed in all three parts. The note is the indication and the history of the report, which were known before the
film was read, where the reports lie in the same tree, below `mimic-cxr-reports/` or where `data.reports` says; findings
and impression give the answer away. What de-identification removed reads `___`; a note of nothing else is none.

Johnson AEW, Pollard TJ, Berkowitz SJ, et al. MIMIC-CXR, a de-identified publicly available database of chest
radiographs with free-text reports. Scientific Data 2019;6:317. Johnson AEW, Pollard TJ, Greenbaum NR, et al.
MIMIC-CXR-JPG, a large publicly available database of labeled chest radiographs. arXiv:1901.07042. PhysioNet
Credentialed Health Data License 1.5.0: no onward sharing, nor to services that keep what they are sent.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from medsd.findings import finding_set
from medsd.settings import MimicSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.notes import read_note
from medsd.studies.sources.cells import agreed
from medsd.studies.sources.chexpert import read_labels
from medsd.studies.sources.tables import (
    VIEWS,
    find_table,
    left_out_views,
    limited,
    manifest_of,
    present_files,
    read_table,
    words,
)

CITATION = "Johnson et al., MIMIC-CXR, Scientific Data 2019;6:317, and MIMIC-CXR-JPG, arXiv:1901.07042; PhysioNet"
_OWNER = "MIMIC-CXR-JPG"
_SUFFIXES = {"jpg": ".jpg", "dicom": ".dcm"}
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
        frontal = films["view"].isin(["PA", "AP"])
        left_out_views(films["ViewPosition"], frontal, _OWNER)
        films = films[frontal]
    films = films.merge(_labels(settings), on="study_id", how="left")
    if settings.official_split:
        split = _read(root, "split", ["dicom_id", "split"])
        films = films.merge(split[["dicom_id", "split"]], on="dicom_id", how="inner")
        films["split"] = films["split"].map(_SPLITS)
    patient = "p" + films["subject_id"]
    folder = "files/" + patient.str[:3] + "/" + patient + "/s" + films["study_id"]
    path = folder + "/" + films["dicom_id"] + _SUFFIXES[settings.format]
    films = films.assign(study="s" + films["study_id"], patient=patient, path=path, folder=folder, source="mimic")
    films = limited(films[present_files(root, films["path"])], settings.limit)
    if settings.notes:
        reports = _reports(settings)
        notes = {folder: _note(reports / f"{folder}.txt") for folder in films["folder"].unique()}
        films["note"] = films["folder"].map(notes)
    return manifest_of(films, findings, root, splits)


def _read(root: Path, kind: str, needed: list[str]) -> pd.DataFrame:
    return read_table(_table(root, kind), needed, _OWNER)


def _table(root: Path, kind: str) -> Path:
    return find_table(root, (f"mimic-cxr-*-{kind}.csv", f"mimic-cxr-*-{kind}.csv.gz"), _OWNER)


def _reports(settings: MimicSource) -> Path:
    """The folder that has the reports' `files/`."""
    if settings.reports is not None:
        return settings.root / settings.reports
    unpacked = settings.root / "mimic-cxr-reports"
    return unpacked if unpacked.is_dir() else settings.root


def _note(report: Path) -> str | None:
    """What was known before reading; None where there is no report or it says nothing of it."""
    if not report.is_file():
        return None
    note = read_note(report.read_text(encoding="utf-8", errors="replace"))
    known = "\n".join(text for text in (note.indication, note.history) if text)
    return known if re.search(r"[^\W_]{2}", known) else None


def _labels(settings: MimicSource) -> pd.DataFrame:
    """A row a study: study_id and the findings."""
    findings = finding_set("chexpert14")
    path = _table(settings.root, settings.labeller)
    entries = read_table(path, ["study_id", "No Finding", *findings], _OWNER)
    values = read_labels(entries, findings, path, settings.uncertain, settings.unmentioned)
    labels = pd.DataFrame(values, index=entries["study_id"], columns=list(findings))
    return agreed(labels, np.arange(1, len(labels) + 1), path).reset_index()
