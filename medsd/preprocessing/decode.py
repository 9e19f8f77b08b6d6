"""Films decoded ahead of the model, in other processes, in order and with bounded memory.

A film that brings its process down, or takes it longer than the policy's `max_seconds`, costs one row, not the batch.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from medsd.dicom.gate import GatePolicy
from medsd.dicom.identity import read_identity
from medsd.errors import ImageError
from medsd.preprocessing.archives import is_archive, read_member, refuse_archive, split_member
from medsd.preprocessing.film import Film, identified, read_film
from medsd.preprocessing.helper import Helper, out_of_memory, refused
from medsd.privacy import KeyedHasher
from medsd.settings import PixelSpec

log = logging.getLogger(__name__)

Decoded = Generator[tuple[Path, Film], None, None]

_GUARD = "A script that uses workers needs `if __name__ == '__main__':` around its call."


@dataclass(frozen=True)
class Decoder:
    """How every film is read; travels to helper processes.

    Attributes:
        spec, policy, hasher, keep_image: as for `medsd.preprocessing.film.read_film`.
    """

    spec: PixelSpec
    policy: GatePolicy
    hasher: KeyedHasher | None = None
    keep_image: bool = False

    def __call__(self, source: Path | bytes, name: str = "") -> Film:
        """Read one film, a file or `archive.zip!member`; whatever goes wrong is a refusal."""
        name = name or (source.name if isinstance(source, Path) else "")
        try:
            content = self._content(source, name)
            return read_film(
                content, self.spec, policy=self.policy, hasher=self.hasher, name=name, keep_image=self.keep_image
            )
        except ImageError as error:
            return Film("refused", error.reason, str(error), name)
        except MemoryError:
            film = out_of_memory(name)
        except Exception as error:  # one row an input, whatever happens; the text of the error may quote the header
            film = refused("cannot_decode", name, detail=type(error).__name__)
        return self.identified(film, source)

    def _content(self, source: Path | bytes, name: str) -> Path | bytes:
        """What a path leads to: a file, or a member of an archive, read in memory."""
        if isinstance(source, bytes):
            return source
        inside = split_member(str(source))
        if inside is not None:
            return read_member(*inside, self.policy, name)
        if is_archive(str(source)):
            refuse_archive(source, name)
        return source

    def identified(self, film: Film, source: Path | bytes) -> Film:
        """A refused film with the keys and the view of its header, which is all that is read; as it is without one."""
        if film.study_key or film.patient_key or film.instance_key:
            return film
        try:
            return identified(film, read_identity(self._content(source, film.name)), self.hasher)
        except Exception:  # as in __call__, and the film has its reason already
            return film

    def helper(self) -> Helper:
        """A process that reads as this does, within the policy's limits of time and memory."""
        return Helper(self, self.policy.max_seconds, self.policy.max_memory)


class Decoders:
    """Processes that decode; a context manager that ends them.

    They start at once and in the background, so that a caller can load its model meanwhile.

    Args:
        decoder: how to read films.
        workers: processes, each within the policy's `max_seconds` and `max_memory`; 1 decodes in this one, which
            only the policy's limits of size bound.
        films: how many there are at most; no more processes start.
    """

    def __init__(self, decoder: Decoder, workers: int, *, films: int | None = None) -> None:
        self._decoder = decoder
        count = workers if films is None else min(workers, films)
        self._helpers = [decoder.helper() for _ in range(count)] if workers > 1 else []
        try:
            for helper in self._helpers:
                threading.Thread(target=helper.start, name="start", daemon=True).start()
        except BaseException:  # Ctrl-C: a process that is half started would complain of its parent's end
            self.close()
            raise

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes at once."""
        for helper in self._helpers:
            helper.close()

    def decode(self, paths: Iterable[Path], ahead: int) -> Decoded:
        """Decode `paths` in order; `ahead` films may wait decoded, which bounds the memory.

        Raises:
            DependencyError: a process that broke cannot be replaced.
        """
        if self._helpers and not self._helpers[0].start():
            log.warning("worker processes do not start; films are decoded in this one. %s", _GUARD)
            self.close()
            self._helpers = []
        if not self._helpers:
            return ((path, self._decoder(path)) for path in paths)
        return _decode_in(self._helpers, iter(paths), ahead + len(self._helpers))


def decode_all(paths: Iterable[Path], decoder: Decoder, *, workers: int, ahead: int) -> Decoded:
    """Decode `paths` in order, see `Decoders`.

    Raises:
        DependencyError: a process that broke cannot be replaced.
    """
    with Decoders(decoder, workers) as decoders, closing(decoders.decode(paths, ahead)) as films:
        yield from films


def _decode_in(helpers: list[Helper], paths: Iterator[Path], window: int) -> Decoded:
    idle: SimpleQueue[Helper] = SimpleQueue()
    for helper in helpers:
        idle.put(helper)

    def decode(path: Path) -> Film:
        helper = idle.get()
        try:
            return helper(path)
        finally:
            idle.put(helper)

    pending: deque[tuple[Path, Future[Film]]] = deque()
    # One thread waits for each process.
    with ThreadPoolExecutor(len(helpers), thread_name_prefix="decode") as threads:
        try:
            while True:
                while len(pending) < window and (path := next(paths, None)) is not None:
                    pending.append((path, threads.submit(decode, path)))
                if not pending:
                    return
                path, film = pending.popleft()
                yield path, film.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for helper in helpers:
                helper.close()
