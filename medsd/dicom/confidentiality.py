"""The Basic Application Level Confidentiality Profile of PS3.15 annex E, applied to one data set.

The actions of Table E.1-1 and the dummy values come from dicom-anonymizer (KitwareMedical), which carries the table by
edition. What it leaves undone is done here: nested sequences, dates that the table removes, UIDs by a keyed hash, other
elements of overlays and curves, attributes that no dictionary knows, and free text that the table does not list.
"""

import re
import uuid
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache

from pydicom import Dataset
from pydicom.charset import python_encoding
from pydicom.datadict import DicomDictionary, dictionary_keyword, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID_dictionary

from medsd.dicom.burned_in import BurnedIn
from medsd.dicom.header import identifier
from medsd.dicom.terms import packaged
from medsd.errors import DependencyError
from medsd.privacy import KeyedHasher

EDITION = "2026c"
_CODES = {
    "113100": "Basic Application Confidentiality Profile",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113108": "Retain Patient Characteristics Option",
}
_LISTS = packaged("attributes.yaml")
_CHARACTERISTICS, _NEVER_SHIFTED, _BEYOND_THE_TABLE, _LOOKED_FOR = (
    frozenset(_LISTS[key].split()) for key in ("characteristics", "never_shifted", "beyond_the_table", "looked_for")
)
_DATES, _FREE_TEXT = ("DA", "TM", "DT"), ("LT", "ST", "UT", "UC", "UR")
_WORDS = ("LO", "SH", "CS", "LT", "ST", "UT", "UC")
_NUMBERS = frozenset({"US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT"})
_BYTES = frozenset({"OB", "OW", "OL", "OF", "OD", "OV", "UN"})
_KEPT_BYTES = re.compile(r"(Data|OffsetTable|OffsetTableLengths|ICCProfile)$")
_FORM = {  # PS3.5 6.2; small letters and a hyphen are met in code strings and harmless
    "CS": re.compile(r"[A-Za-z0-9 _\-]{0,16}"),
    "IS": re.compile(r" *[+-]?\d{1,12} *|"),
    "DS": re.compile(r" *[+-]?(\d+\.?\d*|\.\d+)([Ee][+-]?\d+)? *|"),
    "AS": re.compile(r"\d{3}[DWMY]|"),
}
_PIXELS = 0x7FE0
_SHORTEST_NAME = 3
_OLDEST_AGE = 89  # above it an age points to few people (45 CFR 164.514(b)(2)(i)(C))


@dataclass(frozen=True)
class Confidentiality:
    """The profile with its options."""

    hasher: KeyedHasher  # gives the new Patient ID, UIDs and the shift of dates; the same secret gives the same again
    # Keep dates, moved back by the same 1 to 10 years for all of a patient's objects, times to the hour (option
    # 113107); else dates are removed.
    modified_dates: bool = False
    # Keep sex, age, size, weight and the like (113108); ages above 89 become 90. Texts that the option would clean are
    # removed.
    characteristics: bool = False

    def apply(self, ds: Dataset, burned_in: BurnedIn) -> None:
        """De-identify `ds` in place, file meta and preamble included; Pixel Data are not touched.

        `ds` has Study, Series and SOP Instance UID and a file meta that names the transfer syntax; `burned_in` is for
        (0028,0301). Raises DependencyError if dicom-anonymizer is not installed.
        """
        identities = _identities(ds)
        patient = identifier(ds, "PatientID")
        drawn = int.from_bytes(self.hasher.digest("shift", patient or identifier(ds, "StudyInstanceUID"))[:8], "big")
        run = _Run(self, timedelta(days=365 + drawn % 3286), _table())
        claimed_no = identifier(ds, "BurnedInAnnotation").upper() == "NO"
        run.clean(ds)
        _sweep(ds, identities)
        ds.PatientName, ds.PatientID = "", self.hasher.patient_key(patient)
        self._declare(ds)
        _declare_burned_in(ds, burned_in, claimed_no)
        _renew_file_meta(ds)

    def new_uid(self, uid: str) -> str:
        """The UID that stands for `uid`: a UUID below 2.25 (PS3.5 B.2) from 128 bits of a keyed hash."""
        return f"2.25.{uuid.UUID(bytes=self.hasher.digest('uid', uid)[:16], version=4).int}"

    def _declare(self, ds: Dataset) -> None:
        codes = ["113100"] + ["113107"] * self.modified_dates + ["113108"] * self.characteristics
        ds.PatientIdentityRemoved = "YES"
        ds.DeidentificationMethod = f"medsd, DICOM PS3.15 {EDITION} Basic Profile"
        ds.DeidentificationMethodCodeSequence = Sequence([_code(code) for code in codes])
        ds.LongitudinalTemporalInformationModified = "MODIFIED" if self.modified_dates else "REMOVED"


@dataclass(frozen=True)
class _Run:
    profile: Confidentiality
    shift: timedelta
    table: dict[tuple[int, int], str]

    def clean(self, ds: Dataset) -> None:
        for tag in list(ds.keys()):
            if not self._clean_element(ds, tag):
                del ds[tag]

    def _clean_element(self, ds: Dataset, tag: BaseTag) -> bool:
        """Clean one element in place; False if it must go."""
        if int(tag) not in DicomDictionary or tag.is_private or tag.element == 0:  # repeating groups: overlays, curves
            return False
        keyword = dictionary_keyword(tag)
        try:
            element = ds[tag]
            if keyword in _BEYOND_THE_TABLE or not _fits(element):
                return False
            action = self.table.get((tag.group, tag.element), "")
            return self._act(element, keyword, action) if action else self._keep(element, keyword)
        except Exception:  # a value that pydicom cannot convert is not worth keeping
            return False

    def _act(self, element: DataElement, keyword: str, action: str) -> bool:
        if self.profile.characteristics and keyword in _CHARACTERISTICS:
            return self._keep(element, keyword)
        if self.profile.modified_dates and element.VR in _DATES and keyword not in _NEVER_SHIFTED:
            return _move(element, self.shift)
        if action == "delete":
            return False
        if element.VR == "UI":
            return self._renew_uids(element)
        if element.VR == "SQ" and action.endswith("UID"):
            return self._keep(element, keyword)
        if action in ("empty", "delete_or_empty"):
            element.value = Sequence() if element.VR == "SQ" else None
            return True
        return self._dummy(element)

    def _keep(self, element: DataElement, keyword: str) -> bool:
        """What the table does not list stays, as far as its representation cannot name anybody."""
        if element.VR == "SQ":
            for item in element.value:
                self.clean(item)
            return True
        if element.VR in _DATES:
            return self.profile.modified_dates and _move(element, self.shift)
        if element.VR in ("PN", "AE", *_FREE_TEXT):
            return False
        if element.VR == "UI":
            return self._renew_uids(element)
        if element.VR in _BYTES:
            return bool(_KEPT_BYTES.search(keyword))
        if element.VR == "AS" and re.fullmatch(r"\d{3}Y", str(element.value)) and int(element.value[:3]) > _OLDEST_AGE:
            element.value = f"{_OLDEST_AGE + 1:03d}Y"
        if keyword == "SpecificCharacterSet":
            return all(str(value) in python_encoding for value in _values(element))
        # A number as it stood in the file, text as it is.
        written = [str(getattr(value, "original_string", value)) for value in _values(element)]
        form = _FORM.get(element.VR)
        return form is None or all(map(form.fullmatch, written))

    def _renew_uids(self, element: DataElement) -> bool:
        """Registered UIDs (classes, transfer syntaxes, known frames of reference) stay, all others are replaced."""
        old = [uid for uid in map(str, _values(element)) if uid]
        _put(element, [uid if uid in UID_dictionary else self.profile.new_uid(uid) for uid in old])
        return True

    def _dummy(self, element: DataElement) -> bool:
        from dicomanonymizer.simpledicomanonymizer import replace_element

        if element.VR == "UI":
            return self._renew_uids(element)
        if element.VR != "SQ":
            replace_element(element)
            return True
        for item in element.value:
            for tag in list(item.keys()):
                known = not tag.is_private and int(tag) in DicomDictionary
                if not (known and _fits(item[tag]) and self._dummy(item[tag])):
                    del item[tag]
        return True


@cache
def _table() -> dict[tuple[int, int], str]:
    """(group, element) → the library's name of the action in Table E.1-1."""
    try:
        from dicomanonymizer.simpledicomanonymizer import initialize_actions
    except ModuleNotFoundError:
        needs = "de-identification needs dicom-anonymizer; install it with: pip install 'medsd[deid]'"
        raise DependencyError(needs) from None
    actions = initialize_actions(f"dicomfields_{EDITION}")
    return {(tag[0], tag[1]): action.__name__ for tag, action in actions.items() if len(tag) == 2}


def _fits(element: DataElement) -> bool:
    """Whether the representation is the dictionary's: text under the tag of a number is no number."""
    expected = dictionary_VR(element.tag).split(" or ")
    return element.VR in expected or (element.VR in _NUMBERS and bool(_NUMBERS & set(expected)))


def _values(element: DataElement) -> list[object]:
    value = element.value
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list) else [value]


def _move(element: DataElement, shift: timedelta) -> bool:
    """Move dates back by `shift`, times down to the hour; False for what is no date."""
    moved = [_moved(element.VR, str(value).strip(), shift) for value in _values(element)]
    if None in moved:
        return False
    _put(element, moved)
    return True


def _put(element: DataElement, values: Seq[str | None]) -> None:
    element.value = values[0] if len(values) == 1 else list(values)


def _moved(vr: str, text: str, shift: timedelta) -> str | None:
    if vr == "TM":
        return text[:2] + "0000" if re.fullmatch(r"([01]\d|2[0-3])(\d\d){0,2}(\.\d{1,6})?", text) else None
    match = re.fullmatch(r"(\d{8})(\d\d)?[\d.]*([+-]\d{4})?" if vr == "DT" else r"(\d{8})()", text)
    if match is None:
        return None
    try:
        day = datetime.strptime(match[1], "%Y%m%d") - shift  # a date has no zone
    except (ValueError, OverflowError):
        return None
    return f"{day:%Y%m%d}{match[2] or ''}"


def _identities(ds: Dataset) -> list[re.Pattern[str]]:
    """The names and numbers that the header holds, to be looked for where they do not belong."""
    found: set[str] = set()
    for element in _elements(ds):
        if element.VR == "PN":
            found |= {part for value in _values(element) for part in re.split(r"[\^=\s,]+", str(value))}
        elif element.keyword in _LOOKED_FOR:  # of fewer than four signs a number is too common to be told from others
            found |= {text for text in (str(value).strip() for value in _values(element)) if len(text) > _SHORTEST_NAME}
    found |= {
        f"{date[:4]}{mark}{date[4:6]}{mark}{date[6:]}"
        for date in found
        if re.fullmatch(r"\d{8}", date)
        for mark in "-./"
    }
    return [
        re.compile(rf"(?<![^\W_]){re.escape(text)}(?![^\W_])", re.IGNORECASE)
        for text in found
        if len(text) >= _SHORTEST_NAME
    ]


def _sweep(ds: Dataset, identities: list[re.Pattern[str]]) -> None:
    """Remove texts that hold one of the patient's own names or numbers: kept attributes are misused for remarks."""
    for tag in list(ds.keys()):
        element = ds[tag]
        if element.VR == "SQ":
            for item in element.value:
                _sweep(item, identities)
        elif any(name.search(text) for text in _texts(element) for name in identities):
            del ds[tag]


def _texts(element: DataElement) -> list[str]:
    """What an element could spell: its texts, or its bytes if they are no pixels."""
    if element.VR in _WORDS:
        return [str(value) for value in _values(element)]
    readable = element.VR in _BYTES and element.tag.group != _PIXELS and isinstance(element.value, bytes)
    return [element.value.decode("latin-1")] if readable else []


def _elements(ds: Dataset) -> Iterator[DataElement]:
    for tag in list(ds.keys()):
        try:
            element = ds[tag]
        except Exception:  # as in _clean_element
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)
        else:
            yield element


def _code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", _CODES[value]
    return item


def _declare_burned_in(ds: Dataset, burned_in: BurnedIn, claimed_no: bool) -> None:
    """YES if text was declared or seen; the originator's NO stays only if the detector agrees; else nothing."""
    if burned_in.answer == "found":
        ds.BurnedInAnnotation = "YES"
    elif claimed_no and burned_in.answer == "none_seen":
        ds.BurnedInAnnotation = "NO"
    elif "BurnedInAnnotation" in ds:
        del ds.BurnedInAnnotation


def _renew_file_meta(ds: Dataset) -> None:
    """A file meta of this program alone: no application titles, no private information; a preamble of zeros."""
    syntax = ds.file_meta.TransferSyntaxUID
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = syntax
    ds.preamble = b"\0" * 128
