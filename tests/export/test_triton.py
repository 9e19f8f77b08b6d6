"""The model repository, checked against the protocol that Triton publishes (`inference.ModelConfig`)."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.errors import BundleError
from medsd.export.triton import CONFIG, LABELS, write_repository
from medsd.inference.session import ModelSession
from tests.bundles import tiny_bundle

protocol = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")


@pytest.fixture(params=[False, True], ids=["image", "fused"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundle", fused=request.param)


def _config(model: Path) -> Any:
    return text_format.Parse((model / CONFIG).read_text(encoding="utf-8"), protocol.ModelConfig())


def _with_float16(bundle: Bundle) -> Bundle:
    """The same bundle with a second graph in it; its numbers do not matter here."""
    shutil.copyfile(bundle.model_path, bundle.folder / layout.GRAPHS["float16"])
    variant = layout.Variant(file=layout.GRAPHS["float16"], auroc_difference=0.0, embedding_cosine=1.0)
    described = bundle.description.model_copy(update={"variants": {"float16": variant}})
    layout.write_description(bundle.folder, described)
    return Bundle.open(bundle.folder)


def test_the_configuration_is_one_of_tritons_protocol(bundle: Bundle, tmp_path: Path) -> None:
    config = _config(write_repository(bundle, tmp_path / "models"))
    assert (config.name, config.backend) == (bundle.description.name, "onnxruntime")
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 16, 32]
    assert config.max_batch_size >= max(config.dynamic_batching.preferred_batch_size)
    assert [group.kind for group in config.instance_group] == [protocol.ModelInstanceGroup.KIND_AUTO]
    assert config.parameters["medsd.model_sha256"].string_value == bundle.model_sha256


def test_inputs_and_outputs_are_those_of_the_graph(bundle: Bundle, tmp_path: Path) -> None:
    model = write_repository(bundle, tmp_path / "models")
    config = _config(model)
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    kinds = {protocol.TYPE_FP32: "tensor(float)", protocol.TYPE_INT64: "tensor(int64)"}

    def described(entries: Any) -> dict[str, tuple[str, list[int]]]:
        return {
            each.name: (kinds[each.data_type], list(each.reshape.shape if each.HasField("reshape") else each.dims))
            for each in entries
        }

    graph = {entry.name: (entry.type, entry.shape[1:]) for entry in (*session.get_inputs(), *session.get_outputs())}
    del graph["regions"]  # for the app alone
    assert described(config.input) | described(config.output) == graph


def test_the_labels_are_the_findings_in_order(bundle: Bundle, tmp_path: Path) -> None:
    model = write_repository(bundle, tmp_path / "models")
    assert (model / LABELS).read_text(encoding="utf-8").split() == list(bundle.findings)
    labelled = {each.name for each in _config(model).output if each.label_filename == LABELS}
    assert labelled == {"probabilities", "logits"}


def test_warm_up_requests_have_every_input(bundle: Bundle, tmp_path: Path) -> None:
    config = _config(write_repository(bundle, tmp_path / "models"))
    dims = {each.name: list(each.dims) for each in config.input}
    assert [each.batch_size for each in config.model_warmup] == [1, 8]
    for request in config.model_warmup:
        assert {name: list(value.dims) for name, value in request.inputs.items()} == dims


def test_a_float16_graph_is_a_model_of_its_own_on_gpus(bundle: Bundle, tmp_path: Path) -> None:
    model = write_repository(_with_float16(bundle), tmp_path / "models")
    half = _config(model.with_name(f"{bundle.description.name}_gpu"))
    assert [group.kind for group in half.instance_group] == [protocol.ModelInstanceGroup.KIND_GPU]
    assert [group.kind for group in _config(model).instance_group] == [protocol.ModelInstanceGroup.KIND_CPU]


def test_a_model_that_is_there_is_not_written_over(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "models")
    with pytest.raises(BundleError, match="there is a model of this name"):
        write_repository(bundle, tmp_path / "models")


def test_the_client_feeds_what_the_graph_takes(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "models")
    client = runpy.run_path(str(tmp_path / "models" / "client.py"))
    film = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    given = client["feeds"](bundle, film, "short of breath")
    shapes = {each.name: [1, *each.dims] for each in _config(tmp_path / "models" / bundle.description.name).input}
    assert {name: list(value.shape) for name, value in given.items()} == shapes
    flat = {name: value.reshape(1) if name.startswith("has") else value for name, value in given.items()}
    assert np.isfinite(ModelSession(bundle, provider="cpu").run(flat).probabilities).all()
