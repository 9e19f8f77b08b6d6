"""Page, table, JSON, PDF, structured report, HL7 and FHIR say the same; and where each may name a patient."""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import DataElement, Dataset

pytest.importorskip("highdicom", reason="the extra pacs is not installed")
pytest.importorskip("hl7apy", reason="the extra pacs is not installed")
pytest.importorskip("fhir.resources", reason="the extra pacs is not installed")

import pydicom
from highdicom._standard_utils import get_module_attribute_map
from highdicom.sr import srread
from pydicom.sr.coding import Code

from medsd.apps.web import markup
from medsd.apps.web.reading import Reading as Shown
from medsd.bundle.layout import Bundle
from medsd.inference.predict import Predictor
from medsd.inference.words import GROUPS, percent
from medsd.results import fhir
from medsd.results.codes import REPORT
from medsd.results.objects import FORMS, KINDS, messages, objects
from medsd.results.pdf import reading_pdf
from medsd.results.record import reading_record
from medsd.results.result import Result
from medsd.results.source import Source
from medsd.scoring.table import row
from medsd.studies.phantom import generate_study, write_dicom
from tests import canary
from tests.results.test_messages import segments
from tests.results.test_pdf import _words
from tests.results.varied import WHEN, Reading, similar_case

PATIENT_AND_STUDY = {
    attribute["keyword"]
    for name in ("patient", "clinical-trial-subject", "general-study", "patient-study", "clinical-trial-study")
    for attribute in get_module_attribute_map()[name]
}
ROW_OF_PAGE = re.compile(r'<tr class="([\w-]+) *\w*"\s+data-name="([^"]+)"[^>]*data-probability="([^"]+)"')
# Value of a finding's code → meaning of its call; then probability, operating point and coverage where they are told.
Told = dict[str, tuple[str, float | None, float | None, float | None]]
NUMBERS = tuple(REPORT[name].value for name in ("probability", "operating point", "coverage"))


def wanted(reading: Reading) -> Told:
    result = reading.result
    covered = {finding.name: result.coverage for finding in result.findings if finding.probability is not None}
    return {
        finding.code.value: (
            {"undecided": "Indeterminate", "not trained": "Not trained"}.get(finding.call, finding.call.capitalize()),
            finding.probability, finding.operating_point, covered.get(finding.name),
        )
        for finding in result.findings
    }  # fmt: skip


def of_report(document: Dataset) -> Told:
    stream = io.BytesIO()
    document.save_as(stream, enforce_file_format=True)
    content: Any = srread(io.BytesIO(stream.getvalue())).content
    told: Told = {}
    for group in [*content.get_image_measurement_groups(), *content.get_planar_roi_measurement_groups()]:
        if group.finding_type is not None:
            numbers = {item.name.value: item.value for item in group.get_measurements()}
            call = group.get_qualitative_evaluations(name=REPORT["call"])[0].value.meaning
            told[group.finding_type.value] = (call, *map(numbers.get, NUMBERS))  # type: ignore[assignment]
    return told


def of_hl7(message: bytes) -> Told:
    groups: dict[str, list[list[str]]] = {}
    for fields in segments(message, "OBX"):
        if fields[4].startswith("1."):
            groups.setdefault(fields[4], []).append(fields)
    told: Told = {}
    for (_, _, _, name, _, call, *_), *rest in groups.values():
        numbers = {fields[3].split("^")[0]: float(fields[5]) for fields in rest if fields[2] == "NM"}
        told[name.split("^")[0]] = (call.split("^")[1], *map(numbers.get, NUMBERS))  # type: ignore[assignment]
    return told


def of_fhir(document: bytes) -> Told:
    told: Told = {}
    for entry in json.loads(document)["entry"]:
        one = entry["resource"]
        if one["resourceType"] == "Observation" and one["code"]["coding"][0]["code"] != "status":
            parts = {part["code"]["coding"][0]["code"]: part for part in one.get("component", [])}
            numbers = [parts[code]["valueQuantity"]["value"] if code in parts else None for code in NUMBERS]
            if "similarity" not in parts:
                call = one["valueCodeableConcept"]["text"]
                told[one["code"]["coding"][0]["code"]] = (call, *numbers)  # type: ignore[assignment]
    return told


@pytest.fixture(scope="module")
def bundles(predictor: Predictor, fused: Predictor) -> dict[str, Bundle]:
    return {each.bundle.model_sha256: each.bundle for each in (predictor, fused)}


def test_report_hl7_and_fhir_say_the_same(fifty: list[Reading], messages: dict[int, bytes]) -> None:
    for number, reading in enumerate(fifty):
        assert of_fhir(fhir.document(reading.result, reading.source)) == wanted(reading)
        assert number not in messages or of_hl7(messages[number]) == wanted(reading)
        assert number % 6 or of_report(reading.report()) == wanted(reading)


def test_table_json_pdf_and_page_say_the_same(fifty: list[Reading], bundles: dict[str, Bundle]) -> None:
    for reading in fifty:
        result, bundle = reading.result, bundles[reading.result.model_sha256]
        table = row("image.dcm", result.prediction)
        record = {each["name"]: each for each in reading_record(result.prediction, bundle)["findings"]}
        words = " ".join(" ".join(_words(reading_pdf(result.prediction, bundle))).split())
        assert set(record) == {finding.name for finding in result.findings}
        shown = markup.findings(Shown(result.prediction), bundle.description, None)
        page = {name: (call, probability) for call, name, probability in ROW_OF_PAGE.findall(shown)}
        assert set(page) == set(record)
        for finding in result.findings:
            trained = finding.probability is not None
            assert table[f"probability_{finding.name}"] == finding.probability
            assert table[f"call_{finding.name}"] == finding.call or not trained
            told = record[finding.name]
            number = -1 if finding.probability is None else f"{finding.probability:.6f}"
            assert page[finding.name] == (finding.call.replace(" ", "-"), f"{number}")
            assert (told["probability"], told["call"]) == (finding.probability, finding.call)
            assert told["operating_point"] == finding.operating_point
            share, from_ = (
                "–" if value is None else percent(value) for value in (finding.probability, finding.operating_point)
            )
            under = words.index(f"{GROUPS[told['group']]} (")
            line = re.compile(
                rf"{re.escape(finding.title)} ({re.escape(told['reason'])}|) *{re.escape(f'{share} {from_}')}"
            )
            assert line.search(words, under), finding.title
            assert finding.sentence() in "\n".join(result.lines())


def test_a_finding_just_below_its_operating_point_does_not_look_above_it(fifty: list[Reading]) -> None:
    finding = replace(fifty[0].result.findings[0], probability=0.034, operating_point=0.0347, call="absent")
    assert finding.sentence().endswith("3.4 %, absent (called present from 3.5 %)")


@pytest.fixture(scope="module")
def hers(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every form of a reading of the canary's image."""
    path = tmp_path_factory.mktemp("canary") / "image.dcm"
    write_dicom(generate_study(3, seed=1, size=200), path)
    content = canary.film(path)
    source, prediction = Source.read(content), predictor(content)
    assert not prediction.refused
    cases = [similar_case(predictor.bundle)]
    result = Result.of(prediction, predictor.bundle, cases, when=WHEN)
    made: dict[str, Any] = dict(objects(result, predictor.bundle, source, KINDS, cases))
    made |= messages(result, source, FORMS)
    made["record"] = json.dumps(reading_record(prediction, predictor.bundle)).encode()
    made["table"] = json.dumps(row("image.dcm", prediction)).encode()
    return made


def test_hl7_has_the_patient_in_pid_the_order_in_obr_and_uids_in_their_obx(hers: dict[str, Any]) -> None:
    said = {}
    for line in hers["hl7"].decode().strip("\r").split("\r"):
        fields = line.split("|")
        for number, field in enumerate(fields):
            if canary.traces_in(field.encode()):
                said[f"{fields[0]}-{number}" + (f" {fields[3]}" if fields[0] == "OBX" else "")] = field
    assert set(said) == {
        "PID-3", "PID-5", "PID-7", "OBR-2", "OBR-3", "OBR-7", "OBR-18",
        "OBX-5 113014^DICOM Study^DCM", "OBX-5 121112^Source of Measurement^DCM",
    }  # fmt: skip
    assert canary.FAMILY.upper() in said["PID-5"] and canary.NUMBER in said["PID-3"]


def test_fhir_has_the_patient_in_identifiers_alone(hers: dict[str, Any]) -> None:
    found = {re.sub(r"\[\d+\]", "", path) for path, text in leaves(json.loads(hers["fhir"])) if is_hers(text)}
    resource = "entry.resource"
    assert found == {
        f"{resource}.subject.identifier.value", f"{resource}.subject.identifier.assigner.display",
        f"{resource}.basedOn.identifier.value", f"{resource}.imagingStudy.identifier.value",
        f"{resource}.derivedFrom.identifier.value", f"{resource}.effectiveDateTime",
    }  # fmt: skip


def is_hers(text: str) -> bool:
    return bool(canary.traces_in(text.encode()))


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{path}[{number}]")
    else:
        yield path, str(tree)


def test_objects_have_the_patient_in_the_modules_of_patient_and_study_alone(hers: dict[str, Any]) -> None:
    for kind in ("sr", "sr3d", "text", "key-image", "gsps", "pdf"):
        stream = io.BytesIO()
        hers[kind].save_as(stream, enforce_file_format=True)
        found = {at for at, element in elements(pydicom.dcmread(io.BytesIO(stream.getvalue()))) if _names(element)}
        assert "PatientName" in found and "PatientID" in found
        elsewhere = {at for at in found if at.partition(".")[0] not in PATIENT_AND_STUDY}
        assert {at for at in elsewhere if not at.endswith("InstanceUID")} == set(), kind
    assert not is_hers(hers["record"].decode()) and not is_hers(hers["table"].decode())
    document = hers["pdf"].EncapsulatedDocument[: hers["pdf"].EncapsulatedDocumentLength]
    assert not any(is_hers(page) for page in _words(document))


def elements(ds: Dataset, path: str = "") -> Iterator[tuple[str, DataElement]]:
    for element in ds:
        at = f"{path}{element.keyword or element.tag}"
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item, f"{at}.")
        else:
            yield at, element


def _names(element: DataElement) -> bool:
    return element.VR not in ("OB", "OW") and is_hers(str(element.value))


def test_a_code_is_one_code_in_all_forms() -> None:
    assert {type(code) for code in REPORT.values()} == {Code}


def test_report_writes_the_messages_too(tmp_path: Path, image_bundle: Bundle) -> None:
    from medsd.privacy import KeyedHasher
    from medsd.results.audit import AuditLog
    from tests.pacs.test_receive import medsd

    path = tmp_path / f"{canary.FAMILY}.dcm"
    write_dicom(generate_study(3, seed=1, size=200), path)
    path.write_bytes(canary.film(path))
    log, out = tmp_path / "logs" / "audit.jsonl", tmp_path / "out"
    asked = ("--out", out, "--as", "sr,hl7,fhir", "--provider", "cpu", "--audit", log, "--json")
    status, said, _ = medsd("report", image_bundle.folder, path, *asked)
    assert status == 0 and json.loads(said)["files"] == ["sr.dcm", "oru.hl7", "fhir.json"]
    assert of_hl7((out / "oru.hl7").read_bytes()) == of_fhir((out / "fhir.json").read_bytes())
    assert of_report(pydicom.dcmread(out / "sr.dcm")) == of_fhir((out / "fhir.json").read_bytes())
    assert (
        not is_hers(said) and not is_hers(log.read_text()) and not canary.traces_in(str(list(out.iterdir())).encode())
    )
    assert medsd("audit", log)[0] == 0 and AuditLog(log, KeyedHasher.from_environment()).check().lines == 1
    log.write_text(log.read_text().replace("scored", "warned"))
    status, said, _ = medsd("audit", log)
    assert status == 1 and "line 1" in said
