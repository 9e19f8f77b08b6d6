"""`Connection`: how the servers over HTTP, app and REST alike, treat a peer that does nothing."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

SILENCE_S = 15.0  # a peer is cut off after once or twice this


class Connection(H11Protocol):
    """A connection that ends when its peer begins no request or takes nothing of an answer; uvicorn waits for ever.

    For the body of a request, who reads it sets the time.
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
