"""`Connection`: how the servers over HTTP, app and REST, treat a peer that does nothing, and one that sends much."""

import asyncio
import threading
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

SILENCE_S = 15.0  # a peer is cut off after once or twice this
PIECE = 1 << 18  # bytes that are received at a time; they stay in a core's cache until they lie where they belong


class _Received(threading.local):
    def __init__(self) -> None:
        self.piece = bytearray(PIECE)
        self.view = memoryview(self.piece)


_received = _Received()  # each thread has its own, and no thread more than one loop


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """A connection that ends when its peer begins no request or takes nothing of an answer; uvicorn waits for ever.

    For the body of a request, who reads it sets the time. What is in ``request.state.take`` is called with the pieces
    of a body as they arrive, all but the first and the last, which come by ASGI.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look(None)

    def _look(self, before: object) -> None:
        idle, unread = self.cycle is None or self.cycle.response_complete, self.transport.get_write_buffer_size()
        now = (idle, unread, self.cycle)
        if now == before and (idle or unread):
            self.transport.abort()
        elif not self.transport.is_closing():
            self.loop.call_later(SILENCE_S, self._look, now)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport puts what it receives."""
        return _received.view

    def buffer_updated(self, nbytes: int) -> None:
        """What it has received."""
        piece = _received.piece if nbytes == PIECE else bytes(_received.view[:nbytes])
        if not self._taken(piece):
            self.data_received(bytes(piece))

    def _taken(self, piece: bytes | bytearray) -> bool:
        """Whether a piece within a body of known length went to who reads it; h11 and ASGI would copy it five times.

        The last piece goes the usual way, so that h11 alone says where a body ends.
        """
        take = self.scope["state"].get("take") if self.scope else None
        body: Any = getattr(self.conn, "_reader", None)  # h11's, whose count has to go on
        if take is None or self.cycle.body or len(piece) >= getattr(body, "_remaining", 0):
            return False
        try:
            take(piece)
        except Exception:  # who reads meets it again, by this piece
            return False
        body._remaining -= len(piece)
        return True
