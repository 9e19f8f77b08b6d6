"""The check before a bundle is published: ONNX Runtime must say what PyTorch says, at every batch size.

Compared are all outputs on real studies, and the macro AUROC that they give. What fails raises `BundleError`, and
nothing is published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from medsd.bundle.export import ServingModel, output_names
from medsd.errors import BundleError
from medsd.evaluation.metrics import auroc, macro

BATCH_SIZES = (1, 2, 7, 32)
# Of an output's scale, which is its largest value, or 1 where that is smaller: an evidence map reaches tens, and there
# single precision itself is coarser than 1e-4.
OUTPUT_TOLERANCE = 1e-4
AUROC_TOLERANCE = 1e-3

Arrays = dict[str, npt.NDArray[Any]]


def check_parity(
    serving: ServingModel, onnx_path: Path, feed: Arrays, labels: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """Compare the exported graph with the model that it came from.

    Args:
        serving: the PyTorch side, on the CPU.
        onnx_path: the exported graph.
        feed: the graph's inputs for N readings, by name.
        labels: float32 (N, F) of the same readings.

    Returns:
        the figures for parity.json: largest absolute difference of each output at each batch size, its scale, and both
        AUROCs.

    Raises:
        BundleError: an output differs by more than `OUTPUT_TOLERANCE`, or the AUROC by more than `AUROC_TOLERANCE`.
    """
    expected = _joined([_torch_outputs(serving, part) for part in _slices(feed, 32)])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(onnx_path), options, providers=["CPUExecutionProvider"])
    names, differences = output_names(serving.model), {}
    for size in BATCH_SIZES:
        outputs = _joined([_onnx_outputs(session, part) for part in _slices(feed, size)])
        differences[str(size)] = {name: float(np.abs(outputs[name] - expected[name]).max()) for name in names}
    scale = {name: max(1.0, float(np.abs(expected[name]).max())) for name in names}
    worst = max(by_output[name] / scale[name] for by_output in differences.values() for name in names)
    aurocs = [macro(auroc(labels, source["probabilities"])).value for source in (expected, outputs)]
    report = {
        "provider": "CPUExecutionProvider",
        "readings": len(labels),
        "largest_difference": differences,
        "scale": {name: round(value, 3) for name, value in scale.items()},
        "output_tolerance": OUTPUT_TOLERANCE,
        "macro_auroc": {"pytorch": _number(aurocs[0]), "onnxruntime": _number(aurocs[1])},
        "auroc_tolerance": AUROC_TOLERANCE,
    }
    if not worst <= OUTPUT_TOLERANCE:
        raise BundleError(
            f"{onnx_path.name}: an output differs from PyTorch's by {worst:.2g} of its scale, "
            f"more than {OUTPUT_TOLERANCE:g}"
        )
    if np.isfinite(aurocs).all() and abs(aurocs[0] - aurocs[1]) > AUROC_TOLERANCE:
        raise BundleError(f"{onnx_path.name}: macro AUROC {aurocs[1]:.4f} against PyTorch's {aurocs[0]:.4f}")
    return report


def _torch_outputs(serving: ServingModel, feed: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    with torch.inference_mode():
        outputs = serving(**{name: torch.from_numpy(value) for name, value in feed.items()})
    return {name: value.numpy() for name, value in zip(output_names(serving.model), outputs, strict=True)}


def _onnx_outputs(session: Any, feed: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def _slices(feed: Arrays, size: int) -> Iterator[Arrays]:
    count = len(next(iter(feed.values())))
    for start in range(0, count, size):
        yield {name: value[start : start + size] for name, value in feed.items()}


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _number(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
