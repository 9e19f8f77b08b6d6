from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.errors import BundleError, DependencyError, SettingsError
from medsd.inference import session
from medsd.inference.providers import CPU, CUDA, choose_providers
from medsd.inference.session import ModelSession
from tests.bundles import tiny_bundle

EVERYTHING = ["TensorrtExecutionProvider", CUDA, CPU]


@pytest.mark.parametrize(
    ("choice", "available", "driver", "chosen"),
    [
        ("auto", EVERYTHING, True, [CUDA, CPU]),
        ("auto", EVERYTHING, False, [CPU]),
        ("auto", [CPU], True, [CPU]),
        ("cuda", EVERYTHING, True, [CUDA, CPU]),
        ("cuda", EVERYTHING, False, [CPU]),
        ("cpu", EVERYTHING, True, [CPU]),
    ],
)
def test_only_a_provider_that_can_work_is_asked_for(choice, available, driver, chosen):
    assert choose_providers(choice, available, lambda: driver) == chosen


def test_an_unknown_provider_is_named_with_the_known_ones():
    with pytest.raises(SettingsError, match=r"provider 'rocm': choose one of auto, cpu, cuda"):
        choose_providers("rocm", EVERYTHING, lambda: True)


def test_require_gpu_without_a_driver_is_an_error(image_bundle: Bundle, monkeypatch):
    monkeypatch.setattr(session, "cuda_driver_present", lambda: False)
    with pytest.raises(DependencyError, match="a GPU is required and no NVIDIA driver"):
        ModelSession(image_bundle, require_gpu=True)


def test_asking_for_cuda_without_a_driver_warns_once_and_computes(image_bundle: Bundle, monkeypatch, caplog):
    monkeypatch.setattr(session, "cuda_driver_present", lambda: False)
    with caplog.at_level(logging.WARNING):
        model = ModelSession(image_bundle, provider="cuda")
    assert model.provider == CPU
    assert len(caplog.records) == 1
    assert "no NVIDIA driver is loadable here: the model runs on the CPU" in caplog.text


def test_auto_without_a_driver_says_nothing(image_bundle: Bundle, monkeypatch, caplog, capfd):
    monkeypatch.setattr(session, "cuda_driver_present", lambda: False)
    ModelSession(image_bundle)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(session.cuda_driver_present(), reason="here the driver is real")
def test_a_gpu_that_does_not_start_is_noticed(image_bundle: Bundle, monkeypatch, caplog, capfd):
    monkeypatch.setattr(session, "cuda_driver_present", lambda: True)
    model = ModelSession(image_bundle)
    assert model.provider == CPU
    assert "the CUDA libraries do not load" in caplog.text
    assert capfd.readouterr() == ("", "")
    with pytest.raises(DependencyError, match="CUDA libraries do not load"):
        ModelSession(image_bundle, require_gpu=True)


def test_bound_buffers_give_the_same_numbers(fused_bundle: Bundle):
    model = ModelSession(fused_bundle, provider="cpu")
    rng = np.random.default_rng(0)
    feeds = {
        "pixels": rng.random((3, 1, 64, 64), np.float32),
        "has_image": np.ones(3, np.float32),
        "note_ids": rng.integers(0, 12, (3, 16)),
        "note_mask": np.ones((3, 16), np.int64),
        "has_note": np.array([1, 0, 1], np.float32),
    }
    plain, bound = model.run(feeds), model.run_bound(feeds, "cpu")
    for name in layout.OUTPUTS:
        np.testing.assert_array_equal(getattr(plain, name), getattr(bound, name))
    assert np.ptp(plain.probabilities, axis=0).max() > 0.01


def _altered(folder: Path, change) -> Bundle:
    """A bundle whose graph was changed and whose description was written anew."""
    bundle = tiny_bundle(folder)
    model = onnx.load(bundle.model_path)
    change(model.graph)
    onnx.save(model, bundle.model_path)
    layout.write_description(folder, bundle.description)
    return Bundle.open(folder)


def _rename_input(graph):
    graph.input[0].name = graph.node[0].input[0] = "picture"


def test_other_inputs_are_refused(tmp_path: Path):
    with pytest.raises(BundleError, match="inputs are picture; medsd expects pixels"):
        ModelSession(_altered(tmp_path, _rename_input))


def test_a_missing_output_is_refused(tmp_path: Path):
    with pytest.raises(BundleError, match="output regions is missing"):
        ModelSession(_altered(tmp_path, lambda graph: graph.output.pop()))


def test_another_input_size_is_refused(tmp_path: Path):
    def widen(graph):
        graph.input[0].type.tensor_type.shape.dim[3].dim_value = 96

    with pytest.raises(BundleError, match=r"input 'pixels' is tensor\(float\) \['batch', 1, 64, 96\]"):
        ModelSession(_altered(tmp_path, widen))


def test_another_number_of_findings_is_refused(tmp_path: Path):
    bundle = tiny_bundle(tmp_path)
    description = bundle.description.model_copy(update={"findings": bundle.description.findings[:8]})
    with pytest.raises(BundleError, match=r"output 'probabilities' has shape \(1, 14\).*describes \(1, 8\)"):
        ModelSession(Bundle(bundle.folder, description))


def test_a_graph_that_is_none_is_refused(tmp_path: Path):
    bundle = tiny_bundle(tmp_path)
    bundle.model_path.write_bytes(b"no graph")
    with pytest.raises(BundleError, match="ONNX Runtime cannot load it"):
        ModelSession(bundle)
