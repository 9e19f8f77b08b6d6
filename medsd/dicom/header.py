"""What a DICOM header says about a radiograph, in the few words that the gate and the model need.

Values are only passed on where they are words of a known vocabulary: any free-text element may hold a patient's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.multival import MultiValue

from medsd.dicom.policy import Concern, GatePolicy, concern

# PS3.3 C.7.3.1.1.1, the defined terms that meet a chest reader, and retired ones.
_MODALITIES = {
    "CR", "DX", "RG", "CT", "MR", "NM", "PT", "US", "XA", "RF", "MG", "IO", "PX", "DR", "OT", "SC", "BMD", "ES", "GM",
    "SM", "XC", "OP", "OCT", "ECG", "HD", "SR", "PR", "KO", "SEG", "REG", "DOC", "RTIMAGE", "RTDOSE", "RTSTRUCT",
    "RTPLAN", "RTRECORD", "DF", "DG", "IVUS", "LS", "TG", "VL", "MA", "MS",
}  # fmt: skip
# PS3.16 annex L and what modalities write instead of it; shown in messages, so nothing else is.
_BODY_WORDS = {
    "ABDOMEN", "ANKLE", "ARM", "BREAST", "BRAIN", "CALCANEUS", "CHEST", "CLAVICLE", "COCCYX", "CSPINE", "ELBOW",
    "EXTREMITY", "FACE", "FEMUR", "FINGER", "FOOT", "FOREARM", "HAND", "HEAD", "HEART", "HIP", "HUMERUS", "JAW",
    "KNEE", "LEG", "LSPINE", "LUNG", "LUNGS", "MANDIBLE", "NECK", "PATELLA", "PELVIS", "PULMONARY", "RIB", "RIBS",
    "RIBCAGE", "SACRUM", "SCAPULA", "SHOULDER", "SINUS", "SKULL", "SPINE", "STERNUM", "STOMACH", "TIBIA", "THIGH",
    "THORAX", "TSPINE", "TOE", "WHOLEBODY", "WRIST", "ZYGOMA",
}  # fmt: skip
_VIEWS = {
    "PA": "PA", "AP": "AP", "POSTEROANTERIOR": "PA", "ANTEROPOSTERIOR": "AP",
    "LL": "LATERAL", "RL": "LATERAL", "LAT": "LATERAL", "LATERAL": "LATERAL", "LLAT": "LATERAL", "RLAT": "LATERAL",
    "RLD": "OTHER", "LLD": "OTHER", "DECUB": "OTHER", "DECUBITUS": "OTHER", "OBLIQUE": "OTHER",
    "RLO": "OTHER", "LLO": "OTHER", "RAO": "OTHER", "LAO": "OTHER", "RPO": "OTHER", "LPO": "OTHER",
}  # fmt: skip
_IDENTIFYING = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "OtherPatientIDs",
    "AccessionNumber",
    "StudyInstanceUID",
)
_AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25, "": 1.0}


@dataclass(frozen=True)
class Header:
    """The facts of one DICOM header; see `medsd.dicom.read.Radiograph` for the meaning of the fields."""

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
    )


def costly_concerns(header: Header, policy: GatePolicy) -> list[Concern]:
    """What speaks against even decoding the pixels: colour, another modality, many frames, sizes."""
    found = []
    if header.samples != 1 or header.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        found.append(concern("not_a_radiograph", detail=_colour_words(header)))
    if header.modality not in policy.modalities:
        found.append(
            concern("modality", value=_shown(header.modality), accepted=", ".join(filter(None, policy.modalities)))
        )
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
        words = {"LATERAL": "lateral", "OTHER": "neither frontal nor lateral"}
        found.append(concern("view", value=words[header.view]))
    if header.for_processing:
        found.append(concern("for_processing"))
    if header.burned_in:
        found.append(concern("burned_in"))
    return found


def identities(ds: Dataset) -> list[str]:
    """What the header says that identifies the patient, for the log filter alone."""
    return [text for text in (identifier(ds, keyword) for keyword in _IDENTIFYING) if text]


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
    return value if value in _MODALITIES or not value else "OTHER"


def _body_part(ds: Dataset) -> str:
    """Body Part Examined, else the meaning of the anatomic region code, which DX requires instead."""
    value = _text(ds, "BodyPartExamined") or _code_meaning(ds, "AnatomicRegionSequence")
    words = [word for word in re.findall(r"[A-Z]+", value) if word in _BODY_WORDS]
    return " ".join(words) if words or not value else "OTHER"


def _view(ds: Dataset) -> str:
    """The first element that tells: view position, view code, then the describing texts, then the orientation."""
    coded = _code_meaning(ds, "ViewCodeSequence").replace("-", "")
    for value in (_text(ds, "ViewPosition"), coded, _text(ds, "SeriesDescription"), _text(ds, "ProtocolName")):
        for word in re.findall(r"[A-Z]+", value):
            if word in _VIEWS:
                return _VIEWS[word]
    # Rows that run from front to back, or back to front, are a lateral view (PS3.3 C.7.6.1.1.1).
    return "LATERAL" if _text(ds, "PatientOrientation")[:1] in ("A", "P") else ""


def _code_meaning(ds: Dataset, keyword: str) -> str:
    try:
        items = ds.get(keyword)
        return _text(items[0], "CodeMeaning") if items else ""
    except Exception:  # as in identifier
        return ""


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
