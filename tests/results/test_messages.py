"""Messages of HL7 and FHIR: valid by their libraries, invalid without a required code, not to be broken by a name."""

import json
import shutil
import subprocess
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("highdicom", reason="the extra pacs is not installed")
pytest.importorskip("hl7apy", reason="the extra pacs is not installed")
pytest.importorskip("fhir.resources", reason="the extra pacs is not installed")

from fhir.resources.R4B.bundle import Bundle
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.exceptions import ValidationError as HL7Error
from hl7apy.parser import parse_message
from pydantic import ValidationError
from pydicom.errors import BytesLengthException

from medsd.errors import DataError
from medsd.results import fhir, hl7
from medsd.results.source import Source
from tests.conftest import file_bytes
from tests.results.varied import HEADERS, Reading, radiograph


def segments(message: bytes, name: str) -> list[list[str]]:
    """The fields of each segment of a name, its name first."""
    return [line.split("|") for line in message.decode().split("\r") if line.startswith(f"{name}|")]


def strictly(message: bytes) -> Any:
    return parse_message(message.decode().rstrip("\r"), validation_level=VALIDATION_LEVEL.STRICT, find_groups=True)


def test_hl7_is_valid_wherever_the_image_names_a_patient(fifty: list[Reading], messages: dict[int, bytes]) -> None:
    assert set(messages) == {n for n in range(0, 50, 3) if fifty[n].source.header.PatientID}
    for message in list(messages.values())[::2]:
        assert strictly(message).validate()


def test_hl7_without_a_required_code_is_not_valid(messages: dict[int, bytes]) -> None:
    for segment, field in (("OBX", 3), ("OBR", 4), ("PID", 3), ("PID", 5), ("OBX", 11)):
        lines = messages[0].decode().split("\r")
        at = next(number for number, line in enumerate(lines) if line.startswith(segment))
        fields = lines[at].split("|")
        fields[field] = ""
        lines[at] = "|".join(fields)
        with pytest.raises(HL7Error, match=f"{segment}.{segment}_{field}"):
            strictly("\r".join(lines).encode()).validate()


def test_hl7_spells_the_name_in_each_of_its_scripts(messages: dict[int, bytes]) -> None:
    names = {number: segments(messages[number], "PID")[0][5] for number in messages}
    assert (HEADERS[2]["PatientName"], names[12]) == ("Müller^Jörg", "Müller^Jörg^^^^^L^A")
    assert names[21] == "Yamada^Tarou^^^^^L^A~山田^太郎^^^^^L^I~やまだ^たろう^^^^^L^P"


def test_a_hostile_header_stays_in_its_field(fifty: list[Reading], chest) -> None:  # type: ignore[no-untyped-def]
    evil = "Evil|x&y~z\rOBX|99|ST|A"
    header = radiograph(chest)
    header.PatientName, header.PatientID, header.AccessionNumber = evil, evil, "\x0b1\x1c\ud800\r2"
    message = hl7.message(fifty[0].result, Source.of(header))
    assert message is not None
    assert message.count(b"\r") == len(message.splitlines()) and b"OBX|99" not in message
    parsed = strictly(message)
    assert parsed.validate()
    assert segments(message, "PID")[0][3] == "Evil\\F\\x\\T\\y\\R\\z OBX\\F\\99\\F\\ST\\F\\A^^^^PI"
    assert segments(message, "OBR")[0][18] == "1   2"
    told = json.loads(fhir.document(fifty[0].result, Source.of(header)))
    assert told["entry"][-1]["resource"]["subject"]["identifier"]["value"] == evil.replace("\r", " ")


def test_unknown_names_dates_and_sexes_are_left_open(fifty: list[Reading], chest) -> None:  # type: ignore[no-untyped-def]
    odd = {"PatientName": "", "PatientSex": "X", "PatientBirthDate": "19470231", "StudyTime": "1015"}
    message = hl7.message(fifty[0].result, Source.of(radiograph(chest, **odd)))
    assert message is not None
    [pid], [order] = segments(message, "PID"), segments(message, "OBR")
    assert (pid[5], pid[7], pid[8], order[7]) == ("^^^^^^U", "", "U", "20260504")
    zoned = Source.of(radiograph(chest, TimezoneOffsetFromUTC="+0530"))
    message = hl7.message(fifty[0].result, zoned)
    assert message is not None and segments(message, "OBR")[0][7] == "20260504101500+0530"
    report = json.loads(fhir.document(fifty[0].result, zoned))["entry"][-1]["resource"]
    assert report["effectiveDateTime"] == "2026-05-04T10:15:00+05:30"


def test_fhir_is_valid_and_the_same_reading_is_the_same_transaction(fifty: list[Reading]) -> None:
    for reading in fifty:
        document = fhir.document(reading.result, reading.source)
        bundle = Bundle.model_validate_json(document)
        assert bundle.type == "transaction" and document == fhir.document(reading.result, reading.source)
        device, *observations, report = [entry["resource"] for entry in json.loads(document)["entry"]]
        urls = [entry["fullUrl"] for entry in json.loads(document)["entry"]]
        assert [each["reference"] for each in report["result"]] == urls[1:-1] and len(set(urls)) == len(urls)
        assert {each["device"]["reference"] for each in observations} == {urls[0]}
        assert {each["status"] for each in [*observations, report]} == {"preliminary"}
        assert all("Not for diagnosis" in json.dumps(each) for each in (device, *observations, report))


def test_fhir_without_a_required_code_is_not_valid(fifty: list[Reading]) -> None:
    whole = json.loads(fhir.document(fifty[0].result, fifty[0].source))
    for entry, key in ((1, "code"), (1, "status"), (-1, "code"), (-1, "status")):
        damaged = deepcopy(whole)
        del damaged["entry"][entry]["resource"][key]
        with pytest.raises(ValidationError, match=key):
            Bundle.model_validate(damaged)
    damaged = deepcopy(whole)
    del damaged["entry"][1]["resource"]["component"][0]["code"]
    with pytest.raises(ValidationError, match="code"):
        Bundle.model_validate(damaged)


@pytest.fixture
def node_fhir(tmp_path: Path) -> Callable[[object], bool]:
    """The validator of the package fhir of npm, which knows FHIR R4 itself."""
    if not shutil.which("node") or subprocess.run(["node", "-e", "require('fhir')"], capture_output=True).returncode:
        pytest.skip("npm's fhir is not installed: npm install fhir, and NODE_PATH where it is not global")

    def valid(tree: object) -> bool:
        path = tmp_path / "tree.json"
        path.write_text(json.dumps(tree))
        script = "const {Fhir} = require('fhir'), tree = JSON.parse(require('fs').readFileSync(process.argv[1]));"
        script += "process.exit(new Fhir().validate(tree, {errorOnUnexpected: true}).valid ? 0 : 3);"
        status = subprocess.run(["node", "-e", script, str(path)], capture_output=True).returncode
        assert status in (0, 3)
        return status == 0

    return valid


def test_npm_finds_fhir_r4_valid_and_invalid_without_a_code(fifty: list[Reading], node_fhir) -> None:  # type: ignore[no-untyped-def]
    for reading in fifty[::9]:
        assert node_fhir(json.loads(fhir.document(reading.result, reading.source)))
    damaged = json.loads(fhir.document(fifty[0].result, fifty[0].source))
    del damaged["entry"][1]["resource"]["code"]
    assert not node_fhir(damaged)


def test_what_fhir_cannot_carry_is_said_without_a_name(fifty: list[Reading], chest) -> None:  # type: ignore[no-untyped-def]
    spaced = Source.of(radiograph(chest, PatientID="12\u3000 34\u00a05", AccessionNumber="\u2003"))
    report = json.loads(fhir.document(fifty[0].result, spaced))["entry"][-1]["resource"]
    assert report["subject"]["identifier"]["value"] == "12 34 5" and "basedOn" not in report
    hers = Source.of(radiograph(chest, PatientID="Canaryson"))
    with pytest.raises(DataError, match="does not go into FHIR") as caught:
        fhir.document(replace(fifty[0].result, disclaimer="\u00a0"), hers)
    assert "Canaryson" not in str(caught.value) and caught.value.__suppress_context__


def test_a_refused_image_has_its_reason_in_both(fifty: list[Reading], messages: dict[int, bytes]) -> None:
    number = next(n for n in messages if fifty[n].result.refused)
    values = [fields[3] + " " + fields[5] for fields in segments(messages[number], "OBX")]
    assert any(value.startswith("status^Status of the reading^99MEDSD flat^flat^99MEDSD") for value in values)
    assert any("Not read: " in value for value in values)
    [_, observation, report] = json.loads(fhir.document(fifty[number].result, fifty[number].source))["entry"]
    assert observation["resource"]["valueCodeableConcept"]["text"] == "flat"
    assert report["resource"]["conclusion"].startswith("Not read: ")


def test_small_numbers_have_no_exponent(fifty: list[Reading]) -> None:
    result = fifty[0].result
    tiny = replace(result, findings=(replace(result.findings[0], probability=1e-06), *result.findings[1:]))
    message = hl7.message(tiny, fifty[0].source)
    assert message is not None
    assert "0.000001" in [fields[5] for fields in segments(message, "OBX")]


def test_an_odd_element_that_no_form_needs_stops_none(fifty: list[Reading], chest) -> None:  # type: ignore[no-untyped-def]
    header = radiograph(chest)
    header.add_new("AcquisitionDuration", "LO", "long")
    odd = file_bytes(header).replace(b"\x18\x00\x73\x90LO", b"\x18\x00\x73\x90FD")  # which has eight bytes
    source = Source.read(odd)
    with pytest.raises(BytesLengthException):
        source.header.AcquisitionDuration  # noqa: B018
    assert replace(fifty[0], source=source).report()
    assert hl7.message(fifty[0].result, source) and fhir.document(fifty[0].result, source)
