"""Bundles that read notes alone: the graph without pixels and evidence, what is refused, and a table of notes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from medsd.bundle import layout
from medsd.errors import BundleError, DataError
from medsd.inference.predict import Predictor
from medsd.scoring.batch import score
from medsd.scoring.request import ScoringRequest
from tests.bundles import TOKENS, WIDTH, WORDS, tiny_bundle


def graph(count: int) -> onnx.ModelProto:
    """The sum of a note's word vectors, behind a linear head."""
    rng = np.random.default_rng(0)
    weights = {"words": rng.normal(size=(len(WORDS), WIDTH)), "head": rng.normal(size=(WIDTH, count))}
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([-1], np.int64), "last"))
    initializers.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    nodes = [
        helper.make_node("Gather", ["words", "note_ids"], ["vectors"]),
        helper.make_node("Cast", ["note_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["vectors", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["note"], keepdims=0),
        helper.make_node("MatMul", ["note", "head"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
        helper.make_node("LpNormalization", ["note"], ["embedding"], axis=1, p=2),
    ]
    shapes = {"probabilities": count, "logits": count, "embedding": WIDTH}
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", TOKENS]) for name in layout.INPUTS_NOTE]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", width]) for n, width in shapes.items()]
    made = helper.make_graph(nodes, "notes", inputs, outputs, initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def bundle(tmp_path: Path) -> layout.Bundle:
    fused = tiny_bundle(tmp_path / "notes", fused=True)
    onnx.save(graph(len(fused.findings)), fused.model_path)
    alone = fused.description.model_copy(update={"name": "notes", "image": False, "evidence_grid": None})
    layout.write_description(fused.folder, alone)
    return layout.Bundle.open(fused.folder)


def test_a_note_is_read_and_a_film_beside_it_is_ignored(bundle: layout.Bundle) -> None:
    predictor = Predictor(bundle)
    alone = predictor(None, "short of breath")
    both = predictor(np.full((80, 80), 0.5, np.float32), "short of breath")
    np.testing.assert_array_equal(alone.logits, both.logits)
    assert alone.evidence_maps is None and not predictor.takes_images and predictor.takes_notes
    with pytest.raises(DataError, match="there is no image"):
        alone.evidence("Mass")


def test_a_study_without_a_note_is_refused(bundle: layout.Bundle) -> None:
    refused = Predictor(bundle)(np.full((80, 80), 0.5, np.float32), "  ")
    assert refused.refused and refused.reason == "no_note" and "Give a note" in refused.message


def test_each_note_of_a_table_is_a_row_and_films_are_refused(bundle: layout.Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("path,note\na,fever\nb,\n")
    score(ScoringRequest(bundle, [], tmp_path / "out.csv", notes=tmp_path / "notes.csv"))
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [(row["path"], row["reason"]) for row in rows] == [("a", ""), ("b", "no_note")]
    with pytest.raises(DataError, match="reads notes alone; leave the images out"):
        score(ScoringRequest(bundle, [tmp_path], tmp_path / "out.csv"))


def test_a_model_of_films_needs_films(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("path,note\na,fever\n")
    with pytest.raises(DataError, match="reads images; give files"):
        score(ScoringRequest(tiny_bundle(tmp_path / "films"), [], tmp_path / "out.csv", notes=tmp_path / "notes.csv"))


def test_a_description_that_its_graph_belies_is_refused(bundle: layout.Bundle, tmp_path: Path) -> None:
    fused = tiny_bundle(tmp_path / "fused", fused=True)
    alone = fused.description.model_copy(update={"image": False, "evidence_grid": None})
    layout.write_description(fused.folder, alone)
    with pytest.raises(BundleError, match="inputs are pixels"):
        Predictor(fused.folder)
    with pytest.raises(ValidationError, match="evidence_grid belongs to a model of images"):
        layout.Description.model_validate({**bundle.description.model_dump(), "image": True})
