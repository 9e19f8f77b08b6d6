"""What a batch tells a Prometheus server while it runs: a file for node-exporter's textfile collector, or a port.

The client library does the format, the atomic file and the port (it is small, has no dependencies, and knows the rules
for names and escapes). Labels are codes of this software; nothing of an image stands in a metric.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

from medsd.errors import DataError, explained

EVERY_S = 5.0  # between two writes of the file
_LOOPBACK = "127.0.0.1"


class ScoringGauges(contextlib.AbstractContextManager["ScoringGauges"]):
    """The gauges of one run of `total` inputs, of which `done` were finished before; a context manager.

    They are written to `file` every few seconds and at the end, and served on `port` of the loopback address, 0 for any
    that is free, until the run ends. Raises DataError: the file cannot be written, or the port is taken.
    """

    def __init__(
        self, total: int, done: int, *, model: str, provider: str, file: Path | None = None, port: int | None = None
    ) -> None:
        self._file, self.port = file, port
        self._server: Any = None
        self._wanted = file is not None or port is not None
        if not self._wanted:
            return
        import prometheus_client as prometheus

        self._left, self._begun, self._wrote = total - done, time.monotonic(), 0.0
        self._total_left = self._left
        self._registry = registry = prometheus.CollectorRegistry()

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Any:
            return prometheus.Gauge(f"medsd_score_{name}", text, labels, registry=registry)

        gauge("info", "What scores.", ("model", "provider")).labels(model, provider).set(1)
        gauge("inputs", "Inputs of the batch.").set(total)
        gauge("inputs_reused", "Inputs whose rows an earlier run had finished.").set(done)
        gauge("start_time_seconds", "When this run began, Unix time.").set(time.time())
        self._remaining = gauge("inputs_remaining", "Inputs without a row.")
        self._rate = gauge("inputs_per_second", "Rows a second since this run began.")
        self._eta = gauge("remaining_seconds", "Seconds that are left at this rate.")
        self._last = gauge("last_row_time_seconds", "When the last row was finished, Unix time.")
        self._complete = gauge("complete", "1 when the table is written.")
        self._rows = prometheus.Counter(
            "medsd_score_rows", "Rows that this run finished.", ("status", "reason"), registry=registry
        )
        self._remaining.set(self._left)
        self._start(prometheus)

    def _start(self, prometheus: Any) -> None:
        if self.port is not None:
            try:
                self._server, _ = prometheus.start_http_server(self.port, addr=_LOOPBACK, registry=self._registry)
            except (OSError, OverflowError) as error:
                detail = getattr(error, "strerror", None) or "no such port"
                raise DataError(f"port {self.port} for the metrics: {detail}; choose another") from None
            self.port = self._server.server_port
        if self._file is not None:
            with explained(f"{self._file}: cannot be written", OSError, then="; choose another file"):
                self._write()

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def advance(self, outcomes: list[tuple[str, str]]) -> None:
        """Count finished rows, pairs of status and reason."""
        if not self._wanted:
            return
        for status, reason in outcomes:
            self._rows.labels(status, reason).inc()
        self._left -= len(outcomes)
        rate = (self._total_left - self._left) / max(time.monotonic() - self._begun, 1e-9)
        self._remaining.set(self._left)
        self._rate.set(rate)
        self._eta.set(self._left / rate if rate else 0)
        self._last.set(time.time())
        if time.monotonic() - self._wrote > EVERY_S:
            self._try_to_write()

    def complete(self) -> None:
        if self._wanted:
            self._complete.set(1)
            self._try_to_write()

    def _try_to_write(self) -> None:
        """A full disk must not end the batch for its metrics; the rows will say so."""
        with contextlib.suppress(OSError):
            self._write()

    def _write(self) -> None:
        if self._file is not None:
            from prometheus_client import write_to_textfile

            write_to_textfile(str(self._file), self._registry)
            self._wrote = time.monotonic()
