"""The Open Inference Protocol (KServe v2) over HTTP, with its binary tensor data extension, for one model.

Source: ``rest_predict_v2`` of KServe, ``extension_binary_data`` of Triton. In JSON, null stands for what is no number:
the probability of a finding that was not trained.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import JSONResponse, Response

from medsd.bundle.layout import INTEGERS, Description
from medsd.rest.bodies import sentence_of
from medsd.rest.refused import RefusedError

EXTENSIONS = ["binary_tensor_data"]
HEADER_LENGTH = "inference-header-content-length"
JSON_MB = 32  # of a request; what is read of it takes up to forty times its size
MOST = 32  # studies in one request, as in the configuration for Triton
_KINDS: dict[bool, tuple[str, np.dtype[Any], set[type]]] = {
    True: ("INT64", np.dtype("<i8"), {int}),
    False: ("FP32", np.dtype("<f4"), {int, float}),
}  # by being whole numbers
_USAGE = "This is no inference request of the Open Inference Protocol"


class InputTensor(BaseModel):
    """One input, its values in `data` (row by row, nested or not) or, with ``binary_data_size``, after the JSON."""

    name: str
    shape: list[int]
    datatype: str = Field(description="FP32 or INT64")
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class OutputTensor(BaseModel):
    """One output that is asked for; with the parameter ``binary_data`` it comes after the JSON."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """An inference request; without `outputs`, all are meant."""

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor]
    outputs: list[OutputTensor] = []


def model_metadata(about: Description, outputs: tuple[str, ...]) -> dict[str, Any]:
    """What the model takes and says; -1 stands for the studies of a batch."""

    def tensors(names: tuple[str, ...]) -> list[dict[str, Any]]:
        return [{"name": n, "datatype": _kind(n)[0], "shape": [-1, *about.shape_of(n)]} for n in names]

    return {
        "name": about.name,
        "versions": [about.version],
        "platform": "onnx_onnxruntime",
        "inputs": tensors(about.inputs),
        "outputs": tensors(outputs),
    }


def read_request(
    body: bytes, header_length: str | None, about: Description, said: tuple[str, ...]
) -> tuple[InferRequest, dict[str, npt.NDArray[Any]]]:
    """A request, and the graph's inputs; `said` are its outputs, `header_length` the bytes of JSON where others follow.

    Raises:
        RefusedError: it is none, inputs or outputs are not those of the graph, or the batch is empty or too large.
    """
    end = len(body)
    if header_length is not None:
        if not re.fullmatch(r"[0-9]{1,12}", header_length) or int(header_length) > end:
            raise RefusedError(400, f"{HEADER_LENGTH} is to be the length of the JSON in bytes.")
        end = int(header_length)
    if end > JSON_MB << 20:
        raise RefusedError(413, f"JSON has at most {JSON_MB} MB; send larger tensors as binary data.")
    try:
        request = InferRequest.model_validate_json(body[:end])
    except ValidationError as error:
        raise RefusedError(400, f"{_USAGE}: {sentence_of(error, _USAGE)}") from None
    asked = [each.name for each in request.outputs if "classification" not in each.parameters]
    if len(set(asked) & set(said)) != len(request.outputs):
        raise RefusedError(400, f"The outputs of this model are {', '.join(said)}, each once and as a tensor.")
    return request, _feeds(request.inputs, body[end:], about)


def _feeds(inputs: list[InputTensor], binary: bytes, about: Description) -> dict[str, npt.NDArray[Any]]:
    if sorted(each.name for each in inputs) != sorted(about.inputs):
        raise RefusedError(400, f"The inputs of this model are {', '.join(about.inputs)}, each once.")
    feeds: dict[str, npt.NDArray[Any]] = {}
    for each in inputs:
        tail = about.shape_of(each.name)
        if tuple(each.shape[1:]) != tail or not each.shape or not 0 < each.shape[0] <= MOST:
            sizes = ", ".join(map(str, ("N", *tail)))
            raise RefusedError(400, f"{each.name}: the shape is [{sizes}], with N from 1 to {MOST}.")
        feeds[each.name], binary = _tensor(each, binary)
    if binary or len({len(tensor) for tensor in feeds.values()}) != 1:
        raise RefusedError(400, "The inputs differ in the size of the batch, or more bytes follow than they have.")
    return feeds


def _kind(name: str) -> tuple[str, np.dtype[Any], set[type]]:
    return _KINDS[name in INTEGERS]


def _tensor(each: InputTensor, binary: bytes) -> tuple[npt.NDArray[Any], bytes]:
    """A tensor, and the bytes that belong to those after it."""
    (datatype, dtype, kinds), count = _kind(each.name), math.prod(each.shape)
    if each.datatype != datatype or "shared_memory_region" in each.parameters:
        raise RefusedError(400, f"{each.name}: it is {datatype}, in JSON or as binary data.")
    size = each.parameters.get("binary_data_size")
    if size is not None:
        if type(size) is not int or size != count * dtype.itemsize or size > len(binary):
            raise RefusedError(400, f"{each.name}: its shape has {count * dtype.itemsize} bytes; others were sent.")
        return np.frombuffer(binary, dtype, count).reshape(each.shape), binary[size:]
    try:
        given = np.asarray(each.data, object)  # else one long text makes every other as long
    except ValueError:  # rows of different lengths
        given = np.empty(0)
    if given.size != count or not set(map(type, given.flat)) <= kinds:
        raise RefusedError(400, f"{each.name}: data is to hold the {count} numbers of its shape.")
    try:
        with np.errstate(over="ignore"):
            numbers = given.astype(dtype)
    except OverflowError:  # a whole number; others become infinite
        numbers = np.full(1, np.nan)
    if not np.isfinite(numbers).all():  # NaN is not JSON, though parsers take it
        raise RefusedError(400, f"{each.name}: a number of data is too large for {datatype}, or none.")
    return numbers.reshape(each.shape), binary


def answer(request: InferRequest, outputs: Mapping[str, npt.NDArray[Any]], about: Description) -> Response:
    """The response, in JSON or with binary data after it, as the request asks."""
    everywhere = request.parameters.get("binary_data_output", False)
    asked = request.outputs or [OutputTensor(name=name) for name in outputs]
    entries: list[dict[str, Any]] = []
    after = b""
    for each in asked:
        values = np.ascontiguousarray(outputs[each.name], np.dtype("<f4"))
        entry: dict[str, Any] = {"name": each.name, "datatype": "FP32", "shape": list(values.shape)}
        if each.parameters.get("binary_data", everywhere) is True:
            entry["parameters"] = {"binary_data_size": values.nbytes}
            after += values.tobytes()
        else:
            entry["data"] = [value if math.isfinite(value) else None for value in values.ravel().tolist()]
        entries.append(entry)
    content = {"model_name": about.name, "model_version": about.version, "outputs": entries}
    if request.id is not None:
        content["id"] = request.id
    if not after:
        return JSONResponse(content)
    head = json.dumps(content).encode()
    return Response(head + after, 200, {HEADER_LENGTH: str(len(head))}, "application/octet-stream")
