"""What a DICOM header says about a radiograph, in the few words that the gate and the model need.

Values are only passed on if they are words of a known vocabulary (`medsd.dicom.terms`): any free-text element may
hold a patient's name.
"""

import re
from dataclasses import dataclass, field

from pydicom import Dataset
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.multival import MultiValue

from medsd.dicom import terms
from medsd.dicom.policy import Concern, GatePolicy, concern

_NAMES = tuple(terms.packaged("attributes.yaml")["names"].split())
IDENTIFYING = (*_NAMES, *terms.packaged("attributes.yaml")["numbers"].split())
"""Keywords of the elements that `identities` reads."""
# What is said of the image itself, from the nearest to the farthest. The study's description names all of its views.
_SERIES_TEXTS = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription")
_STUDY_TEXTS = (*_SERIES_TEXTS, "StudyDescription")
_VIEW_TEXTS = (*_SERIES_TEXTS, "BodyPartExamined")
_BODY_PART, _REGION = "(0018,0015) Body Part Examined", "(0008,2218) Anatomic Region Sequence"
MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT")
"""Photometric interpretations whose pictures may be grey."""
_UNREAD_COLOUR = "no known"
_AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25, "": 1.0}


@dataclass(frozen=True)
class Header:
    """The facts of one DICOM header; a word is "" if the header is silent.

    `view` may be "FRONTAL" too, if the header says no more; `animal` is the element that says that the patient is an
    animal, "" if none does.
    """

    modality: str  # "CR", "DX", …
    body_part: str  # words of PS3.16 annex L, upper case
    view: str  # as in `medsd.dicom.read.Radiograph`, like the spacing
    sex: str  # "F", "M", "O"
    age_years: float | None  # at the study
    spacing_mm: tuple[float, float] | None
    spacing_from: str
    photometric: str
    frames: int
    rows: int
    columns: int
    samples: int
    for_processing: bool
    burned_in: bool
    animal: str = ""
    body_element: str = ""
    view_element: str = ""
    body_words: frozenset[str] = field(default=frozenset(), repr=False)


def read_header(ds: Dataset) -> Header:
    """The facts of `ds`; an element that is absent or makes no sense counts as silent."""
    modality = _text(ds, "Modality")
    body_part, body_element, body_words = _body_part(ds)
    view, view_element = _view(ds)
    spacing_mm, spacing_from = _spacing(ds)
    return Header(
        modality=modality if modality in terms.words_listed("modalities") or not modality else "OTHER",
        body_part=body_part,
        view=view,
        sex=_text(ds, "PatientSex") if _text(ds, "PatientSex") in ("F", "M", "O") else "",
        age_years=_age_years(ds),
        spacing_mm=spacing_mm,
        spacing_from=spacing_from,
        photometric=_text(ds, "PhotometricInterpretation"),
        frames=max(1, _integer(ds, "NumberOfFrames", 1)),
        rows=_integer(ds, "Rows", 0),
        columns=_integer(ds, "Columns", 0),
        samples=_integer(ds, "SamplesPerPixel", 1),
        for_processing=_text(ds, "PresentationIntentType") == "FOR PROCESSING",
        burned_in=_text(ds, "BurnedInAnnotation") == "YES",
        animal=_animal(ds),
        body_element=body_element,
        view_element=view_element,
        body_words=body_words,
    )


def costly_concerns(header: Header, policy: GatePolicy) -> list[Concern]:
    """What speaks against even decoding the pixels: another modality, an animal, many frames, sizes, colour.

    Declared colour is named for images that are refused for something else, or whose colours are not read. For other
    RGB, YBR and palette images the pixels tell whether there is colour.
    """
    found = []
    if header.modality not in policy.modalities:
        said = "no code of the standard" if header.modality == "OTHER" else _shown(header.modality)
        found.append(concern("modality", value=said, accepted=", ".join(filter(None, policy.modalities))))
    if header.animal:
        found.append(concern("not_human", value=header.animal))
    if header.frames > policy.max_frames:
        found.append(concern("frames", value=header.frames, accepted=policy.max_frames))
    if header.rows and header.columns:
        found += size_concerns(header.rows, header.columns, header.frames, policy)
    colour = _colour_words(header)
    if colour and (_UNREAD_COLOUR in colour or any(policy.action(item) == "refuse" for item in found)):
        found.insert(0, colour_concern(header))
    return found


def colour_concern(header: Header) -> Concern:
    """That the image is in colour, as its header words it."""
    return concern("not_a_radiograph", detail=_colour_words(header))


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
    if not _accepted_body_part(header, policy):
        known = f"{_shown(header.body_part)} by {header.body_element}" if header.body_part else "missing"
        unknown = f"no word that medsd knows, by {header.body_element}; gate.body_parts may name it"
        accepted = ", ".join(filter(None, policy.body_parts))
        found.append(concern("body_part", value=unknown if header.body_part == "OTHER" else known, accepted=accepted))
    if header.view in ("LATERAL", "OTHER"):
        words = {"LATERAL": "is lateral", "OTHER": "is neither frontal nor lateral"}
        found.append(concern("view", value=f"{words[header.view]} by {header.view_element}"))
    if header.for_processing:
        found.append(concern("for_processing"))
    if header.burned_in:
        found.append(concern("burned_in"))
    return found


def identities(ds: Dataset) -> list[str]:
    """What identifies the patient or who treated her, names in their words too, for the log and for scrubbing notes."""
    found = [text for keyword in IDENTIFYING for text in element_values(ds, keyword)]
    words = [word for keyword in _NAMES for text in element_values(ds, keyword) for word in re.split(r"[\s^=,]+", text)]
    return list(dict.fromkeys(filter(None, [*found, *(word for word in words if not word.isdigit())])))


def element_values(ds: Dataset, keyword: str) -> list[str]:
    """Every value of an element as text without spaces around it; none where pydicom cannot read it."""
    try:
        value = ds.get(keyword)
        values = value if isinstance(value, MultiValue | list) else [value]
        return ["" if one is None else str(one).strip() for one in values]
    except Exception:  # pydicom converts on access, and a hostile value may fail in any way
        return []


def identifier(ds: Dataset, keyword: str) -> str:
    """The first value of an element as text, "" if there is none."""
    return next(iter(element_values(ds, keyword)), "")


def _accepted_body_part(header: Header, policy: GatePolicy) -> bool:
    """Whether one of the known body parts is accepted, or what stands there is named by the policy in other words."""
    known = header.body_part.split() or [""]
    named = {terms.normalised(word) for word in policy.body_parts if word}
    return any(word in policy.body_parts for word in known) or bool(named & header.body_words)


def _shown(value: str) -> str:
    return f"'{value}'" if value else "missing"


def _colour_words(header: Header) -> str:
    """The colour that a header declares, "" for grey; what photometric interpretation is missing settles elsewhere."""
    if header.photometric == "PALETTE COLOR" and header.samples == 1:
        return "palette colour"
    if header.samples == 3 and header.photometric in (*MONOCHROME, *COLOURS):
        return "colour"
    if header.samples == 1 and header.photometric in (*MONOCHROME, "MONOCHROME", ""):
        return ""
    return f"{header.samples} samples per pixel, {_UNREAD_COLOUR} (0028,0004) Photometric Interpretation"


def _text(ds: Dataset, keyword: str) -> str:
    """The first value of an element as upper-case text, "" if there is none."""
    return _decoded(identifier(ds, keyword), ds).upper()


def _decoded(text: str, ds: Dataset) -> str:
    """`text` in the character set that it is in: code strings come as Latin-1 bytes, and UTF-8 often undeclared."""
    if (text.isascii() and "\x1b" not in text) or any(ord(character) > 0xFF for character in text):
        return text
    raw = text.encode("latin-1")
    try:
        declared = ds.get("SpecificCharacterSet")
        if declared and declared != "ISO_IR 100":
            encodings = convert_encodings(declared)
            return decode_bytes(raw, encodings, set()) if len(encodings) > 1 else raw.decode(encodings[0])
        return raw.decode("utf-8")
    except Exception:  # foreign bytes under any declaration
        return text


def _integer(ds: Dataset, keyword: str, default: int) -> int:
    text = _text(ds, keyword)
    return int(text) if re.fullmatch(r"\d{1,9}", text) else default


def _body_part(ds: Dataset) -> tuple[str, str, frozenset[str]]:
    """The known body parts, the element that names them, and all words of that element, normalised.

    It is Body Part Examined, else the anatomic region code, which DX requires instead, else a description.
    """
    code, meaning = _code(ds, "AnatomicRegionSequence")
    value = _text(ds, "BodyPartExamined")
    for element, coded, text in ((_BODY_PART, value, value), (_REGION, code, meaning)):
        found = terms.term_of_code(coded, "region_codes") or terms.body_parts_in(text)
        if found:
            return found, element, frozenset({coded, terms.normalised(text), *terms.words_of(text)})
    found = next(filter(None, (terms.body_parts_in(_text(ds, keyword), free=True) for keyword in _STUDY_TEXTS)), "")
    return found, "a description" if found else "", frozenset()


def _view(ds: Dataset) -> tuple[str, str]:
    """The view and the first element that tells: view position, view code, texts about the image, orientation."""
    code, meaning = _code(ds, "ViewCodeSequence")
    said = [("(0018,5101) View Position", terms.view_in(_text(ds, "ViewPosition")))]
    said += [("(0054,0220) View Code Sequence", terms.term_of_code(code, "view_codes") or terms.view_in(meaning))]
    said += [("a description", terms.view_in(_text(ds, keyword), free=True)) for keyword in _VIEW_TEXTS]
    said += [("(0020,0020) Patient Orientation", _view_of_orientation(element_values(ds, "PatientOrientation")))]
    return next(((view, element) for element, view in said if view), ("", ""))


def _view_of_orientation(directions: list[str]) -> str:
    """Rows that run from side to side are a frontal view, from front to back a lateral one (PS3.3 C.7.6.1.1.1)."""
    if len(directions) != 2 or directions[1][:1].upper() not in ("F", "H"):
        return ""
    return {"L": "FRONTAL", "R": "FRONTAL", "A": "LATERAL", "P": "LATERAL"}.get(directions[0][:1].upper(), "")


def _animal(ds: Dataset) -> str:
    """The element that speaks of an animal (PS3.3 C.7.1.1 for species, breed and the legs that it stands on)."""
    code, meaning = _code(ds, "PatientSpeciesCodeSequence")
    if code or meaning:
        human = code in terms.words_listed("human_codes") or terms.names_one_of("human_words", meaning)
        return "" if human else "(0010,2202) Patient Species Code Sequence"
    species = _text(ds, "PatientSpeciesDescription")
    if species:
        return "" if terms.names_one_of("human_words", species) else "(0010,2201) Patient Species Description"
    if _text(ds, "AnatomicalOrientationType") == "QUADRUPED":
        return "(0010,2210) Anatomical Orientation Type"
    breed = _text(ds, "PatientBreedDescription")
    if (breed and not terms.names_one_of("human_words", breed)) or any(_code(ds, "PatientBreedCodeSequence")):
        return "(0010,2292) Patient Breed Description"
    described = any(terms.names_one_of("animal_words", _text(ds, keyword)) for keyword in _STUDY_TEXTS)
    return "a description" if described else ""


def _code(ds: Dataset, keyword: str) -> tuple[str, str]:
    """Value and meaning of the first item of a code sequence, upper case, "" if there is none."""
    try:
        items = ds.get(keyword)
        return (_text(items[0], "CodeValue"), _text(items[0], "CodeMeaning")) if items else ("", "")
    except Exception:  # as in identifier
        return "", ""


def _age_years(ds: Dataset) -> float | None:
    match = re.fullmatch(r"(\d{1,3})([DWMY]?)", _text(ds, "PatientAge"))
    if match is None:
        return None
    return round(int(match[1]) * _AGE_UNITS[match[2]], 2)


def _spacing(ds: Dataset) -> tuple[tuple[float, float] | None, str]:
    """Distance of rows and of columns, at the patient if it is calibrated, else at the detector; and what says so."""
    for keyword, name in (("PixelSpacing", "Pixel Spacing"), ("ImagerPixelSpacing", "Imager Pixel Spacing")):
        try:
            rows, columns = (float(part) for part in ds.get(keyword) or ())
        except Exception:  # as in identifier
            continue
        if 0.0 < rows < 100.0 and 0.0 < columns < 100.0:
            return (rows, columns), name
    return None, ""
