"""tritonclient's HTTP client, on a transport of this file where its own is not installed.

Its own, geventhttpclient, wants an older greenlet than Playwright's. What is asked and what is made of the answers is
tritonclient's code either way.
"""

from __future__ import annotations

import http.client
import importlib.util
import sys
from types import ModuleType
from typing import Any, Self
from urllib.parse import urlsplit

import pytest


class _Url:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.request_uri = parts.hostname, parts.port, parts.path or "/"


class _Response:
    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status_code, self._answer = answer.status, answer

    def get(self, name: str) -> str | None:
        return self._answer.getheader(name)

    def read(self, length: int = -1) -> bytes:
        return self._answer.read(None if length < 0 else length)


class _Client:
    def __init__(self, url: _Url) -> None:
        self._url = url

    @classmethod
    def from_url(cls, url: _Url, **_: Any) -> Self:
        return cls(url)

    def get(self, request_uri: str, headers: Any = None) -> _Response:
        return self._ask("GET", request_uri, None, headers)

    def post(self, request_uri: str, body: Any, headers: Any = None) -> _Response:
        return self._ask("POST", request_uri, body, headers)

    def _ask(self, method: str, uri: str, body: Any, headers: Any) -> _Response:
        connection = http.client.HTTPConnection(self._url.host, self._url.port, timeout=60)
        connection.request(method, uri, body, headers or {})
        return _Response(connection.getresponse())

    def close(self) -> None:
        """Each request has a connection of its own."""


class _Pool:
    def __init__(self, size: int | None) -> None:
        """Of threads, for requests that the tests do not make."""

    def join(self) -> None:
        """Nothing runs in it."""


def triton_http() -> Any:
    """The module tritonclient.http; skips where there is no tritonclient."""
    pytest.importorskip("tritonclient", reason="tritonclient is not installed")
    if importlib.util.find_spec("geventhttpclient") is None:
        stands_for = {
            "gevent": {}, "gevent.pool": {"Pool": _Pool},
            "geventhttpclient": {"HTTPClient": _Client}, "geventhttpclient.url": {"URL": _Url},
        }  # fmt: skip
        for name, content in stands_for.items():
            sys.modules[name] = module = ModuleType(name)
            vars(module).update(content)
        vars(sys.modules["gevent"])["pool"] = sys.modules["gevent.pool"]
    return importlib.import_module("tritonclient.http")
