"""Graphs of fewer bits: what they are made of, what they cost, and what is not published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from medsd.bundle import layout
from medsd.calibration.types import PlattCalibration
from medsd.errors import BundleError
from medsd.export.onnx import ServingModel, export_onnx
from medsd.export.parity import check_variant, torch_outputs
from medsd.export.quantise import write_float16, write_int8
from medsd.findings import finding_set
from medsd.networks.fusion import StudyModel
from medsd.settings import ImageSettings, NetworkSettings
from tests.bundles import tiny_bundle

SIZE, COUNT = 64, 24
FINDINGS = finding_set("phantom8")
RNG = np.random.default_rng(0)
FILMS = RNG.random((COUNT, 1, 8, 8), dtype=np.float32).repeat(SIZE // 8, axis=2).repeat(SIZE // 8, axis=3)


@pytest.fixture(scope="module")
def serving() -> ServingModel:
    torch.manual_seed(0)
    settings = NetworkSettings(image=ImageSettings(backbone="efficientnet-lite0"), embedding=16)
    calibration = {name: PlattCalibration(slope=1.3, intercept=-0.2) for name in FINDINGS}
    serving = ServingModel(StudyModel(settings, len(FINDINGS), SIZE), FINDINGS, calibration)
    # Random weights alone tell no film from another: with statistics of the films, signals keep their size.
    for module in serving.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        serving.train()(torch.from_numpy(FILMS))
        serving.model.classifier.weight *= 10
    return serving.eval()


@pytest.fixture(scope="module")
def expected(serving: ServingModel) -> dict[str, np.ndarray]:
    """What PyTorch says of the films."""
    return torch_outputs(serving, {"pixels": FILMS})


@pytest.fixture(scope="module")
def labels(expected: dict[str, np.ndarray]) -> np.ndarray:
    """Present in the third of the films that PyTorch is surest of, absent in the last third, else unknown."""
    ranks = expected["logits"].argsort(0).argsort(0)
    return np.select([ranks >= 2 * COUNT // 3, ranks < COUNT // 3], [1, 0], np.nan).astype(np.float32)


@pytest.fixture(scope="module")
def graphs(serving: ServingModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    paths = {precision: folder / name for precision, name in layout.GRAPHS.items()}
    export_onnx(serving, paths["float32"], size=SIZE, max_tokens=0, metadata={"findings": list(FINDINGS)})
    write_float16(paths["float32"], paths["float16"])
    write_int8(paths["float32"], paths["int8"], {"pixels": FILMS})
    return paths


def _kinds(path: Path) -> dict[str, str]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return {entry.name: entry.type for entry in (*session.get_inputs(), *session.get_outputs())}


def test_every_graph_has_the_same_inputs_and_outputs_in_float32(graphs: dict[str, Path]) -> None:
    assert set(_kinds(graphs["float32"]).values()) == {"tensor(float)"}
    assert _kinds(graphs["float16"]) == _kinds(graphs["int8"]) == _kinds(graphs["float32"])


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_the_head_keeps_its_float32_weights(graphs: dict[str, Path], precision: str) -> None:
    def head(path: Path) -> dict[str, bytes]:
        parts = ("classifier.", "image_to_space.", "slope", "intercept")
        weights = onnx.load(path).graph.initializer
        found = {each.name: each for each in weights if any(part in each.name for part in parts)}
        assert all(each.data_type == onnx.TensorProto.FLOAT for each in found.values())
        return {name: onnx.numpy_helper.to_array(each).tobytes() for name, each in found.items()}

    assert head(graphs[precision]) == head(graphs["float32"])
    assert len(head(graphs[precision])) >= 6


def test_the_encoders_weights_are_halves_and_bytes(graphs: dict[str, Path]) -> None:
    for precision, kind in (("float16", onnx.TensorProto.FLOAT16), ("int8", onnx.TensorProto.INT8)):
        weights = [each for each in onnx.load(graphs[precision]).graph.initializer if "_blocks" in each.name]
        assert (
            sum(each.data_type == kind and len(each.dims) == 4 for each in weights) == 47
        )  # three a block, two in the first, all but the stem and the last
    sizes = {precision: path.stat().st_size for precision, path in graphs.items()}
    assert sizes["int8"] < 0.4 * sizes["float32"] and sizes["float16"] < 0.6 * sizes["float32"]


def test_the_metadata_stays(graphs: dict[str, Path]) -> None:
    for path in graphs.values():
        said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert json.loads(said["medsd.findings"]) == list(FINDINGS)


def test_what_float16_costs_is_little(
    graphs: dict[str, Path], expected: dict[str, np.ndarray], labels: np.ndarray
) -> None:
    report = check_variant("float16", graphs["float16"], {"pixels": FILMS}, labels, expected)
    assert report["reason"] == "" and report["published"]
    assert 0 < report["mean_difference"]["probabilities"] < 5e-3
    assert report["embedding_cosine"]["mean"] > 0.999


def test_int8_differs_and_says_by_how_much(
    graphs: dict[str, Path], expected: dict[str, np.ndarray], labels: np.ndarray
) -> None:
    report = check_variant("int8", graphs["int8"], {"pixels": FILMS}, labels, expected)
    assert 1e-4 < report["mean_difference"]["probabilities"] < 0.2
    aurocs = report["macro_auroc"]
    assert aurocs["pytorch"] == 1 and aurocs["onnxruntime"] > 0.8
    assert report["auroc_difference"] == pytest.approx(aurocs["onnxruntime"] - 1, abs=2e-6)


def test_a_graph_that_costs_too_much_auroc_is_not_to_be_published(
    graphs: dict[str, Path], expected: dict[str, np.ndarray], labels: np.ndarray, tmp_path: Path
) -> None:
    model = onnx.load(graphs["float16"])
    for each in model.graph.initializer:
        if each.name.endswith("classifier.weight"):
            swapped = np.roll(onnx.numpy_helper.to_array(each), 1, axis=0)
            each.CopyFrom(onnx.numpy_helper.from_array(swapped, each.name))
    onnx.save(model, tmp_path / "swapped.onnx")
    report = check_variant("float16", tmp_path / "swapped.onnx", {"pixels": FILMS}, labels, expected)
    assert not report["published"]
    assert report["reason"].startswith("macro AUROC differs by -")


def test_a_graph_of_another_kind_is_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="no layer into the common space is found"):
        write_float16(bundle.model_path, tmp_path / "half.onnx")
