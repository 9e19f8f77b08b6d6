"""An ONNX Runtime session over a bundle: which device computes, and whether the graph is the one that it describes.

`ModelSession` asks only for an execution provider that can work on this machine, and reads afterwards which one it
got, because ONNX Runtime falls to the CPU without an exception. Sessions are safe to share between threads.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medsd.bundle import layout
from medsd.bundle.layout import Bundle, Precision
from medsd.errors import BundleError, DependencyError, first_line
from medsd.inference.providers import (
    CPU,
    GPUS,
    OPENVINO,
    TENSORRT,
    PrecisionChoice,
    ProviderChoice,
    choose_precision,
    choose_providers,
    cuda_driver_present,
    preload_cuda,
    provider_options,
)
from medsd.telemetry import cache_folder, import_onnxruntime

log = logging.getLogger(__name__)

Feeds = Mapping[str, npt.NDArray[Any]]

# ONNX Runtime's severity scale: below errors the native stderr fills with notes about placement.
_ERRORS_ONLY, _FATAL_ONLY = 3, 4
_INSTALL_CUDA = "install the NVIDIA driver and `pip install medsd[gpu]`, or use provider 'cpu'"


@dataclass(frozen=True)
class Outputs:
    """What the graph answers for B studies, in the bundle's order of findings; see `medsd.bundle.layout`."""

    probabilities: npt.NDArray[np.float32]  # (B, F) calibrated
    logits: npt.NDArray[np.float32]  # (B, F)
    embedding: npt.NDArray[np.float32]  # (B, D) of unit length
    evidence: npt.NDArray[np.float32] | None = None  # (B, F, h, w); None of a model of notes alone
    regions: npt.NDArray[np.float32] | None = None  # (B, D, h, w); likewise


class ModelSession:
    """The model of a bundle, ready to run; arguments are those of `medsd.inference.predict.Predictor`.

    `asked` is the provider as it was asked for, `provider` the one in use by its name in ONNX Runtime, `precision`
    that of the graph in use, and `outputs` the names of all that it says. Raises BundleError: the graph is missing or
    cannot be loaded, its inputs and outputs are not those of the bundle, or the bundle has none of this precision;
    DependencyError: ONNX Runtime is missing, or `require_gpu` and no GPU computes; SettingsError: an unknown `provider`
    or `precision`.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: ProviderChoice = "auto",
        precision: PrecisionChoice = "auto",
        require_gpu: bool = False,
        threads: int = 0,
    ) -> None:
        runtime = import_onnxruntime()
        wanted = choose_providers(provider, runtime.get_available_providers(), cuda_driver_present)
        self.bundle, self.asked = bundle, provider
        self._session, self.precision = _open(runtime, bundle, wanted, precision, threads)
        self.provider: str = self._session.get_providers()[0]
        _report_fall(provider, wanted, self.provider, require_gpu)
        _check_graph(self._session, bundle, bundle.graph_path(self.precision))
        self.outputs = bundle.description.outputs
        self._host = _page_locked(runtime, self._session) if self.provider in GPUS else None
        self._warm_up()

    def run(self, feeds: Feeds) -> Outputs:
        """Compute `feeds` (see `medsd.bundle.layout`), by device buffers where a GPU computes."""
        if self.provider in GPUS:
            return self.run_bound(feeds, "cuda")
        return Outputs(**dict(zip(self.outputs, self._session.run(list(self.outputs), dict(feeds)), strict=True)))

    def run_bound(self, feeds: Feeds, device: Literal["cuda", "cpu"]) -> Outputs:
        """Compute with inputs and outputs bound to `device`: one copy there, one copy back.

        Inputs go by page-locked memory where ONNX Runtime offers it, from which a GPU fetches them without the
        processor. A binding belongs to one call, so that threads share nothing.
        """
        runtime = import_onnxruntime()
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, self._lent(runtime, value, device))
        for name in self.outputs:
            binding.bind_output(name, device)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return Outputs(**dict(zip(self.outputs, binding.copy_outputs_to_cpu(), strict=True)))

    def _lent(self, runtime: Any, value: npt.NDArray[Any], device: str) -> Any:
        """An input as ONNX Runtime's own value, in page-locked memory or on `device`."""
        if self._host is None or device == "cpu":
            return runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), device, 0)
        lent = runtime.OrtValue.ortvalue_from_shape_and_type(value.shape, value.dtype.type, memory_info=self._host)
        lent.numpy()[...] = value  # a view: the memory is the host's, too
        return lent

    def _warm_up(self) -> None:
        """Run one empty study: the first run allocates and picks kernels, and its shapes are checked."""
        outputs = self.run(_empty_study(self.bundle))
        for name in self.outputs:
            found, shape = getattr(outputs, name).shape, (1, *self.bundle.description.shape_of(name))
            if found != shape:
                path = self.bundle.graph_path(self.precision)
                raise BundleError(
                    f"{path}: output '{name}' has shape {found} for one study, {layout.DESCRIPTION} "
                    f"describes {shape}; export the bundle again"
                )


def planned_precision(bundle: Bundle, provider: ProviderChoice, precision: PrecisionChoice) -> Precision:
    """The precision that a session on this machine takes; errors as `ModelSession`."""
    wanted = choose_providers(provider, import_onnxruntime().get_available_providers(), cuda_driver_present)
    return choose_precision(precision, bundle, wanted[0])


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open(
    runtime: Any, bundle: Bundle, wanted: list[str], choice: PrecisionChoice, threads: int
) -> tuple[Any, Precision]:
    """A session with the best of `wanted` that starts, and its precision; one that does not gives way to the CPU."""
    precision = choose_precision(choice, bundle, wanted[0])
    threads = threads or processors()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads  # set, or ONNX Runtime pins threads to cores it may not have
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    if wanted[0] != CPU:
        if wanted[0] in GPUS:
            preload_cuda(runtime)
        cache = _engine_cache(bundle) if wanted[0] == TENSORRT else None
        asked = [(name, provider_options(name, bundle, threads, cache)) for name in wanted[:-1]]
        try:
            with _silent(runtime):
                session = _start(runtime, _graph(bundle, precision), options, [*asked, CPU])
            if session.get_providers()[0] != CPU or choose_precision(choice, bundle, CPU) == precision:
                return session, precision
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime raises bare RuntimeErrors and classes of its own
            log.debug("the session on %s did not start: %s", wanted[0], error)
        precision = choose_precision(choice, bundle, CPU)
    path = _graph(bundle, precision)
    try:
        return _start(runtime, path, options, [CPU]), precision
    except Exception as error:
        detail = first_line(error)
        raise BundleError(f"{path}: ONNX Runtime cannot load it ({detail}); export the bundle again") from None


def _graph(bundle: Bundle, precision: Precision) -> Path:
    path = bundle.graph_path(precision)
    if not path.is_file():
        raise BundleError(f"{path}: is missing; copy the whole bundle again")
    return path


def _engine_cache(bundle: Bundle) -> Path:
    """This user's folder for TensorRT's engines of this model, outside of the bundle, whose files are hashed."""
    folder = cache_folder() / "tensorrt" / bundle.model_sha256[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="medsd-tensorrt-"))  # built anew each time, but built
    return folder


def _page_locked(runtime: Any, session: Any) -> Any | None:
    """Where the GPU's page-locked host memory is; None where this ONNX Runtime does not tell."""
    kinds = getattr(runtime, "OrtDeviceMemoryType", None)
    if kinds is None or not hasattr(session, "get_input_epdevices"):
        return None
    for device in session.get_input_epdevices():
        if device is not None and (found := device.memory_info(kinds.HOST_ACCESSIBLE)) is not None:
            return found
    return None


@contextlib.contextmanager
def _silent(runtime: Any) -> Iterator[None]:
    """Hold back the native lines about CUDA libraries that do not load: one warning of ours says it."""
    runtime.set_default_logger_severity(_FATAL_ONLY)
    try:
        yield
    finally:
        runtime.set_default_logger_severity(_ERRORS_ONLY)


def _start(runtime: Any, graph: Path, options: Any, providers: list[Any]) -> Any:
    # enable_fallback=0: its fall-back prints to stdout and retries behind our back.
    return runtime.InferenceSession(str(graph), options, providers=providers, enable_fallback=0)


def _report_fall(choice: ProviderChoice, wanted: list[str], provider: str, require_gpu: bool) -> None:
    """Say once, visibly, that something else computes than what was asked for or is there."""
    if provider in GPUS:
        if choice == "tensorrt" and provider != TENSORRT:
            log.warning("TensorRT does not load here: the model runs on %s. Install TensorRT, or use 'cuda'.", provider)
        return
    if require_gpu and choice in ("cpu", "openvino"):
        raise DependencyError(f"a GPU is required and provider '{choice}' was asked for; leave one of the two out")
    reason = "the CUDA libraries do not load" if wanted[0] in GPUS else "no NVIDIA driver is loadable here"
    if require_gpu:
        raise DependencyError(f"a GPU is required and {reason}; {_INSTALL_CUDA}")
    if choice in ("cuda", "tensorrt") or wanted[0] in GPUS:
        log.warning("%s: the model runs on the CPU. To use a GPU, %s.", reason, _INSTALL_CUDA)
    elif choice == "openvino" and provider != OPENVINO:
        there = "OpenVINO does not load here" if wanted[0] == OPENVINO else "this ONNX Runtime has no OpenVINO"
        log.warning("%s: the model runs on ONNX Runtime's own CPU kernels. Install onnxruntime-openvino.", there)


def _check_graph(session: Any, bundle: Bundle, path: Path) -> None:
    """Compare the graph's declared inputs and outputs with what the bundle describes."""
    description = bundle.description
    expected = description.inputs
    inputs = {entry.name: entry for entry in session.get_inputs()}
    outputs = {entry.name for entry in session.get_outputs()}
    if set(inputs) != set(expected):
        raise BundleError(f"{path}: inputs are {', '.join(inputs)}; medsd expects {', '.join(expected)}")
    if missing := set(description.outputs) - outputs:
        wanted = ", ".join(description.outputs)
        raise BundleError(f"{path}: output {', '.join(sorted(missing))} is missing; medsd expects {wanted}")
    for name, entry in inputs.items():
        tail, kind = description.shape_of(name), "tensor(int64)" if name in layout.INTEGERS else "tensor(float)"
        if entry.type != kind or not _fits(entry.shape, tail):
            raise BundleError(
                f"{path}: input '{name}' is {entry.type} {entry.shape}; medsd expects {kind} "
                f"{['batch', *tail]}: export the bundle again"
            )


def _fits(shape: Sequence[int | str | None], tail: tuple[int, ...]) -> bool:
    """Whether a declared shape has a free batch axis, then `tail`; symbolic axes fit anything."""
    if len(shape) != len(tail) + 1 or isinstance(shape[0], int):
        return False
    return all(not isinstance(found, int) or found == wanted for found, wanted in zip(shape[1:], tail, strict=True))


def _empty_study(bundle: Bundle) -> dict[str, npt.NDArray[Any]]:
    """One black image (and an empty note) in the graph's own form."""
    description = bundle.description
    side = description.pixels.size
    feeds: dict[str, npt.NDArray[Any]] = {"pixels": np.full((1, 1, side, side), 0.5, np.float32)}
    if description.note:
        tokens = np.full((1, description.note.max_tokens), description.note.pad_id, np.int64)
        mask = np.zeros_like(tokens)
        mask[:, 0] = 1  # attention over nothing at all is not a number
        one = np.ones(1, np.float32)
        feeds |= {"has_image": one, "note_ids": tokens, "note_mask": mask, "has_note": one}
    return {name: feeds[name] for name in description.inputs}
