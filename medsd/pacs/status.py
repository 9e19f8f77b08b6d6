"""The node's own page, for people and for Prometheus: counts and times, nothing of any patient."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any, Literal
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from medsd.errors import DataError
from medsd.pacs.queue import ImageQueue

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="10">
<title>medsd node</title><style>body{{font:16px sans-serif;margin:2em}}td{{padding:.2em 1em .2em 0}}</style>
<h1>medsd node</h1><p>Research software, no medical device.</p><table>{rows}</table>
<p><a href="/metrics">Metrics</a> for Prometheus, <a href="/status.json">JSON</a>.</p></html>"""


class NodeStatus(Collector):
    """Counters of this run and the state of the queue, served on a loopback port where one is given."""

    def __init__(self, queue: ImageQueue, port: int | None) -> None:
        self._queue = queue
        self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(f"medsd_node_{name}", text, [label], registry=self._registry)
            for name, text, label in (
                ("received", "Images and associations by what became of them.", "outcome"),
                ("read", "Images read, by status.", "status"),
                ("sent", "Deliveries, by outcome.", "outcome"),
            )
        }
        self._registry.register(self)
        self._server: Any = None
        self.port = port
        if port is not None:
            try:
                self._server = make_server("127.0.0.1", port, self._answer, _Server, _Silent)
            except OSError as error:
                raise DataError(f"port {port} for the status page: {error.strerror}; choose another") from None
            self.port = self._server.server_port
            threading.Thread(target=self._server.serve_forever, name="status", daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def count(self, what: Literal["received", "read", "sent"], outcome: str) -> None:
        """Count what came, an image that was read, or a delivery ("delivered", "refused" or "unreachable")."""
        self._counters[what].labels(outcome).inc()

    def summary(self) -> dict[str, float]:
        """What the page says, as plain values."""
        counts = self._queue.counts()
        return {
            **{f"images {state}": number for state, number in counts.images.items()},
            "queue bytes": counts.bytes,
            "free bytes": shutil.disk_usage(self._queue.folder).free,
            "oldest image waits seconds": round(time.time() - counts.oldest, 1) if counts.oldest else 0,
        }

    def collect(self) -> Iterator[Metric]:
        """The state of the queue when Prometheus asks."""
        images = GaugeMetricFamily("medsd_node_images", "Images in the queue by state.", labels=["state"])
        for name, value in self.summary().items():
            if name.startswith("images "):
                images.add_metric([name.removeprefix("images ")], value)
            else:
                yield GaugeMetricFamily(f"medsd_node_{name.replace(' ', '_')}", f"{name.capitalize()}.", value)
        yield images

    def _answer(self, asked: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path, kind, status = asked["PATH_INFO"], "text/html; charset=utf-8", "200 OK"
        if path == "/metrics":
            body, kind = generate_latest(self._registry), CONTENT_TYPE_LATEST
        elif path == "/status.json":
            body, kind = json.dumps(self.summary()).encode(), "application/json"
        elif path == "/":
            rows = "".join(f"<tr><td>{name}<td>{value:,}</tr>" for name, value in self.summary().items())
            body = _PAGE.format(rows=rows).encode()
        else:
            body, status = b"not found", "404 Not Found"
        start(status, [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")])
        return [body]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a visitor that says nothing keeps no other waiting

    def handle_error(self, *_: object) -> None:
        """Nothing: a visitor that goes away is no news."""


class _Silent(WSGIRequestHandler):
    timeout = 10  # a visitor that says nothing

    def log_message(self, *_: object) -> None:
        """Nothing: who looks is no news."""
