"""`Connection`: how the servers over HTTP, app and REST, treat a peer that does nothing, and one that sends much."""

import asyncio
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from socket import SO_RCVBUF, SO_RCVLOWAT, SOL_SOCKET
from typing import Any, Protocol

from uvicorn.protocols.http.h11_impl import H11Protocol

SILENCE_S = 15.0  # a peer is cut off after once or twice this
PIECE = 1 << 18  # bytes that are received at a time; they stay in a core's cache until they lie where they belong
_AT_ONCE = 1 << 22  # bytes that the system may gather before it wakes this process


class _Received(threading.local):
    def __init__(self) -> None:
        self.piece: Any = bytearray(PIECE)  # read as bytes are
        self.view = memoryview(self.piece)


_received = _Received()  # each thread has its own, and no thread more than one loop


class Sink(Protocol):
    """Takes in the body of a request where it belongs; h11 and ASGI would copy it five times."""

    def room(self, most: int) -> memoryview:
        """Where bytes of the body go next, `most` at most, and no other may go."""

    def took(self, count: int) -> None:
        """So many of them lie there."""


class PieceSink:
    """Calls `take` with each piece of a body; what it raises is for who reads the body, and it raises it again."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self._take = take

    def room(self, most: int) -> memoryview:
        """The memory that all pieces come to."""
        return _received.view[:most]

    def took(self, count: int) -> None:
        """Hand a piece on; it is another one as soon as `take` returns."""
        self._take(_received.piece if count == PIECE else bytes(_received.view[:count]))


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """A connection that ends when its peer begins no request or takes nothing of an answer; uvicorn waits for ever.

    For the body of a request, who reads it sets the time. A `Sink` in ``request.state.sink`` takes in a body of known
    length, all but its beginning and its last byte, which come by ASGI, so that h11 alone says where a body ends.
    """

    _direct = False  # what is being received goes to the sink
    _least = 1

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
        sink, left = self._sink(), getattr(self._body(), "_remaining", 0) - 1
        if sink is None or left < 1 or self.cycle.body:
            self._direct = False
            return _received.view
        self._direct = True
        return sink.room(left)

    def buffer_updated(self, nbytes: int) -> None:
        """What it has received."""
        sink = self._sink() if self._direct else None
        if sink is None:
            self._wake_at(1)
            self.data_received(bytes(_received.view[:nbytes]))
            return
        body = self._body()
        try:
            sink.took(nbytes)
        except Exception:  # who reads the body meets it again by any byte
            body._remaining -= nbytes - 1
            self._wake_at(1)
            self.data_received(b"\0")
        else:
            body._remaining -= nbytes
            self._wake_at(body._remaining - 1)

    def _wake_at(self, count: int) -> None:
        """Be woken when so many bytes are there, as a waking for each few of them costs more than to copy them.

        Linux makes room for them in the socket (tcp(7), SO_RCVLOWAT). By TLS, some of them were read before.
        """
        least = max(1, min(count, _AT_ONCE))
        if least == self._least or self.scheme != "http" or sys.platform != "linux":
            return
        connection = self.transport.get_extra_info("socket")
        for tried in (least, 1):
            self._least = tried
            with suppress(OSError):  # a sandbox that does not know it
                connection.setsockopt(SOL_SOCKET, SO_RCVLOWAT, tried)
                if connection.getsockopt(SOL_SOCKET, SO_RCVLOWAT) <= connection.getsockopt(SOL_SOCKET, SO_RCVBUF):
                    return

    def _sink(self) -> Sink | None:
        return self.scope["state"].get("sink") if self.scope else None

    def _body(self) -> Any:
        """h11's reader of a body of known length, whose count has to go on."""
        return getattr(self.conn, "_reader", None)
