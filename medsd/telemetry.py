"""Libraries report nothing, and keep their caches in medsd's folder.

Importing medsd calls `stop_reports`; the programs (`medsd`, the app) call `use_own_caches` and `work_offline` as well.
All of medsd imports ONNX Runtime by `import_onnxruntime`.
"""

import os
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from medsd.errors import DependencyError

# Read by a library when it is imported, some by native code, and inherited by every process that is started.
REPORTING_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime >= 1.29: no uploader, device id or event database (its Privacy.md)
    "GRADIO_ANALYTICS_ENABLED": "False",  # Gradio's reports and its look for a newer version
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and Gradio and transformers through it
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # transformers would ask a service of the hub to convert a model
    "MLFLOW_DISABLE_TELEMETRY": "true",  # MLflow, which MONAI imports where it is installed
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray; what it asks in spite of this is stopped in `medsd.scoring.cluster`
    "DO_NOT_TRACK": "1",  # the common name, for whatever else honours it
}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "GRADIO_SHARE": "False", "GRADIO_MCP_SERVER": "False"}
_CACHES = {
    "MPLCONFIGDIR": "matplotlib",  # the list of fonts
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",  # made by the export, else in the temporary folder
    "CUDA_CACHE_PATH": "cuda",  # kernels that the driver compiles
}


def stop_reports() -> None:
    """Set `REPORTING_OFF` in this process's environment, over what is there: no report is opted into by accident."""
    os.environ.update(REPORTING_OFF)


def work_offline() -> None:
    """Let no library look at a hub or open a tunnel; to be called before Gradio is imported."""
    os.environ.update(_OFFLINE)


def use_own_caches() -> None:
    """Send the caches of libraries to `cache_folder`, but for those that the user has placed already."""
    for name, folder in _CACHES.items():
        os.environ.setdefault(name, str(cache_folder() / folder))


def cache_folder() -> Path:
    """Where this user's caches of medsd live, all of which may be deleted: XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medsd"


def import_onnxruntime(part: str = "") -> Any:
    """ONNX Runtime, or a module in it such as ``quantization``, with its reports switched off.

    The variable alone is not enough on Windows, nor where a program imported ONNX Runtime before medsd. Raises
    DependencyError: it cannot be imported.
    """
    try:
        runtime = _silenced()
        return import_module(f"onnxruntime.{part}") if part else runtime
    except ImportError as error:
        raise DependencyError(f"ONNX Runtime cannot be imported ({error}); install medsd again") from None


@cache
def _silenced() -> Any:
    stop_reports()
    runtime = import_module("onnxruntime")
    runtime.disable_telemetry_events()
    return runtime
