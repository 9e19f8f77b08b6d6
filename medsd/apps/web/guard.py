"""The checks that a request must pass before Gradio sees it.

Gradio serves some 60 routes, trusts the session that a request names, and lets every port of localhost ask with the
visitor's cookie. `Guard` is the one ASGI layer around it: only the routes in `ROUTES` exist, requests that change
something come from the app's own page, and sessions, jobs and files belong to the visitor who holds the cookie.
"""

import json
from collections import Counter
from collections.abc import Container
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medsd.apps.web.greys import hand_over
from medsd.apps.web.html import fill
from medsd.apps.web.uploads import UploadRefusedError, Uploads
from medsd.apps.web.visitors import Logins, TooManyGuessesError, Visitor, Visitors

API = "/gradio_api"
# Files of Gradio's front end: the same for everybody, before and after signing in.
PUBLIC_ROUTES = {
    "/assets/*": {"GET"},
    "/static/*": {"GET"},
    "/favicon.ico": {"GET"},
    "/manifest.json": {"GET"},
    "/theme.css": {"GET"},
}
ROUTES = {
    **PUBLIC_ROUTES,
    "/": {"GET", "HEAD"},
    "/login": {"POST"},
    "/logout": {"GET"},
    "/config": {"GET"},
    f"{API}/app_id": {"GET"},
    f"{API}/info": {"GET"},
    f"{API}/upload": {"POST"},
    f"{API}/upload_progress": {"GET"},
    f"{API}/heartbeat/*": {"GET"},
    f"{API}/queue/join": {"POST"},
    f"{API}/queue/data": {"GET"},
    f"{API}/cancel": {"POST"},
    f"{API}/reset": {"POST"},
    "/greys/*": {"GET"},
}
MOST_JOBS = 16  # of one person, waiting or being worked on
LARGEST_BODY = 4 * 1024**2  # bytes of what a page sends beside files; the longest note has 20,000 characters
LARGEST_FORM = 4096  # bytes of the login form: anybody may send it, and a megabyte of it takes seconds to parse
VISITOR = "medsd.visitor"  # the visitor, in the scope of a request

_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
    # Gradio's front end compiles the templates of gr.HTML in the browser.
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "worker-src 'self' blob:; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

# A browser that follows a link from another site keeps a strict cookie back; asked once more from here, it sends it.
# A new cookie would take the pages that are open already from their visitor.
_AGAIN = '<!doctype html><html lang="en"><meta http-equiv="refresh" content="0"><title>medsd</title></html>'


class _Refused(Exception):
    """The answer to a request that goes no further."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        # Gradio's page shows `detail`.
        self.answer: Response = JSONResponse({"success": False, "detail": sentence}, status)


class Guard:
    """The layer around Gradio's `app` and its `queue` (`gradio.queueing.Queue`).

    Args:
        functions: the numbers of what the page can ask for.
        visitors, uploads: who may ask, and their files.
        cookie: the name of the cookie with a visitor's token. Ports of one host share cookies, so it names the port.
        logins: the users; None where no login is asked for.
    """

    def __init__(
        self,
        app: ASGIApp,
        queue: Any,
        functions: Container[int],
        visitors: Visitors,
        uploads: Uploads,
        *,
        cookie: str,
        logins: Logins | None = None,
    ) -> None:
        self._app, self._queue, self._functions = app, queue, functions
        self._visitors, self._uploads, self._logins = visitors, uploads, logins
        self._cookie = cookie
        self._joining: Counter[str] = Counter()  # jobs of each person that are on their way into the queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no route is a web socket
            await send({"type": "websocket.close", "code": 1000})
            return
        headers = dict(_HEADERS)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in headers.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        request = Request(scope, receive)
        try:
            await self._let_in(request, headers, send_with_headers)
        except _Refused as refused:
            await refused.answer(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass

    async def _let_in(self, request: Request, headers: dict[str, str], send: Send) -> None:
        route, scope = _route(request), request.scope
        if route not in PUBLIC_ROUTES and route != "/":
            _check_origin(request)
        # Gradio would answer an origin on any port of localhost with credentialed CORS.
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"origin"]
        answer: ASGIApp = self._app
        if route == "/login":
            answer = await self._sign_in(request)
        elif route == "/logout":
            self._visitors.dismiss(request.cookies.get(self._cookie, ""))
            answer = RedirectResponse("./", 303)
        elif route not in PUBLIC_ROUTES:
            visitor = self._visitors.holder(request.cookies.get(self._cookie, ""))
            from_elsewhere = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
            if visitor is None and route == "/" and from_elsewhere:
                await HTMLResponse(_AGAIN, headers={"cache-control": "no-store"})(scope, request.receive, send)
                return
            if visitor is None and self._logins is None:
                token = self._visitors.admit()
                visitor = self._visitors.holder(token)
                headers["set-cookie"] = self._set_cookie(request, token)
            if visitor is not None:
                scope[VISITOR] = visitor
                answer = await self._at_home(route, request, visitor)
            elif route == "/":
                answer = _login_page("")
            else:
                raise _Refused(401, "Sign in first: reload the page.")
        await answer(scope, request.receive, send)

    async def _at_home(self, route: str, request: Request, visitor: Visitor) -> ASGIApp:
        """What answers a visitor. What belongs to a session is checked, and named as Gradio knows it."""
        scope = request.scope
        if route == "/greys/*":
            return _greys(request, visitor)
        if route == f"{API}/upload":
            return await self._upload(request, visitor)
        if route == f"{API}/queue/join":
            return await self._join(request, visitor)
        if route in (f"{API}/cancel", f"{API}/reset"):
            return await self._cancel(request, visitor)
        if route == f"{API}/queue/data":
            session = self._visitors.name(visitor, request.query_params.get("session_hash"))
            if session is None or session not in self._queue.pending_messages_per_session:
                raise _Refused(404, "There is no such session.")
            scope["query_string"] = urlencode({"session_hash": session}).encode()
        elif route == f"{API}/upload_progress":
            scope["query_string"] = urlencode({"upload_id": _progress(request, visitor)}).encode()
        elif route == f"{API}/heartbeat/*":
            session = self._claim(visitor, request.url.path.rpartition("/")[2])
            scope["path"] = f"{API}/heartbeat/{session}"
            scope["raw_path"] = scope["path"].encode()
        return self._app

    async def _upload(self, request: Request, visitor: Visitor) -> Response:
        progress = _progress(request, visitor) if "upload_id" in request.query_params else None
        try:
            return JSONResponse(await self._uploads.receive(request, visitor, progress))
        except UploadRefusedError as error:
            return PlainTextResponse(str(error), error.status)

    async def _join(self, request: Request, visitor: Visitor) -> ASGIApp:
        body = await _read_json(request)
        body["session_hash"] = self._claim(visitor, body.get("session_hash"))
        body["data"] = self._own_files(visitor, body.get("data"))
        if not isinstance(body.get("fn_index"), int) or body["fn_index"] not in self._functions:
            raise _Refused(404, "There is no such request.")
        content = _with_body(self._app, request, body)

        async def join(scope: Scope, receive: Receive, send: Send) -> None:
            person = visitor.person
            begun = list(self._queue.event_ids_to_events.values())
            jobs = sum(event.session_hash.startswith(f"{person}-") for event in begun)
            if jobs + self._joining[person] >= MOST_JOBS:
                raise _Refused(429, f"{MOST_JOBS} of your requests are being worked on. Wait until one has ended.")
            self._joining[person] += 1
            try:
                await content(scope, receive, send)
            finally:
                self._joining -= Counter([person])  # keeps those above 0

        return join

    async def _cancel(self, request: Request, visitor: Visitor) -> ASGIApp:
        body = await _read_json(request)
        if "session_hash" in body:  # to reset needs none
            body["session_hash"] = self._visitors.name(visitor, body["session_hash"])
        event = self._queue.event_ids_to_events.get(str(body.get("event_id")))
        # A job that has ended has no owner any more, and there is nothing left to cancel.
        own = event is not None and event.session_hash.startswith(f"{visitor.key}-")
        if body.get("session_hash", "") is None or not own:
            raise _Refused(404, "There is no such session or job.")
        return _with_body(self._app, request, body)

    def _claim(self, visitor: Visitor, session: object) -> str:
        name = self._visitors.claim(visitor, session)
        if name is None:
            raise _Refused(403, "This session is not yours. Reload the page.")
        return name

    def _own_files(self, visitor: Visitor, data: Any) -> Any:
        """`data` with each file reduced to what Gradio needs of it; each must be the visitor's own upload."""
        if isinstance(data, list):
            return [self._own_files(visitor, each) for each in data]
        if not isinstance(data, dict):
            return data
        if not data.keys() & {"path", "url", "meta"}:
            return {name: self._own_files(visitor, each) for name, each in data.items()}
        if not self._uploads.owns(visitor, data.get("path")):
            raise _Refused(403, "This file is not one of your uploads, or it was read already. Drop it again.")
        return {"path": data["path"], "meta": {"_type": "gradio.FileData"}}

    async def _sign_in(self, request: Request) -> Response:
        if self._logins is None:
            return RedirectResponse("./", 303)
        form = dict(parse_qsl((await _body(request, LARGEST_FORM)).decode(errors="replace")))
        user, password = form.get("username", "").strip(), form.get("password", "")
        address = request.client.host if request.client else ""
        try:
            right = await self._logins.check(user, password, address)
        except TooManyGuessesError as error:
            return _login_page(str(error), 429)
        if not right:
            return _login_page("User or password is wrong.", 400)
        self._visitors.dismiss(request.cookies.get(self._cookie, ""))
        answer = RedirectResponse("./", 303)
        answer.headers["set-cookie"] = self._set_cookie(request, self._visitors.admit(user))
        return answer

    def _set_cookie(self, request: Request, token: str) -> str:
        secure = "; Secure" if request.url.scheme == "https" else ""
        age = int(self._visitors.lifetime_s)
        return f"{self._cookie}={token}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"


def _route(request: Request) -> str:
    """Which of `ROUTES` a request asks for; `_Refused` for none of them, or by a method that it does not have."""
    path = request.scope["path"]
    route = next((each for each in ROUTES if path == each or (each[-1] == "*" and path.startswith(each[:-1]))), None)
    if route is None:
        raise _Refused(404, "There is no such page.")
    if request.method not in ROUTES[route]:
        raise _Refused(405, "This page cannot be asked in this way.")
    return route


def _check_origin(request: Request) -> None:
    """Only the app's own page may ask (Fetch Metadata; RFC 6454): no other site, and no other port of this machine.

    Programs other than browsers send neither header; no other site can make them send a visitor's cookie.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    # A proxy in front of the app may name itself to the app, and the address that the browser knows beside it.
    hosts = {request.headers.get(name) for name in ("host", "x-forwarded-host")}
    known = origin is None or origin.partition("://")[2] in hosts
    hidden = origin == "null" and site == "same-origin"  # a form of a page that sends no referrer
    if site not in (None, "same-origin", "none") or not (known or hidden):
        raise _Refused(403, "This request comes from another page. Open the app itself.")


def _greys(request: Request, visitor: Visitor) -> Response:
    image = hand_over(request.url.path.rpartition("/")[2], visitor.key)
    if image is None:
        raise _Refused(404, "There is no such image.")
    headers = {"content-length": str(len(image.values)), "cache-control": "no-store"}
    return StreamingResponse(image.pieces(), media_type="application/octet-stream", headers=headers)


def _progress(request: Request, visitor: Visitor) -> str:
    return f"{visitor.key}-{request.query_params.get('upload_id', '')[:64]}"


def _login_page(said: str, status: int = 200) -> Response:
    return HTMLResponse(fill("login", said=said), status)


async def _body(request: Request, most: int = LARGEST_BODY) -> bytes:
    """The body of a request; `_Refused` where it has more than `most` bytes."""
    chunks, size = [], 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > most:
            raise _Refused(413, "This is more than the page sends.")
    return b"".join(chunks)


async def _read_json(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await _body(request))
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise _Refused(400, "This is not what the page sends.")
    return body


def _with_body(app: ASGIApp, request: Request, body: dict[str, Any]) -> ASGIApp:
    """`app`, asked with another body."""
    content = json.dumps(body).encode()
    messages: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive_body() -> Message:
        return messages.pop() if messages else await request.receive()

    async def ask(scope: Scope, receive: Receive, send: Send) -> None:
        kept = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        await app({**scope, "headers": [*kept, (b"content-length", str(len(content)).encode())]}, receive_body, send)

    return ask
