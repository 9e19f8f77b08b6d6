"""The check before a bundle is published: ONNX Runtime must say what PyTorch says, at every batch size.

Compared are all outputs on real studies, and the metrics that they give, on every execution provider of this machine.
A float32 graph that differs raises `BundleError`, and nothing is published; a graph of fewer bits may cost a little
AUROC, and is left out of the bundle where it costs more.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medsd.bundle.layout import Precision
from medsd.errors import BundleError
from medsd.export.onnx import ServingModel, output_names
from medsd.export.tail import largest_gap, quiet_session
from medsd.inference.providers import CPU, cuda_driver_present, preload_cuda, providers_at_hand
from medsd.metrics.metrics import auroc, average_precision, brier, macro
from medsd.telemetry import import_onnxruntime

BATCH_SIZES = (1, 2, 7, 32)
# Of an output's scale, which is its largest value, or 1 where that is smaller: an evidence map reaches tens, and there
# single precision itself is coarser than 1e-4.
OUTPUT_TOLERANCE = 1e-4
AUROC_TOLERANCE = 1e-3
# What a graph of fewer bits may cost: macro AUROC against PyTorch, and the cosine of embeddings, which are compared
# with those of the float32 graph in the case index.
VARIANT_AUROC = {"float16": 5e-3, "int8": 1e-2}
VARIANT_COSINE = {"float16": 0.999, "int8": 0.97}

Arrays = dict[str, npt.NDArray[Any]]


def check_parity(
    serving: ServingModel,
    onnx_path: Path,
    feed: Arrays,
    labels: npt.NDArray[np.float32],
    *,
    providers: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compare the exported float32 graph with the model that it came from.

    `serving` is on the CPU, `feed` has the graph's inputs for N readings by name, `labels` (N, F) are those of the same
    readings. By default all execution providers of this machine are checked.

    Returns the figures for parity.json: largest absolute difference of each output at each batch size, its scale, which
    outputs keep to the tolerance without their scale too, and the metrics of both sides; for the CPU, and under
    ``further_providers`` for the others. Raises BundleError: an output differs by more than `OUTPUT_TOLERANCE`, or the
    AUROC by more than `AUROC_TOLERANCE`.
    """
    expected = torch_outputs(serving, feed)
    others = [name for name in (_at_hand() if providers is None else providers) if name != CPU]
    report = _compare(onnx_path, CPU, feed, labels, expected)
    report["further_providers"] = {name: _compare(onnx_path, name, feed, labels, expected) for name in others}
    return report


def check_variant(
    precision: Precision, onnx_path: Path, feed: Arrays, labels: npt.NDArray[np.float32], expected: Arrays
) -> dict[str, Any]:
    """Measure what a graph of fewer bits costs against PyTorch in float32, at every batch size, on the CPU.

    Takes what `check_parity` takes, and what PyTorch says (`torch_outputs`). Returns the figures for parity.json;
    ``published`` tells whether they are within the bounds, ``reason`` which is not.
    """
    session = _session(onnx_path, CPU)
    by_size = {size: _onnx_outputs(session, feed, size) for size in BATCH_SIZES}
    outputs = by_size[BATCH_SIZES[-1]]
    batched = max(largest_gap(each[name], outputs[name]) for each in by_size.values() for name in each)
    cosines = (outputs["embedding"] * expected["embedding"]).sum(1)
    pytorch, runtime = _metrics(labels, expected), _metrics(labels, outputs)
    report: dict[str, Any] = {
        "provider": CPU,
        "readings": len(labels),
        "largest_difference": {name: largest_gap(outputs[name], expected[name]) for name in outputs},
        "mean_difference": {name: float(np.nanmean(np.abs(outputs[name] - expected[name]))) for name in outputs},
        "largest_difference_between_batch_sizes": batched,
        "embedding_cosine": {"mean": float(cosines.mean()), "smallest": float(cosines.min())},
        "macro_auroc": {"pytorch": pytorch["macro_auroc"], "onnxruntime": runtime["macro_auroc"]},
        "auroc_difference": _difference(pytorch, runtime),
        "auroc_tolerance": VARIANT_AUROC[precision],
        "cosine_tolerance": VARIANT_COSINE[precision],
    }
    reason = _variant_reason(precision, report)
    return report | {"published": not reason, "reason": reason}


def torch_outputs(serving: ServingModel, feed: Arrays) -> Arrays:
    """What PyTorch says, by the names of the graph's outputs."""
    names, parts = output_names(serving.model), []
    for part in _slices(feed, 32):
        with torch.inference_mode():
            outputs = serving(**{name: torch.from_numpy(value) for name, value in part.items()})
        parts.append({name: value.numpy() for name, value in zip(names, outputs, strict=True)})
    return _joined(parts)


def _variant_reason(precision: Precision, report: Mapping[str, Any]) -> str:
    """Why the graph must not be published, or ""."""
    if not np.isfinite([*report["largest_difference"].values()]).all():
        return "an output is not a number"
    difference, cosine = report["auroc_difference"], report["embedding_cosine"]["mean"]
    if difference is not None and abs(difference) > VARIANT_AUROC[precision]:
        return f"macro AUROC differs by {difference:+.4f}, more than {VARIANT_AUROC[precision]:g}"
    if not cosine >= VARIANT_COSINE[precision]:
        return f"mean cosine of its embeddings with PyTorch's {cosine:.4f}, less than {VARIANT_COSINE[precision]}"
    return ""


def _compare(
    onnx_path: Path, provider: str, feed: Arrays, labels: npt.NDArray[np.float32], expected: Arrays
) -> dict[str, Any]:
    """One provider against PyTorch."""
    session = _session(onnx_path, provider)
    said = {size: _onnx_outputs(session, feed, size) for size in BATCH_SIZES}
    differences = {
        str(size): {name: largest_gap(outputs[name], expected[name]) for name in expected}
        for size, outputs in said.items()
    }
    largest = {name: max(by_output[name] for by_output in differences.values()) for name in expected}
    scale = {name: max(1.0, float(np.abs(np.nan_to_num(value)).max())) for name, value in expected.items()}
    worst = max(largest[name] / scale[name] for name in expected)
    # Of all batch sizes, the one whose AUROC is furthest from PyTorch's.
    pytorch = _metrics(labels, expected)
    by_size = [_metrics(labels, outputs) for outputs in said.values()]
    furthest = max(by_size, key=lambda each: abs(_difference(pytorch, each) or 0))
    report = {
        "provider": provider,
        "readings": len(labels),
        "largest_difference": differences,
        "scale": {name: round(value, 3) for name, value in scale.items()},
        "output_tolerance": OUTPUT_TOLERANCE,
        "within_tolerance_unscaled": {name: value <= OUTPUT_TOLERANCE for name, value in largest.items()},
        **{name: {"pytorch": value, "onnxruntime": furthest[name]} for name, value in pytorch.items()},
        "auroc_tolerance": AUROC_TOLERANCE,
    }
    where = "" if provider == CPU else f" on {provider}"
    if not worst <= OUTPUT_TOLERANCE:
        raise BundleError(
            f"{onnx_path.name}: an output differs from PyTorch's by {worst:.2g} of its scale{where}, "
            f"more than {OUTPUT_TOLERANCE:g}"
        )
    difference = _difference(pytorch, furthest)
    if difference is not None and abs(difference) > AUROC_TOLERANCE:
        raise BundleError(f"{onnx_path.name}: macro AUROC differs from PyTorch's by {difference:+.4f}{where}")
    return report


def _metrics(labels: npt.NDArray[np.float32], outputs: Arrays) -> dict[str, float | None]:
    trained = ~np.isnan(outputs["probabilities"]).all(axis=0)
    labels, probabilities = labels[:, trained], outputs["probabilities"][:, trained]
    if not np.isfinite(probabilities).all():
        return dict.fromkeys(("macro_auroc", "macro_average_precision", "mean_brier"))
    return {
        "macro_auroc": _number(macro(auroc(labels, probabilities))),
        "macro_average_precision": _number(macro(average_precision(labels, probabilities))),
        "mean_brier": _number(macro(brier(labels, probabilities))),
    }


def _difference(pytorch: Mapping[str, float | None], runtime: Mapping[str, float | None]) -> float | None:
    """ONNX Runtime's macro AUROC less PyTorch's; None where either is unknown."""
    first, second = pytorch["macro_auroc"], runtime["macro_auroc"]
    return None if first is None or second is None else round(second - first, 6)


def _at_hand() -> list[str]:
    onnxruntime = import_onnxruntime()
    names = providers_at_hand(onnxruntime.get_available_providers(), cuda_driver_present)
    if any(name != CPU for name in names):
        preload_cuda(onnxruntime)
    return names


def _session(onnx_path: Path, provider: str) -> Any:
    session = quiet_session(onnx_path, dict.fromkeys((provider, CPU)))
    if session.get_providers()[0] != provider:
        raise BundleError(f"{onnx_path.name}: {provider} is on this machine, but does not start: agreement is unknown")
    return session


def _onnx_outputs(session: Any, feed: Arrays, size: int) -> Arrays:
    names = [value.name for value in session.get_outputs()]
    return _joined([dict(zip(names, session.run(names, part), strict=True)) for part in _slices(feed, size)])


def _slices(feed: Arrays, size: int) -> Iterator[Arrays]:
    count = len(next(iter(feed.values())))
    for start in range(0, count, size):
        yield {name: value[start : start + size] for name, value in feed.items()}


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _number(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
