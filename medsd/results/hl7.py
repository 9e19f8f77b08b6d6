"""A result as HL7 version 2.5.1 message, ORU^R01, in the codes and numbers of the structured report.

The patient stands in PID and the order in OBR, by what the header of the image says. Each finding is a group of OBX
under one sub-identifier: the finding with its call, then the numbers behind it. Every result is preliminary, as
nobody has verified it. Start at `message`.
"""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message
from hl7apy.exceptions import HL7apyException
from pydicom.multival import MultiValue
from pydicom.sr.coding import Code

from medsd.errors import DataError
from medsd.results import coded
from medsd.results.codes import CODES, REPORT
from medsd.results.result import Result
from medsd.results.source import MAKER, Source, one_line, real_day

_ESCAPES = str.maketrans({"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"})  # section 2.7.1
_PRELIMINARY, _ORDER_DETAIL = "P", "O"  # HL7 table 0085


class _Observation(NamedTuple):
    """One OBX: value type of HL7 table 0125, concept, value, unit, sub-identifier, status; all of them escaped."""

    kind: str
    name: str
    value: str
    unit: str = ""
    group: str = ""
    status: str = _PRELIMINARY


def message(result: Result, source: Source) -> bytes | None:
    """The message in UTF-8, its segments ended by carriage returns; None where the image names no patient.

    The same reading of the same image has the same message control identifier. Raises DataError: the header holds
    something that HL7 cannot carry.
    """
    if not _told(source, "PatientID"):
        return None
    try:
        made = _message(result, source)
        made.validate()
        return str(made.to_er7()).encode() + b"\r"
    except HL7apyException as error:  # its words may quote a header
        raise DataError(f"the header of the image does not go into HL7 2.5.1 ({type(error).__name__})") from None


def _message(result: Result, source: Source) -> Any:
    made = Message("ORU_R01", version="2.5.1", validation_level=VALIDATION_LEVEL.TOLERANT)
    seeds = f"{source.bare.SOPInstanceUID} {result.model_sha256} {result.when.isoformat()}"
    made.msh.msh_3 = MAKER.upper()
    made.msh.msh_7 = _moment(result)
    made.msh.msh_9 = "ORU^R01^ORU_R01"
    made.msh.msh_10 = hashlib.sha256(seeds.encode()).hexdigest()[:20]
    made.msh.msh_11 = "P"
    made.msh.msh_18 = "UNICODE UTF-8"
    results = made.add_group("ORU_R01_PATIENT_RESULT")
    _patient(results.add_group("ORU_R01_PATIENT").add_segment("PID"), source)
    order = results.add_group("ORU_R01_ORDER_OBSERVATION")
    _order(order.add_segment("OBR"), result, source)
    for number, observation in enumerate(_observations(result, source), 1):
        segment = order.add_group("ORU_R01_OBSERVATION").add_segment("OBX")
        segment.obx_1, segment.obx_2, segment.obx_3 = str(number), observation.kind, observation.name
        segment.obx_4, segment.obx_5, segment.obx_6 = observation.group, observation.value, observation.unit
        segment.obx_11 = observation.status
    return made


def _patient(pid: Any, source: Source) -> None:
    pid.pid_3 = f"{_told(source, 'PatientID')}^^^{_told(source, 'IssuerOfPatientID')}^PI"
    for name in _names(source):
        pid.add_field("pid_5").value = name
    if born := real_day(source.text("PatientBirthDate")):
        pid.pid_7 = born.strftime("%Y%m%d")
    sex = _told(source, "PatientSex")
    pid.pid_8 = sex if sex in ("F", "M", "O") else "U"


def _names(source: Source) -> Iterator[str]:
    """The patient's name (PS3.5 section 6.2) as XPN, a repetition for each of its spellings; unspecified if unknown."""
    name = source.header.get("PatientName")
    name = name[0] if isinstance(name, MultiValue) and name else name
    spellings = (("A", "alphabetic"), ("I", "ideographic"), ("P", "phonetic"))  # HL7 table 4000
    told = [(sort, getattr(name, part, "")) for sort, part in spellings]
    found = [(sort, [_escaped(piece) for piece in words.split("^")]) for sort, words in told if words.strip(" ^")]
    for sort, pieces in found:
        family, given, middle, prefix, suffix = (pieces + [""] * 5)[:5]
        yield "^".join((family, given, middle, suffix, prefix, "", "L", sort))
    if not found:
        yield "^^^^^^U"


def _order(obr: Any, result: Result, source: Source) -> None:
    accession = _told(source, "AccessionNumber")
    obr.obr_1 = "1"
    obr.obr_2 = _told(source, "PlacerOrderNumberImagingServiceRequest")
    obr.obr_3 = _told(source, "FillerOrderNumberImagingServiceRequest") or accession
    obr.obr_4 = _coded(REPORT["procedure"])
    if isinstance(source.examined, datetime):
        obr.obr_7 = source.examined.strftime("%Y%m%d%H%M%S%z")
    elif source.examined:
        obr.obr_7 = source.examined.strftime("%Y%m%d")
    obr.obr_18 = accession
    obr.obr_22 = _moment(result)
    obr.obr_24 = "RAD"
    obr.obr_25 = _PRELIMINARY


def _observations(result: Result, source: Source) -> Iterator[_Observation]:
    for name, uid in (("study", source.bare.StudyInstanceUID), ("image", source.bare.SOPInstanceUID)):
        yield _Observation("ST", _coded(REPORT[name]), _escaped(uid), status=_ORDER_DETAIL)
    for concept, words in coded.algorithm_items(result):
        yield _Observation("ST", _coded(concept), _escaped(words))
    for notice in coded.notices(result):
        yield _Observation("TX", _coded(REPORT["comment"]), _escaped(notice))
    if result.refused:
        yield _item(coded.refusal(result))
    for number, finding in enumerate(result.findings, 1):
        yield _item(coded.call_of(finding)._replace(name=finding.code), f"1.{number}")
        for item in (*coded.measurements(finding, result), *coded.conformal_set(finding)):
            yield _item(item, f"1.{number}")
    for number, case in enumerate(result.cases, 1):
        yield _Observation("TX", _coded(CODES["cases"]["case"]), _escaped(case.sentence), group=f"2.{number}")
        for item in coded.case_items(case):
            yield _item(item, f"2.{number}")


def _item(item: coded.Item, group: str = "") -> _Observation:
    if isinstance(item.value, Code):
        return _Observation("CWE", _coded(item.name), _coded(item.value), group=group)
    number = f"{Decimal(repr(item.value)):f}"  # NM knows no exponent
    return _Observation("NM", _coded(item.name), number, _coded(item.unit), group)


def _coded(code: Code) -> str:
    return "^".join(map(_escaped, (code.value, code.meaning, code.scheme_designator)))


def _moment(result: Result) -> str:
    return result.when.strftime("%Y%m%d%H%M%S%z")


def _told(source: Source, keyword: str) -> str:
    return _escaped(source.text(keyword))


def _escaped(words: str) -> str:
    """`words` with what separates parts escaped, and without what would end a segment."""
    return one_line(words).translate(_ESCAPES)
