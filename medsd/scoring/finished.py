"""The finished rows of one output while it is made, by this machine or by a cluster, and the table that they become.

`results.csv.parts/` holds segments: the rows of some inputs as JSON lines, and their embeddings beside them. A segment
appears as a whole, so a run that is killed leaves nothing torn, and a segment that two machines write is the same file
twice. The next run with `resume` scores what no segment holds. At the end the table is joined from the segments in the
order of the inputs and appears in one step.
"""

import contextlib
import io
import json
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from medsd.errors import DataError
from medsd.scoring import embeddings
from medsd.scoring.embeddings import Vectors
from medsd.scoring.lock import LOCK, SUFFIX, open_locked
from medsd.scoring.remote import Store, download, upload
from medsd.scoring.segments import MOST, Block, block_size, key_of, rows_name, vectors_name, write_segment
from medsd.scoring.table import Row, printable, read_table, write_table

log = logging.getLogger(__name__)

RECORD = ".run.json"
MADE_WITH = "run.json"
_EVERY_S = 0.1  # between two segments of this machine; what a kill may cost
_GOES_ON = "the table that it goes on from"
_GO_ON = "make room, then go on with --resume"
_CHUNK = 1000
Facts = Mapping[str, Any]


class FinishedRows(contextlib.AbstractContextManager["FinishedRows"]):
    """The finished rows of one output, a path or a URL; a context manager that holds its lock, where it can be locked.

    `made_with` is what decides the rows, by the words in which a person knows it: ``{"model": …, "gate policy": …}``.
    It has JSON values; rows that were made with others are not mixed in.

    Raises DataError: another run holds the lock, the folder cannot be written, there are unfinished rows and `resume`
    is not set, or they were made with something else.
    """

    def __init__(
        self,
        out: Path | str,
        columns: Sequence[str],
        made_with: Facts,
        names: Sequence[str],  # of all inputs, in order
        *,
        batch_size: int,  # of the model; blocks hold whole batches
        resume: bool,  # keep the rows of an earlier, killed or finished run
        embeddings_out: Path | str | None = None,
        dimensions: int = 0,
        defuse: bool = False,
    ) -> None:
        self.out, self.columns, self._names = out, list(columns), names
        self.store = Store(out.with_name(out.name + SUFFIX) if isinstance(out, Path) else out + SUFFIX)
        self.done: set[str] = set()  # paths of the rows that an earlier run finished
        self.counts: Counter[str] = Counter()  # rows by status, once `join` has seen them
        self.reasons: Counter[str] = Counter()  # likewise by reason
        self._home = Store(out.parent if isinstance(out, Path) else out.rpartition("/")[0])
        self._record = _name(out) + RECORD  # in it
        self._facts = {"columns": self.columns, **made_with}
        self._embeddings_out, self._dimensions, self._defuse = embeddings_out, dimensions, defuse
        self._segments: dict[str, tuple[str, int]] = {}  # path of the first row, and rows, by key
        self._adopted_rows = 0
        self._table: Path | None = None
        self._rows: list[Row] = []  # finished, but in no segment yet
        self._vectors: list[Vectors | None] = []
        self._wrote = time.monotonic()
        self._stack = contextlib.ExitStack()
        if isinstance(self.store.folder, Path) and isinstance(out, Path):
            self._stack.enter_context(open_locked(self.store.folder, out))
        try:
            self._temporary = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="medsd-")))
            step = block_size(len(names), batch_size)
            blocks = [Block(list(names[start : start + step])) for start in range(0, len(names), step)]
            self._begin(resume, blocks)
        except BaseException:
            self.close()
            raise
        left = ([name for name in block.names if printable(name) not in self.done] for block in blocks)
        self.waiting = [Block(names) for names in left if names]  # the inputs without a row

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(DataError):  # of a run that was interrupted
            self.flush()
        self.close()

    def close(self) -> None:
        """Let go of the lock; the segments stay unless `finish` has removed them."""
        with contextlib.suppress(OSError):
            if not self._kept():  # nothing to go on with
                self._remove()
        self._stack.close()

    # ---- beginning

    def _begin(self, resume: bool, blocks: Sequence[Block]) -> None:
        found = self._json(self.store, MADE_WITH)
        if found is None or (not resume and not self._kept()):
            self._clear()
            goes_on = resume and self._fetch(self.out) is not None
            if goes_on:
                record = self._json(self._home, self._record) or {}
                if isinstance(record.get("made_with"), dict):
                    self._compare(record["made_with"], "its rows")
            self._write(self.store, MADE_WITH, {**self._facts, _GOES_ON: goes_on})
        elif not resume:
            raise DataError(
                f"{self.out}: an earlier run left finished rows in {_name(self.store.folder)}; go on with --resume, "
                "or remove that folder to begin again"
            )
        else:
            goes_on = bool(found.pop(_GOES_ON, False))
            self._compare(found, "its unfinished rows")
        self._table = self._fetch(self.out) if goes_on else None
        if self._table is not None:
            for row in self._adopted(self._table):
                self.done.add(row["path"])
                self._adopted_rows += 1
        if resume:
            self._take_up(blocks)

    def _compare(self, found: Facts, what: str) -> None:
        """Refuse rows that were made with something else than what this run has."""
        changed = [name for name in {**self._facts, **found} if found.get(name) != self._facts.get(name)]
        if changed:
            raise DataError(
                f"{self.out}: {what} were made with another {', '.join(changed)}; give the same again, or leave "
                "--resume out and choose another output"
            )

    def _take_up(self, blocks: Sequence[Block]) -> None:
        """Count what an earlier run left; a segment that is one of `blocks` does not have to be read."""
        there = {name[len("block-") : -len(".jsonl")] for name in self.store.names() if _is_rows(name)}
        known = {key: [printable(name) for name in block.names] for block in blocks if (key := block.key) in there}
        adopted = frozenset(self.done)
        for key in sorted(there):
            paths = known.get(key) or [row["path"] for row in self._read(key) or []]
            if not paths:
                log.warning("%s: a segment of finished rows is damaged; its inputs are scored again", self.out)
                self.store.remove([rows_name(key)])
            elif paths[0] not in adopted:  # else the table was written before the run was killed
                self._segments[key] = (paths[0], len(paths))
                self.done.update(paths)

    def _fetch(self, place: Path | str) -> Path | None:
        """A file that an earlier run completed, on this machine; None where there is none."""
        if isinstance(place, Path):
            return place if place.exists() else None
        here = self._temporary / f"before-{_name(place)}"
        return here if here.exists() or download(place, here) else None

    def _adopted(self, path: Path) -> Iterator[Row]:
        for row in read_table(path, defused=self._defuse):
            if list(row) != self.columns or row["model_sha256"] != self._facts["model"]:
                raise DataError(f"{self.out}: its rows are another model's; leave --resume out to write it anew")
            yield row

    # ---- going on

    def append(self, rows: Sequence[Row], vectors: Sequence[Vectors | None] = ()) -> None:
        """Add finished rows in order, with an embedding (D,) each, None for a refused one; they are soon safe.

        Raises DataError where the disk is full, or gone; the rows of before are safe.
        """
        self._rows += rows
        self._vectors += vectors
        if time.monotonic() - self._wrote >= _EVERY_S or len(self._rows) >= MOST:
            self.flush()

    def flush(self) -> None:
        """Make a segment of the rows that are in none yet."""
        if not self._rows:
            return
        rows, vectors, self._rows, self._vectors = self._rows, self._vectors, [], []
        key = key_of([row["path"] for row in rows])
        try:
            write_segment(self.store, key, rows, vectors, self._dimensions if self._embeddings_out else 0)
        except OSError as error:
            what = f"{self.store.folder}: cannot be written ({error.strerror})"
            raise DataError(f"{what}; the finished rows before are safe: {_GO_ON}") from None
        self._segments[key] = (rows[0]["path"], len(rows))
        self._wrote = time.monotonic()

    def take(self, blocks: Sequence[Block]) -> None:
        """Take blocks that the workers of a cluster have written."""
        self._segments |= {block.key: (printable(block.names[0]), len(block.names)) for block in blocks}

    # ---- the end

    def join(self) -> None:
        """Write the table and the embeddings from the finished rows, in the order of the inputs.

        Raises DataError where one of them cannot be written, or a segment is damaged; what is finished stays.
        """
        self.flush()
        segments = self._in_order()
        try:
            if self._embeddings_out is not None:
                paths = (row["path"] for row in self._all_rows(segments))
                count = self._adopted_rows + sum(count for _, count in self._segments.values())
                with self._written(self._embeddings_out) as here:
                    embeddings.write(here, self._chunks(segments), paths, count, self._dimensions)
            with self._written(self.out) as here:
                write_table(here, self._counted(segments), self.columns, self._defuse)
        except (OSError, DataError) as error:
            what = f"{self.out}: cannot be written ({error.strerror})" if isinstance(error, OSError) else str(error)
            raise DataError(f"{what}; the finished rows are kept in {_name(self.store.folder)}: {_GO_ON}") from None

    def finish(self, summary: Facts) -> None:
        """Write the record beside the joined table, and remove the segments."""
        self._write(self._home, self._record, {"made_with": self._facts, **summary})
        self._remove()

    def _in_order(self) -> list[str]:
        """The segments in the order of the inputs; first those of inputs that are no longer asked for."""
        firsts = {first for first, _ in self._segments.values()}
        places = {path: place for place, name in enumerate(self._names) if (path := printable(name)) in firsts}
        return sorted(self._segments, key=lambda key: places.get(self._segments[key][0], -1))

    @contextlib.contextmanager
    def _written(self, place: Path | str) -> Iterator[Path]:
        """Where a file is written to on this machine, before it goes to its place."""
        if isinstance(place, Path):
            yield place
            return
        here = self._temporary / _name(place)
        yield here
        upload(here, place)
        here.unlink()

    def _counted(self, segments: Sequence[str]) -> Iterator[Row]:
        self.counts.clear()
        self.reasons.clear()
        for row in self._all_rows(segments):
            self.counts[row["status"]] += 1
            if row["reason"]:
                self.reasons[row["reason"]] += 1
            yield row

    def _all_rows(self, segments: Sequence[str]) -> Iterator[Row]:
        if self._table is not None:
            yield from self._adopted(self._table)
        for key in segments:
            rows = self._read(key)
            if rows is None:
                self.store.remove([rows_name(key)])
                raise DataError(f"{self.out}: a segment of its rows is damaged, and was removed")
            yield from rows

    def _read(self, key: str) -> list[Row] | None:
        """The rows of a segment; None where it is damaged."""
        with contextlib.suppress(ValueError, KeyError, TypeError, FileNotFoundError):
            rows = [json.loads(line) for line in self.store.read(rows_name(key)).splitlines()]
            if key_of([row["path"] for row in rows]) == key:
                return rows
        return None

    def _chunks(self, segments: Sequence[str]) -> Iterator[Vectors]:
        """The embeddings of `_all_rows`, (n, D) at a time."""
        if self._adopted_rows and self._embeddings_out is not None:
            yield from self._adopted_vectors(self._embeddings_out)
        for key in segments:
            try:
                found = np.load(io.BytesIO(self.store.read(vectors_name(key))), allow_pickle=False)
            except (ValueError, EOFError, FileNotFoundError):
                found = np.empty(0)
            if found.shape != (self._segments[key][1], self._dimensions):
                self.store.remove([rows_name(key)])
                raise DataError(f"{self._embeddings_out}: a segment of its rows is damaged, and was removed")
            yield found

    def _adopted_vectors(self, place: Path | str) -> Iterator[Vectors]:
        there, left = self._fetch(place), self._adopted_rows
        vectors = embeddings.read(there, self._dimensions) if there else iter(())
        while left:
            chunk = list(islice(vectors, min(left, _CHUNK)))
            if not chunk:
                raise DataError(f"{place}: has fewer rows than {self.out}; leave --resume out")
            yield np.stack(chunk)
            left -= len(chunk)

    # ---- files

    def _kept(self) -> bool:
        return any(map(_is_rows, self.store.names()))

    def _remove(self) -> None:
        self._clear()
        self.store.remove([LOCK])
        self.store.remove_folder()

    def _clear(self) -> None:
        names = self.store.names()
        self.store.remove([MADE_WITH] if MADE_WITH in names else [])  # first what says that it can be gone on with
        self.store.remove(name for name in names if name.startswith(("block-", ".block-", f".{MADE_WITH}")))

    def _json(self, store: Store, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads(store.read(name))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _write(self, store: Store, name: str, content: Facts) -> None:
        try:
            store.write(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
        except Exception as error:  # each store has its own
            detail = getattr(error, "strerror", None) or type(error).__name__
            raise DataError(f"{self.out}: cannot be written ({detail}); choose another output") from None


def _is_rows(name: str) -> bool:
    return name.startswith("block-") and name.endswith(".jsonl")


def _name(place: Path | str) -> str:
    return place.name if isinstance(place, Path) else place.rpartition("/")[2]
