"""A peer that does nothing is cut off; one that is merely slow is not."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from medsd import connection
from medsd.listening import bound_socket

ASKED = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
LARGE = 64 << 20


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("x" * (LARGE if scope["path"] == "/large" else 3))(scope, receive, send)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, set[object]]]:
    """Its port, and the connections that it holds."""
    monkeypatch.setattr(connection, "SILENCE_S", 0.4)
    with bound_socket("127.0.0.1", 0) as listener:
        listener.listen()
        config = uvicorn.Config(_answer, http=connection.Connection, ws="none", lifespan="off", log_config=None)
        config.timeout_keep_alive = 60  # which a first byte ends
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield listener.getsockname()[1], running.server_state.connections
        running.should_exit = True
        thread.join(20)


@pytest.mark.parametrize("begun", [b"", ASKED, ASKED + b"\r\n" + ASKED, ASKED.replace(b"/", b"/large", 1) + b"\r\n"])
def test_who_begins_no_request_or_takes_no_answer_is_cut_off(server: tuple[int, set[object]], begun: bytes) -> None:
    port, held = server
    with socket.create_connection(("127.0.0.1", port), 10) as peer:
        peer.sendall(begun)
        until = time.monotonic() + 20
        seen = False
        while held or not seen:
            seen = seen or bool(held)
            assert time.monotonic() < until
            time.sleep(0.02)


def test_who_reads_slowly_gets_the_whole_answer(server: tuple[int, set[object]]) -> None:
    with socket.create_connection(("127.0.0.1", server[0]), 20) as peer:
        peer.sendall(ASKED.replace(b"/", b"/large", 1) + b"Connection: close\r\n\r\n")
        got, begun = 0, time.monotonic()
        while piece := peer.recv(1 << 20):
            got += len(piece)
            time.sleep(0.02)
    assert got > LARGE and time.monotonic() - begun > 1
