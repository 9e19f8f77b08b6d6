"""CheXpert Plus: 223,462 radiographs of 64,725 patients of Stanford Hospital with reports, as PNG and as DICOM.

Layout: `df_chexpert_plus_240401.csv` (or .parquet), a row an image, with the report's sections in columns;
`chexbert_labels/` with `impression_fixed.json`, `findings_fixed.json` and `report_fixed.json`, an object a line that
names its image by path_to_image; images below `PNG/` (the table says .jpg) or, by path_to_dcm, as DICOM.

Labels are CheXbert's (Smit et al. 2020): 1, 0, −1 (uncertain) or null (not mentioned), the same for every image of a
study. Those of the impression are the default: the whole report tells of earlier images, too, and most reports have no
findings section. Rows whose split is "valid" are the official test set. The note is clinical history and history.

Chambon et al., CheXpert Plus, arXiv:2405.19538. Stanford University Dataset Research Use Agreement: research only, no
onward sharing.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from medsd.errors import DataError
from medsd.findings import FindingSet, finding_set
from medsd.settings import CheXpertPlusSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import tables
from medsd.studies.sources.cells import agreed
from medsd.studies.sources.chexpert import label_values

_OWNER = "CheXpert Plus"
_HISTORY = ["section_clinical_history", "section_history"]
_NEEDED = ["path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", *_HISTORY, "age", "sex", "split"]
_STUDY = r"(patient\d+/study\d+)/[^/]+$"
_FOLDERS = {"png": ("PNG/", "PNG/PNG/", "images/", ""), "dicom": ("DICOM/", "DICOM/DICOM/", "dicom/", "")}


def read(settings: CheXpertPlusSource, splits: SplitSettings) -> Manifest:
    root, findings = settings.root, finding_set("chexpert14")
    endings = (".csv", ".csv.gz", ".parquet")
    path = tables.find_table(root, [f"df_chexpert_plus_*{ending}" for ending in endings], _OWNER)
    entries = _entries(path, "path_to_dcm" if settings.format == "dicom" else None)
    lateral = entries["frontal_lateral"].str.strip() == "Lateral"
    # What was known before reading; None where the report says nothing of it.
    notes = tables.texts(entries[_HISTORY].apply(lambda column: column.str.strip()).agg("\n".join, axis=1))
    table = pd.DataFrame(
        {
            "study": _studies(entries, path),
            "patient": entries["deid_patient_id"].str.strip(),
            "path": _image_paths(settings, entries),
            "note": notes if settings.notes else None,
            "view": tables.words(entries["ap_pa"], tables.VIEWS).mask(lateral, "LATERAL"),
            "age": tables.years(entries["age"]),
            "sex": tables.words(entries["sex"], tables.SEXES),
            "source": "chexpert_plus",
            "part": entries["split"].str.strip(),
        }
    )
    table[list(findings)] = _labels(settings, findings).reindex(entries["path_to_image"]).to_numpy()
    if settings.frontal_only:
        table = tables.of_views(table, ~lateral, entries["frontal_lateral"], _OWNER)
    return tables.manifest_of_present(table.drop_duplicates("path"), findings, settings, splits, "valid")


def _entries(path: Path, place: str | None) -> pd.DataFrame:
    """The rows with a patient, and with an image where `place` names its column; report texts are not kept."""
    wanted = [*_NEEDED, *([place] if place else [])]
    portions = list(tables.read_portions(path, lambda _: wanted, _OWNER))
    damaged = [row for portion in portions for row in portion.unreadable]
    if damaged:
        raise DataError(f"{path}: row {damaged[0]} has too many or too few cells; fetch the table again")
    entries = pd.concat([portion.cells for portion in portions], ignore_index=True)
    kept = entries["deid_patient_id"].str.strip() != ""
    if place is not None:
        kept &= entries[place].str.strip() != ""
    return entries[kept].reset_index(drop=True)


def _studies(entries: pd.DataFrame, path: Path) -> pd.Series:
    studies = entries["path_to_image"].str.strip().str.extract(_STUDY)[0]
    if studies.isna().any():
        row = int(np.flatnonzero(studies.isna())[0]) + 1
        raise DataError(f"{path}: row {row}: path_to_image is not …/patientNNNNN/studyN/file; CheXpert Plus's are")
    return studies


def _image_paths(settings: CheXpertPlusSource, entries: pd.DataFrame) -> pd.Series:
    """Paths below the root; the table names .jpg files where .png files are published."""
    if settings.format == "dicom":
        named = [entries["path_to_dcm"].str.strip()]
    else:
        listed = entries["path_to_image"].str.strip()
        named = [listed.str.replace(r"\.jpe?g$", ".png", regex=True), listed]
    return tables.likeliest(settings.root, (folder + paths for paths in named for folder in _FOLDERS[settings.format]))


def _labels(settings: CheXpertPlusSource, findings: FindingSet) -> pd.DataFrame:
    """A row an image: the findings, by path_to_image."""
    file = f"{settings.labels}_fixed.json"
    path = tables.find_table(settings.root, (f"chexbert_labels/{file}", file, f"*/{file}"), _OWNER)
    columns = [*findings, "No Finding"]
    lines = list(_label_lines(path, columns))
    given = tables.numbers(pd.DataFrame([row for _, row in lines], columns=columns, dtype=str), columns, path)
    values = label_values(given, findings, settings.uncertain, settings.unmentioned)
    labels = pd.DataFrame(values, index=[image for image, _ in lines], columns=list(findings))
    return agreed(labels, np.arange(1, len(lines) + 1), path)


def _label_lines(path: Path, columns: list[str]) -> Iterator[tuple[str, list[str]]]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                row = ["" if entry[name] is None else str(entry[name]) for name in columns]
                image = entry["path_to_image"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DataError(f"{path}: line {number} is no object with path_to_image and fourteen labels") from None
            if not isinstance(image, str):
                raise DataError(f"{path}: line {number}: path_to_image is no text")
            yield image, row
