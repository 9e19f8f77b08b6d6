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
    """Grows by `write`; sent to a process of this machine, it arrives there as the bytes that it holds.

    On Linux they lie in shared memory until this object is gone; elsewhere they travel.
    """

    def __init__(self) -> None:
        self.size = 0
        self._bytes = bytearray()
        self._store: _Store | None = None
        if hasattr(os, "memfd_create"):
            try:
                self._store = _idle.pop()
            except IndexError:
                self._store = _Store()
            weakref.finalize(self, self._store.end)

    def write(self, data: memoryview) -> None:
        """Put `data` at the end."""
        start, self.size = self.size, self.size + len(data)
        if self._store is None:
            self._bytes += data
        else:
            self._store.fit(self.size)
            self._store.bytes[start : self.size] = data

    def content(self) -> bytes:
        """All that was written."""
        return bytes(self._bytes) if self._store is None else self._store.bytes[: self.size]

    def __reduce__(self) -> tuple[Callable[..., bytes], tuple[Any, ...]]:
        if self._store is None:
            return bytes, (self.content(),)
        return _content, (f"/proc/{os.getpid()}/fd/{self._store.descriptor}", self.size)


def _content(path: str, size: int) -> bytes:
    if not size:
        return b""
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        return content[:]
