"""A tree of DICOM studies: every radiograph below a folder, as an archive exports it; nothing is known of findings.

Patient, study, view, age and sex come from the headers; pixels are not read, and whether an image may be used is for
the gate to say. Files that are no DICOM images of a radiographic modality are passed over; an image whose header names
no patient or no study is left out. To train, give labels with a table of your own (`medsd.studies.sources.csv`).
"""

import logging
from pathlib import Path

import pandas as pd

from medsd.dicom.header import identifier, read_header
from medsd.dicom.identity import read_before_pixels
from medsd.dicom.policy import GatePolicy
from medsd.dicom.quiet import quiet
from medsd.errors import DataError
from medsd.findings import FindingSet
from medsd.settings import DicomSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources.tables import limited, manifest_of

log = logging.getLogger(__name__)


def read(settings: DicomSource, splits: SplitSettings, findings: FindingSet, policy: GatePolicy) -> Manifest:
    """List the radiographs below `settings.root`; all of `findings` are unknown.

    Modalities that are no radiographs are those that `policy` refuses; where it refuses none, every image is listed.
    Raises DataError: the folder is missing or has no radiograph with a patient and a study.
    """
    root = settings.root
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set data.root to the folder of your DICOM files")
    rows = [_row(path, root, policy) for path in sorted(root.rglob("*")) if path.is_file()]
    listed = [row for row in rows if row]
    named = [row for row in listed if row["patient"] and row["study"]]
    if len(named) < len(listed):
        log.warning("%s: %d images name no patient or no study and are left out", root, len(listed) - len(named))
    if not named:
        raise DataError(f"{root}: no DICOM radiograph with a patient and a study in its header; check data.root")
    table = pd.DataFrame(named)
    if settings.frontal_only:
        table = table[~table["view"].isin(["LATERAL", "OTHER"])]
    return manifest_of(limited(table, settings.limit), findings, root, splits)


@quiet()
def _row(path: Path, root: Path, policy: GatePolicy) -> dict[str, object] | None:
    """What the header of a radiograph says; None for other files."""
    ds = read_before_pixels(path)
    if ds is None or "Rows" not in ds:
        return None
    header = read_header(ds)
    if policy.modality == "refuse" and header.modality not in policy.modalities:
        return None
    return {
        "study": identifier(ds, "StudyInstanceUID"),
        "patient": identifier(ds, "PatientID"),
        "path": path.relative_to(root).as_posix(),
        "view": header.view,
        "age": header.age_years,
        "sex": header.sex,
        "source": "dicom",
    }
