"""Export: the graph says what PyTorch says, describes itself, and is refused when it does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from medsd.bundle import layout
from medsd.calibration.fit import calibrated
from medsd.calibration.types import Calibration, IsotonicCalibration, PlattCalibration
from medsd.errors import BundleError
from medsd.export.onnx import ServingModel, export_onnx
from medsd.export.parity import check_parity
from medsd.findings import finding_set
from medsd.inference.providers import cuda_driver_present
from medsd.networks.fusion import StudyModel
from medsd.settings import ImageSettings, NetworkSettings

SIZE, COUNT = 32, 9
FINDINGS = finding_set("phantom8")


CALIBRATION: dict[str, Calibration] = {
    name: PlattCalibration(slope=1 + 0.1 * number, intercept=-0.2 * number) for number, name in enumerate(FINDINGS)
}
CALIBRATION[FINDINGS.names[2]] = IsotonicCalibration(
    knots=(-1.0, 0.0, 0.3, 2.0), log_odds=(-3.0, -1.0, 0.5, 0.6), slope=0.8
)


@pytest.fixture(scope="module")
def serving() -> ServingModel:
    torch.manual_seed(0)
    settings = NetworkSettings(image=ImageSettings(backbone="densenet-small"), embedding=16)
    return ServingModel(StudyModel(settings, len(FINDINGS), SIZE), FINDINGS, CALIBRATION).eval()


@pytest.fixture(scope="module")
def graph(serving: ServingModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(serving, path, size=SIZE, max_tokens=0, metadata={"findings": list(FINDINGS)})
    return path


@pytest.fixture(scope="module")
def feed() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    # Films that differ in more than noise, so that the findings of one cannot stand for those of another.
    films = rng.random((COUNT, 1, 4, 4), dtype=np.float32).repeat(SIZE // 4, axis=2).repeat(SIZE // 4, axis=3)
    return {"pixels": films}


LABELS = np.random.default_rng(1).integers(0, 2, (COUNT, len(FINDINGS))).astype(np.float32)


def test_the_graph_agrees_with_pytorch_at_every_batch_size(
    serving: ServingModel, graph: Path, feed: dict[str, np.ndarray]
) -> None:
    report = check_parity(serving, graph, feed, LABELS)
    assert set(report["largest_difference"]) == {"1", "2", "7", "32"}
    assert max(max(v.values()) for v in report["largest_difference"].values()) < 1e-5
    assert report["macro_auroc"]["pytorch"] == report["macro_auroc"]["onnxruntime"]


def test_the_graph_calibrates_as_the_evaluation_does(serving: ServingModel, graph: Path) -> None:
    rng = np.random.default_rng(3)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    films = rng.random((8, 1, SIZE, SIZE), dtype=np.float32) * rng.uniform(0, 4, (8, 1, 1, 1)).astype(np.float32)
    probabilities, logits = session.run(["probabilities", "logits"], {"pixels": films})
    np.testing.assert_allclose(probabilities, calibrated(logits, CALIBRATION, FINDINGS.names), atol=1e-5)


def test_the_graph_describes_itself(graph: Path) -> None:
    model = onnx.load(graph)
    assert [value.name for value in model.graph.input] == list(layout.INPUTS_IMAGE)
    assert [value.name for value in model.graph.output] == list(layout.OUTPUTS)
    properties = {
        entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key.startswith("medsd.")
    }
    assert properties["medsd.findings"] == list(FINDINGS)


def test_the_graph_names_no_folder_of_the_machine(graph: Path) -> None:
    content = graph.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content and b".py" not in content


def test_a_graph_with_two_findings_swapped_is_refused(
    serving: ServingModel, feed: dict[str, np.ndarray], tmp_path: Path, graph: Path
) -> None:
    model = onnx.load(graph)
    for initializer in model.graph.initializer:
        if initializer.name.endswith("classifier.bias"):
            values = onnx.numpy_helper.to_array(initializer).copy()
            values[[0, 1]] = values[[1, 0]]
            initializer.CopyFrom(onnx.numpy_helper.from_array(values, initializer.name))
    onnx.save(model, tmp_path / "swapped.onnx")
    with pytest.raises(BundleError, match=r"swapped\.onnx: an output differs from PyTorch's"):
        check_parity(serving, tmp_path / "swapped.onnx", feed, LABELS)


def test_a_graph_that_is_right_for_one_study_alone_is_refused(
    serving: ServingModel, feed: dict[str, np.ndarray], tmp_path: Path, graph: Path
) -> None:
    model = onnx.load(graph)
    for node in model.graph.node:  # the evidence of the first study for all
        node.output[:] = ["every" if name == "evidence" else name for name in node.output]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    model.graph.node.extend(
        [
            onnx.helper.make_node("Gather", ["every", "first"], ["one"], axis=0),
            onnx.helper.make_node("Sub", ["every", "every"], ["nothing"]),
            onnx.helper.make_node("Add", ["nothing", "one"], ["evidence"]),
        ]
    )
    onnx.save(model, tmp_path / "first.onnx")
    with pytest.raises(BundleError, match=r"first\.onnx: an output differs from PyTorch's"):
        check_parity(serving, tmp_path / "first.onnx", feed, LABELS)


def test_metrics_of_both_sides_are_told(serving: ServingModel, graph: Path, feed: dict[str, np.ndarray]) -> None:
    report = check_parity(serving, graph, feed, LABELS, providers=["CPUExecutionProvider"])
    for metric in ("macro_auroc", "macro_average_precision", "mean_brier"):
        assert report[metric]["pytorch"] == pytest.approx(report[metric]["onnxruntime"], abs=1e-4)
    assert all(report["within_tolerance_unscaled"].values())
    assert report["further_providers"] == {}


def test_a_provider_that_does_not_start_is_no_silent_cpu(
    serving: ServingModel, graph: Path, feed: dict[str, np.ndarray]
) -> None:
    if cuda_driver_present():
        pytest.skip("here the GPU works")
    with pytest.raises(BundleError, match="CUDAExecutionProvider is on this machine, but does not start"):
        check_parity(serving, graph, feed, LABELS, providers=["CUDAExecutionProvider"])
