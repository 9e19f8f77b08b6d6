"""A model of notes alone, from prepare to the bundle, its index, and a table of notes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from medsd.bundle import layout
from medsd.cases.index import CaseIndex
from medsd.errors import DataError
from medsd.inference.predict import Predictor
from medsd.pipeline.folder import Run
from medsd.pipeline.run import run_steps
from medsd.scoring.batch import score
from medsd.scoring.request import ScoringRequest
from medsd.studies.manifest import Manifest
from tests.runs import small_settings


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch_session: pytest.MonkeyPatch) -> Run:
    monkeypatch_session.setenv("MEDSD_KEY", "a key for the tests of medsd")
    return run_steps(small_settings(tmp_path_factory.mktemp("alone"), "network.image=null"))


def test_the_graph_takes_notes_alone_and_has_no_evidence(alone: Run) -> None:
    graph = onnx.load(alone.bundle / layout.MODEL).graph
    assert [value.name for value in graph.input] == list(layout.INPUTS_NOTE)
    assert [value.name for value in graph.output] == list(layout.OUTPUTS_NOTE)
    description = layout.Bundle.open(alone.bundle).description
    assert not description.image and description.evidence_grid is None and description.out_of_distribution is None


def test_studies_are_their_notes_and_no_film_is_decoded(alone: Run) -> None:
    manifest = Manifest.read(alone.manifest)
    assert not alone.pixels.exists() and manifest.table["path"].isna().all() and manifest.table["note"].notna().all()


def test_serving_gives_what_training_saw_and_refuses_a_study_without_a_note(alone: Run) -> None:
    manifest, predictor = Manifest.read(alone.manifest), Predictor(alone.bundle)
    prediction = predictor(None, manifest.table["note"].iloc[0])
    np.testing.assert_allclose(prediction.logits, load_file(alone.outputs)["logits"][0], atol=1e-4)
    assert prediction.evidence_maps is None and not predictor.takes_images
    refused = predictor(np.full((80, 80), 0.5, np.float32), " ")
    assert refused.refused and refused.reason == "no_note"


def test_a_note_finds_cases(alone: Run) -> None:
    bundle = layout.Bundle.open(alone.bundle)
    prediction = Predictor(bundle)(None, "short of breath, chest pain")
    cases = CaseIndex.open(bundle.cases_path, model_sha256=bundle.model_sha256)
    assert len(cases.similar(prediction, k=5)) == 5


def test_a_table_of_notes_is_scored_a_row_a_note(alone: Run, tmp_path: Path) -> None:
    notes = tmp_path / "notes.csv"
    notes.write_text("path,note\na,fever and cough\nb,\nc,routine check\n")
    summary = score(ScoringRequest(alone.bundle, [], tmp_path / "out.csv", notes=notes, workers=1))
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [(row["path"], row["status"], row["reason"]) for row in rows] == [
        ("a", "scored", ""), ("b", "refused", "no_note"), ("c", "scored", "")
    ]  # fmt: skip
    assert summary.scored == 2 and 0 < float(rows[0]["probability_Mass"]) < 1


def test_films_and_nothing_at_all_are_refused_in_one_line(alone: Run, finished: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="reads notes alone"):
        score(ScoringRequest(alone.bundle, [tmp_path], tmp_path / "out.csv"))
    with pytest.raises(DataError, match="there is nothing to score"):
        score(ScoringRequest(finished.bundle, [], tmp_path / "out.csv"))


def test_a_fused_bundle_reads_a_table_of_notes_too(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("path,note\na,fever and cough\n")
    assert (
        score(ScoringRequest(finished.bundle, [], tmp_path / "out.csv", notes=tmp_path / "notes.csv", workers=1)).scored
        == 1
    )
