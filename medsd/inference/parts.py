"""The rows of a batch while it runs: one hidden file beside the output, locked, to which finished rows are appended.

A run that is killed leaves this file; the next one with `resume` goes on behind it. Two runs on one output exclude
each other through the lock, which the system takes back when a process dies.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from medsd.errors import DataError
from medsd.results.table import Row, json_line, read_table, write_table

try:
    import fcntl
except ImportError:  # Windows: no lock there
    fcntl = None  # type: ignore[assignment]


class Parts:
    """The finished rows of one output; a context manager that holds the lock.

    Args:
        out: the table that is being made.
        names: its columns.
        model_sha256: of the model that scores; rows of another model are not mixed in.
        resume: keep the rows of an earlier, killed or finished run.

    Raises:
        DataError: another run holds the lock, the folder cannot be written, or the rows are another model's.
    """

    def __init__(self, out: Path, names: Sequence[str], model_sha256: str, *, resume: bool) -> None:
        self.out, self.names, self.path = out, names, out.with_name(f".{out.name}.part")
        self._header = {"columns": list(names), "model_sha256": model_sha256}
        self._file = _open_locked(self.path, out)
        self.done: set[str] = set()
        try:
            self._begin(resume)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _begin(self, resume: bool) -> None:
        kept = self._kept() if resume else None
        if kept is None:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json_line(self._header))
            if resume and self.out.exists():
                self._adopt_finished()
        self._file.flush()
        self.done |= {row["path"] for row in self._rows()}
        self._file.seek(0, os.SEEK_END)

    def _kept(self) -> bool | None:
        """True where the file holds an earlier run of this model; None where it holds nothing of use."""
        self._file.seek(0)
        first = self._file.readline()
        if not first.endswith("\n"):
            return None
        with contextlib.suppress(ValueError):
            if json.loads(first) == self._header:
                self._drop_torn_line()
                return True
        raise DataError(f"{self.out}: its unfinished rows are another model's; leave resume out to begin again")

    def _drop_torn_line(self) -> None:
        """Cut off the half line that a kill may leave."""
        content = self.path.read_bytes()
        self._file.truncate(content.rfind(b"\n") + 1)

    def _adopt_finished(self) -> None:
        """Go on behind a table that an earlier run completed."""
        for row in read_table(self.out):
            if list(row) != list(self.names) or row["model_sha256"] != self._header["model_sha256"]:
                raise DataError(f"{self.out}: its rows are another model's; leave resume out to write it anew")
            self._file.write(json_line(row))

    def append(self, rows: Sequence[Row]) -> None:
        """Add finished rows; they survive whatever happens afterwards."""
        self._file.write("".join(json_line(row) for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.update(row["path"] for row in rows)

    def _rows(self) -> Iterator[Row]:
        with self.path.open(encoding="utf-8") as file:
            file.readline()
            yield from map(json.loads, file)

    def counts(self) -> dict[str, int]:
        """How many rows there are of each status."""
        found: dict[str, int] = {}
        for row in self._rows():
            found[row["status"]] = found.get(row["status"], 0) + 1
        return found

    def finish(self) -> None:
        """Write the table from the rows and remove them."""
        write_table(self.out, self._rows(), self.names)
        with contextlib.suppress(PermissionError):  # Windows keeps open files
            self.path.unlink()


def _open_locked(path: Path, out: Path) -> TextIO:
    """Open `path` for appending and reading, alone."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if out.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{out}: cannot be written ({error.strerror}); choose another output") from None
        if not _lock(file):
            file.close()
            raise DataError(f"{out}: another run is writing it; wait for that one, or choose another output")
        if _still_there(file, path):
            return file
        file.close()  # the run before us finished between our opening and our locking


def _lock(file: TextIO) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _still_there(file: TextIO, path: Path) -> bool:
    try:
        here: Any = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file.fileno()), here)
