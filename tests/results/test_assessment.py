"""Assessments: what readers say of a result, as a report on it, to an archive and back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from medsd.apps import assessments
from medsd.apps.web.feedback import STUDIES, FeedbackFolder
from medsd.bundle.layout import Bundle
from medsd.errors import DataError
from medsd.findings import FindingSet
from medsd.inference.predict import Predictor
from medsd.inference.prediction import Prediction
from medsd.privacy import KeyedHasher
from medsd.results import sr
from medsd.results.assessment import Opinion, assessment, read_assessment
from medsd.results.reporter import Reporter
from medsd.results.result import Result
from medsd.results.source import Source
from tests import canary
from tests.conftest import file_bytes
from tests.pacs.test_receive import medsd
from tests.results.conftest import Check
from tests.results.test_sr import reread
from tests.results.varied import WHEN, radiograph


@pytest.fixture(scope="module")
def reading(predictor: Predictor, chest: npt.NDArray[np.float64]) -> tuple[Result, Source]:
    content = file_bytes(radiograph(chest, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg"))
    return Result.of(predictor(content), predictor.bundle, when=WHEN), Source.read(content)


def test_verdicts() -> None:
    said = {(call, answer): Opinion("x", call, answer).verdict
            for call in ("present", "absent", "undecided", "not trained") for answer in ("present", "absent")}  # type: ignore[arg-type]  # fmt: skip
    assert {pair for pair, verdict in said.items() if verdict == "accepted"} == {("present",) * 2, ("absent",) * 2}
    assert [pair for pair, verdict in said.items() if verdict == "rejected"] == [("present", "absent")]
    assert list(said.values()).count("amended") == 5


def test_a_record_is_valid_refers_to_the_report_and_is_read_back(
    reading: tuple[Result, Source], dciodvfy: Check
) -> None:
    result, source = reading
    report = sr.report(result, source)
    first, second, third = result.prediction.findings.names[:3]
    said = [
        Opinion(first, "present", "absent", "00ff"), Opinion(first, "present", "present", "11ff"),
        Opinion(second, "undecided", "present"), Opinion(third, "absent", "absent", "00ff"),
    ]  # fmt: skip
    record = assessment(result, source, said, report)
    assert dciodvfy(record) == []
    assert (record.PatientName, record.StudyInstanceUID) == (report.PatientName, report.StudyInstanceUID)
    assert record.SeriesInstanceUID != report.SeriesInstanceUID
    again = reread(record)
    assert read_assessment(again, result.prediction.findings) == (source.bare.SOPInstanceUID, said)
    (of,) = [item.ReferencedSOPSequence[0] for item in again.ContentSequence if item.ValueType == "COMPOSITE"]
    assert of.ReferencedSOPInstanceUID == report.SOPInstanceUID
    assert _tracked(again) < _tracked(report)
    meanings = [item.ConceptCodeSequence[0].CodeMeaning for item in _items(again) if item.ValueType == "CODE"]
    assert [each for each in meanings if each in ("Accepted", "Rejected", "Amended")] == [
        "Rejected", "Accepted", "Amended", "Accepted"
    ]  # fmt: skip


def _items(document: pydicom.Dataset) -> list[pydicom.Dataset]:
    found = []
    for item in document.get("ContentSequence", []):
        found += [item, *_items(item)]
    return found


def _tracked(document: pydicom.Dataset) -> set[str]:
    return {str(item.UID) for item in _items(document) if item.ValueType == "UIDREF"}


def test_another_report_is_no_assessment(reading: tuple[Result, Source]) -> None:
    result, source = reading
    with pytest.raises(DataError, match="holds no assessment"):
        read_assessment(reread(sr.report(result, source)), result.prediction.findings)
    with pytest.raises(DataError, match="cannot be read"):
        read_assessment(pydicom.Dataset(), result.prediction.findings)
    record = assessment(result, source, [Opinion(result.findings[0].name, "absent", "absent")], source.bare)
    with pytest.raises(DataError, match="holds no assessment"):
        read_assessment(record, FindingSet("none", ()))


def test_opinions_go_from_the_app_to_an_archive_and_become_labels(
    tmp_path: Path, image_bundle: Bundle, predictor: Predictor, chest: npt.NDArray[np.float64],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MEDSD_KEY", "a key for the tests of medsd")
    film = tmp_path / "film.dcm"
    film.write_bytes(file_bytes(radiograph(chest)))
    film.write_bytes(canary.film(film, every=60))
    archive, nothing = tmp_path / "archive", tmp_path / "nothing"
    bare = ("report", image_bundle.folder, film, "--provider", "cpu", "--json")
    app = assessments.folder_of(tmp_path / "app")
    assert json.loads(medsd(*bare, "--out", nothing, "--feedback", app.root)[1])["files"] == ["sr.dcm"]
    first, second = image_bundle.findings.names[:2]
    prediction = read(image_bundle, film)
    app.add(prediction, first, "present", reader=canary.FAMILY)
    app.add(prediction, second, "absent", reader=canary.FAMILY)
    said = medsd(*bare, "--out", archive, "--feedback", app.root)
    assert json.loads(said[1])["files"] == ["sr.dcm", "assessment.dcm"]
    status, out, _ = medsd(
        "assessed", image_bundle.folder, archive, film, "--into", tmp_path / "labels", "--provider", "cpu"
    )
    assert (status, out.strip()) == (0, "2 opinions of 1 assessments")
    with (tmp_path / "labels" / STUDIES).open() as file:
        (row,) = csv.DictReader(file)
    assert (row[first], row[second]) == ("1", "0") and sum(value != "" for value in row.values()) == 4
    assert canary.traces(tmp_path / "labels") == [] and canary.traces_in(out.encode()) == set()
    assert medsd("assessed", image_bundle.folder, archive, "--into", tmp_path / "l2", "--provider", "cpu")[
        1
    ].strip() == ("0 opinions of 1 assessments; 1 without an image that can be read")


def read(bundle: Bundle, film: Path) -> Prediction:
    with Reporter(bundle.folder, provider="cpu") as reporter:
        return reporter.predict(film.read_bytes())


def test_an_assessment_needs_its_report(
    tmp_path: Path, image_bundle: Bundle, chest: npt.NDArray[np.float64], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSD_KEY", "a key for the tests of medsd")
    film = tmp_path / "film.dcm"
    film.write_bytes(file_bytes(radiograph(chest)))
    folder = FeedbackFolder(tmp_path / "app", KeyedHasher.from_environment())
    folder.add(read(image_bundle, film), image_bundle.findings.names[0], "present")
    said = medsd(
        "report", image_bundle.folder, film, "--out", tmp_path / "out", "--as", "pdf", "--feedback", folder.root
    )
    assert said[0] == 2 and "ask for --as sr" in said[2]
    assert not (tmp_path / "out").exists()
