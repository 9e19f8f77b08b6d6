"""What a run publishes besides the float32 graph, and the same model in MONAI's form run by MONAI's own command."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import verify_metadata
from PIL import Image

from medsd import Bundle, CaseIndex, Predictor
from medsd.bundle import layout
from medsd.dicom.gate import GatePolicy, admit
from medsd.errors import BundleError
from medsd.export import parity
from medsd.export.monai_bundle import load_network, write_monai_bundle
from medsd.export.onnx import ServingModel
from medsd.pipeline import publish
from medsd.pipeline.folder import Run
from medsd.pipeline.run import run_steps
from tests.bundles import tiny_bundle
from tests.runs import small_settings

Export = Callable[..., Run]
ALL = "bundle.precisions=[float32,float16,int8]"


@pytest.fixture(scope="module")
def exported(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports a copy of the run with other settings; its float32 graph, which is the same, is not traced again."""
    copy = tmp_path_factory.mktemp("variants")
    shutil.copytree(finished.folder, copy / finished.folder.name)

    def take(serving: ServingModel, path: Path, **_: object) -> None:
        serving.eval()
        shutil.copyfile(finished.bundle / layout.MODEL, path)

    def export(*more: str, until: str = "index") -> Run:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publish, "export_onnx", take)
            return run_steps(small_settings(finished.folder.parents[1], f"output={copy}", *more), until, again=True)

    return export


@pytest.fixture(scope="module")
def published(exported: Export) -> Run:
    """The run with every graph whatever it costs: a model trained for seconds is fragile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "VARIANT_AUROC", {"float16": 1.0, "int8": 1.0})
        patch.setattr(parity, "VARIANT_COSINE", {"float16": -1.0, "int8": -1.0})
        return exported(ALL)


@pytest.fixture(scope="module")
def films(published: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples of the bundle as PNG, and a file that the gate refuses."""
    folder = tmp_path_factory.mktemp("films")
    for path in sorted((published.bundle / "examples").glob("*.dcm")):
        radiograph = admit(path, GatePolicy()).radiograph
        assert radiograph is not None
        Image.fromarray((radiograph.pixels * 255).astype(np.uint8)).save(folder / f"{path.stem}.png")
    Image.new("L", (300, 300), 7).save(folder / "flat.png")
    return folder


def test_all_graphs_are_in_the_bundle_with_what_they_cost(published: Run) -> None:
    bundle = Bundle.open(published.bundle)
    assert set(bundle.description.variants) == {"float16", "int8"}
    assert set(layout.GRAPHS.values()) <= set(bundle.description.files)
    figures = json.loads((published.bundle / "parity.json").read_text(encoding="utf-8"))["variants"]
    for precision, variant in bundle.description.variants.items():
        assert figures[precision]["auroc_difference"] == variant.auroc_difference
        assert f"`{variant.file}`" in (published.bundle / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_every_graph_asks_the_same_case_index(published: Run, films: Path, precision: str) -> None:
    predictor = Predictor(published.bundle, provider="cpu", precision=precision)
    prediction = predictor(films / "example_1.png", note="short of breath")
    assert predictor.session.precision == precision and prediction.embedding is not None
    assert len(CaseIndex.open(predictor.bundle.cases_path).similar(prediction, k=3)) == 3


def _monai(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "monai.bundle", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_monais_inference_command_says_what_the_predictor_says(published: Run, films: Path, tmp_path: Path) -> None:
    pytest.importorskip("fire", reason="MONAI's command line needs fire")
    folder = write_monai_bundle(Bundle.open(published.bundle), tmp_path / "monai")
    answer = _monai(
        folder, "run", "--bundle_root", ".", "--meta_file", "configs/metadata.json",
        "--config_file", "configs/inference.json", "--dataset_dir", str(films),
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-2000:]
    with (folder / "eval" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = {Path(name).name: np.array(values, np.float64) for name, *values in csv.reader(file)}
    predictor = Predictor(published.bundle, provider="cpu")
    assert sorted(rows) == sorted(path.name for path in films.iterdir()) and len(rows) > 3
    assert np.isnan(rows.pop("flat.png")).all()
    for name, values in rows.items():
        prediction = predictor(films / name)
        np.testing.assert_allclose(values, list(prediction.probabilities.values()), atol=1e-4)


# What MONAI's specification of bundles asks of metadata.json; the published schema itself cannot be had offline.
_TENSOR = {"type": "object", "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range",
           "is_patch_data", "channel_def"], "properties": {"num_channels": {"type": "integer"}, "spatial_shape":
           {"type": "array"}, "value_range": {"type": "array"}, "is_patch_data": {"type": "boolean"}, "channel_def":
           {"type": "object", "additionalProperties": {"type": "string"}}}}  # fmt: skip
SPECIFICATION = {
    "type": "object",
    "required": ["schema", "version", "monai_version", "pytorch_version", "numpy_version", "optional_packages_version",
                 "task", "description", "authors", "copyright", "network_data_format"],
    "properties": {
        **{key: {"type": "string", "minLength": 1} for key in ("schema", "version", "monai_version", "pytorch_version",
           "numpy_version", "task", "description", "authors", "copyright", "intended_use", "data_source", "data_type")},
        "changelog": {"type": "object"},
        "references": {"type": "array", "items": {"type": "string"}},
        "optional_packages_version": {"type": "object", "additionalProperties": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {part: {"type": "object", "minProperties": 1, "additionalProperties": _TENSOR}
                           for part in ("inputs", "outputs")},
        },
    },
}  # fmt: skip


def test_monais_own_verification_accepts_the_metadata(published: Run, tmp_path: Path) -> None:
    pytest.importorskip("jsonschema", reason="MONAI's verify_metadata needs it")
    folder = write_monai_bundle(Bundle.open(published.bundle), tmp_path / "monai")
    schema = tmp_path / "schema.json"  # a schema that is there is not fetched
    schema.write_text(json.dumps(SPECIFICATION), encoding="utf-8")
    path = folder / "configs" / "metadata.json"
    verify_metadata(meta_file=path, filepath=schema)
    broken = json.loads(path.read_text(encoding="utf-8"))
    del broken["network_data_format"]["outputs"]["pred"]["channel_def"]
    path.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(ValueError, match="channel_def"):
        verify_metadata(meta_file=path, filepath=schema)


def test_weights_that_do_not_fit_are_refused(published: Run, tmp_path: Path) -> None:
    folder = write_monai_bundle(Bundle.open(published.bundle), tmp_path / "monai")
    path = folder / "configs" / "network.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["network"]["image"]["backbone"] = "resnet18"
    path.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(BundleError, match="not the weights of"):
        load_network(str(folder))


def test_a_bundle_without_weights_or_a_full_folder_is_refused(published: Run, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="weights, or their configuration, are not in this bundle"):
        write_monai_bundle(tiny_bundle(tmp_path / "tiny"), tmp_path / "monai")
    with pytest.raises(BundleError, match="is there and not empty"):
        write_monai_bundle(Bundle.open(published.bundle), tmp_path)


# The last: it writes over the bundle of the others.
def test_a_graph_that_misses_its_bound_is_left_out_and_said_to_be(
    exported: Export, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parity, "VARIANT_COSINE", {"float16": 2.0, "int8": 2.0})
    with caplog.at_level(logging.WARNING):
        run = exported("bundle.precisions=[float16]", until="export")
    bundle = Bundle.open(run.bundle)
    assert bundle.description.variants == {} and not (run.bundle / "model.fp16.onnx").exists()
    assert "model.fp16.onnx is left out of the bundle: mean cosine of its embeddings with PyTorch's" in caplog.text
    figures = json.loads((run.bundle / "parity.json").read_text(encoding="utf-8"))["variants"]
    assert not figures["float16"]["published"]
