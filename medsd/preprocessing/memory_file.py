"""`MemoryFile`: content in memory that a helper reads where it lies; on its way through a pipe it is copied often."""

import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LEAST = 1 << 20  # bytes of a store
# Stores that wait for the next content, since a new one costs more than its filling: so many, of so many bytes at most.
_KEPT, _MOST = 32, 1 << 24


class _Store:
    """Memory that other processes can map: a file without a name (memfd_create(2))."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("medsd")
        os.ftruncate(self.descriptor, _LEAST)
        self.bytes = mmap.mmap(self.descriptor, _LEAST)

    def fit(self, size: int) -> None:
        """Have room for `size` bytes."""
        if size > len(self.bytes):
            self.bytes.resize(max(size, 2 * len(self.bytes)))

    def end(self) -> None:
        """Wait for the next content, or be no more."""
        if len(_idle) < _KEPT and len(self.bytes) <= _MOST:
            _idle.append(self)
        else:
            self.bytes.close()
            os.close(self.descriptor)


_idle: list[_Store] = []


class MemoryFile:
    """Grows by `write`; sent to a process of this machine, it arrives there as what it holds, bytes or mapped memory.

    On Linux that lies in shared memory until this object is gone; elsewhere it travels. `size` bytes are expected.
    """

    def __init__(self, size: int = 0) -> None:
        self.size = 0
        self._store: _Store | None = None
        if hasattr(os, "memfd_create"):
            try:
                self._store = _idle.pop()
            except IndexError:
                self._store = _Store()
            weakref.finalize(self, self._store.end)
            self._store.fit(size)
        self._bytes = bytearray(0 if self._store else size)

    def write(self, data: bytes | memoryview) -> None:
        """Put `data` at the end."""
        self.room(len(data))[:] = data
        self.took(len(data))

    def room(self, most: int) -> memoryview:
        """Memory for so many bytes at the end. While it is held, there may be no more room than was expected."""
        end = self.size + most
        if self._store is not None:
            self._store.fit(end)
        elif end > len(self._bytes):
            self._bytes.extend(bytes(end - len(self._bytes)))
        return memoryview(self._bytes if self._store is None else self._store.bytes)[self.size : end]

    def took(self, count: int) -> None:
        """So many bytes of the room are filled."""
        self.size += count

    def content(self) -> bytes:
        """All that was written."""
        return bytes(self._bytes[: self.size]) if self._store is None else self._store.bytes[: self.size]

    def __reduce__(self) -> tuple[Callable[..., bytes | mmap.mmap], tuple[Any, ...]]:
        if self._store is None or not self.size:
            return bytes, (self.content(),)
        return _mapped, (f"/proc/{os.getpid()}/fd/{self._store.descriptor}", self.size)


def _mapped(path: str, size: int) -> mmap.mmap:
    with Path(path).open("rb") as file:
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
