"""The graph's tail: new probabilities, and nothing else changed, whatever the calibration and however often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.calibration.fit import calibrated
from medsd.calibration.types import Calibration, IsotonicCalibration, PlattCalibration
from medsd.errors import BundleError
from medsd.export.tail import compare_graphs, exchange_tail
from tests.bundles import SIZE, tiny_bundle

PLATT = PlattCalibration(slope=0.7, intercept=-1.2)
CURVE = IsotonicCalibration(knots=(-1.0, 0.0, 0.5), log_odds=(-2.0, -1.5, 1.0), slope=0.8)


def outputs(path: Path) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    pixels = np.random.default_rng(0).random((3, 1, SIZE, SIZE), dtype=np.float32)
    return dict(zip(names, session.run(names, {"pixels": pixels}), strict=True))


def mixed(bundle: Bundle) -> dict[str, Calibration]:
    return {name: CURVE if i % 2 else PLATT for i, name in enumerate(bundle.findings)}


def test_only_the_probabilities_change_and_they_are_those_of_the_calibration(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    exchange_tail(bundle, tmp_path / "new.onnx", mixed(bundle), version="1.1")
    old, new = outputs(bundle.model_path), outputs(tmp_path / "new.onnx")
    for name in set(old) - {"probabilities"}:
        np.testing.assert_allclose(new[name], old[name], atol=1e-6)
    expected = calibrated(new["logits"], mixed(bundle), bundle.findings.names)
    np.testing.assert_allclose(new["probabilities"], expected, atol=1e-5)
    assert np.abs(new["probabilities"] - old["probabilities"]).max() > 0.05
    assert all(value <= 1e-5 for value in compare_graphs(bundle, tmp_path / "new.onnx", mixed(bundle))[0].values())


def test_a_graph_can_be_recalibrated_again_and_keeps_nothing_of_the_first_time(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    once, twice = tmp_path / "once", tmp_path / "twice.onnx"
    once.mkdir()
    exchange_tail(bundle, once / layout.MODEL, mixed(bundle), version="1.1")
    platt = dict.fromkeys(bundle.findings.names, PLATT)
    exchange_tail(replace(bundle, folder=once), twice, platt, version="1.2")
    made = outputs(twice)
    np.testing.assert_allclose(
        made["probabilities"], calibrated(made["logits"], platt, bundle.findings.names), atol=1e-5
    )
    graph = onnx.load(twice).graph
    assert len(graph.node) == len(onnx.load(bundle.model_path).graph.node) + 2
    assert sum("recalibrated" in constant.name for constant in graph.initializer) == 2


def test_a_graph_that_says_something_else_is_refused(tmp_path: Path) -> None:
    bundle, other = tiny_bundle(tmp_path / "b"), tiny_bundle(tmp_path / "c", seed=1)
    with pytest.raises(BundleError, match="only probabilities may"):
        compare_graphs(bundle, other.model_path, bundle.description.calibration)
    with pytest.raises(BundleError, match="differ from the new calibration"):
        compare_graphs(bundle, bundle.model_path, mixed(bundle))


def test_a_fused_graph_keeps_its_notes(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", fused=True)
    exchange_tail(bundle, tmp_path / "new.onnx", mixed(bundle), version="2")
    differences, readings = compare_graphs(bundle, tmp_path / "new.onnx", mixed(bundle))
    assert readings > 1 and max(differences.values()) <= 1e-5
