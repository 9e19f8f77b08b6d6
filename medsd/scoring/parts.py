"""The rows of a batch while it runs: numbered parts in a folder beside the output, locked, appended to and rolled over.

`results.csv.parts/` holds what a run has finished, and what it was finished with. A run that is killed leaves it; the
next one with `resume` goes on behind it. Two runs on one output exclude each other through the lock, which the system
takes back when a process dies.

A batch of rows is one write at the end of the newest part. What a kill can leave is half a line there, which is cut
off; older parts are never touched again. The table is joined from the parts at the end and appears in one step.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.files import sync_folder, write_json
from medsd.scoring import embeddings
from medsd.scoring.lock import LOCK, open_locked
from medsd.scoring.table import Row, json_line, read_table, write_table

SUFFIX = ".parts"
RECORD = ".run.json"
ROWS = 10_000  # of a part; a kilobyte each, and a part is held in memory when it is taken up
_ADOPTED = 1000  # rows taken over at a time
MADE_WITH = "run.json"
_GO_ON = "make room, then go on with --resume"
_SYNC_S = 1.0  # rows outlive a kill at once, and a power cut after so long
Facts = Mapping[str, Any]
Vectors = npt.NDArray[np.float32]


def is_parts(parent: str, name: str) -> bool:
    """Whether a folder is that of a run, which holds no films."""
    return name.endswith(SUFFIX) and os.path.exists(os.path.join(parent, name, LOCK))  # noqa: PTH110, PTH118


class Parts:
    """The finished rows of one output; a context manager that holds the lock.

    Args:
        out: the table that is being made.
        names: its columns.
        made_with: what decides the rows, by the words in which a person knows it: ``{"model": …, "gate policy": …}``.
            JSON values; rows that were made with others are not mixed in.
        resume: keep the rows of an earlier, killed or finished run.
        embeddings_out: where each row's embedding is written to, .npy or .parquet; None for nowhere.
        dimensions: of an embedding.
        defuse: formulas in CSV.

    Raises:
        DataError: another run holds the lock, the folder cannot be written, there are unfinished rows and `resume` is
            not set, or they were made with something else.
    """

    def __init__(
        self,
        out: Path,
        names: Sequence[str],
        made_with: Facts,
        *,
        resume: bool,
        embeddings_out: Path | None = None,
        dimensions: int = 0,
        defuse: bool = False,
    ) -> None:
        self.out, self.names, self.folder = out, list(names), out.with_name(out.name + SUFFIX)
        self.record = out.with_name(out.name + RECORD)
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.done: set[str] = set()
        self._facts = {"columns": self.names, **made_with}
        self._embeddings_out, self._dimensions, self._defuse = embeddings_out, dimensions, defuse
        self._number = self._rows = 0  # the newest part, and the rows in it
        self._file: BinaryIO | None = None
        self._vectors: BinaryIO | None = None
        self._synced = time.monotonic()
        self._lock, self._beginning = open_locked(self.folder, out), True
        try:
            self._begin(resume)
            self._beginning = False
        except BaseException:
            self._give_up()
            raise

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.counts:  # nothing to go on with
            with contextlib.suppress(OSError):
                self._remove()
        self.close()

    def _give_up(self) -> None:
        """Leave no folder behind that nobody can go on with."""
        with contextlib.suppress(OSError):
            if not (self.folder / MADE_WITH).exists():
                self._remove()
        self.close()

    def close(self) -> None:
        """Let go of the lock; the parts stay unless `finish` has removed them."""
        for file in (self._file, self._vectors, self._lock):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    # ---- beginning

    def _begin(self, resume: bool) -> None:
        found = _read_json(self.folder / MADE_WITH)
        empty = not any(self._part(number).stat().st_size for number in self._numbers())
        empty = empty and not any(self.folder.glob("block-*"))  # of `medsd.scoring.blocks`
        if found is None or (empty and not resume):  # no run, or one that was killed before its first row
            self._clear()
            if resume and self.out.exists():
                self._adopt_finished()
            write_json(self.folder / MADE_WITH, self._facts)
            return
        if not resume:
            raise DataError(
                f"{self.out}: an earlier run left finished rows in {self.folder.name}; go on with --resume, or remove "
                "that folder to begin again"
            )
        self._compare(found, "its unfinished rows")
        self._take_up()

    def _compare(self, found: Facts, what: str) -> None:
        """Refuse rows that were made with something else than what this run has."""
        changed = [name for name in {**self._facts, **found} if found.get(name) != self._facts.get(name)]
        if changed:
            names = ", ".join(changed)
            raise DataError(
                f"{self.out}: {what} were made with another {names}; give the same again, or leave --resume out and "
                "choose another output"
            )

    def _take_up(self) -> None:
        """Go on behind what a killed run left: count it, and cut off what is torn."""
        for number in self._numbers():
            rows, sizes = _whole_rows(self._part(number))
            if self._embeddings_out is not None:
                del rows[self._vector_bytes(number) // (4 * self._dimensions) :]
                _truncate(self._vector_part(number), len(rows) * 4 * self._dimensions)
            _truncate(self._part(number), sum(sizes[: len(rows)]))
            self._count(rows)
            self._number, self._rows = number, len(rows)
        if self._number:
            self._open()

    def _adopt_finished(self) -> None:
        """Go on behind a table that an earlier run completed."""
        found = (_read_json(self.record) or {}).get("made_with")
        if isinstance(found, dict):
            self._compare(found, "its rows")
        vectors = self._finished_vectors()
        batch: list[Row] = []
        for row in read_table(self.out, defused=self._defuse):
            if list(row) != self.names or row["model_sha256"] != self._facts["model"]:
                raise DataError(f"{self.out}: its rows are another model's; leave --resume out to write it anew")
            batch.append(row)
            if len(batch) == _ADOPTED:
                self._adopt(batch, vectors)
                batch = []
        self._adopt(batch, vectors)

    def _finished_vectors(self) -> Iterator[Vectors] | None:
        if self._embeddings_out is None:
            return None
        return embeddings.read(self._embeddings_out, self._dimensions)

    def _adopt(self, rows: list[Row], vectors: Iterator[Vectors] | None) -> None:
        if not rows:
            return
        if vectors is None:
            self.append(rows)
            return
        taken = [vector for _, vector in zip(rows, vectors, strict=False)]  # rows end first: no vector is lost
        if len(taken) < len(rows):
            raise DataError(f"{self._embeddings_out}: has fewer rows than {self.out}; leave --resume out")
        self.append(rows, taken)

    # ---- going on

    def append(self, rows: Sequence[Row], vectors: Sequence[Vectors | None] = ()) -> None:
        """Add finished rows; they survive whatever happens to this process afterwards.

        Args:
            rows: of the table, in order.
            vectors: an embedding (D,) each, None for a refused one; only where embeddings are kept.

        Raises:
            DataError: the disk is full, or gone; the rows of before are safe.
        """
        if not rows:
            return
        try:
            if self._file is None or self._rows >= ROWS:
                self._roll()
            self._write(rows, vectors)
        except OSError as error:
            what = f"{self.folder}: cannot be written ({error.strerror})"
            raise DataError(f"{what}; {self.counts.total():,} finished rows are safe: {_GO_ON}") from None
        self._count(rows)
        self._rows += len(rows)

    def _write(self, rows: Sequence[Row], vectors: Sequence[Vectors | None]) -> None:
        assert self._file is not None
        late = time.monotonic() - self._synced > _SYNC_S
        if self._vectors is not None:
            _append(self._vectors, b"".join(map(self._bytes_of, vectors)))
            os.fsync(self._vectors.fileno())  # before the rows, so that no row is without
            late = True
        _append(self._file, "".join(map(json_line, rows)).encode("utf-8"))
        if late:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def _bytes_of(self, vector: Vectors | None) -> bytes:
        full = np.full(self._dimensions, np.nan, "<f4") if vector is None else np.asarray(vector, "<f4")
        return full.tobytes()

    def _count(self, rows: Sequence[Row]) -> None:
        if self._beginning:  # nobody asks for the names of later ones, and there may be millions
            self.done.update(row["path"] for row in rows)
        self.counts.update(row["status"] for row in rows)
        self.reasons.update(row["reason"] for row in rows if row["reason"])

    def _roll(self) -> None:
        """Begin the next part."""
        self._sync()
        for file in (self._file, self._vectors):
            if file is not None:
                file.close()
        self._number, self._rows = self._number + 1, 0
        self._open()

    def _open(self) -> None:
        self._file = self._part(self._number).open("ab", buffering=0)
        if self._embeddings_out is not None:
            self._vectors = self._vector_part(self._number).open("ab", buffering=0)
        sync_folder(self.folder)

    def _sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())

    # ---- the end

    def rows(self) -> Iterator[Row]:
        """The finished rows, one after another."""
        for number in self._numbers():
            with self._part(number).open(encoding="utf-8") as file:
                yield from map(json.loads, file)

    def finish(self, summary: Facts | None = None) -> None:
        """Write the table, the embeddings and the record from the parts, and remove the parts.

        Args:
            summary: what stands in the record beside what the rows were made with.

        Raises:
            DataError: one of them cannot be written; the parts stay.
        """
        try:
            self._sync()
            if self._embeddings_out is not None:
                chunks = (self._read_vectors(number) for number in self._numbers())
                paths = (row["path"] for row in self.rows())
                embeddings.write(self._embeddings_out, chunks, paths, self.counts.total(), self._dimensions)
            write_table(self.out, self.rows(), self.names, self._defuse)
            write_json(self.record, {"made_with": self._facts, **(summary or {})})
        except (OSError, DataError) as error:
            what = f"{self.out}: cannot be written ({error.strerror})" if isinstance(error, OSError) else str(error)
            raise DataError(f"{what}; the finished rows are kept in {self.folder.name}: {_GO_ON}") from None
        self._remove()

    def _remove(self) -> None:
        self._clear()
        with contextlib.suppress(OSError):  # Windows keeps open files
            (self.folder / LOCK).unlink()
            self.folder.rmdir()

    def _clear(self) -> None:
        """Remove the parts; first what says that they can be gone on with."""
        for file in (self._file, self._vectors):
            if file is not None:
                file.close()
        self._file = self._vectors = None
        with contextlib.suppress(FileNotFoundError):
            (self.folder / MADE_WITH).unlink()
        for path in self.folder.glob("part-*"):
            path.unlink()
        self._number = self._rows = 0

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem.partition("-")[2]) for path in self.folder.glob("part-*.jsonl"))

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.jsonl"

    def _vector_part(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.f32"

    def _vector_bytes(self, number: int) -> int:
        path = self._vector_part(number)
        return path.stat().st_size if path.exists() else 0

    def _read_vectors(self, number: int) -> Vectors:
        return np.fromfile(self._vector_part(number), "<f4").reshape(-1, self._dimensions)


def _append(file: BinaryIO, content: bytes) -> None:
    """One write, or none: what did not fit is taken back, as far as a full disk lets it be."""
    begun = os.fstat(file.fileno()).st_size
    view = memoryview(content)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), begun)
        raise


def _whole_rows(path: Path) -> tuple[list[Row], list[int]]:
    """The rows of a part up to one that is not all there, and the bytes of each; a power cut may leave zeros."""
    rows, sizes = [], []
    with path.open("rb") as file, contextlib.suppress(ValueError):
        for line in file:
            if line.endswith(b"\n"):
                rows.append(json.loads(line))
                sizes.append(len(line))
    return rows, sizes


def _truncate(path: Path, size: int) -> None:
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
