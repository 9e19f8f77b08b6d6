"""`POST /v1/predictions`: what it says is what the table says, whoever else asks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import numpy.typing as npt
import pytest

from medsd.bundle.layout import Bundle
from medsd.cases.index import CaseIndex
from medsd.cases.manage import hasher_of
from medsd.dicom.gate import GatePolicy
from medsd.inference.predict import Predictor
from medsd.inference.prediction import Prediction
from medsd.preprocessing.decode import Decoder
from medsd.rest.bodies import IMAGE_TYPES
from medsd.results.record import reading_record
from medsd.scoring.batch import score
from medsd.scoring.request import ScoringRequest
from tests.conftest import dx_dataset, file_bytes
from tests.rest.conftest import BATCH, Running


def numbers(record: dict[str, Any]) -> dict[str, Any]:
    """What the table has of a record, under the table's names."""
    found = {f"probability_{each['name']}": each["probability"] for each in record["findings"]}
    calls = {f"call_{each['name']}": each["call"] for each in record["findings"]}
    return found | calls | {name: record[name] for name in ("status", "reason", "study_key", "out_of_distribution")}


def test_many_clients_get_the_rows_of_the_table_each_its_own(
    server: Running, bundle: Bundle, images: Sequence[Path], tmp_path: Path
) -> None:
    score(ScoringRequest(bundle.folder, images, tmp_path / "table.jsonl", batch_size=BATCH, provider="cpu"))
    rows = {Path(row["path"]): row for row in map(json.loads, (tmp_path / "table.jsonl").open(encoding="utf-8"))}
    runs = _metric(server, "medsd_rest_batch_count")
    asked = [*images, *reversed(images)] * 2
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda path: server.predict(path.read_bytes()), asked))
    assert {answer.status_code for answer in answers} == {200}
    for path, answer in zip(asked, answers, strict=True):
        said = numbers(answer.json())
        assert said == {name: rows[path][name] for name in said}
    assert len({answer.json()["findings"][0]["probability"] for answer in answers}) == len(images)
    assert len(asked) / BATCH <= _metric(server, "medsd_rest_batch_count") - runs < len(asked)  # several in one run


def _metric(server: Running, name: str) -> float:
    with server.client() as client:
        [line] = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def test_what_the_gate_refuses_is_an_answer_with_its_words(
    server: Running, bundle: Bundle, chest: npt.NDArray[np.float64]
) -> None:
    lateral = file_bytes(dx_dataset((chest * 4095).astype(np.uint16), 12, ViewPosition="LL"))
    cases = ((lateral, "view"), (b"no image at all", "not_dicom"), (b"", "not_dicom"), (None, "no_image"))
    for content, reason in cases:
        answer, expected = server.predict(content, k=0), _alone(bundle, content)
        record = answer.json()
        assert (answer.status_code, record["status"], record["reason"]) == (200, "refused", reason)
        assert record["message"] == expected.message and record["findings"] == [] and not record["impression"]


def test_similar_cases_and_votes_are_those_of_the_index(
    server: Running, bundle: Bundle, images: Sequence[Path]
) -> None:
    record = server.predict(images[0].read_bytes(), k=3).json()
    index = CaseIndex.open(bundle.cases_path, model_sha256=bundle.model_sha256)
    prediction = _alone(bundle, images[0])
    expected = reading_record(prediction, bundle, index.similar(prediction, 3), index.vote(prediction))
    assert [(case["study_key"], case["relation"], case["sentence"]) for case in record["cases"]] == [
        (case["study_key"], case["relation"], case["sentence"]) for case in expected["cases"]
    ]
    assert len(record["cases"]) == 3 and record["impression"] == expected["impression"]
    assert [vote["share_call"] for vote in record["votes"]] == [vote["share_call"] for vote in expected["votes"]]
    assert not any("note_excerpt" in case for case in record["cases"])


def _alone(bundle: Bundle, source: Path | bytes | None) -> Prediction:
    decode = Decoder(bundle.description.pixels, GatePolicy(), hasher_of(bundle))
    return Predictor(bundle, provider="cpu", decode=decode)(source)


def test_an_image_as_the_whole_body_gets_what_it_gets_in_a_form(server: Running, images: Sequence[Path]) -> None:
    content = images[0].read_bytes()
    with server.client() as client:
        asked = {"content": content, "headers": {"content-type": "application/dicom"}}
        alone = [client.post("/v1/predictions", **asked), client.post("/v1/predictions?k=2&coverage=0.9", **asked)]
        nothing = client.post("/v1/predictions", headers={"content-type": "image/png"})
    forms = [server.predict(content), server.predict(content, k=2, coverage=0.9)]
    for left, right in zip(alone, forms, strict=True):
        assert left.status_code == 200 and left.json() | {"read": ""} == right.json() | {"read": ""}
    assert (nothing.status_code, nothing.json()["reason"]) == (200, "not_dicom")


def test_a_coverage_makes_the_calls_conformal(server: Running, images: Sequence[Path]) -> None:
    usual = server.predict(images[0].read_bytes()).json()
    covered = server.predict(images[0].read_bytes(), coverage=0.9).json()
    assert (usual["coverage"], covered["coverage"]) == (None, 0.9)
    assert all(each["conformal_set"] and each["operating_point"] is None for each in covered["findings"])
    assert [each["probability"] for each in usual["findings"]] == [each["probability"] for each in covered["findings"]]


def test_a_note_counts_beside_an_image_and_alone_and_is_not_said_again(server: Running, images: Sequence[Path]) -> None:
    content, note = images[0].read_bytes(), "short of breath, known heart failure"
    silent, noted, alone = server.predict(content), server.predict(content, note=note), server.predict(note=note)
    values = {answer.json()["findings"][0]["probability"] for answer in (silent, noted, alone)}
    assert len(values) == 3 and alone.json()["status"] == "scored"
    assert "breath" not in noted.text and "THORA" not in noted.text


def test_the_answers_are_as_the_description_says(server: Running, images: Sequence[Path]) -> None:
    with server.client() as client:
        described = client.get("/openapi.json").json()
    operation = described["paths"]["/v1/predictions"]["post"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ReadingRecord"}
    known = _closed(described["components"]["schemas"])
    fields = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(fields) == {"file", "note", "k", "coverage"}
    assert {(each["in"], each["name"]) for each in operation["parameters"]} == {("query", "k"), ("query", "coverage")}
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", *IMAGE_TYPES}
    answers = [server.predict(images[0].read_bytes(), k=2, coverage=0.9), server.predict(images[1].read_bytes())]
    for answer in (*answers, server.predict(b"nothing")):
        jsonschema.validate(answer.json(), {**schema, "components": {"schemas": known}})
    wrong = answers[0].json() | {"patient": "PHANTOM^THORA"}
    with pytest.raises(jsonschema.ValidationError, match="patient"):
        jsonschema.validate(wrong, {**schema, "components": {"schemas": known}})
    assert not [ref for ref in _references(described) if ref.rpartition("/")[2] not in known]


def _closed(schemas: dict[str, Any]) -> dict[str, Any]:
    """The schemas, with no keys but those that they name."""
    return {name: {**schema, "additionalProperties": False} for name, schema in schemas.items()}


def _references(tree: Any) -> list[str]:
    if isinstance(tree, dict):
        own = [tree["$ref"]] if "$ref" in tree else []
        return own + [ref for value in tree.values() for ref in _references(value)]
    return [ref for value in tree for ref in _references(value)] if isinstance(tree, list) else []


def test_a_run_that_fails_costs_its_requests_and_no_others(
    server: Running, images: Sequence[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(server.engine, "_record", lambda *_: 1 / 0)
        failed: httpx.Response = server.predict(images[0].read_bytes())
    assert failed.status_code == 500
    assert failed.json() == {"error": "The server failed at this request; its log says where."}
    assert "ZeroDivisionError in test_predictions.py" in caplog.text and "by zero" not in caplog.text
    assert server.predict(images[0].read_bytes()).status_code == 200
