"""MIMIC-CXR and MIMIC-CXR-JPG: 377,110 radiographs of 65,379 patients of Beth Israel Deaconess, with their reports.

Two data sets with the same images, as DICOM or JPEG: `files/p10/p10000032/s50414267/<dicom_id>.dcm` (or .jpg), reports
beside them as `files/p10/p10000032/s50414267.txt`. Either way the folder needs three tables of MIMIC-CXR-JPG, gzipped
or not: `mimic-cxr-*-metadata.csv`, `-chexpert.csv` (or `-negbio.csv`) and `-split.csv`.

Labels are mined from the reports: 1, 0, −1 (uncertain) or empty (not mentioned); the settings say what the last two
mean. A study that the labeller left out is unknown. The note is the report's indication and history, which were known
before the image was read; findings and impression give the answer away.

Johnson et al., MIMIC-CXR, Scientific Data 2019;6:317; MIMIC-CXR-JPG, arXiv:1901.07042. PhysioNet Credentialed Health
Data License 1.5.0: no onward sharing, nor to services that keep what they are sent.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from medsd.findings import finding_set
from medsd.settings import MimicSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.notes.sections import read_note
from medsd.studies.sources import tables
from medsd.studies.sources.cells import agreed
from medsd.studies.sources.chexpert import read_labels

_OWNER = "MIMIC-CXR-JPG"
_SUFFIXES = {"jpg": ".jpg", "dicom": ".dcm"}
_SPLITS = {"train": "train", "validate": "validation", "test": "test"}
_LATERAL = {"lateral": "LATERAL", "ll": "LATERAL"}


def read(settings: MimicSource, splits: SplitSettings) -> Manifest:
    root, findings = settings.root, finding_set("chexpert14")
    images = _read(root, "metadata", ["dicom_id", "subject_id", "study_id", "ViewPosition"])
    images["view"] = tables.words(images["ViewPosition"], tables.VIEWS | _LATERAL)
    if settings.frontal_only:
        images = tables.of_views(images, images["view"].isin(["PA", "AP"]), images["ViewPosition"], _OWNER)
    images = images.merge(_labels(settings), on="study_id", how="left")
    if settings.official_split:
        split = _read(root, "split", ["dicom_id", "split"])
        images = images.merge(split[["dicom_id", "split"]], on="dicom_id", how="inner")
        images["split"] = images["split"].map(_SPLITS)
    patient = "p" + images["subject_id"]
    folder = "files/" + patient.str[:3] + "/" + patient + "/s" + images["study_id"]
    path = folder + "/" + images["dicom_id"] + _SUFFIXES[settings.format]
    images = images.assign(study="s" + images["study_id"], patient=patient, path=path, folder=folder, source="mimic")
    images = tables.limited(images[tables.present_files(root, images["path"])], settings.limit)
    if settings.notes:
        reports = _reports(settings)
        notes = {folder: _note(reports / f"{folder}.txt") for folder in images["folder"].unique()}
        images["note"] = images["folder"].map(notes)
    return tables.manifest_of(images, findings, root, splits)


def _read(root: Path, kind: str, needed: list[str]) -> pd.DataFrame:
    return tables.read_table(_table(root, kind), needed, _OWNER)


def _table(root: Path, kind: str) -> Path:
    return tables.find_table(root, (f"mimic-cxr-*-{kind}.csv", f"mimic-cxr-*-{kind}.csv.gz"), _OWNER)


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
    known = read_note(report.read_text(encoding="utf-8", errors="replace")).before_reading
    return known if re.search(r"[^\W_]{2}", known) else None


def _labels(settings: MimicSource) -> pd.DataFrame:
    """A row a study: study_id and the findings."""
    findings = finding_set("chexpert14")
    path = _table(settings.root, settings.labeller)
    entries = tables.read_table(path, ["study_id", "No Finding", *findings], _OWNER)
    values = read_labels(entries, findings, path, settings.uncertain, settings.unmentioned)
    labels = pd.DataFrame(values, index=entries["study_id"], columns=list(findings))
    return agreed(labels, np.arange(1, len(labels) + 1), path).reset_index()
