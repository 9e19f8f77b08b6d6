"""What a DICOM header says about a radiograph, in the few words that the gate and the model need.

Values are only passed on where they are words of a known vocabulary (`medsd.dicom.terms`): any free-text element may
hold a patient's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.multival import MultiValue

from medsd.dicom.policy import Concern, GatePolicy, concern
from medsd.dicom.terms import (
    HUMAN_CODES,
    MODALITIES,
    body_parts_in,
    names_animal,
    names_human,
    region_of_code,
    view_in,
    view_of_code,
)

_NAMES = (
    "PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ResponsiblePerson",
    "ReferringPhysicianName", "PerformingPhysicianName", "RequestingPhysician", "OperatorsName", "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy", "PatientAddress",
)  # fmt: skip
_NUMBERS = (
    "PatientID", "OtherPatientIDs", "PatientBirthDate", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID",
    "SOPInstanceUID", "StudyID", "AdmissionID", "PatientTelephoneNumbers", "InstitutionName", "InstitutionAddress",
)  # fmt: skip
IDENTIFYING = (*_NAMES, *_NUMBERS)
"""Keywords of the elements that `identities` reads."""
# What is said of the film itself, from the nearest to the farthest. The study's description names all of its views.
_SERIES_TEXTS = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription")
_STUDY_TEXTS = (*_SERIES_TEXTS, "StudyDescription")
_AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25, "": 1.0}


@dataclass(frozen=True)
class Header:
    """The facts of one DICOM header; see `medsd.dicom.read.Radiograph` for the meaning of the fields.

    `view` may be "FRONTAL" too, where the header says so much and no more; `animal` is the element that says that the
    patient is none of man, "" where none does.
    """

    modality: str
    body_part: str
    view: str
    sex: str
    age_years: float | None
    spacing_mm: tuple[float, float] | None
    photometric: str
    frames: int
    rows: int
    columns: int
    samples: int
    for_processing: bool
    burned_in: bool
    animal: str = ""


def read_header(ds: Dataset) -> Header:
    """The facts of `ds`; an element that is absent or makes no sense counts as silent."""
    return Header(
        modality=_modality(ds),
        body_part=_body_part(ds),
        view=_view(ds),
        sex=_text(ds, "PatientSex") if _text(ds, "PatientSex") in ("F", "M", "O") else "",
        age_years=_age_years(ds),
        spacing_mm=_spacing_mm(ds),
        photometric=_text(ds, "PhotometricInterpretation"),
        frames=max(1, _integer(ds, "NumberOfFrames", 1)),
        rows=_integer(ds, "Rows", 0),
        columns=_integer(ds, "Columns", 0),
        samples=_integer(ds, "SamplesPerPixel", 1),
        for_processing=_text(ds, "PresentationIntentType") == "FOR PROCESSING",
        burned_in=_text(ds, "BurnedInAnnotation") == "YES",
        animal=_animal(ds),
    )


def costly_concerns(header: Header, policy: GatePolicy) -> list[Concern]:
    """What speaks against even decoding the pixels: colour, another modality, an animal, many frames, sizes."""
    found = []
    if header.samples != 1 or header.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        found.append(concern("not_a_radiograph", detail=_colour_words(header)))
    if header.modality not in policy.modalities:
        found.append(
            concern("modality", value=_shown(header.modality), accepted=", ".join(filter(None, policy.modalities)))
        )
    if header.animal:
        found.append(concern("not_human", value=header.animal))
    if header.frames > policy.max_frames:
        found.append(concern("frames", value=header.frames, accepted=policy.max_frames))
    return found + size_concerns(header.rows, header.columns, header.frames, policy)


def size_concerns(rows: int, columns: int, frames: int, policy: GatePolicy) -> list[Concern]:
    """Too small to read, or declared larger than the policy lets anyone decode."""
    if rows * columns * frames > policy.max_pixels:
        declared = f"the image declares {columns} × {rows} pixels" + (f" × {frames} frames" if frames > 1 else "")
        return [concern("too_large", value=declared, accepted=f"{policy.max_pixels} pixels")]
    if min(rows, columns) < policy.min_side:
        return [concern("too_small", value=f"{columns} × {rows}", accepted=policy.min_side)]
    return []


def clinical_concerns(header: Header, policy: GatePolicy) -> list[Concern]:
    """What speaks against scoring an image that can be read: not a chest, not frontal, not meant for the eye."""
    found = []
    if not _accepted_body_part(header.body_part, policy):
        accepted = ", ".join(filter(None, policy.body_parts))
        found.append(concern("body_part", value=_shown(header.body_part), accepted=accepted))
    if header.view in ("LATERAL", "OTHER"):
        words = {"LATERAL": "is lateral", "OTHER": "is neither frontal nor lateral"}
        found.append(concern("view", value=words[header.view]))
    if header.for_processing:
        found.append(concern("for_processing"))
    if header.burned_in:
        found.append(concern("burned_in"))
    return found


def identities(ds: Dataset) -> list[str]:
    """What the header says that identifies the patient or who treated her, for the log filter and for scrubbing notes.

    Names also come in their words, since a note has them in another order than PN does.
    """
    found = [text for keyword in IDENTIFYING for text in _identifiers(ds, keyword)]
    words = [word for keyword in _NAMES for text in _identifiers(ds, keyword) for word in re.split(r"[\s^=,]+", text)]
    return list(dict.fromkeys([*found, *(word for word in words if word and not word.isdigit())]))


def _identifiers(ds: Dataset, keyword: str) -> list[str]:
    """Every value of an element as it stands."""
    try:
        value = ds.get(keyword)
        values = value if isinstance(value, MultiValue) else [value]
        return [text for text in (str(one).strip() for one in values if one is not None) if text]
    except Exception:  # as in identifier
        return []


def identifier(ds: Dataset, keyword: str) -> str:
    """The first value of an element as it stands, "" where there is none."""
    try:
        value = ds.get(keyword)
    except Exception:  # pydicom converts on access, and a hostile value may fail in any way
        return ""
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return "" if value is None else str(value).strip()


def _accepted_body_part(body_part: str, policy: GatePolicy) -> bool:
    words = body_part.split() or [""]
    return any(word in policy.body_parts for word in words)


def _shown(value: str) -> str:
    return f"'{value}'" if value else "missing"


def _colour_words(header: Header) -> str:
    if header.photometric == "PALETTE COLOR":
        return "palette colour"
    if header.samples != 1 or header.photometric.startswith(("RGB", "YBR")):
        return "colour"
    return "no MONOCHROME1 or MONOCHROME2 in (0028,0004) Photometric Interpretation"


def _text(ds: Dataset, keyword: str) -> str:
    """The first value of an element as upper-case text, "" where there is none."""
    return identifier(ds, keyword).upper()


def _integer(ds: Dataset, keyword: str, default: int) -> int:
    text = _text(ds, keyword)
    return int(text) if re.fullmatch(r"\d{1,9}", text) else default


def _modality(ds: Dataset) -> str:
    value = _text(ds, "Modality")
    return value if value in MODALITIES or not value else "OTHER"


def _body_part(ds: Dataset) -> str:
    """Body Part Examined, else the anatomic region code, which DX requires instead, else the words of descriptions."""
    value = _text(ds, "BodyPartExamined")
    if value:
        return body_parts_in(value)
    code, meaning = _code(ds, "AnatomicRegionSequence")
    coded = region_of_code(code) or body_parts_in(meaning)
    if coded:
        return coded
    return next(filter(None, (body_parts_in(_text(ds, keyword), free=True) for keyword in _STUDY_TEXTS)), "")


def _view(ds: Dataset) -> str:
    """The first element that tells: view position, view code, the texts that describe the film, the orientation."""
    code, meaning = _code(ds, "ViewCodeSequence")
    said = [view_in(_text(ds, "ViewPosition")), view_of_code(code) or view_in(meaning)]
    said += [view_in(_text(ds, keyword), free=True) for keyword in _SERIES_TEXTS]
    return next(filter(None, said), "") or _view_of_orientation(_values(ds, "PatientOrientation"))


def _view_of_orientation(directions: list[str]) -> str:
    """Rows that run from side to side are a frontal view, from front to back a lateral one (PS3.3 C.7.6.1.1.1)."""
    if len(directions) != 2 or directions[1][:1] not in ("F", "H"):
        return ""
    return {"L": "FRONTAL", "R": "FRONTAL", "A": "LATERAL", "P": "LATERAL"}.get(directions[0][:1], "")


def _animal(ds: Dataset) -> str:
    """The element that speaks of an animal (PS3.3 C.7.1.1 for species, breed and the legs that it stands on)."""
    code, meaning = _code(ds, "PatientSpeciesCodeSequence")
    if code or meaning:
        return "" if code in HUMAN_CODES or names_human(meaning) else "(0010,2202) Patient Species Code Sequence"
    species = _text(ds, "PatientSpeciesDescription")
    if species:
        return "" if names_human(species) else "(0010,2201) Patient Species Description"
    if _text(ds, "AnatomicalOrientationType") == "QUADRUPED":
        return "(0010,2210) Anatomical Orientation Type"
    breed = _text(ds, "PatientBreedDescription")
    if (breed and not names_human(breed)) or any(_code(ds, "PatientBreedCodeSequence")):
        return "(0010,2292) Patient Breed Description"
    return "a description" if any(names_animal(_text(ds, keyword)) for keyword in _STUDY_TEXTS) else ""


def _code(ds: Dataset, keyword: str) -> tuple[str, str]:
    """Value and meaning of the first item of a code sequence, upper case, "" where there is none."""
    try:
        items = ds.get(keyword)
        return (_text(items[0], "CodeValue"), _text(items[0], "CodeMeaning")) if items else ("", "")
    except Exception:  # as in identifier
        return "", ""


def _values(ds: Dataset, keyword: str) -> list[str]:
    """All values of an element as upper-case text."""
    try:
        value = ds.get(keyword)
        return [str(part).strip().upper() for part in value] if isinstance(value, MultiValue | list) else []
    except Exception:  # as in identifier
        return []


def _age_years(ds: Dataset) -> float | None:
    match = re.fullmatch(r"(\d{1,3})([DWMY]?)", _text(ds, "PatientAge"))
    if match is None:
        return None
    return round(int(match[1]) * _AGE_UNITS[match[2]], 2)


def _spacing_mm(ds: Dataset) -> tuple[float, float] | None:
    """Distance of rows and of columns, at the patient where it is calibrated, else at the detector."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            rows, columns = (float(part) for part in ds.get(keyword) or ())
        except Exception:  # as in identifier
            continue
        if 0.0 < rows < 100.0 and 0.0 < columns < 100.0:
            return rows, columns
    return None
