"""Execution providers of ONNX Runtime: which of them can work on this machine, and with which options.

ONNX Runtime lists what a build has, not what the machine can run, and falls to the CPU in silence. So providers are
asked for only where they can work, and `medsd.inference.session` reads afterwards which one it got.
"""

import ctypes
import io
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal, get_args

from medsd.bundle.layout import Bundle, Precision
from medsd.errors import SettingsError

log = logging.getLogger(__name__)

ProviderChoice = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
PrecisionChoice = Literal["auto", "float32", "float16", "int8"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
GPUS = (TENSORRT, CUDA)
# Best first. TensorRT builds an engine for minutes at its first start, and OpenVINO comes with a build of ONNX Runtime
# that somebody chose: both are used when asked for by name, not by "auto".
_WANTED: dict[str, tuple[str, ...]] = {
    "auto": (CUDA,),
    "cpu": (),
    "cuda": (CUDA,),
    "tensorrt": (TENSORRT, CUDA),
    "openvino": (OPENVINO,),
}
_CUDA_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search at every new batch size costs seconds
    "use_tf32": "0",  # TF32 would move probabilities in the third decimal against the CPU
}
_TENSORRT_BATCH = 32  # engines are made for batches of 1 to this many


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

    `available` is what this build of ONNX Runtime has, `driver` tells whether an NVIDIA driver is loadable. Raises
    SettingsError where `choice` is none of the known.
    """
    if choice not in get_args(ProviderChoice):
        raise SettingsError(f"provider '{choice}': choose one of {', '.join(get_args(ProviderChoice))}")
    there = [name for name in _WANTED[choice] if name in available]
    if any(name in GPUS for name in there) and not driver():
        there = [name for name in there if name not in GPUS]
    return [*there, CPU]


def providers_at_hand(available: Sequence[str], driver: Callable[[], bool]) -> list[str]:
    """The execution providers that an export is checked on: CUDA and OpenVINO where they can work, and the CPU."""
    return [*choose_providers("cuda", available, driver)[:-1], *choose_providers("openvino", available, driver)]


def choose_precision(choice: PrecisionChoice, bundle: Bundle, provider: str) -> Precision:
    """The graph to load: of "auto", float16 on a GPU where the bundle has it, and float32 everywhere else.

    int8 is faster than float32 on a CPU and costs a little of everything (parity.json), so it must be asked for. Raises
    SettingsError: `choice` is none of the known; BundleError: the bundle has no graph of the chosen precision.
    """
    if choice not in get_args(PrecisionChoice):
        raise SettingsError(f"precision '{choice}': choose one of {', '.join(get_args(PrecisionChoice))}")
    if choice != "auto":
        bundle.graph_path(choice)
        return choice
    return "float16" if provider in GPUS and "float16" in bundle.description.variants else "float32"


def provider_options(provider: str, bundle: Bundle, threads: int, cache: Path | None = None) -> dict[str, str]:
    """Options of a provider for a bundle's graph: threads of OpenVINO, the folder where TensorRT keeps its engines."""
    if provider == CUDA:
        return dict(_CUDA_OPTIONS)
    if provider == OPENVINO:
        return {"device_type": "CPU", "num_of_threads": str(threads)}
    if provider != TENSORRT:
        return {}
    # Without a range of shapes TensorRT builds a new engine for every batch size that it meets.
    description = bundle.description
    ranges = {"min": 1, "opt": 8, "max": _TENSORRT_BATCH}
    options = {
        f"trt_profile_{name}_shapes": ",".join(
            f"{each}:{'x'.join(map(str, (size, *description.shape_of(each))))}" for each in description.inputs
        )
        for name, size in ranges.items()
    }
    if cache is not None:
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)}
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(cache)}
    return options


def preload_cuda(runtime: Any) -> None:
    """Load the CUDA libraries that PyPI brought; what it prints about missing ones goes to the debug log."""
    if not hasattr(runtime, "preload_dlls"):
        return
    said = io.StringIO()
    with redirect_stdout(said):
        runtime.preload_dlls()
    if said.getvalue():
        log.debug("preloading CUDA: %s", said.getvalue().strip())
