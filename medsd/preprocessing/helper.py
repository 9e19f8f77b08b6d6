"""A process that decodes images for this one and is replaced when an image takes it too long, too much memory, or down.

A decoder in C cannot be interrupted from Python, but a process can be killed. Each helper has a pipe of its own: who
holds which image is known without asking, and a helper that dies at whatever moment takes no lock and no other image
with it (pools that share one queue lose images that way when the parent is busy). Begin at `Helper`.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from medsd.dicom.policy import concern
from medsd.errors import DependencyError
from medsd.preprocessing.image import DecodedImage, named
from medsd.preprocessing.memory_file import MemoryFile

try:
    import resource
except ImportError:  # Windows: time is bounded there, memory is not
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from medsd.preprocessing.decode import Decoder

_START_SECONDS = 120.0  # until a process has imported what it needs, on a machine that is busy
_STARTS = 3  # a machine that is out of memory for a moment must not end the batch of a night
_EXIT_SECONDS = 5.0
_OUT_OF_TIME = getattr(signal, "SIGPROF", signal.SIGTERM)
PATIENCE = 6 if hasattr(signal, "setitimer") else 1  # Windows has no timer of processor time, so the clock counts there


class Helper(contextlib.AbstractContextManager["Helper"]):
    """One process that reads images; threads may share it and take turns.

    It starts with the first image, or with `start`. A context manager that ends it.

    The policy's `max_seconds` bounds the processor time for one image, so that a busy machine refuses no image for its
    own slowness; an image that takes `PATIENCE` times as long by the clock (a file server hangs) is given up, too.
    """

    def __init__(self, decoder: "Decoder") -> None:
        self._decoder, self._max_seconds = decoder, decoder.policy.max_seconds
        self._turn, self._ending = threading.Lock(), threading.Lock()
        self._closed = False
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, source: Path | bytes | MemoryFile, name: str = "") -> DecodedImage:
        """Read one image; one that takes too long or brings the process down is refused.

        Raises DependencyError: no process starts here.
        """
        name = name or (source.name if isinstance(source, Path) else "")
        with self._turn:
            if self._pipe is None and not any(self._begin() for _ in range(_STARTS)):
                raise DependencyError(
                    "no process starts to decode images in; free memory, or put `if __name__ == '__main__':` around "
                    "what a script does"
                )
            return self._ask(source, name)

    def start(self) -> bool:
        """Whether the process comes up: not in a script without ``if __name__ == "__main__":``."""
        with self._turn:
            return self._pipe is not None or self._begin()

    def close(self) -> None:
        """End the process at once, whatever it does."""
        with self._ending:
            self._closed = True
            if self._process is not None:
                self._process.kill()
        with self._turn:  # whoever waited for it has seen it end
            if self._pipe is not None:
                self._end()

    def _begin(self) -> bool:
        # spawn: ONNX Runtime's and the tokenizer's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        with self._ending:
            if self._closed:
                return False
            self._process = context.Process(target=_serve, args=(theirs, self._decoder), daemon=True)
            try:
                with _interrupts_held():
                    self._process.start()
            except OSError:  # no memory, or too many processes
                self._process = None
                return False
        theirs.close()  # so that the pipe ends with the process
        self._pipe = ours
        with contextlib.suppress(EOFError, OSError):
            if ours.poll(_START_SECONDS):
                ours.recv()
                return True
        self._end()
        return False

    def _ask(self, source: Path | bytes | MemoryFile, name: str) -> DecodedImage:
        image, too_slow = self._exchange(source, name, None)
        if image is not None:
            return image
        if too_slow:
            image = refused("too_slow", name, accepted=f"{self._max_seconds:g}")
        else:
            image = refused("cannot_decode", name, detail="the decoder crashed")
        # Its keys are read by the next process, as the header may be what brought this one down.
        return (self._exchange(source, name, image)[0] if self._begin() else None) or image

    def _exchange(
        self, source: Path | bytes | MemoryFile, name: str, refusal: DecodedImage | None
    ) -> tuple[DecodedImage | None, bool]:
        """What the process makes of an image, or of the header of a refused one; None, and whether it took too long."""
        assert self._pipe is not None
        try:
            self._pipe.send((source, name, refusal))
            if self._pipe.poll(PATIENCE * self._max_seconds):
                return self._pipe.recv(), False
            self._end()
            return None, True
        except (EOFError, OSError):
            return None, self._end(_EXIT_SECONDS) == -_OUT_OF_TIME

    def _end(self, patience: float = 0.0) -> int | None:
        """Take the process off the system's table, after `patience` seconds for one that is about to exit.

        Returns its exit code, negative for the signal that ended it. The next image starts another process.
        """
        assert self._process is not None and self._pipe is not None
        self._process.join(patience)
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._pipe = None
        return self._process.exitcode


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process that starts meanwhile never sees Ctrl-C, from its first moment on; its parent decides what it means.

    It would print a traceback while it imports. The mask of blocked signals is inherited, and is a thread's own.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # else it would start now, and take the mask away
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def refused(reason: str, name: str, **values: object) -> DecodedImage:
    """An image that is refused for `reason`, with its sentence."""
    return DecodedImage("refused", reason, named(name, concern(reason, **values).message), name)


def _serve(pipe: Connection, decoder: "Decoder") -> None:
    """The life of a helper: a source in, an image out, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _bound(decoder.policy.max_memory)
    _silence()
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        pipe.send(None)
        while True:
            source, name, refusal = pipe.recv()
            try:
                with _timer(decoder.policy.max_seconds):
                    image = decoder(source, name) if refusal is None else decoder.identified(refusal, source)
                del source
                pipe.send(image)
            except MemoryError:
                pipe.send(refusal or out_of_memory(name))


def out_of_memory(name: str) -> DecodedImage:
    """The refusal of an image that needs more memory than there is."""
    return refused("too_large", name, value="the image needs more memory than there is", accepted="this machine")


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


@contextlib.contextmanager
def _timer(seconds: float) -> Iterator[None]:
    """Let the system end this process after so many seconds of processor time, in whatever code it is then."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _silence() -> None:
    """Drop what decoders in C and Rust print by themselves; it may quote the file, and stdout belongs to the parent."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _bound(max_memory: int) -> None:
    """Bound the memory of this process, and leave no image of it behind: it would hold the image of a patient.

    Libraries reserve far more address space than they use, so the limit counts from what is reserved now.
    """
    if resource is None:
        return
    _lower(resource.RLIMIT_CORE, 0)
    try:
        statm = Path("/proc/self/statm").read_text(encoding="ascii").split()  # proc(5): size and resident, in pages
    except OSError:
        return
    reserved, held = (int(pages) * resource.getpagesize() for pages in statm[:2])
    _lower(resource.RLIMIT_AS, reserved - held + max_memory)


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(limit, (value, hard))
