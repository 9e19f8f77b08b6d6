"""A DICOMweb service of the tests, which can do everything wrong."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, make_server

import numpy as np

from tests.conftest import dx_dataset, file_bytes

IMAGE = file_bytes(dx_dataset(np.arange(256, dtype=np.uint16).reshape(16, 16), 12))
KEYS = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}


class Service:
    """A DICOMweb service that holds studies of one series and one image each; what it does wrong is set by a test."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.uids, self.modality, self.page, self.knows_offset = [f"1.2.{n}" for n in range(5)], "DX", 1000, True
        self.image, self.instance, self.stored, self.status = IMAGE, "", b"", "200 OK"
        self.asked: list[dict[str, Any]] = []
        self._server = make_server("127.0.0.1", 0, self._answer, handler_class=_Silent)
        self.moved_to = ""
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.address = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}/dicom-web"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, asked: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        content = asked["wsgi.input"].read(int(asked.get("CONTENT_LENGTH") or 0))
        self.asked.append({**asked, "content": content})
        parts = asked["PATH_INFO"].removeprefix("/dicom-web/").split("/")
        kind, body = "application/dicom+json", b""
        if not self.status.startswith("2"):
            body = b"PH-0042"
        elif asked["REQUEST_METHOD"] == "POST":
            body = self.stored
        elif len(parts) % 2:
            body = json.dumps(self._found(parts, parse_qs(asked["QUERY_STRING"]))).encode()
        else:
            kind = 'multipart/related; type="application/dicom"; boundary=edge'
            body = b"--edge\r\nContent-Type: application/dicom\r\n\r\n" + self.image + b"\r\n--edge--\r\n"
        moved = [("Location", self.moved_to)] if self.moved_to else []
        start(self.status, [("Content-Type", kind), ("Content-Length", str(len(body))), *moved])
        return [body]

    def _found(self, parts: list[str], how: dict[str, list[str]]) -> list[dict[str, Any]]:
        uids = self.uids if len(parts) == 1 else [f"{parts[1]}.{len(parts)}"]
        if self.instance and parts[-1] == "instances":
            uids = [self.instance]
        begin = int(how.get("offset", ["0"])[0]) if self.knows_offset else 0
        return [
            {KEYS[parts[-1]]: {"vr": "UI", "Value": [uid]}, "00080060": {"vr": "CS", "Value": [self.modality]}}
            for uid in uids[begin : begin + self.page]
        ]


class _Silent(WSGIRequestHandler):
    timeout = 5

    def log_message(self, *_: object) -> None:
        pass
