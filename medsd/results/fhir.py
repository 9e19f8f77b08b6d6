"""A result as FHIR R4: a transaction with a DiagnosticReport, an Observation of each finding, and the model as Device.

The models are those of R4B (4.3.0), the nearest that fhir.resources has; the resources used here are the same in R4
(4.0.1). Patient, order and imaging study are referred to by their identifiers, as the receiver has them already. All
is preliminary, as nobody has verified it. Start at `transaction`.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from fhir.resources.R4B.bundle import Bundle
from pydantic import ValidationError
from pydicom.sr.coding import Code

from medsd.errors import DataError
from medsd.results import coded
from medsd.results.codes import CODES, PRIVATE, REPORT
from medsd.results.result import Result
from medsd.results.source import MAKER, Source, device_uid

SYSTEMS: Mapping[str, str] = {
    "SCT": "http://snomed.info/sct",
    "RADLEX": "http://radlex.org",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "UCUM": "http://unitsofmeasure.org",
    PRIVATE: f"urn:oid:2.25.{uuid5(NAMESPACE_OID, PRIVATE).int}",
}
"""Coding scheme of DICOM → system of FHIR; the private one has an OID of its own (PS3.5 annex B.2)."""
_UIDS, _URIS = "urn:dicom:uid", "urn:ietf:rfc:3986"
_TERMS = "http://terminology.hl7.org/CodeSystem"
_PRELIMINARY = "preliminary"
Json = dict[str, Any]


def transaction(result: Result, source: Source) -> Bundle:
    """The resources of a result, each made only where the receiver lacks it.

    The same reading of the same image has the same identifiers, so a transaction that is sent twice is stored once.
    Raises DataError: the header holds something that FHIR cannot carry.
    """
    told = enumerate(_observed(result), 1)
    observations = [_observation(*observed, f"observation {number}", result, source) for number, observed in told]
    report = _report(observations, result, source)
    entries = [_entry(resource) for resource in (_device(result), *observations, report)]
    try:
        return Bundle.model_validate({"type": "transaction", "entry": entries})
    except ValidationError as error:  # its words quote a header
        where = sorted({".".join(map(str, each["loc"])) for each in error.errors(include_input=False)})
        raise DataError(f"the header of the image does not go into FHIR ({', '.join(where)[:200]})") from None


def document(result: Result, source: Source) -> bytes:
    """`transaction` as JSON in UTF-8."""
    return str(transaction(result, source).model_dump_json(indent=1)).encode() + b"\n"


def _observed(result: Result) -> Iterator[tuple[coded.Item, list[coded.Item], str]]:
    """What each Observation says: its code and value, what stands below it, and a sentence of its own."""
    if result.refused:
        yield coded.refusal(result), [], result.lines()[0]
    for finding in result.findings:
        below = [*coded.measurements(finding, result), *coded.conformal_set(finding)]
        yield coded.call_of(finding)._replace(name=finding.code), below, result.calls
    for case in result.cases:
        items = coded.case_items(case)
        yield items[0]._replace(name=CODES["cases"]["case"]), items, case.sentence


def _device(result: Result) -> Json:
    named = dict(coded.algorithm_items(result))
    return {
        "resourceType": "Device",
        "identifier": [_uid(device_uid(result))],
        "manufacturer": MAKER,
        "deviceName": [{"name": named[REPORT["algorithm name"]], "type": "model-name"}],
        "version": [
            {"type": _concept(REPORT[kind]), "value": named[REPORT[kind]]}
            for kind in ("algorithm version", "algorithm parameters")
        ],
        "safety": [{"text": result.disclaimer}],
    }


def _observation(
    item: coded.Item, below: Sequence[coded.Item], words: str, part: str, result: Result, source: Source
) -> Json:
    studied = [_study(source), {"type": "Media", "identifier": _uid(source.bare.SOPInstanceUID)}]
    notes = list(filter(None, (words, result.disclaimer)))
    return {
        "resourceType": "Observation",
        "identifier": [_own(part, result, source)],
        "status": _PRELIMINARY,
        "category": [_term("observation-category", "imaging")],
        "code": _concept(item.name),
        **_context(result, source),
        **_value(item),
        "component": [{"code": _concept(each.name), **_value(each)} for each in below] or None,
        "derivedFrom": studied,
        "device": {"reference": _full_url(_uid(device_uid(result)))},
        "note": [{"text": note} for note in notes],
    }


def _report(observations: Sequence[Json], result: Result, source: Source) -> Json:
    accession = _text(source, "AccessionNumber")
    order = {"type": "ServiceRequest", "identifier": {"type": _term("v2-0203", "ACSN"), "value": accession}}
    return {
        "resourceType": "DiagnosticReport",
        "identifier": [_own("report", result, source)],
        "basedOn": [order] if accession else None,
        "status": _PRELIMINARY,
        "category": [_term("v2-0074", "RAD")],
        "code": _concept(REPORT["title"]),
        **_context(result, source),
        "result": [{"reference": _full_url(each["identifier"][0])} for each in observations],
        "imagingStudy": [_study(source)],
        "conclusion": "\n".join([*result.lines(), result.disclaimer]),
    }


def _context(result: Result, source: Source) -> Json:
    """Whose it is, when the study was made, and when it was read."""
    patient, issuer, when = _text(source, "PatientID"), _text(source, "IssuerOfPatientID"), source.examined
    told: Json = {"issued": result.when.isoformat(timespec="seconds")}
    if patient:
        told["subject"] = {"type": "Patient", "identifier": {"value": patient}}
        if issuer:
            told["subject"]["identifier"]["assigner"] = {"display": issuer}
    if when is not None:  # a time needs a zone in FHIR
        timed = isinstance(when, datetime) and when.tzinfo is not None
        told["effectiveDateTime"] = when.isoformat() if timed else when.isoformat()[:10]
    return told


def _text(source: Source, keyword: str) -> str:
    """An element with plain spaces, as FHIR's strings have no others."""
    return " ".join(source.text(keyword).split())


def _entry(resource: Json) -> Json:
    [identifier] = resource["identifier"]
    known = f"identifier={identifier['system']}|{identifier['value']}"
    request = {"method": "POST", "url": resource["resourceType"], "ifNoneExist": known}
    return {"fullUrl": _full_url(identifier), "resource": resource, "request": request}


def _full_url(identifier: Json) -> str:
    return f"urn:uuid:{uuid5(NAMESPACE_OID, identifier['value'])}"


def _own(part: str, result: Result, source: Source) -> Json:
    words = f"{source.bare.SOPInstanceUID} {result.model_sha256} {result.when.isoformat()} {part}"
    return {"system": _URIS, "value": f"urn:uuid:{uuid5(NAMESPACE_OID, words)}"}


def _study(source: Source) -> Json:
    return {"type": "ImagingStudy", "identifier": _uid(source.bare.StudyInstanceUID)}


def _uid(uid: str) -> Json:
    return {"system": _UIDS, "value": f"urn:oid:{uid}"}


def _term(table: str, code: str) -> Json:
    return {"coding": [{"system": f"{_TERMS}/{table}", "code": code}]}


def _concept(code: Code) -> Json:
    coding = {"system": SYSTEMS[code.scheme_designator], "code": code.value, "display": code.meaning}
    return {"coding": [coding], "text": code.meaning}


def _value(item: coded.Item) -> Json:
    if isinstance(item.value, Code):
        return {"valueCodeableConcept": _concept(item.value)}
    number, unit = Decimal(repr(item.value)), item.unit
    return {"valueQuantity": {"value": number, "unit": unit.meaning, "system": SYSTEMS["UCUM"], "code": unit.value}}
