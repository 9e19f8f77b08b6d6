"""The layer in front of the routes: who may ask, and how many at once. Whatever fails behind it is one sentence."""

import hmac
import logging
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medsd.listening import is_loopback
from medsd.rest.refused import RefusedError
from medsd.rest.status import RestStatus

log = logging.getLogger(__name__)

OPEN = ("/v2/health/live", "/v2/health/ready")  # what supervisors ask for, without a token
_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class RestGuard:
    """The layer around `app`.

    Args:
        tokens: one of them must be shown (RFC 6750); none are asked for where it is empty.
        loopback: whether the server listens for this machine alone; then it must be called by a name of it, as another
            site's name may lead here (DNS rebinding).
        most: requests with a body at once.
        status: counts the answers.
    """

    def __init__(self, app: ASGIApp, *, tokens: Sequence[str], loopback: bool, most: int, status: RestStatus) -> None:
        self._app, self._loopback, self._most, self._status = app, loopback, most, status
        self._tokens = [token.encode() for token in tokens]
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, begun = 0, time.perf_counter()

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            self._check(Request(scope))
            await self._within_limits(scope, receive, send_on)
        except Exception as error:
            if not status:
                await answer_of(error)(scope, receive, send_on)
        finally:
            self._status.answered(status, time.perf_counter() - begun)

    def _check(self, request: Request) -> None:
        if self._loopback and not _calls_this_machine(request):
            raise RefusedError(421, "This server answers for 127.0.0.1 and localhost alone.")
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise RefusedError(403, "This request comes from a page of another site.")
        path = request.scope["path"]  # as it is routed; that of request.url may come from the header Host
        if self._tokens and path not in OPEN and not self._knows(request.headers.get("authorization", "")):
            raise RefusedError(
                401, "Show a token of this server: Authorization: Bearer TOKEN.", {"www-authenticate": "Bearer"}
            )

    def _knows(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        given = token.strip().encode()
        same = [hmac.compare_digest(given, known) for known in self._tokens]  # each, so that the time says nothing
        return scheme.lower() == "bearer" and any(same)

    async def _within_limits(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._working >= self._most:
            sentence = f"{self._most} requests are being worked on, the most that are taken; try again in a second."
            raise RefusedError(503, sentence, {"retry-after": "1"})
        self._working += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._working -= 1


def answer_of(error: Exception) -> Response:
    """The answer to what was raised: one sentence, in the form of the Open Inference Protocol."""
    if isinstance(error, RefusedError):
        return JSONResponse({"error": str(error)}, error.status, error.headers)
    place = traceback.extract_tb(error.__traceback__)[-1]  # the message may quote what was sent
    log.error("a request failed: %s in %s:%d", type(error).__name__, Path(place.filename).name, place.lineno)
    return JSONResponse({"error": "The server failed at this request; its log says where."}, 500)


def _calls_this_machine(request: Request) -> bool:
    try:
        return is_loopback(urlsplit(f"//{request.headers.get('host', '')}").hostname or "")
    except ValueError:
        return False
