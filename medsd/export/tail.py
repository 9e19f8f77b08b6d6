"""The tail of an exported graph, from logits to probabilities, exchanged with ONNX's own tools.

The nodes that compute the probabilities are replaced by nodes that compute them from the output `logits`, and what is
no longer needed is removed. `compare_graphs` then compares the new graph with the old one.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsd.bundle.layout import Bundle, Precision
from medsd.calibration.fit import calibrated
from medsd.calibration.types import Calibration, hinge_arrays
from medsd.errors import BundleError, DependencyError, first_line
from medsd.telemetry import import_onnxruntime

TOLERANCE = 1e-5  # of the outputs that must not change, by their scale; graphs may be optimised differently
_READINGS = 16
_OWN = "medsd_recalibrated"


def exchange_tail(
    bundle: Bundle,
    path: Path,
    calibration: Mapping[str, Calibration],
    *,
    version: str,
    precision: Precision = "float32",
) -> None:
    """Write the bundle's graph of a precision, all of which have a float32 tail, with another calibration to `path`.

    Raises BundleError: the graph cannot be read, or breaks ONNX's rules afterwards; DependencyError: the package onnx
    is missing.
    """
    try:
        import onnx
        from onnx.utils import Extractor
    except ImportError:
        raise DependencyError("recalibrating needs onnx; install it with: pip install 'medsd[train]'") from None
    old = bundle.graph_path(precision)
    try:
        model = onnx.load(old)
    except Exception as error:  # protobuf's own classes
        raise BundleError(f"{old}: cannot be read ({type(error).__name__}); copy it again") from None
    graph = model.graph
    kept = [node for node in graph.node if "probabilities" not in node.output]
    if len(kept) != len(graph.node) - 1:
        raise BundleError(f"{old}: no node makes the probabilities alone; this graph cannot be changed")
    own = f"{_OWN}_{sum(node.output[0].startswith(_OWN) for node in kept)}_"  # no name of an earlier recalibration
    nodes, constants = _tail(onnx, [calibration.get(name) for name in bundle.findings], own)
    del graph.node[:]
    graph.node.extend([*kept, *nodes])
    graph.initializer.extend(constants)
    # Without nodes and constants that lead to no output, among them an earlier calibration's.
    ends = ([value.name for value in values] for values in (graph.input, graph.output))
    name, pruned = graph.name, Extractor(model).extract_model(*ends).graph
    graph.CopyFrom(pruned)
    graph.name = name
    properties = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, properties | {"medsd.version": json.dumps(version)})
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise BundleError(f"{path.name}: the changed graph is not valid ONNX: {first_line(error)}") from None
    onnx.save(model, path)


def compare_graphs(
    bundle: Bundle, path: Path, calibration: Mapping[str, Calibration], *, precision: Precision = "float32"
) -> tuple[dict[str, float], int]:
    """Hold a changed graph against the bundle's of the same precision on made-up studies.

    Returns the largest absolute difference of each output but the probabilities, and on how many readings; raises
    BundleError where one of them changed, or the probabilities are not those of the new calibration.
    """
    feed, found = _studies(bundle), []
    for model in (bundle.graph_path(precision), path):
        session = quiet_session(model)
        names = [entry.name for entry in session.get_outputs()]
        found.append(dict(zip(names, session.run(names, feed), strict=True)))
    old, new = found
    differences = {name: float(np.abs(new[name] - old[name]).max()) for name in old if name != "probabilities"}
    for name, difference in differences.items():
        if not difference <= TOLERANCE * max(1.0, float(np.abs(old[name]).max())):
            raise BundleError(f"{path.name}: output '{name}' changed by {difference:.2g}; only probabilities may")
    expected = calibrated(new["logits"], calibration, bundle.findings.names)
    worst = largest_gap(new["probabilities"], expected)
    if not worst <= 10 * TOLERANCE:
        raise BundleError(f"{path.name}: the probabilities differ from the new calibration by {worst:.2g}")
    return differences, _READINGS


def quiet_session(graph: Path, providers: Iterable[str] = ("CPUExecutionProvider",)) -> Any:
    """A session that prints errors alone, and does not fall back in silence."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(graph), options, providers=list(providers), enable_fallback=0)


def largest_gap(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """The largest absolute difference; none where both are NaN, NaN where only one of them is."""
    return float(np.where(np.isnan(first) & np.isnan(second), 0.0, np.abs(first - second)).max())


def _tail(onnx: Any, calibration: list[Calibration | None], own: str) -> tuple[list[Any], list[Any]]:
    """Nodes from `logits` to `probabilities`, as `medsd.export.onnx.ServingModel` computes, and their constants.

    Names of values begin with `own`. None stands for a finding that was not trained.
    """
    values, node = hinge_arrays(calibration), onnx.helper.make_node
    nodes = [
        node("Mul", ["logits", own + "slope"], [own + "scaled"]),
        node("Add", [own + "scaled", own + "intercept"], [own + "straight"]),
    ]
    last = own + "straight"
    if "knots" in values:
        values["axis"] = np.array([2], np.int64)
        nodes += [
            node("Unsqueeze", ["logits", own + "axis"], [own + "column"]),
            node("Sub", [own + "column", own + "knots"], [own + "beyond"]),
            node("Relu", [own + "beyond"], [own + "hinges"]),
            node("Mul", [own + "hinges", own + "bends"], [own + "bent"]),
            node("ReduceSum", [own + "bent", own + "axis"], [own + "sum"], keepdims=0),
            node("Add", [last, own + "sum"], [own + "log_odds"]),
        ]
        last = own + "log_odds"
    if "trained" in values:
        nodes.append(node("Sigmoid", [last], [own + "all"]))
        nodes.append(node("Mul", [own + "all", own + "trained"], ["probabilities"]))
    else:
        nodes.append(node("Sigmoid", [last], ["probabilities"]))
    return nodes, [onnx.numpy_helper.from_array(value, own + name) for name, value in values.items()]


def _studies(bundle: Bundle) -> dict[str, npt.NDArray[Any]]:
    """Made-up inputs of the bundle's graph, seeded."""
    d, rng = bundle.description, np.random.default_rng(0)
    side = d.pixels.size
    feeds: dict[str, npt.NDArray[Any]] = {"pixels": rng.random((_READINGS, 1, side, side), dtype=np.float32)}
    if d.note is not None:
        tokens = rng.integers(0, 4, (_READINGS, d.note.max_tokens))  # of any vocabulary
        ones = np.ones(_READINGS, np.float32)
        feeds |= {"has_image": ones, "note_ids": tokens, "note_mask": np.ones_like(tokens), "has_note": ones}
    return {name: feeds[name] for name in d.inputs}
