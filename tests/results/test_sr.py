"""Structured reports: valid by dciodvfy, readable by dcmtk and highdicom, in the patient's own study."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from copy import deepcopy

import pydicom
import pytest
from pydicom import Dataset

from medsd.errors import DataError
from medsd.findings import Finding
from medsd.results import sr
from medsd.results.codes import CALLS, finding_code, plain, private
from medsd.results.source import Source
from tests.results.conftest import Check
from tests.results.read_back import findings_of
from tests.results.varied import Reading, radiograph

COPIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "AccessionNumber", "StudyID",
    "StudyDate", "ReferringPhysicianName", "PatientSize", "StudyDescription", "SpecificCharacterSet",
)  # fmt: skip


def reread(document: Dataset) -> Dataset:
    stream = io.BytesIO()
    document.save_as(stream, enforce_file_format=True)
    return pydicom.dcmread(io.BytesIO(stream.getvalue()))


@pytest.fixture(params=["some", pytest.param("all", marks=pytest.mark.bench)])
def some(request: pytest.FixtureRequest, fifty: list[Reading]) -> list[Reading]:
    """Every third of the fifty, which has each kind of reading and each header; `make bench` takes all."""
    return fifty[::3] if request.param == "some" else fifty


@pytest.mark.parametrize("kind", ["sr", "sr3d", "text"])
def test_fifty_reports_have_no_errors(
    fifty: list[Reading], some: list[Reading], dciodvfy: Check, kind: sr.Kind
) -> None:
    readings = some if kind == "sr3d" else fifty  # sr3d has but other coordinates than sr
    found = [dciodvfy(reading.report(kind)) for reading in readings]
    assert found == [[]] * len(found)


def test_a_planted_fault_is_caught(fifty: list[Reading], dciodvfy: Check) -> None:
    document = deepcopy(fifty[0].report())
    del document.CompletionFlag
    assert dciodvfy(document)
    document = deepcopy(fifty[0].report())
    document.ContentSequence[-1].RelationshipType = "INFERRED FROM"
    document.VerificationFlag = "PERHAPS"
    assert dciodvfy(document)


@pytest.mark.parametrize("kind", ["sr", "sr3d"])
def test_highdicom_reads_every_finding_back_to_the_last_digit(some: list[Reading], kind: sr.Kind) -> None:
    for reading in some:
        wanted = {
            (finding.code.scheme_designator, finding.code.value): (finding.probability, CALLS[finding.call].meaning)
            for finding in reading.result.findings
        }
        assert findings_of(reread(reading.report(kind))) == wanted


def test_dcmtk_shows_every_finding_to_the_last_digit(some: list[Reading], dsr2html: Callable[[Dataset], str]) -> None:
    for reading in some:
        page = dsr2html(reading.report())
        for finding in reading.result.findings:
            assert plain(finding.title) in page
            assert finding.probability is None or f"{finding.probability}" in page
        assert "Not for diagnosis" in page


def test_patient_and_study_are_those_of_the_image(fifty: list[Reading]) -> None:
    for reading in fifty:
        image, report = pydicom.dcmread(io.BytesIO(reading.content)), reread(reading.report())
        for keyword in COPIED:
            assert report.get(keyword) == image.get(keyword) or not (report.get(keyword) or image.get(keyword)), keyword
        assert report.SeriesInstanceUID != image.SeriesInstanceUID


def test_a_report_is_unverified_complete_and_names_the_model(fifty: list[Reading]) -> None:
    for kind in ("sr", "text"):
        reading = fifty[0]
        report = reading.report(kind)  # type: ignore[arg-type]
        assert (report.VerificationFlag, report.CompletionFlag) == ("UNVERIFIED", "COMPLETE")
        assert reading.result.model_sha256 in reread(report).to_json()


def test_the_region_lies_in_the_image_around_the_evidence(fifty: list[Reading]) -> None:
    reading = fifty[0]
    assert reading.result.present
    for finding in reading.result.present:
        assert finding.region is not None
        low, high = finding.region.min(axis=0), finding.region.max(axis=0)
        evidence = reading.result.prediction.evidence(finding.name)
        row, column = divmod(int(evidence.argmax()), evidence.shape[1])
        assert (low - 1 <= (column, row)).all() and ((column, row) <= high + 1).all()
        assert (low >= 0).all() and (high <= (80, 96)).all()
        assert (finding.region[0] == finding.region[-1]).all()
    assert str(reading.report()).count("'SCOORD'") == len(reading.result.present)


def test_similar_cases_carry_no_identifier(fifty: list[Reading]) -> None:
    reading = next(each for each in fifty if each.result.cases)
    for kind in ("sr", "text"):
        text = reread(reading.report(kind)).to_json()  # type: ignore[arg-type]
        assert "CANARY" not in text
        assert "0.9124" in text or "0.91" in text
        assert "Partly shared" in text


def test_reading_again_names_its_predecessor_and_the_same_reading_is_the_same_object(fifty: list[Reading]) -> None:
    reading = fifty[0]
    first, again = (sr.report(reading.result, reading.source) for _ in range(2))
    assert first.SOPInstanceUID == again.SOPInstanceUID
    second = sr.report(fifty[2].result, reading.source, "sr3d", previous=[first])
    item = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert item.ReferencedSOPInstanceUID == first.SOPInstanceUID


def test_a_refused_image_has_a_reason_and_no_findings(fifty: list[Reading]) -> None:
    refused = [reading for reading in fifty if reading.result.refused]
    assert refused
    for reading in refused:
        assert findings_of(reread(reading.report())) == {}
        assert plain(reading.result.message)[:40] in reread(reading.report()).to_json()


def test_codes_are_snomed_then_radlex_then_private() -> None:
    assert finding_code(Finding("a", "A", "1", "RID2"))[:2] == ("1", "SCT")
    assert finding_code(Finding("a", "A", "", "RID2"))[:2] == ("RID2", "RADLEX")
    assert finding_code(Finding("Other lesion", "Other lesion"))[:2] == ("other-lesion", "99MEDSD")
    names = ["Enlarged Cardiomediastinum", "Enlarged Cardiomediastinum 2", "肺", "–"]
    values = [private(name, "x").value for name in names]
    assert len(set(values)) == 4 and all(re.fullmatch(r"[a-z0-9.-]{1,16}", value) for value in values)


def test_no_letter_is_lost_without_a_sign() -> None:
    assert (plain("Pleuraerguß links – groß"), plain("Épanchement"), plain("肺 left")) == (
        "Pleuraerguss links - gross", "Epanchement", "? left"
    )  # fmt: skip
    assert finding_code(Finding("x", "肺炎", "233604007")).meaning == "??"


def test_an_image_without_identifiers_has_no_results(chest) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="StudyInstanceUID"):
        Source.of(radiograph(chest, StudyInstanceUID=None))
    with pytest.raises(DataError, match="DICOM file"):
        Source.read(b"\x89PNG\r\n\x1a\n" + bytes(200))


def test_a_source_shows_nobody_in_a_traceback(fifty: list[Reading]) -> None:
    assert "Phantom" not in repr(fifty[1]) and "PH-0042" not in repr(fifty[1])
