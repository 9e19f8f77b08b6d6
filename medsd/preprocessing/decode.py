"""Images decoded ahead of the model, in other processes, in order and with bounded memory.

An image that brings its process down, or takes it longer than the policy's `max_seconds`, costs one row, not the batch.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from medsd.dicom.content import Content
from medsd.dicom.gate import GatePolicy
from medsd.dicom.identity import read_identity
from medsd.errors import ImageError
from medsd.preprocessing.archives import is_archive, read_member, refuse_archive, split_member
from medsd.preprocessing.helper import Helper, out_of_memory, refused
from medsd.preprocessing.image import DecodedImage, identified, read_image
from medsd.preprocessing.memory_file import MemoryFile
from medsd.privacy import KeyedHasher
from medsd.settings import PixelSpec

log = logging.getLogger(__name__)

Decoded = Generator[tuple[Path, DecodedImage], None, None]

_GUARD = "A script that uses workers needs `if __name__ == '__main__':` around its call."


@dataclass(frozen=True)
class Decoder:
    """How every image is read (`medsd.preprocessing.image.read_image`); travels to helper processes."""

    spec: PixelSpec
    policy: GatePolicy
    hasher: KeyedHasher | None = None
    keep_image: bool = False

    def __call__(self, source: Path | Content, name: str = "") -> DecodedImage:
        """Read one image, a file or `archive.zip!member`; whatever goes wrong is a refusal."""
        name = name or (source.name if isinstance(source, Path) else "")
        try:
            content = self._content(source, name)
            return read_image(
                content, self.spec, policy=self.policy, hasher=self.hasher, name=name, keep_image=self.keep_image
            )
        except ImageError as error:
            return DecodedImage("refused", error.reason, str(error), name)
        except MemoryError:
            image = out_of_memory(name)
        except Exception as error:  # one row an input, whatever happens; the text of the error may quote the header
            image = refused("cannot_decode", name, detail=type(error).__name__)
        return self.identified(image, source)

    def _content(self, source: Path | Content, name: str) -> Path | Content:
        """What a path leads to: a file, or a member of an archive, read in memory."""
        if isinstance(source, Content):
            return source
        inside = split_member(str(source))
        if inside is not None:
            return read_member(*inside, self.policy, name)
        if is_archive(str(source)):
            refuse_archive(source, name)
        return source

    def identified(self, image: DecodedImage, source: Path | Content) -> DecodedImage:
        """A refused image with the keys and the view of its header, which is all that is read; as it is without one."""
        if image.study_key or image.patient_key or image.instance_key:
            return image
        try:
            return identified(image, read_identity(self._content(source, image.name)), self.hasher)
        except Exception:  # as in __call__, and the image has its reason already
            return image

    def helper(self) -> Helper:
        """A process that reads as this does, within the policy's limits of time and memory."""
        return Helper(self)


class Decoders(AbstractContextManager["Decoders"]):
    """Processes that decode, each within the policy's limits; a context manager that ends them.

    They start at once and in the background, so that a caller can load its model meanwhile; no more than there are
    `images`. One worker is this process, which only the policy's limits of size bound.
    """

    def __init__(self, decoder: Decoder, workers: int, *, images: int | None = None) -> None:
        self._decoder = decoder
        count = workers if images is None else min(workers, images)
        self._helpers = [decoder.helper() for _ in range(count)] if workers > 1 else []
        try:
            for helper in self._helpers:
                threading.Thread(target=helper.start, name="start", daemon=True).start()
        except BaseException:  # Ctrl-C: a process that is half started would complain of its parent's end
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for helper in self._helpers:
            helper.close()

    def decode(self, paths: Iterable[Path], ahead: int) -> Decoded:
        """Decode `paths` in order; `ahead` images may wait decoded, which bounds the memory.

        Raises DependencyError: a process that broke cannot be replaced.
        """
        if self._helpers and not self._helpers[0].start():
            log.warning("worker processes do not start; images are decoded in this one. %s", _GUARD)
            self.close()
            self._helpers = []
        if not self._helpers:
            return ((path, self._decoder(path)) for path in paths)
        return _decode_in(self._helpers, iter(paths), ahead + len(self._helpers))


def decode_all(paths: Iterable[Path], decoder: Decoder, *, workers: int, ahead: int) -> Decoded:
    """Decode `paths` in order, see `Decoders`."""
    with Decoders(decoder, workers) as decoders, closing(decoders.decode(paths, ahead)) as images:
        yield from images


def taking_turns(helpers: Iterable[Helper]) -> Callable[[Path | bytes | MemoryFile], DecodedImage]:
    """What reads an image in whichever of `helpers` is idle; threads may share it, and wait where none is."""
    idle: SimpleQueue[Helper] = SimpleQueue()
    for helper in helpers:
        idle.put(helper)

    def decode(source: Path | bytes | MemoryFile) -> DecodedImage:
        helper = idle.get()
        try:
            return helper(source)
        finally:
            idle.put(helper)

    return decode


def _decode_in(helpers: list[Helper], paths: Iterator[Path], window: int) -> Decoded:
    decode = taking_turns(helpers)
    pending: deque[tuple[Path, Future[DecodedImage]]] = deque()
    # One thread waits for each process.
    with ThreadPoolExecutor(len(helpers), thread_name_prefix="decode") as threads:
        try:
            while True:
                while len(pending) < window and (path := next(paths, None)) is not None:
                    pending.append((path, threads.submit(decode, path)))
                if not pending:
                    return
                path, image = pending.popleft()
                yield path, image.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for helper in helpers:
                helper.close()
