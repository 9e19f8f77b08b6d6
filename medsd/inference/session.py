"""An ONNX Runtime session over a bundle: which device computes, and whether the graph is the one that it describes.

`ModelSession` asks only for an execution provider that can work on this machine, and reads afterwards which one it
got, because ONNX Runtime falls to the CPU without an exception. Sessions are safe to share between threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.errors import BundleError, DependencyError, SettingsError

log = logging.getLogger(__name__)

ProviderChoice = Literal["auto", "cpu", "cuda"]
Feeds = Mapping[str, npt.NDArray[Any]]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_CUDA_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search at every new batch size costs seconds
    "use_tf32": "0",  # TF32 would move probabilities in the third decimal against the CPU
}
# ONNX Runtime's severity scale: below errors the native stderr fills with notes about placement.
_ERRORS_ONLY, _FATAL_ONLY = 3, 4
_INSTALL_CUDA = "install the NVIDIA driver and `pip install medsd[gpu]`, or use provider 'cpu'"


@dataclass(frozen=True)
class Outputs:
    """What the graph answers for B studies; float32, in the bundle's order of findings.

    Attributes:
        probabilities: (B, F) calibrated.
        logits: (B, F).
        embedding: (B, D) of unit length.
        evidence: (B, F, h, w) class activations; None of a model of notes alone.
        regions: (B, D, h, w), what each place adds to the embedding (`layout`); None where the graph does not say it.
    """

    probabilities: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    embedding: npt.NDArray[np.float32]
    evidence: npt.NDArray[np.float32] | None = None
    regions: npt.NDArray[np.float32] | None = None


def cuda_driver_present() -> bool:
    """Whether the NVIDIA driver can be loaded; ONNX Runtime lists CUDA as available without it."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def choose_providers(choice: ProviderChoice, available: Sequence[str], driver: Callable[[], bool]) -> list[str]:
    """The execution providers worth asking for, best first; the CPU is always the last.

    Args:
        choice: what the caller wants.
        available: what this build of ONNX Runtime has (`onnxruntime.get_available_providers`).
        driver: tells whether an NVIDIA driver is loadable.

    Raises:
        SettingsError: `choice` is none of auto, cpu, cuda.
    """
    if choice not in get_args(ProviderChoice):
        raise SettingsError(f"provider '{choice}': choose one of {', '.join(get_args(ProviderChoice))}")
    if choice != "cpu" and CUDA in available and driver():
        return [CUDA, CPU]
    return [CPU]


class ModelSession:
    """The model of a bundle, ready to run.

    Args:
        bundle: the opened bundle.
        provider: ``"auto"`` takes a GPU where one works, ``"cpu"`` or ``"cuda"``.
        require_gpu: make a fall to the CPU an error instead of a logged warning.
        threads: of the CPU provider; 0 takes the processors that this process may use.

    Raises:
        BundleError: model.onnx cannot be loaded, or its inputs and outputs are not those of the bundle.
        DependencyError: ONNX Runtime is missing, or `require_gpu` and no GPU computes.
        SettingsError: an unknown `provider`.
    """

    def __init__(
        self, bundle: Bundle, *, provider: ProviderChoice = "auto", require_gpu: bool = False, threads: int = 0
    ) -> None:
        runtime = _onnxruntime()
        wanted = choose_providers(provider, runtime.get_available_providers(), cuda_driver_present)
        self.bundle = bundle
        self._session = _open(runtime, bundle, wanted, threads)
        self.provider: str = self._session.get_providers()[0]
        if self.provider != CUDA:
            _report_missing_gpu(provider, wanted, require_gpu)
        _check_graph(self._session, bundle)
        said = {entry.name for entry in self._session.get_outputs()}
        self._names = [*bundle.description.outputs, *(name for name in layout.OPTIONAL_OUTPUTS if name in said)]
        self._warm_up()

    @property
    def fused(self) -> bool:
        """Whether the graph takes a note beside the image."""
        return self.bundle.description.note is not None

    def run(self, feeds: Feeds) -> Outputs:
        """Compute `feeds` (see `medsd.bundle.layout`), by device buffers where a GPU computes."""
        if self.provider == CUDA:
            return self.run_bound(feeds, "cuda")
        return Outputs(**dict(zip(self._names, self._session.run(self._names, dict(feeds)), strict=True)))

    def run_bound(self, feeds: Feeds, device: Literal["cuda", "cpu"]) -> Outputs:
        """Compute with inputs and outputs bound to `device`: one copy there, one copy back.

        A binding belongs to one call, so that threads share nothing.
        """
        runtime = _onnxruntime()
        binding = self._session.io_binding()
        for name, value in feeds.items():
            on_device = runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), device, 0)
            binding.bind_ortvalue_input(name, on_device)
        for name in self._names:
            binding.bind_output(name, device)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return Outputs(**dict(zip(self._names, binding.copy_outputs_to_cpu(), strict=True)))

    def _warm_up(self) -> None:
        """Run one empty study: the first run allocates and picks kernels, and its shapes are checked."""
        outputs = self.run(_empty_study(self.bundle))
        description = self.bundle.description
        count = len(description.findings)
        expected: dict[str, tuple[int, ...]] = {
            "probabilities": (1, count),
            "logits": (1, count),
            "embedding": (1, description.embedding_size),
        }
        if description.evidence_grid is not None:
            expected["evidence"] = (1, count, *description.evidence_grid)
            if outputs.regions is not None:
                expected["regions"] = (1, description.embedding_size, *description.evidence_grid)
        for name, shape in expected.items():
            found = getattr(outputs, name).shape
            if found != shape:
                raise BundleError(
                    f"{self.bundle.model_path}: output '{name}' has shape {found} for one study, {layout.DESCRIPTION} "
                    f"describes {shape}; export the bundle again"
                )


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(f"ONNX Runtime cannot be imported ({error}); install medsd again") from None
    return onnxruntime


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _open(runtime: Any, bundle: Bundle, wanted: list[str], threads: int) -> Any:
    """A session with the best of `wanted` that starts; a GPU that does not start gives way to the CPU."""
    if not bundle.model_path.is_file():
        raise BundleError(f"{bundle.model_path}: is missing; copy the whole bundle again")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or processors()  # set, or ONNX Runtime pins threads to cores it may not have
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    if wanted[0] == CUDA:
        _preload_cuda(runtime)
        try:
            with _silent(runtime):
                return _start(runtime, bundle, options, [(CUDA, _CUDA_OPTIONS), CPU])
        except Exception as error:  # ONNX Runtime raises bare RuntimeErrors and classes of its own
            log.debug("the GPU session did not start: %s", error)
    try:
        return _start(runtime, bundle, options, [CPU])
    except Exception as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(
            f"{bundle.model_path}: ONNX Runtime cannot load it ({detail}); export the bundle again"
        ) from None


@contextlib.contextmanager
def _silent(runtime: Any) -> Iterator[None]:
    """Hold back the native lines about CUDA libraries that do not load: one warning of ours says it."""
    runtime.set_default_logger_severity(_FATAL_ONLY)
    try:
        yield
    finally:
        runtime.set_default_logger_severity(_ERRORS_ONLY)


def _start(runtime: Any, bundle: Bundle, options: Any, providers: list[Any]) -> Any:
    # enable_fallback=0: its fall-back prints to stdout and retries behind our back.
    return runtime.InferenceSession(str(bundle.model_path), options, providers=providers, enable_fallback=0)


def _preload_cuda(runtime: Any) -> None:
    """Load the CUDA libraries that PyPI brought; what it prints about missing ones goes to the debug log."""
    if not hasattr(runtime, "preload_dlls"):
        return
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runtime.preload_dlls()
    if said.getvalue():
        log.debug("preloading CUDA: %s", said.getvalue().strip())


def _report_missing_gpu(choice: ProviderChoice, wanted: list[str], require_gpu: bool) -> None:
    """Say once, visibly, that the CPU computes where a GPU was asked for or is there."""
    reason = "the CUDA libraries do not load" if wanted[0] == CUDA else "no NVIDIA driver is loadable here"
    if require_gpu:
        raise DependencyError(f"a GPU is required and {reason}; {_INSTALL_CUDA}")
    if choice == "cuda" or wanted[0] == CUDA:
        log.warning("%s: the model runs on the CPU. To use a GPU, %s.", reason, _INSTALL_CUDA)


_TYPES = {
    "pixels": "tensor(float)",
    "has_image": "tensor(float)",
    "note_ids": "tensor(int64)",
    "note_mask": "tensor(int64)",
    "has_note": "tensor(float)",
}


def _check_graph(session: Any, bundle: Bundle) -> None:
    """Compare the graph's declared inputs and outputs with what the bundle describes."""
    path, description = bundle.model_path, bundle.description
    expected = description.inputs
    inputs = {entry.name: entry for entry in session.get_inputs()}
    outputs = {entry.name for entry in session.get_outputs()}
    if set(inputs) != set(expected):
        raise BundleError(f"{path}: inputs are {', '.join(inputs)}; medsd expects {', '.join(expected)}")
    if missing := set(description.outputs) - outputs:
        wanted = ", ".join(description.outputs)
        raise BundleError(f"{path}: output {', '.join(sorted(missing))} is missing; medsd expects {wanted}")
    tails: dict[str, tuple[int, ...]] = {"pixels": (1, description.pixels.size, description.pixels.size)}
    if description.note:
        tails |= dict.fromkeys(("note_ids", "note_mask"), (description.note.max_tokens,))
    for name, entry in inputs.items():
        tail = tails.get(name, ())
        if entry.type != _TYPES[name] or not _fits(entry.shape, tail):
            raise BundleError(
                f"{path}: input '{name}' is {entry.type} {entry.shape}; medsd expects {_TYPES[name]} "
                f"{['batch', *tail]}: export the bundle again"
            )


def _fits(shape: Sequence[int | str | None], tail: tuple[int, ...]) -> bool:
    """Whether a declared shape has a free batch axis, then `tail`; symbolic axes fit anything."""
    if len(shape) != len(tail) + 1 or isinstance(shape[0], int):
        return False
    return all(not isinstance(found, int) or found == wanted for found, wanted in zip(shape[1:], tail, strict=True))


def _empty_study(bundle: Bundle) -> dict[str, npt.NDArray[Any]]:
    """One black film (and an empty note) in the graph's own form."""
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
