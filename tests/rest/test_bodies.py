"""A form arrives whole however it is cut, and the pieces of a large one go straight to who reads them."""

from __future__ import annotations

import hashlib
import json
import random
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPSConnection
from itertools import pairwise
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from medsd.connection import PIECE, Connection
from medsd.listening import bound_socket, server_context
from medsd.preprocessing.memory_file import MemoryFile
from medsd.rest.bodies import RequestLimits, read_form
from medsd.rest.guard import answer_of
from tests.certificates import self_signed

LIMITS = RequestLimits(image_bytes=4 << 20)
NOTE = b'--a-boundary\r\nContent-Disposition: form-data; name="note"\r\n\r\nR\xc3\xb6ntgen\r\n'
FILE = b'--a-boundary\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
END = b"\r\n--a-boundary--\r\n"


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        file, asked = await read_form(Request(scope, receive), LIMITS)
        answer = JSONResponse([file and hashlib.sha256(file.content()).hexdigest(), asked.note])
    except Exception as error:
        answer = answer_of(error)
    await answer(scope, receive, send)


@contextmanager
def _server(tls: ssl.SSLContext | None = None) -> Iterator[int]:
    with bound_socket("127.0.0.1", 0) as listener:
        listener.listen()
        config = uvicorn.Config(_echo, http=Connection, ws="none", lifespan="off", log_config=None)
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


def _ask(client: HTTPConnection, pieces: Sequence[bytes]) -> tuple[int, Any]:
    client.putrequest("POST", "/")
    client.putheader("Content-Type", "multipart/form-data; boundary=a-boundary")
    client.putheader("Content-Length", str(sum(map(len, pieces))))
    client.endheaders()
    for piece in pieces:
        client.send(piece)
    answer = client.getresponse()
    return answer.status, json.loads(answer.read())


def _right(content: bytes) -> tuple[int, Any]:
    return 200, [hashlib.sha256(content).hexdigest(), "Röntgen"]


@pytest.mark.parametrize("seed", range(6))
def test_a_form_arrives_whole_however_it_is_cut(port: int, seed: int) -> None:
    rng = random.Random(seed)
    client = HTTPConnection("127.0.0.1", port, timeout=60)
    for size in (0, 1, PIECE - len(NOTE + FILE), PIECE, rng.randrange(3 << 20), 3 << 20):  # on one connection
        content = _noise(size, seed)
        body = NOTE + FILE + content + END if seed % 2 else FILE + content + b"\r\n" + NOTE[:-2] + END
        places = sorted({0, len(body), *(rng.randrange(len(body)) for _ in range(rng.randrange(6)))})
        pieces = [body[start:end] for start, end in pairwise(places)]
        assert _ask(client, pieces) == _right(content)
    client.close()


def test_a_large_form_arrives_by_tls(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    content = _noise(3 << 20, 0)
    with _server(server_context(certificate, key, None)) as port:
        client = HTTPSConnection("127.0.0.1", port, timeout=60, context=ssl.create_default_context(cafile=certificate))
        assert _ask(client, [NOTE + FILE + content + END]) == _right(content)
        client.close()


def test_h11_sees_little_of_a_large_body(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    received = Connection.data_received

    def noting(self: Connection, data: bytes) -> None:
        seen.append(len(data))
        received(self, data)

    monkeypatch.setattr(Connection, "data_received", noting)
    content = _noise(3 << 20, 0)
    client = HTTPConnection("127.0.0.1", port, timeout=60)
    assert _ask(client, [NOTE + FILE + content[: 1 << 20], content[1 << 20 :] + END]) == _right(content)
    client.close()
    assert sum(seen) < 1 << 20


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


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_memory_file_arrives_as_bytes(everywhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not everywhere:
        monkeypatch.delattr("os.memfd_create", raising=False)
    file, content = MemoryFile(), random.Random(0).randbytes(100_000)
    for start in range(0, len(content), 30_000):
        file.write(memoryview(content)[start : start + 30_000])
    assert file.size == len(content) and file.content() == content
    sent = bytes(ForkingPickler.dumps(file))
    assert ForkingPickler.loads(sent) == content and (len(sent) < 200 or not everywhere)
