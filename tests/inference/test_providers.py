"""Which providers and which graph are taken, on machines that are made up; the GPU's path through a fake runtime."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.errors import BundleError, DependencyError, SettingsError
from medsd.inference import providers, session
from medsd.inference.providers import CPU, CUDA, OPENVINO, TENSORRT, choose_precision, choose_providers
from medsd.inference.session import ModelSession
from tests.bundles import tiny_bundle

EVERYTHING = [TENSORRT, CUDA, OPENVINO, CPU]


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with all three graphs; those of fewer bits are the float32 one under other names."""
    bundle = tiny_bundle(tmp_path_factory.mktemp("bundles") / "variants")
    described = {}
    for precision in ("float16", "int8"):
        shutil.copyfile(bundle.model_path, bundle.folder / layout.GRAPHS[precision])
        file = layout.GRAPHS[precision]
        described[precision] = layout.Variant(file=file, auroc_difference=0.001, embedding_cosine=0.999)
    layout.write_description(bundle.folder, bundle.description.model_copy(update={"variants": described}))
    return Bundle.open(bundle.folder)


@pytest.mark.parametrize(
    ("choice", "available", "driver", "chosen"),
    [
        ("auto", EVERYTHING, True, [CUDA, CPU]),
        ("tensorrt", EVERYTHING, True, [TENSORRT, CUDA, CPU]),
        ("tensorrt", EVERYTHING, False, [CPU]),
        ("tensorrt", [CUDA, CPU], True, [CUDA, CPU]),
        ("openvino", EVERYTHING, False, [OPENVINO, CPU]),
        ("openvino", [CPU], True, [CPU]),
    ],
)
def test_providers_are_those_that_can_work(choice: Any, available: list[str], driver: bool, chosen: list[str]) -> None:
    assert choose_providers(choice, available, lambda: driver) == chosen


def test_an_export_is_checked_on_every_provider_at_hand() -> None:
    assert providers.providers_at_hand(EVERYTHING, lambda: True) == [CUDA, OPENVINO, CPU]
    assert providers.providers_at_hand([*EVERYTHING[:2], CPU], lambda: False) == [CPU]


@pytest.mark.parametrize(
    ("choice", "provider", "chosen"),
    [
        ("auto", CUDA, "float16"),
        ("auto", TENSORRT, "float16"),
        ("auto", CPU, "float32"),
        ("auto", OPENVINO, "float32"),
        ("int8", CPU, "int8"),
        ("float32", CUDA, "float32"),
    ],
)
def test_auto_is_float16_on_a_gpu_and_float32_elsewhere(
    variants: Bundle, choice: Any, provider: str, chosen: str
) -> None:
    assert choose_precision(choice, variants, provider) == chosen


def test_a_bundle_without_variants_is_float32_on_a_gpu_too(image_bundle: Bundle) -> None:
    assert choose_precision("auto", image_bundle, CUDA) == "float32"
    with pytest.raises(BundleError, match="no int8 graph in this bundle, only float32"):
        ModelSession(image_bundle, precision="int8")


def test_an_unknown_precision_is_named_with_the_known_ones(image_bundle: Bundle) -> None:
    with pytest.raises(SettingsError, match="precision 'int4': choose one of auto, float32, float16, int8"):
        choose_precision("int4", image_bundle, CPU)  # type: ignore[arg-type]


def test_the_graph_that_is_asked_for_is_the_one_that_computes(variants: Bundle) -> None:
    opened = ModelSession(variants, provider="cpu", precision="int8")
    assert (opened.asked, opened.provider, opened.precision) == ("cpu", CPU, "int8")
    assert opened._session._model_path.endswith("model.int8.onnx")
    assert ModelSession(variants, provider="cpu").precision == "float32"


def test_a_changed_variant_is_refused_in_one_line(variants: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(variants.folder, tmp_path / "copy"))
    with (copy / layout.GRAPHS["int8"]).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match=r"model\.int8\.onnx was changed after export") as caught:
        Bundle.open(copy)
    assert "\n" not in str(caught.value)


def test_tensorrt_prepares_for_a_range_of_batches_and_keeps_its_engines(fused_bundle: Bundle, tmp_path: Path) -> None:
    options = providers.provider_options(TENSORRT, fused_bundle, 2, tmp_path)
    assert options["trt_profile_min_shapes"].startswith("pixels:1x1x64x64,has_image:1,note_ids:1x16")
    assert options["trt_profile_max_shapes"].endswith("has_note:32")
    assert options["trt_engine_cache_path"] == str(tmp_path)
    assert providers.provider_options(OPENVINO, fused_bundle, 2) == {"device_type": "CPU", "num_of_threads": "2"}
    assert providers.provider_options(CUDA, fused_bundle, 2)["use_tf32"] == "0"


def test_openvino_that_is_not_there_is_noticed(image_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        opened = ModelSession(image_bundle, provider="openvino")
    assert opened.provider == CPU and opened.asked == "openvino"
    assert "this ONNX Runtime has no OpenVINO: the model runs on ONNX Runtime's own CPU kernels" in caplog.text


def test_a_required_gpu_and_another_provider_contradict_each_other(image_bundle: Bundle) -> None:
    with pytest.raises(DependencyError, match="a GPU is required and provider 'cpu' was asked for"):
        ModelSession(image_bundle, provider="cpu", require_gpu=True)


class _FakeGpu:
    """ONNX Runtime with a GPU: the CPU computes, and what would be on a GPU is written down."""

    def __init__(self, in_use: list[str], *, page_locked: bool = True) -> None:
        self.asked: list[Any] = []
        self.preloaded = 0
        self.devices: list[str] = []
        self.in_use = in_use
        self.SessionOptions = onnxruntime.SessionOptions
        self.set_default_logger_severity = onnxruntime.set_default_logger_severity
        self.OrtDeviceMemoryType = SimpleNamespace(HOST_ACCESSIBLE="host") if page_locked else None
        self.OrtValue = SimpleNamespace(
            ortvalue_from_numpy=self._from_numpy, ortvalue_from_shape_and_type=self._page_locked
        )

    def get_available_providers(self) -> list[str]:
        return EVERYTHING

    def preload_dlls(self) -> None:
        self.preloaded += 1

    def InferenceSession(self, path: str, options: Any, *, providers: list[Any], enable_fallback: int) -> Any:
        self.asked.append(providers)
        real = onnxruntime.InferenceSession(path, options, providers=[CPU])
        gpu = self

        class Session:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def get_providers(self) -> list[str]:
                return gpu.in_use if len(providers) > 1 else [CPU]

            def get_input_epdevices(self) -> list[Any]:
                return [SimpleNamespace(memory_info=lambda kind: f"{kind} memory")]

            def io_binding(self) -> Any:
                binding = real.io_binding()
                return SimpleNamespace(
                    bind_ortvalue_input=binding.bind_ortvalue_input,
                    bind_output=lambda name, device: binding.bind_output(name, "cpu"),
                    synchronize_inputs=binding.synchronize_inputs,
                    synchronize_outputs=binding.synchronize_outputs,
                    copy_outputs_to_cpu=binding.copy_outputs_to_cpu,
                    real=binding,
                )

            def run_with_iobinding(self, binding: Any) -> None:
                real.run_with_iobinding(binding.real)

        return Session()

    def _from_numpy(self, value: Any, device: str, number: int) -> Any:
        self.devices.append(device)
        return onnxruntime.OrtValue.ortvalue_from_numpy(value, "cpu", number)

    def _page_locked(self, shape: Any, kind: Any, *, memory_info: Any) -> Any:
        self.devices.append(memory_info)
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind)


def _on(monkeypatch: pytest.MonkeyPatch, runtime: _FakeGpu) -> None:
    monkeypatch.setattr(session, "import_onnxruntime", lambda: runtime)
    monkeypatch.setattr(session, "cuda_driver_present", lambda: True)


@pytest.mark.parametrize(("page_locked", "device"), [(True, "host memory"), (False, "cuda")])
def test_a_gpu_gets_the_float16_graph_and_its_inputs_by_binding(
    variants: Bundle, monkeypatch: pytest.MonkeyPatch, page_locked: bool, device: str
) -> None:
    runtime = _FakeGpu([CUDA, CPU], page_locked=page_locked)
    _on(monkeypatch, runtime)
    opened = ModelSession(variants, require_gpu=True)
    assert (opened.provider, opened.precision, runtime.preloaded) == (CUDA, "float16", 1)
    assert runtime.asked[0][0] == (CUDA, {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"})
    feeds = {"pixels": np.random.default_rng(0).random((3, 1, 64, 64), np.float32)}
    found = opened.run(feeds)
    assert set(runtime.devices) == {device}
    np.testing.assert_array_equal(found.probabilities, _by_cpu(variants, feeds))


def _by_cpu(bundle: Bundle, feeds: dict[str, Any]) -> Any:
    return onnxruntime.InferenceSession(bundle.model_path, providers=[CPU]).run(["probabilities"], feeds)[0]


def test_a_gpu_that_does_not_start_leaves_the_float32_graph_to_the_cpu(
    variants: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = _FakeGpu([CPU])
    _on(monkeypatch, runtime)
    opened = ModelSession(variants)
    assert (opened.asked, opened.provider, opened.precision) == ("auto", CPU, "float32")
    assert len(runtime.asked) == 2 and "the model runs on the CPU" in caplog.text
    with pytest.raises(DependencyError, match="a GPU is required and the CUDA libraries do not load"):
        ModelSession(variants, require_gpu=True)


def test_tensorrt_that_does_not_load_leaves_it_to_cuda_and_says_so(
    variants: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _on(monkeypatch, _FakeGpu([CUDA, CPU]))
    opened = ModelSession(variants, provider="tensorrt", require_gpu=True)
    assert (opened.provider, opened.asked) == (CUDA, "tensorrt")
    assert f"TensorRT does not load here: the model runs on {CUDA}" in caplog.text
