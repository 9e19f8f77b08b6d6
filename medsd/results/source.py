"""The image that a result belongs to: what of its header goes into every object of the same study.

Patient and study modules (PS3.3 C.7.1 and C.7.2) are copied as they stand, with the specific character set; all text of
our own is ASCII, which every character set has.
"""

import io
import re
import unicodedata
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any, Self

from highdicom.base import SOPClass
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom import Dataset, dcmread
from pydicom.uid import UID, ComputedRadiographyImageStorage, generate_uid

from medsd import __version__
from medsd.dicom.content import bound_inflation, inner_file, looks_like_dicom
from medsd.dicom.header import element_values, identities
from medsd.dicom.policy import GatePolicy
from medsd.dicom.quiet import quiet
from medsd.errors import DataError
from medsd.privacy import register_identities
from medsd.results.codes import PRIVATE, PRIVATE_NAME
from medsd.results.result import Result

MAKER = "medsd"
BODY_PART = "CHEST"  # no paired structure, so that a series has no laterality (PS3.3 C.7.3.1)
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# Type 2 of the two modules, which highdicom asks for before it copies.
_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
            "StudyTime", "ReferringPhysicianName")  # fmt: skip
SERIES = {"sr": 9101, "sr3d": 9102, "text": 9103, "key-image": 9104, "gsps": 9105, "pdf": 9106, "kos": 9107,
          "assessment": 9108}  # fmt: skip
"""Kind of object → its series number, out of the way of modalities."""


@dataclass(frozen=True)
class Source:
    """The header of the image; a traceback must not show a patient."""

    header: Dataset = field(repr=False)  # without pixels, as it stands in the file
    bare: Dataset = field(repr=False)  # the same image without anything of a patient, for highdicom to refer to

    @classmethod
    def read(cls, file: Path | bytes) -> Self:
        """Of a DICOM file, or the content of one.

        Raises DataError: it is none, or lacks an identifier that results refer to.
        """
        content = file if isinstance(file, bytes) else file.read_bytes()
        if not looks_like_dicom(content):
            raise DataError("results in DICOM belong into the study of an image, so they need a DICOM file")
        try:
            with quiet():
                bound_inflation(content, GatePolicy(), "")
                header = dcmread(io.BytesIO(inner_file(content)), force=True, stop_before_pixels=True)
                register_identities(identities(header))
                return cls.of(header)
        except DataError:
            raise
        except Exception as error:  # foreign bytes
            raise DataError(f"the header of the image cannot be read ({type(error).__name__})") from None

    @classmethod
    def of(cls, header: Dataset) -> Self:
        missing = [keyword for keyword in _NEEDED if not header.get(keyword)]
        if missing:
            raise DataError(f"the image has no {', '.join(missing)}, so no result can refer to it")
        bare = Dataset()
        for keyword in _NEEDED:
            setattr(bare, keyword, str(header[keyword].value))
        for keyword in _PATIENT:
            setattr(bare, keyword, None)
        for keyword in ("Rows", "Columns"):
            if header.get(keyword):
                setattr(bare, keyword, int(header[keyword].value))
        return cls(header, bare)

    def reference(self) -> Dataset:
        """An item of a sequence that refers to the image."""
        item = Dataset()
        item.ReferencedSOPClassUID = self.bare.SOPClassUID
        item.ReferencedSOPInstanceUID = self.bare.SOPInstanceUID
        return item

    def values(self, keyword: str) -> list[str]:
        """The values of an element as text, each in one line; none where it is empty, absent or cannot be read."""
        return [one_line(value) for value in element_values(self.header, keyword) if value]

    def text(self, keyword: str) -> str:
        """The first of `values`, "" where there is none."""
        return next(iter(self.values(keyword)), "")

    @property
    def zone(self) -> timezone | None:
        """The time zone of what the header tells, where it says."""
        told = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", self.text("TimezoneOffsetFromUTC"))
        if told is None or int(told[2]) > 14:
            return None
        away = timedelta(hours=int(told[2]), minutes=int(told[3]))
        return timezone(-away if told[1] == "-" else away)

    @property
    def examined(self) -> datetime | date | None:
        """When the study was made: a date, with a time where the header has one."""
        day, told = real_day(self.text("StudyDate")), self.text("StudyTime")
        hour = re.match(r"([01]\d|2[0-3])([0-5]\d)([0-5]\d)", told)
        if day is None or hour is None:
            return day
        return datetime.combine(day, time(int(hour[1]), int(hour[2]), int(hour[3])), self.zone)

    def arguments(self, result: Result, kind: str) -> dict[str, Any]:
        """What every class of highdicom takes: identifiers of series and instance, who made it, and when.

        The same reading of the same image gives the same identifiers, so an object that is sent twice is stored once.
        Times are in the time zone that the object names, or else here.
        """
        seeds = [self.bare.SOPInstanceUID, result.model_sha256, result.when.isoformat(), kind]
        when = result.when.astimezone(self.zone)
        dated = {"content_date": when.date(), "content_time": when.time().replace(tzinfo=None)}
        return {
            **({} if kind == "gsps" else dated),  # a presentation state has no content to date
            "series_instance_uid": generate_uid(entropy_srcs=[*seeds, "series"]),
            "series_number": SERIES[kind],
            "sop_instance_uid": generate_uid(entropy_srcs=[*seeds, "instance"]),
            "instance_number": 1,
            "manufacturer": MAKER,
            "manufacturer_model_name": result.model[:64],
            "software_versions": __version__,
            "device_serial_number": result.version[:64],
            "series_description": f"{MAKER} {result.model}: not for diagnosis"[:64],
        }

    def identify(self, document: SOPClass) -> Any:
        """`document` with the patient, the study and the character set of the image."""
        header = Dataset()
        for tag in self.header.keys():  # noqa: SIM118  # as it is read, without a look at what need not be copied
            if tag.group <= 0x0040:
                header[tag] = self.header.get_item(tag)
        header.SOPClassUID = ComputedRadiographyImageStorage  # its two modules are those of every image
        document.copy_patient_and_study_information(header)
        for keyword, usable in (("SpecificCharacterSet", True), ("TimezoneOffsetFromUTC", self.zone is not None)):
            document.pop(keyword, None)
            if usable and keyword in self.header:
                document[keyword] = self.header[keyword]
        return document


def real_day(text: str) -> date | None:
    """A value DA (PS3.5 section 6.2), None where it is no day."""
    try:
        return datetime.strptime(text, "%Y%m%d").date() if re.fullmatch(r"[12]\d{7}", text) else None
    except ValueError:
        return None


def one_line(words: str) -> str:
    """`words` with spaces for what would end a line of a message or is no letter: controls, separators, surrogates."""
    broken = ("Cc", "Zl", "Zp", "Cs")
    return "".join(" " if unicodedata.category(letter) in broken else letter for letter in words).strip()


def own_scheme() -> list[CodingSchemeIdentificationItem]:
    """The private coding scheme, for the SOP common module."""
    return [CodingSchemeIdentificationItem(PRIVATE, name=PRIVATE_NAME, responsible_organization=MAKER)]


def device_uid(result: Result) -> UID:
    """The unique identifier of the device that observes: a bundle."""
    return UID(generate_uid(entropy_srcs=["medsd model", result.model_sha256]))
