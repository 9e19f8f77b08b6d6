"""The rows of a batch while a cluster makes them: a file a block of inputs, written by whichever machine read it.

`results.csv.parts/` holds them, as it holds the parts of `medsd.scoring.parts`, on a file system that all machines
share or behind a URL. A block is named by what it is of, and its file appears as a whole, so a block that two machines
read (one was given up for dead) is the same file twice, and one that is there is never read again. The table is joined
from them in the order of the inputs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.scoring import embeddings
from medsd.scoring.lock import open_locked
from medsd.scoring.parts import MADE_WITH, RECORD, SUFFIX
from medsd.scoring.remote import Store, download, upload
from medsd.scoring.table import Row, json_line, printable, read_table, write_table

MOST = 256  # inputs of a block: what a killed worker reads again, and what travels decoded at a time
_AT_LEAST = 64  # blocks that a batch is cut into, as far as they hold a whole batch of the model
_ENGINE, _GOES_ON = "choice of --engine", "the table that it goes on from"
_GO_ON = "go on with --resume"
_CHUNK = 1000
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """Inputs that become rows together, and travel together.

    Attributes:
        names: of the inputs.
        notes: those that a table gives, by name.
    """

    names: list[str]
    notes: dict[str, str]

    @property
    def key(self) -> str:
        """A name that changes with any of the inputs and with their order."""
        return hashlib.sha256(json.dumps(self.names).encode("ascii")).hexdigest()[:24]

    def to_json(self) -> str:
        """As ASCII: the name of a file may be no UTF-8."""
        return json.dumps([self.names, self.notes])

    @classmethod
    def from_json(cls, text: str) -> Block:
        return cls(*json.loads(text))


def block_size(inputs: int, batch_size: int) -> int:
    """How many inputs make a block: by the inputs alone, so that another cluster finds the same blocks.

    >>> block_size(2_000_000, 8), block_size(1000, 8), block_size(5, 8)
    (256, 16, 8)
    """
    wanted = batch_size * math.ceil(inputs / (_AT_LEAST * batch_size))
    return max(batch_size, min(MOST, wanted))


def write_block(store: Store, key: str, rows: Sequence[Row], vectors: Sequence[Vectors | None], width: int) -> None:
    """Keep the rows of a block, and with `width` > 0 their embeddings (width,), NaN where there is none.

    Raises:
        OSError: they cannot be written.
    """
    if width:  # before the rows, whose file says that the block is finished
        empty = np.full(width, np.nan, "<f4")
        content = io.BytesIO()
        np.save(content, np.stack([empty if vector is None else vector for vector in vectors]).astype("<f4"))
        store.write(_vector_name(key), content.getvalue())
    store.write(_row_name(key), "".join(map(json_line, rows)).encode("utf-8"))


def _row_name(key: str) -> str:
    return f"block-{key}.jsonl"


def _vector_name(key: str) -> str:
    return f"block-{key}.npy"


class Blocks:
    """The finished blocks of one output; a context manager that holds the lock, where the output can be locked.

    Args:
        out: the table that is being made, a path or a URL.
        columns: of it.
        made_with: what decides the rows, as for `medsd.scoring.parts.Parts`.
        resume: keep the rows of an earlier, killed or finished run.
        embeddings_out: where each row's embedding is written to, a path or a URL; None for nowhere.
        dimensions: of an embedding.
        defuse: formulas in CSV.

    Attributes:
        done: paths of the rows of a finished table that this run goes on from.
        counts, reasons: rows by status and by reason, once `join` has seen them.

    Raises:
        DataError: as for `Parts`.
    """

    def __init__(
        self,
        out: Path | str,
        columns: Sequence[str],
        made_with: Mapping[str, Any],
        *,
        resume: bool,
        embeddings_out: Path | str | None = None,
        dimensions: int = 0,
        defuse: bool = False,
    ) -> None:
        self.out, self.columns = out, list(columns)
        self.store = Store(_beside(out, SUFFIX))
        self.done: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._record = _beside(out, RECORD)
        self._facts = {"columns": self.columns, **made_with}
        self._embeddings_out, self._dimensions, self._defuse = embeddings_out, dimensions, defuse
        self._stack = contextlib.ExitStack()
        try:
            if isinstance(self.store.folder, Path) and isinstance(out, Path):
                self._stack.enter_context(open_locked(self.store.folder, out))
            self._temporary = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="medsd-")))
            self._begin(resume)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Blocks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lock; the blocks stay unless `finish` has removed them."""
        with contextlib.suppress(OSError):
            if not self._kept():  # nothing to go on with
                self._remove()
        self._stack.close()

    # ---- beginning

    def _begin(self, resume: bool) -> None:
        found = self._json(self.store, MADE_WITH)
        if found is None or (not resume and not self._kept()):
            self._clear()
            goes_on = resume and self._fetch_table() is not None
            if goes_on:
                record = self._json(Store(_folder(self._record)), _name(self._record)) or {}
                if isinstance(record.get("made_with"), dict):
                    self._compare(record["made_with"], self._facts, "its rows")
            facts = {**self._facts, _ENGINE: "ray", _GOES_ON: goes_on}
            self._write(self.store, MADE_WITH, facts)
        elif not resume:
            raise DataError(
                f"{self.out}: an earlier run left finished rows in {_name(self.store.folder)}; {_GO_ON}, or remove "
                "that folder to begin again"
            )
        else:
            goes_on = bool(found.pop(_GOES_ON, False))
            self._compare(found, {**self._facts, _ENGINE: "ray"}, "its unfinished rows")
        self._table = self._fetch_table() if goes_on else None
        if self._table is not None:
            self.done = {row["path"] for row in self._adopted(self._table)}

    def _compare(self, found: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
        changed = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
        if changed:
            raise DataError(
                f"{self.out}: {what} were made with another {', '.join(changed)}; give the same again, or leave "
                "--resume out and choose another output"
            )

    def _fetch_table(self) -> Path | None:
        """The table that an earlier run completed, on this machine; None where there is none."""
        return self._fetch(self.out)

    def _fetch(self, place: Path | str) -> Path | None:
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

    def has(self, blocks: Sequence[Block]) -> set[str]:
        """The keys of those of `blocks` that are finished."""
        there = self.store.names()
        return {key for key in (block.key for block in blocks) if _row_name(key) in there}

    def join(self, blocks: Sequence[Block]) -> None:
        """Write the table and the embeddings from the finished blocks, in this order.

        Raises:
            DataError: one of them cannot be written, or a block is damaged; what is finished stays.
        """
        try:
            if self._embeddings_out is not None:
                count = len(self.done) + sum(len(block.names) for block in blocks)
                paths = (row["path"] for row in self._rows(blocks))
                with self._written(self._embeddings_out) as here:
                    embeddings.write(here, self._chunks(blocks), paths, count, self._dimensions)
            with self._written(self.out) as here:
                write_table(here, self._counted(blocks), self.columns, self._defuse)
        except (OSError, DataError) as error:
            what = f"{self.out}: cannot be written ({error.strerror})" if isinstance(error, OSError) else str(error)
            raise DataError(f"{what}; the finished rows are kept in {_name(self.store.folder)}: {_GO_ON}") from None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the record beside the joined table, and remove the blocks.

        Raises:
            DataError: it cannot be written.
        """
        self._write(Store(_folder(self._record)), _name(self._record), {"made_with": self._facts, **summary})
        self._remove()

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

    def _counted(self, blocks: Sequence[Block]) -> Iterator[Row]:
        self.counts.clear()
        self.reasons.clear()
        for row in self._rows(blocks):
            self.counts[row["status"]] += 1
            if row["reason"]:
                self.reasons[row["reason"]] += 1
            yield row

    def _rows(self, blocks: Sequence[Block]) -> Iterator[Row]:
        if self._table is not None:
            yield from self._adopted(self._table)
        for block in blocks:
            yield from self._rows_of(block)

    def _rows_of(self, block: Block) -> list[Row]:
        key = block.key
        with contextlib.suppress(ValueError, KeyError, TypeError, FileNotFoundError):
            rows: list[Row] = [json.loads(line) for line in self.store.read(_row_name(key)).splitlines()]
            if [row["path"] for row in rows] == [printable(name) for name in block.names]:
                return rows
        self.store.remove([_row_name(key)])
        raise DataError(f"{self.out}: a block of its rows is damaged, and was removed")

    def _chunks(self, blocks: Sequence[Block]) -> Iterator[Vectors]:
        """The embeddings of `_rows`, (n, D) at a time."""
        if self._table is not None and self._embeddings_out is not None and self.done:
            there = self._fetch(self._embeddings_out)
            vectors = list(embeddings.read(there, self._dimensions)) if there else []
            if len(vectors) < len(self.done):
                raise DataError(f"{self._embeddings_out}: has fewer rows than {self.out}; leave --resume out")
            for start in range(0, len(self.done), _CHUNK):
                yield np.stack(vectors[start : min(start + _CHUNK, len(self.done))])
        for block in blocks:
            found = np.load(io.BytesIO(self.store.read(_vector_name(block.key))), allow_pickle=False)
            if found.shape != (len(block.names), self._dimensions):
                self.store.remove([_row_name(block.key)])
                raise DataError(f"{self._embeddings_out}: a block of its rows is damaged, and was removed")
            yield found

    # ---- the end

    def _kept(self) -> bool:
        return any(name.startswith(("block-", "part-")) for name in self.store.names())

    def _remove(self) -> None:
        self._clear()
        self.store.remove(["lock"])
        self.store.remove_folder()

    def _clear(self) -> None:
        names = self.store.names()
        self.store.remove([MADE_WITH] if MADE_WITH in names else [])  # first what says that it can be gone on with
        self.store.remove(name for name in names if name.startswith(("block-", ".block-", "part-", f".{MADE_WITH}")))

    def _json(self, store: Store, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads(store.read(name))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _write(self, store: Store, name: str, content: Mapping[str, Any]) -> None:
        try:
            store.write(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
        except Exception as error:  # each store has its own
            detail = getattr(error, "strerror", None) or type(error).__name__
            raise DataError(f"{self.out}: cannot be written ({detail}); choose another output") from None


def _beside(place: Path | str, suffix: str) -> Path | str:
    return place.with_name(place.name + suffix) if isinstance(place, Path) else place + suffix


def _folder(place: Path | str) -> Path | str:
    return place.parent if isinstance(place, Path) else place.rpartition("/")[0]


def _name(place: Path | str) -> str:
    return place.name if isinstance(place, Path) else place.rpartition("/")[2]
