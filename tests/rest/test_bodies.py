"""A body arrives whole however it is cut, and a large one goes straight to who reads it."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from itertools import pairwise
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from medsd.connection import PIECE, Connection
from medsd.listening import bound_socket, server_context
from medsd.preprocessing.memory_file import MemoryFile
from medsd.rest.bodies import RequestLimits, read_study
from medsd.rest.guard import answer_of
from tests.certificates import self_signed

LIMITS = RequestLimits(image_bytes=4 << 20)
NOTE = b'--a-boundary\r\nContent-Disposition: form-data; name="note"\r\n\r\nR\xc3\xb6ntgen\r\n'
FILE = b'--a-boundary\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
END = b"\r\n--a-boundary--\r\n"


async def _echo(scope: Scope, receive: Receive, send: Send, limits: RequestLimits = LIMITS) -> None:
    try:
        file, asked = await read_study(Request(scope, receive), limits)
        answer = JSONResponse([file and hashlib.sha256(file.content()).hexdigest(), asked.note])
    except Exception as error:
        answer = answer_of(error)
    await answer(scope, receive, send)


@contextmanager
def _server(tls: ssl.SSLContext | None = None, app: ASGIApp = _echo) -> Iterator[int]:
    with bound_socket("127.0.0.1", 0) as listener:
        listener.listen()
        config = uvicorn.Config(app, interface="asgi3", http=Connection, ws="none", lifespan="off", log_config=None)
        config.ssl_context_factory = None if tls is None else lambda *_: tls
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with _server() as port:
        yield port


def _noise(size: int, seed: int) -> bytes:
    """Much in it looks like the beginning of a delimiter, also where a piece ends."""
    rng = random.Random(seed)
    noise = bytearray(rng.randbytes(size))
    for place in (*range(PIECE - 200, size, PIECE), *(rng.randrange(size + 1) for _ in range(100))):
        part = END[: rng.randrange(1, len(END) - 5)]
        noise[place : place + len(part)] = part
    return bytes(noise[:size])


FORM_TYPE, IMAGE_TYPE = "multipart/form-data; boundary=a-boundary", "application/dicom"


def _ask(client: HTTPConnection, pieces: Sequence[bytes], kind: str = FORM_TYPE, path: str = "/") -> tuple[int, Any]:
    client.putrequest("POST", path)
    client.putheader("Content-Type", kind)
    client.putheader("Content-Length", str(sum(map(len, pieces))))
    client.endheaders()
    for piece in pieces:
        client.send(piece)
    answer = client.getresponse()
    return answer.status, json.loads(answer.read())


def _right(content: bytes, note: str = "Röntgen") -> tuple[int, Any]:
    return 200, [hashlib.sha256(content).hexdigest(), note]


def _head(content: bytes) -> bytes:
    fields = f"Host: localhost\r\nContent-Type: {IMAGE_TYPE}\r\nContent-Length: {len(content)}"
    return f"POST / HTTP/1.1\r\n{fields}\r\n\r\n".encode()


def _cut(body: bytes, rng: random.Random) -> list[bytes]:
    places = sorted({0, len(body), *(rng.randrange(len(body)) for _ in range(rng.randrange(6)) if body)})
    return [body[start:end] for start, end in pairwise(places)]


@pytest.mark.parametrize("seed", range(6))
def test_form_and_image_arrive_whole_however_they_are_cut(port: int, seed: int) -> None:
    rng = random.Random(seed)
    client = HTTPConnection("127.0.0.1", port, timeout=60)
    for size in (0, 1, PIECE - len(NOTE + FILE), PIECE, rng.randrange(3 << 20), 3 << 20):  # on one connection
        content = _noise(size, seed)
        body = NOTE + FILE + content + END if seed % 2 else FILE + content + b"\r\n" + NOTE[:-2] + END
        assert _ask(client, _cut(body, rng)) == _right(content)
        assert _ask(client, _cut(content, rng), IMAGE_TYPE) == _right(content, "")
    client.close()


def test_a_large_form_arrives_by_tls(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    content = _noise(3 << 20, 0)
    with _server(server_context(certificate, key, None)) as port:
        client = HTTPSConnection("127.0.0.1", port, timeout=60, context=ssl.create_default_context(cafile=certificate))
        assert _ask(client, [NOTE + FILE + content + END]) == _right(content)
        assert _ask(client, [content], IMAGE_TYPE) == _right(content, "")
        client.close()


def test_what_follows_an_image_on_its_connection_is_the_next_request(port: int) -> None:
    content = _noise(3 << 20, 0)
    with socket.create_connection(("127.0.0.1", port), 60) as client:
        client.sendall(2 * (_head(content) + content))
        answers = b""
        while answers.count(b"}]") + answers.count(b'""]') < 2:
            answers += client.recv(1 << 16) or pytest.fail("the connection has ended")
    assert answers.count(b"200 OK") == answers.count(hashlib.sha256(content).hexdigest().encode()) == 2


def test_a_body_that_comes_too_slowly_does_not_hold_up_the_next_request() -> None:
    content = _noise(3 << 20, 0)
    app = partial(_echo, limits=replace(LIMITS, body_s=0.5))
    with _server(app=app) as port, socket.create_connection(("127.0.0.1", port), 60) as client:
        for place in (0, 1 << 19, 1 << 20):  # the rest is waited for in one piece
            client.sendall((b"" if place else _head(content)) + content[place : place + (1 << 19)])
            time.sleep(0.1)
        assert b" 408 " in client.recv(1 << 16)
        client.sendall(content[3 << 19 :] + _head(b"small") + b"small")
        answer = b""
        while hashlib.sha256(b"small").hexdigest().encode() not in answer:
            answer += client.recv(1 << 16) or pytest.fail("the connection has ended")


def _noted(port: int, method: str, patched: pytest.MonkeyPatch) -> tuple[HTTPConnection, list[Any]]:
    """A connection, and with what the server calls `method` of its own end; of earlier tests something may arrive."""
    client, called, original = HTTPConnection("127.0.0.1", port, timeout=60), [], getattr(Connection, method)
    client.connect()
    ours = client.sock.getsockname()

    def noting(self: Connection, said: Any) -> None:
        if self.client == ours:
            called.append(said)
        original(self, said)

    patched.setattr(Connection, method, noting)
    return client, called


def test_a_large_body_wakes_the_server_seldom(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = _noise(3 << 20, 0)
    client, woken = _noted(port, "buffer_updated", monkeypatch)
    assert _ask(client, [content[at : at + 30_000] for at in range(0, len(content), 30_000)], IMAGE_TYPE)[0] == 200
    client.close()
    assert sum(woken) > len(content) and len(woken) < 20


def test_an_image_of_unknown_length_is_taken_within_the_limit(port: int) -> None:
    client = HTTPConnection("127.0.0.1", port, timeout=60)
    content = _noise(3 << 20, 1)
    for pieces, status in (([content[: 1 << 20], content[1 << 20 :]], 200), ([content, content], 413)):
        client.request("POST", "/", iter(pieces), {"Content-Type": IMAGE_TYPE}, encode_chunked=True)
        answer = client.getresponse()
        said = answer.status, json.loads(answer.read())
        assert said == _right(content, "") if status == 200 else said[0] == status
        client.close()


def test_h11_sees_little_of_a_large_body(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = _noise(3 << 20, 0)
    client, seen = _noted(port, "data_received", monkeypatch)
    assert _ask(client, [NOTE + FILE + content[: 1 << 20], content[1 << 20 :] + END]) == _right(content)
    assert _ask(client, [content[: 1 << 20], content[1 << 20 :]], IMAGE_TYPE) == _right(content, "")
    client.close()
    assert sum(map(len, seen)) < 2 << 20


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([NOTE, FILE, bytes(1 << 20)], 422),  # no end
        ([NOTE, FILE, bytes(1 << 20), b"\r\n", FILE, END], 422),  # two files
        ([NOTE, NOTE, END], 422),
        ([NOTE[:-4], bytes(3 << 20), END], 422),  # as a word
        ([FILE[:-2] + b"X-Long: ", b"a" * (2 << 20), b"\r\n\r\n", END], 422),  # as a header
        ([FILE, bytes((4 << 20) + 1), END], 413),
        ([NOTE.replace(b"\xc3", b""), END[2:]], 415),
    ],
)
def test_what_is_wrong_in_a_later_piece_is_refused(port: int, pieces: Sequence[bytes], status: int) -> None:
    client = HTTPConnection("127.0.0.1", port, timeout=60)
    assert _ask(client, pieces)[0] == status
    assert _ask(client, [NOTE + FILE + END]) == _right(b"")  # the connection goes on
    client.close()


@pytest.mark.parametrize(
    ("kind", "path", "size", "status"),
    [
        ("image/png; charset=binary", "/?k=3&coverage=0.9", 3 << 20, 200),
        ("Image/JPEG", "/", 4 << 20, 200),
        (IMAGE_TYPE, "/", (4 << 20) + 1, 413),
        (IMAGE_TYPE, "/?note=cough", 3 << 20, 422),
        (IMAGE_TYPE, "/?k=1&k=2", 3 << 20, 422),
        (IMAGE_TYPE, "/?k=101", 3 << 20, 422),
        ("application/octet-stream", "/", 3 << 20, 415),
        ("", "/", 3 << 20, 415),
    ],
)
def test_an_image_as_it_is_is_taken_or_refused(port: int, kind: str, path: str, size: int, status: int) -> None:
    client = HTTPConnection("127.0.0.1", port, timeout=60)
    assert _ask(client, [bytes(size)], kind, path)[0] == status
    assert _ask(client, [NOTE + FILE + END]) == _right(b"")  # the connection goes on
    client.close()


def test_a_form_with_fields_in_its_address_is_refused(port: int) -> None:
    client = HTTPConnection("127.0.0.1", port, timeout=60)
    assert _ask(client, [NOTE + FILE + END], path="/?k=3")[0] == 422
    client.close()


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_memory_file_arrives_as_what_it_holds(everywhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not everywhere:
        monkeypatch.delattr("os.memfd_create", raising=False)
    for size in (3 << 20, 100_000, 1, 0):
        file, content = MemoryFile(size // 2), random.Random(0).randbytes(size)
        for start in range(0, size, 30_000):
            file.write(memoryview(content)[start : start + 30_000])
        file.room(10)[:] = b"not filled"
        assert file.size == size and file.content() == content
        sent = bytes(ForkingPickler.dumps(file))
        assert ForkingPickler.loads(sent)[:] == content and (len(sent) < 200 or not everywhere)
