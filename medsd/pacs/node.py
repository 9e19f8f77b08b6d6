"""`Node`: images in by C-STORE, one result each out by C-STORE or STOW-RS, and a queue on disk between. Begin here.

`serve` runs one with a bundle behind it, as `medsd receive` does.

A result is made once, written to disk, and only then sent, with the same UIDs however often that takes: an archive
that got it twice holds it once (PS3.4 section B.3.4). An image that is sent again gets no second result.
"""

import logging
import signal
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydicom import Dataset

from medsd.dicom.quiet import quiet
from medsd.inference.prediction import Prediction
from medsd.pacs.deliver import Destination, Hl7Destination, UnreachableError, WebDestination
from medsd.pacs.queue import ImageQueue, pause
from medsd.pacs.receive import Listening, NodeLimits, Receiver
from medsd.pacs.status import NodeStatus
from medsd.privacy import KeyedHasher
from medsd.results.audit import AuditLog
from medsd.results.reporter import Reporter
from medsd.results.source import Source

log = logging.getLogger(__name__)

ResultsOf = Callable[[Prediction, bytes], Sequence[Dataset | bytes]]
"""What is sent for one image: objects in its own study, and HL7 messages; made of its prediction and of its file."""
_BATCH = 32  # images whose results go in one association
_LOOK_S = 0.25


class Node(AbstractContextManager["Node"]):
    """A DICOM node that reads what it is sent; a context manager that runs it.

    Raises DataError: the queue is in use, or a port cannot be had.
    """

    def __init__(
        self,
        folder: Path,  # of the queue, see `medsd.pacs.queue.ImageQueue`
        predict: Callable[[bytes], Prediction],  # reads the content of a DICOM file, and refuses rather than raises
        results_of: ResultsOf,
        *,
        hasher: KeyedHasher,  # makes the keys under which images are known
        destination: Destination | WebDestination,  # of the objects
        messages: Hl7Destination | None = None,  # where the HL7 messages go, if some are made
        listening: Listening | None = None,
        limits: NodeLimits | None = None,
        quiet_s: float = 30.0,  # a study is complete when no new image of it came for so long
        status_port: int | None = None,  # of the status page on 127.0.0.1; None for no page, 0 for any free port
    ) -> None:
        self._predict, self._results_of, self._quiet_s = predict, results_of, quiet_s
        self._destination, self._messages = destination, messages
        self._listening = listening or Listening()
        self._ending, self._unreachable = threading.Event(), 0
        self._threads = [
            threading.Thread(target=self._repeat, args=(step,), name=step.__name__.strip("_"))
            for step in (self._read_next, self._deliver_next)
        ]
        with ExitStack() as opened:
            opened.enter_context(quiet())  # pynetdicom's lines hold UIDs and AE titles; ours say what matters
            self.queue = opened.enter_context(ImageQueue(folder))
            self.status = NodeStatus(self.queue, status_port)
            opened.callback(self.status.close)
            count = partial(self.status.count, "received")
            receiver = Receiver(self.queue, hasher, self._listening, limits or NodeLimits(), count)
            self.port = receiver.start()
            opened.callback(self._end_threads)
            opened.callback(receiver.stop)
            for thread in self._threads:
                thread.start()
            self._opened = opened.pop_all()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take nothing new, finish what is under way, close the queue. What waits is there at the next start."""
        self._opened.close()

    def _end_threads(self) -> None:
        self._ending.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _repeat(self, step: Callable[[], float]) -> None:
        """Do a step again and again, after as many seconds as it says; no error of one image or disk ends the node."""
        failures, wait_s = 0, 0.0
        while not self._ending.wait(wait_s):
            try:
                wait_s, failures = step(), 0
            except Exception as error:  # its words may quote a header
                failures, wait_s = failures + 1, pause(failures)
                log.error("the node goes on after %s in %s", type(error).__name__, step.__name__.strip("_"))

    def _read_next(self) -> float:
        key = self.queue.next_to_read(self._quiet_s)
        if key is None:
            return _LOOK_S
        try:
            content = self.queue.content(key)
        except FileNotFoundError:  # taken away
            log.error("image %s: it is not in the queue's folder any more; send it again", key)
            self.queue.give_up(key, "image lost")
            return 0.0
        try:
            prediction = self._predict(content)
            with quiet():
                self.queue.keep_results(key, self._results_of(prediction, content), prediction.status)
        except (OSError, MemoryError, sqlite3.Error):
            self.queue.excuse(key)
            raise
        except Exception as error:  # one image must not stop the others; the queue tries it again later
            log.error("image %s: %s while it was read", key, type(error).__name__)
            return 0.0
        self.status.count("read", prediction.status)
        log.info("image %s: %s%s", key, prediction.status, f" ({prediction.reason})" if prediction.reason else "")
        return 0.0

    def _deliver_next(self) -> float:
        batch = {key: results for key in self.queue.to_deliver(_BATCH) if (results := self._kept(key))}
        if not batch:
            return _LOOK_S
        objects = {key: found for key, kept in batch.items() if (found := [x for x in kept if isinstance(x, Dataset)])}
        said = dict.fromkeys(batch.keys() - objects.keys(), "")
        try:
            with quiet():
                said |= self._destination.deliver(self._listening.title, objects.items()) if objects else {}
        except UnreachableError:
            self.status.count("sent", "unreachable")
            self._unreachable += 1
            wait_s = pause(self._unreachable)
            log.warning("the archive cannot be reached; next try in %.0f s", wait_s)
            return wait_s
        self._unreachable = 0
        stored = {key: [x for x in batch[key] if isinstance(x, bytes)] for key, why in said.items() if not why}
        for key, why in (said | self._tell(stored)).items():
            if why:
                if key in stored:
                    self.queue.objects_stored(key)
                self.queue.put_off(key)
                log.warning("image %s: its result waits: %s", key, why)
            else:
                self.queue.delivered(key)
            self.status.count("sent", "refused" if why else "delivered")
        return 0.0

    def _tell(self, waiting: dict[str, list[bytes]]) -> dict[str, str]:
        """Send HL7 messages; by key why they were not taken, "" where they were."""
        said: dict[str, str] = {}
        if self._messages is None:
            return said
        try:
            for key, messages in waiting.items():
                refusal = next((why for message in messages if (why := self._messages.send(message))), "")
                said[key] = refusal and f"its HL7 message: {refusal}"
        except UnreachableError:  # nor will the others be taken
            return dict.fromkeys(waiting, "nobody acknowledges its HL7 message") | said
        return said

    def _kept(self, key: str) -> list[Dataset | bytes]:
        try:
            with quiet():
                return self.queue.results(key)
        except Exception as error:  # a file was taken away or damaged: the others go on
            log.error("image %s: its kept result cannot be read: %s", key, type(error).__name__)
            self.queue.give_up(key, "result lost")
            return []


def serve(
    reporter: Reporter,
    destination: Destination | WebDestination,
    folder: Path,
    *,
    listening: Listening,
    audit: Path | None = None,
    **how: Any,
) -> None:
    """Receive, read and deliver until SIGTERM or Ctrl+C; then finish what is under way and return.

    The `reporter` reads the images; its process that decodes is within the limits of its policy. `folder` is that of
    the queue, in which ``audit.jsonl`` is the audit log unless `audit` names another; `how` is as for `Node`. Raises
    DataError: the queue is in use, a port cannot be had, or the audit log cannot be written.
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
    how |= {"hasher": reporter.hasher, "destination": destination, "listening": listening}
    with Node(folder, reporter.predict, results_of, **how) as node:
        log.info("%s listens as %s on %s:%d; results go to %s",
                 reporter.bundle.label, listening.title, listening.host, node.port, destination)  # fmt: skip
        if node.status.port is not None:
            log.info("status page: http://127.0.0.1:%d", node.status.port)
        ending.wait()
        log.info("ending: what is under way is finished, what waits is kept in %s", folder)
