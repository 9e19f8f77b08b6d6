"""A node with a bundle behind it, until it is told to end: what `medsd receive` runs."""

import logging
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path

from pydicom import Dataset

from medsd.inference.prediction import Prediction
from medsd.pacs.deliver import Destination, WebDestination
from medsd.pacs.mllp import Hl7Destination
from medsd.pacs.node import Node
from medsd.pacs.receive import Listening, NodeLimits
from medsd.results.audit import AuditLog
from medsd.results.reporter import Reporter
from medsd.results.source import Source

log = logging.getLogger(__name__)


def serve(
    reporter: Reporter,
    destination: Destination | WebDestination,
    folder: Path,
    *,
    messages: Hl7Destination | None = None,
    listening: Listening,
    limits: NodeLimits,
    quiet_s: float = 30.0,
    status_port: int | None = None,
    audit: Path | None = None,
) -> None:
    """Receive, read and deliver until SIGTERM or Ctrl+C; then finish what is under way and return.

    The `reporter` reads the images; its process that decodes is within the limits of its policy. `folder` is that of
    the queue, in which ``audit.jsonl`` is the audit log unless `audit` names another; the others are as for `Node`.
    Raises DataError: the queue is in use, a port cannot be had, or the audit log cannot be written.
    """
    kept = AuditLog(audit or folder / "audit.jsonl", reporter.hasher)
    kept.prepare()

    def results_of(prediction: Prediction, content: bytes) -> list[Dataset | bytes]:
        when = datetime.now(UTC)
        made, told = reporter.results(prediction, Source.read(content), when=when)
        kept.append(content, prediction, [*made, *told], when)
        return [*made.values(), *told.values()]

    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    node = Node(
        folder,
        reporter.predict,
        results_of,
        hasher=reporter.hasher,
        destination=destination,
        messages=messages,
        listening=listening,
        limits=limits,
        quiet_s=quiet_s,
        status_port=status_port,
    )
    with node:
        log.info("%s listens as %s on %s:%d; results go to %s",
                 reporter.bundle.label, listening.title, listening.host, node.port, destination)  # fmt: skip
        if node.status.port is not None:
            log.info("status page: http://127.0.0.1:%d", node.status.port)
        ending.wait()
        log.info("ending: what is under way is finished, what waits is kept in %s", folder)
