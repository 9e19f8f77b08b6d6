"""Films decoded ahead of the model, in other processes, in order and with bounded memory.

A decoder that brings its process down costs one film, not the batch. Workers end with their parent, even when that is
killed.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from medsd.dicom.gate import GatePolicy
from medsd.dicom.policy import concern
from medsd.inference.film import Film, named, read_film
from medsd.privacy import KeyedHasher
from medsd.settings import PixelSpec

log = logging.getLogger(__name__)

_GUARD = "A script that uses workers needs `if __name__ == '__main__':` around its call."


@dataclass(frozen=True)
class Decoder:
    """How every film of a batch is read; travels to the worker processes."""

    spec: PixelSpec
    policy: GatePolicy
    hasher: KeyedHasher | None = None

    def __call__(self, path: Path) -> Film:
        """Read one film, without keeping it in its own size; whatever goes wrong is a refusal."""
        try:
            return read_film(path, self.spec, policy=self.policy, hasher=self.hasher, keep_image=False)
        except Exception as error:  # one row an input, whatever happens; the text of the error may quote the header
            return _undecodable(path, type(error).__name__)


def _undecodable(path: Path, detail: str) -> Film:
    return Film("refused", "cannot_decode", named(path.name, concern("cannot_decode", detail=detail).message))


def decode_all(paths: Iterable[Path], decoder: Decoder, *, workers: int, ahead: int) -> Iterator[tuple[Path, Film]]:
    """Decode `paths` in order.

    Args:
        paths: the files.
        decoder: how to read them.
        workers: processes; 1 decodes in this one.
        ahead: films that may wait decoded; bounds the memory.
    """
    if workers > 1:
        pool = _Pool(decoder, workers)
        if pool.works():
            return pool.decode(iter(paths), ahead + workers)
        log.warning("worker processes do not start; films are decoded in this one. %s", _GUARD)
    return ((path, decoder(path)) for path in paths)


class _Pool:
    def __init__(self, decoder: Decoder, workers: int) -> None:
        self._decoder, self._workers = decoder, workers
        self._executor = self._start(workers)

    def _start(self, workers: int) -> ProcessPoolExecutor:
        # spawn: ONNX Runtime's and the tokenizer's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)

    def works(self) -> bool:
        """Whether a worker comes up at all; otherwise every film would look like a crash."""
        try:
            return self._executor.submit(bool, 1).result()
        except BrokenProcessPool:
            return False

    def decode(self, paths: Iterator[Path], window: int) -> Iterator[tuple[Path, Film]]:
        pending: deque[tuple[Path, Future[Film]]] = deque()
        try:
            while True:
                while len(pending) < window and (path := next(paths, None)) is not None:
                    pending.append((path, self._submit(path)))
                if not pending:
                    return
                path, future = pending.popleft()
                try:
                    film = future.result()
                except BrokenProcessPool:
                    film = self._alone(path)
                    self._restart()
                    pending = deque((waiting, self._submit(waiting)) for waiting, _ in pending)
                yield path, film
        finally:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, path: Path) -> Future[Film]:
        try:
            return self._executor.submit(self._decoder, path)
        except BrokenProcessPool as error:
            failed: Future[Film] = Future()
            failed.set_exception(error)
            return failed

    def _restart(self) -> None:
        self._executor.shutdown(wait=False)
        self._executor = self._start(self._workers)

    def _alone(self, path: Path) -> Film:
        """Decode the film at which the pool broke in a process of its own, to know whether it was the one."""
        with self._start(1) as executor:
            try:
                return executor.submit(self._decoder, path).result()
            except BrokenProcessPool:
                return _undecodable(path, "the decoder crashed")


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
