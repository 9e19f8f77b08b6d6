"""Who and what a DICOM file is of, by its header alone, for files that are refused before or while they are decoded."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import Dataset, dcmread

from medsd.dicom.content import Content, bound_inflation, inner_file, looks_like_dicom, opened
from medsd.dicom.header import identifier, identities, read_header
from medsd.dicom.policy import GatePolicy
from medsd.dicom.quiet import quiet
from medsd.privacy import register_identities

_IDENTIFIERS = ("StudyInstanceUID", "PatientID", "SOPInstanceUID")
_MOST_BYTES = 16 << 20  # of a file that are read; headers have some thousands


@dataclass(frozen=True)
class Identity:
    """What a header says of the file as a document; identities are for `medsd.privacy.KeyedHasher` alone."""

    study_uid: str = field(default="", repr=False)
    patient_id: str = field(default="", repr=False)
    instance_uid: str = field(default="", repr=False)
    view: str = ""  # as in `medsd.dicom.read.Radiograph`


@quiet()
def read_identity(source: Path | Content) -> Identity:
    """The identity of a file, or of the content of one; empty if it is no DICOM file or cannot be read."""
    try:
        content = source if isinstance(source, Content) else _beginning(source)
        if not looks_like_dicom(content):
            return Identity()
        bound_inflation(content, GatePolicy(), "")
        ds = read_before_pixels(opened(inner_file(content)), force=True)
    except Exception:  # a hostile header can fail anywhere in the parser
        return Identity()
    if ds is None:
        return Identity()
    study, patient, instance = (identifier(ds, each) for each in _IDENTIFIERS)
    return Identity(study, patient, instance, read_header(ds).view)


@quiet()
def read_before_pixels(file: Path | BinaryIO, **options: Any) -> Dataset | None:
    """Everything before the pixels, by `pydicom.dcmread`; identities are registered. None if it cannot be read.

    pydicom converts a value when it is asked for, and warns with it: read the elements in `quiet`, too.
    """
    try:
        ds = dcmread(file, stop_before_pixels=True, **options)
        register_identities(identities(ds))
        return ds
    except Exception:  # a hostile header can fail anywhere in the parser
        return None


def _beginning(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(_MOST_BYTES)
