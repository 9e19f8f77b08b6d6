"""A tree of DICOM studies: every radiograph below a folder, as an archive exports it; nothing is known of findings.

Patient, study, view, age and sex come from the headers; pixels are not read, and whether an image may be used is for
the gate to say. Files that are no DICOM images of a radiographic modality are passed over; an image whose header names
no patient or no study is left out. To train, give labels with a table of your own (`medsd.studies.sources.csv`).
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from pydicom import Dataset, dcmread

from medsd.dicom.header import identifier, identities, read_header
from medsd.dicom.policy import GatePolicy
from medsd.dicom.quiet import quiet
from medsd.errors import DataError
from medsd.findings import FindingSet
from medsd.privacy import register_identities
from medsd.settings import DicomSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources.tables import limited, manifest_of

log = logging.getLogger(__name__)


def read(
    settings: DicomSource, splits: SplitSettings, findings: FindingSet, policy: GatePolicy | None = None
) -> Manifest:
    """List the radiographs below `settings.root`; all of `findings` are unknown.

    Modalities that are no radiographs are those that `policy` refuses; where it refuses none, every image is listed.

    Raises:
        DataError: the folder is missing or has no radiograph with a patient and a study.
    """
    root = settings.root
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set data.root to the folder of your DICOM files")
    table = pd.DataFrame(
        _rows(root, policy or GatePolicy()), columns=["study", "patient", "path", "view", "age", "sex", "source"]
    )
    nameless = (table["patient"] == "") | (table["study"] == "")
    if nameless.any():
        log.warning("%s: %d images name no patient or no study and are left out", root, int(nameless.sum()))
    table = table[~nameless]
    if table.empty:
        raise DataError(f"{root}: no DICOM radiograph with a patient and a study in its header; check data.root")
    if settings.frontal_only:
        table = table[~table["view"].isin(["LATERAL", "OTHER"])]
    return manifest_of(limited(table, settings.limit), findings, root, splits)


def _rows(root: Path, policy: GatePolicy) -> Iterator[tuple[str, str, str, str, float | None, str, str]]:
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        ds = _header(path)
        if ds is None or "Rows" not in ds:
            continue
        header = read_header(ds)
        if policy.modality == "refuse" and header.modality not in policy.modalities:
            continue
        register_identities(identities(ds))
        study, patient = identifier(ds, "StudyInstanceUID"), identifier(ds, "PatientID")
        place = path.relative_to(root).as_posix()
        yield study, patient, place, header.view, header.age_years, header.sex, "dicom"


def _header(path: Path) -> Dataset | None:
    """Everything before the pixels, None where the file is no DICOM."""
    try:
        with quiet():
            ds = dcmread(path, stop_before_pixels=True)
            _ = [element.value for element in ds]  # a hostile value fails here and not later
            return ds
    except Exception:  # a hostile header can fail anywhere in the parser
        return None
