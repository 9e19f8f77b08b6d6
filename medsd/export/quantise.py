"""Graphs of fewer bits made from `model.onnx`: float16 for GPUs, int8 for CPUs, by ONNX Runtime's own converters.

Both keep float32 inputs and outputs and a float32 head: the maps into the common space and all that stands behind
them, that is means, evidence, classifier, calibration and the length of the embedding. `medsd.export.parity` decides
whether what comes out may be published.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.utils import Extractor

from medsd.errors import BundleError, first_line
from medsd.telemetry import import_onnxruntime

Feeds = Mapping[str, npt.NDArray[Any]]

# The maps into the common space, by their weights' names (`medsd.networks.fusion`): the head begins with them.
_TO_SPACE = ("image_to_space.", "note_to_space.")
# Sums over many values, and exponentials: they overflow or lose digits in float16 wherever they stand. Batch
# normalisation is not among them: at inference it is one multiplication and one addition.
_FRAGILE = ("Softmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "ReduceMean", "ReduceSum",
            "ReduceL2", "GlobalAveragePool", "Pow", "Sqrt", "Exp")  # fmt: skip
# What int8 kernels exist for; ONNX Runtime folds ReLU and ReLU6 into the ranges of what stands before them.
_QUANTISED = ("Conv", "MatMul", "Gemm", "Add", "Clip", "Relu", "MaxPool", "AveragePool", "Concat")
_CALIBRATION_BATCH = 8


def write_float16(graph: Path, out: Path) -> None:
    """Write model.onnx with float16 weights and activations between float32 inputs and outputs.

    Raises BundleError where the converter fails, or the graph has no head that it knows.
    """
    float16 = import_onnxruntime("transformers.float16")
    model = onnx.load(graph)
    body = _body(model, graph)
    try:
        # The encoders alone: the converter rounds whatever passes from one node that it leaves out to the next.
        encoders = onnx.compose.add_prefix(
            _encoders(model, body), "half_", rename_inputs=False, rename_outputs=False, rename_functions=False
        )
        blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *_FRAGILE]
        half = float16.convert_float_to_float16(encoders, keep_io_types=True, op_block_list=blocked)
    except Exception as error:  # the converter raises many kinds
        raise BundleError(f"{graph}: cannot be made float16: {first_line(error)}") from error
    head = [node for node in model.graph.node if node.name not in body]
    used = {name for node in head for name in node.input}
    initializers = [each for each in model.graph.initializer if each.name in used]
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend([*_once(half.graph.node), *head])
    made.graph.initializer.extend([*half.graph.initializer, *initializers])
    # The converter puts its casts at the end.
    import_onnxruntime("transformers.onnx_model").OnnxModel(made).topological_sort()
    _save(made, model, out)


def write_int8(graph: Path, out: Path, studies: Feeds) -> None:
    """Write model.onnx with 8-bit weights, one scale a channel, and 8-bit activations of fixed ranges.

    The ranges are the extremes seen on `studies`, the graph's inputs for N training studies. Products of two
    activations (attention) and the head stay float32. Weights have 7 bits, as processors without VNNI add up pairs of
    8-bit products in 16 bits, which overflows. Raises BundleError where the quantiser fails, or the graph has no head
    that it knows.
    """
    quantization = import_onnxruntime("quantization")
    model = onnx.load(graph)
    weights = {initializer.name for initializer in model.graph.initializer}
    between = [
        node.name for node in model.graph.node if node.op_type == "MatMul" and not weights.intersection(node.input)
    ]
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            # Folds what it can first; without that, batch normalisation would be quantised apart from its convolution.
            folded = Path(folder) / "folded.onnx"
            _fold(graph, folded)
            whole = onnx.load(folded)
            body = _body(whole, graph)
            head = [node.name for node in whole.graph.node if node.name not in body]
            quantization.quantize_static(
                folded,
                out,
                _CalibrationReader(studies),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTISED),
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=[*head, *between],
            )
    except BundleError:
        raise
    except Exception as error:  # the quantiser raises many kinds
        raise BundleError(f"{graph}: cannot be made int8: {first_line(error)}") from error
    _save(onnx.load(out), model, out)


class _CalibrationReader:
    """Hands the quantiser a few studies at a time (`onnxruntime.quantization.CalibrationDataReader`)."""

    def __init__(self, studies: Feeds) -> None:
        starts = range(0, len(next(iter(studies.values()))), _CALIBRATION_BATCH)
        self._batches = (
            {name: np.ascontiguousarray(value[start : start + _CALIBRATION_BATCH]) for name, value in studies.items()}
            for start in starts
        )

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        return next(self._batches, None)


def _fold(graph: Path, out: Path) -> None:
    """The same graph after ONNX Runtime's basic optimisations, which keep to ONNX's own operators."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _body(model: onnx.ModelProto, graph: Path) -> set[str]:
    """Names of the nodes that the maps into the common space depend on: the encoders."""
    nodes = model.graph.node  # in the order of computation
    needed = {
        name for node in nodes if any(part in each for each in node.input for part in _TO_SPACE) for name in node.input
    }
    if not needed:
        raise BundleError(f"{graph}: no layer into the common space is found; it was not exported by this medsd")
    body = set()
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            body.add(node.name)
    return body


def _encoders(model: onnx.ModelProto, body: set[str]) -> onnx.ModelProto:
    """The nodes of `body` as a model; its outputs are what the other nodes take from it."""
    inner = [node for node in model.graph.node if node.name in body]
    outer = [node for node in model.graph.node if node.name not in body]
    taken = {name for node in outer for name in node.input} | {value.name for value in model.graph.output}
    used = {name for node in inner for name in node.input}
    encoders = Extractor(onnx.shape_inference.infer_shapes(model)).extract_model(
        [each.name for each in model.graph.input if each.name in used],
        [name for node in inner for name in node.output if name in taken],
    )
    del encoders.graph.value_info[:]
    return encoders


def _once(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes without repetitions: the converter casts a value once for each node that takes it."""
    seen: set[str] = set()
    for node in nodes:
        if not seen.intersection(node.output):
            yield node
        seen.update(node.output)


def _save(made: onnx.ModelProto, source: onnx.ModelProto, out: Path) -> None:
    """Write `made` with the metadata of the graph that it came from, and the origins of its nodes left out."""
    del made.metadata_props[:]
    made.metadata_props.extend(source.metadata_props)
    made.producer_name, made.producer_version = source.producer_name, source.producer_version
    del made.graph.value_info[:]  # stale after a conversion; ONNX Runtime infers them
    onnx.checker.check_model(made)
    onnx.save(made, out)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the quantiser's advice to the root logger, which is addressed to people who call it by hand."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
