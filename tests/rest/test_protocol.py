"""The Open Inference Protocol: a public client gets the graph's outputs, and wrong requests one sentence."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from medsd.bundle import layout
from medsd.inference.session import ModelSession
from medsd.rest.protocol import HEADER_LENGTH, read_request
from medsd.rest.refused import RefusedError
from tests.bundles import TOKENS
from tests.rest.conftest import Running
from tests.rest.test_refusals import said
from tests.rest.triton import triton_http

triton = triton_http()


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with triton.InferenceServerClient(server.address.removeprefix("http://").rstrip("/")) as client:
        yield client


@pytest.fixture
def feeds(bundle: layout.Bundle) -> dict[str, npt.NDArray[Any]]:
    rng, studies = np.random.default_rng(0), 3
    given = {
        name: rng.random((studies, *bundle.description.shape_of(name)), np.float32)
        for name in bundle.description.inputs
    }
    ids = rng.integers(4, 12, (studies, TOKENS))
    return given | {"note_ids": ids, "note_mask": np.ones_like(ids), "has_image": np.ones(studies, np.float32)}


def inputs(feeds: dict[str, npt.NDArray[Any]], *, binary: bool) -> list[Any]:
    tensors = []
    for name, value in feeds.items():
        tensors.append(triton.InferInput(name, list(value.shape), "INT64" if name in layout.INTEGERS else "FP32"))
        tensors[-1].set_data_from_numpy(value, binary_data=binary)
    return tensors


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_the_outputs_of_the_graph(
    client: Any, bundle: layout.Bundle, feeds: dict[str, npt.NDArray[Any]], binary: bool
) -> None:
    session = ModelSession(bundle, provider="cpu")
    expected = session.run(feeds)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in session.outputs]
    name = bundle.description.name
    asked = [client.infer(name, inputs(feeds, binary=binary), outputs=wanted, request_id="7")]
    if binary:  # what the client does by itself: all outputs, as bytes
        asked.append(client.infer(name, inputs(feeds, binary=True), model_version="1"))
    for answer in asked:
        for output in session.outputs:
            np.testing.assert_array_equal(answer.as_numpy(output), getattr(expected, output))
    assert asked[0].get_response()["id"] == "7" and "regions" in session.outputs


def test_one_output_in_json_beside_one_in_bytes(
    client: Any, bundle: layout.Bundle, feeds: dict[str, npt.NDArray[Any]]
) -> None:
    wanted = [triton.InferRequestedOutput("logits"), triton.InferRequestedOutput("embedding", binary_data=False)]
    answer = client.infer(bundle.description.name, inputs(feeds, binary=True), outputs=wanted)
    expected = ModelSession(bundle, provider="cpu").run(feeds)
    np.testing.assert_array_equal(answer.as_numpy("logits"), expected.logits)
    np.testing.assert_array_equal(answer.as_numpy("embedding"), expected.embedding)
    assert answer.as_numpy("probabilities") is None


def test_what_is_no_number_is_null_in_json(
    client: Any, bundle: layout.Bundle, feeds: dict[str, npt.NDArray[Any]]
) -> None:
    feeds["pixels"][0] = np.nan  # stands for a finding that was not trained
    wanted = [triton.InferRequestedOutput("probabilities", binary_data=False)]
    answer = client.infer(bundle.description.name, inputs(feeds, binary=True), outputs=wanted)
    assert set(answer.get_output("probabilities")["data"][: len(bundle.findings)]) == {None}
    found = answer.as_numpy("probabilities")
    assert np.isnan(found[0]).all() and np.isfinite(found[1:]).all()


def test_tritonclient_finds_server_and_model(client: Any, bundle: layout.Bundle) -> None:
    name = bundle.description.name
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(name)
    assert client.is_model_ready(name, "1") and not client.is_model_ready(name, "2") and not client.is_model_ready("x")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    about = client.get_model_metadata(name)
    described = {each["name"]: (each["datatype"], each["shape"]) for each in about["inputs"] + about["outputs"]}
    assert about["versions"] == ["1"] and described["pixels"] == ("FP32", [-1, 1, 64, 64])
    assert described["note_ids"] == ("INT64", [-1, TOKENS]) and described["has_note"] == ("FP32", [-1])
    assert set(described) == {*bundle.description.inputs, *bundle.description.outputs}
    with pytest.raises(triton.InferenceServerException, match=r"^\[404\] There is nothing here"):
        client.get_model_metadata("another")


def _changed(feeds: dict[str, npt.NDArray[Any]], name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A request in JSON, with one of the inputs changed."""
    tensors = [
        {"name": each, "shape": list(value.shape), "data": value.ravel().tolist(),
         "datatype": "INT64" if each in layout.INTEGERS else "FP32"} for each, value in feeds.items()
    ]  # fmt: skip
    return {"inputs": [each | changes if each["name"] == name else each for each in tensors]}


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("pixels", {"name": "CANARYSON"}, "The inputs of this model are pixels, has_image, "),
        ("pixels", {"shape": [3, 1, 64, 63]}, "pixels: the shape is [N, 1, 64, 64], with N from 1 to 32."),
        ("has_note", {"shape": [0], "data": []}, "has_note: the shape is [N], with N from 1 to 32."),
        ("has_note", {"shape": []}, "has_note: the shape is [N], with N from 1 to 32."),
        ("has_note", {"shape": [-1]}, "has_note: the shape is [N], with N from 1 to 32."),
        ("has_note", {"shape": [2], "data": [0, 1]}, "The inputs differ in the size of the batch"),
        ("has_note", {"data": [0, 1]}, "has_note: data is to hold the 3 numbers of its shape."),
        ("has_note", {"data": [[0, 1], [1]]}, "has_note: data is to hold the 3 numbers of its shape."),
        ("has_note", {"data": ["0", "1", "1"]}, "has_note: data is to hold the 3 numbers"),
        ("note_ids", {"data": [0.5] * 3 * TOKENS}, "note_ids: data is to hold the 48 numbers"),
        ("has_note", {"data": [True, 1, 1]}, "has_note: data is to hold the 3 numbers"),
        ("has_note", {"data": [1e300, 1, 1]}, "has_note: a number of data is too large for FP32, or none."),
        ("has_note", {"data": [float("nan"), 1, 1]}, "has_note: a number of data is too large for FP32, or none."),
        ("note_ids", {"data": [2**64 - 1] * 3 * TOKENS}, "note_ids: a number of data is too large for INT64, or none."),
        ("note_ids", {"datatype": "FP32"}, "note_ids: it is INT64, in JSON or as binary data."),
        ("note_ids", {"data": [10**6] * 3 * TOKENS}, "The graph cannot compute these inputs."),
        ("has_note", {"parameters": {"binary_data_size": 12}}, "has_note: its shape has 12 bytes; others were sent."),
        ("has_note", {"parameters": {"binary_data_size": 12.0}}, "has_note: its shape has 12 bytes"),
        ("has_note", {"parameters": {"shared_memory_region": "x"}}, "has_note: it is FP32, in JSON or as binary"),
        ("has_note", {"shape": "CANARYSON"}, "Protocol: inputs.4.shape: input should be a valid array."),
    ],
)  # fmt: skip
def test_wrong_tensors_are_400_with_a_sentence(
    server: Running, feeds: dict[str, npt.NDArray[Any]], name: str, changes: dict[str, Any], sentence: str
) -> None:
    told = _ask(server, json.dumps(_changed(feeds, name, changes)).encode())
    assert told[0] == 400 and sentence in told[1] and "CANARYSON" not in told[1]


def test_one_long_text_among_the_numbers_takes_no_more_memory_than_its_own(
    bundle: layout.Bundle, feeds: dict[str, npt.NDArray[Any]]
) -> None:
    body = json.dumps(_changed(feeds, "note_ids", {"data": ["x" * (1 << 20), *"y" * 47]}))
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError, match="note_ids: data is to hold the 48 numbers"):
            read_request(body.encode(), None, bundle.description, ())
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def _ask(server: Running, body: bytes, **headers: str) -> tuple[int, str]:
    with server.client() as client:
        return said(
            client.post(f"/v2/models/{server.engine.bundle.description.name}/infer", content=body, headers=headers)
        )


def test_json_has_a_bound_and_binary_data_beside_it_has_not(
    bundle: layout.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsd.rest.protocol.JSON_MB", 1)
    with pytest.raises(RefusedError, match="JSON has at most 1 MB") as caught:
        read_request(b"[" * (1 << 20) + b"[", None, bundle.description, ("logits",))
    assert caught.value.status == 413
    with pytest.raises(RefusedError, match="inputs of this model"):  # not its size
        read_request(b'{"inputs": []}' + b"0" * (1 << 20), "14", bundle.description, ("logits",))


def test_wrong_requests_are_400_or_415_with_a_sentence(server: Running, feeds: dict[str, npt.NDArray[Any]]) -> None:
    right = _changed(feeds, "", {})
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b'{"inputs": 3}', json.dumps([right]).encode()):
        assert _ask(server, body)[0] == 400
    for length in ("-1", "x", "9" * 5000, "99999999"):
        assert HEADER_LENGTH in _ask(server, json.dumps(right).encode(), **{HEADER_LENGTH: length})[1]
    content = json.dumps(right).encode()
    assert "more bytes follow" in _ask(server, content + b"1234", **{HEADER_LENGTH: str(len(content))})[1]
    wrong = [{"name": "CANARYSON"}], [{"name": "logits"}] * 2, [{"name": "logits", "parameters": {"classification": 3}}]
    names = "probabilities, logits, embedding, evidence, regions"
    for outputs in wrong:
        told = _ask(server, json.dumps(right | {"outputs": outputs}).encode())
        assert told == (400, f"The outputs of this model are {names}, each once and as a tensor.")
    assert _ask(server, content, **{"content-encoding": "gzip"})[0] == 415
