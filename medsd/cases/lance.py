"""Cases in LanceDB: an embedded table in a folder or an object store, versioned, one writer beside many readers.

`LanceStore` is a `medsd.cases.index.CaseStore`. Every write is one new version, visible when its manifest is; a
reader follows at its next question. Exact search runs in memory (`medsd.cases.exact`) up to `memory_limit` bytes of
embeddings, and in LanceDB's flat scan beyond, unless there are so many cases that an approximate index was made
(`medsd.cases.approximate`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from medsd.cases import approximate
from medsd.cases.case import FILTER_COLUMNS, Case, CaseFilter, FloatArray, Hit
from medsd.cases.described import IndexDescription
from medsd.cases.exact import Positions, Snapshot, nearest_distinct
from medsd.cases.lance_files import (
    connect,
    create_beside,
    filter_sql,
    first_line,
    full_uri,
    local_folder,
    pa,
    prune,
    quoted,
    writing,
)
from medsd.cases.rows import BLOCK, KEYS, MEDIA, batches, case_table, label_matrix, matrix, read_description, schema
from medsd.errors import BundleError, DataError

if TYPE_CHECKING:
    import pandas as pd

TABLE = "cases"
MEMORY_LIMIT = 2 << 30  # bytes of embeddings: four million cases of 128 numbers
# Seconds before each further try of a question whose files a writer has just removed. A busy writer may do so several
# times in a row, so that trying again at once is not enough.
STALE_PAUSES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
# What LanceDB raises when a writer has just removed the files of the version that was being read.
_STALE = (RuntimeError, OSError, ValueError)

Answer = TypeVar("Answer")


class LanceStore:
    """Cases in a LanceDB table.

    Args:
        uri: of the LanceDB database, a folder or an object store.
        memory_limit: bytes of embeddings up to which a search runs in memory.
    """

    def __init__(self, uri: str, *, memory_limit: int = MEMORY_LIMIT) -> None:
        self.uri = uri
        self._folder = local_folder(uri)
        self._memory_limit = memory_limit
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._pinned: Any = None
        self._approximate = False  # whether the pinned version has an approximate index
        # Zero: every question looks whether there is a newer version; a removed patient must not linger in an answer.
        self._latest = connect(uri, read_consistency_interval=timedelta(0)).open_table(TABLE)
        self._description = read_description(self._latest.schema.metadata, uri)
        self._findings = self._description.vocabulary

    @classmethod
    def open(cls, path: str | Path, *, memory_limit: int = MEMORY_LIMIT) -> LanceStore:
        """Open the index at `path`; raises BundleError when there is none or it cannot be read."""
        folder = local_folder(path)
        if folder is not None and not (folder / f"{TABLE}.lance").is_dir():
            raise BundleError(f"{path}: no case index here; make one with `medsd index`")
        try:
            return cls(full_uri(path), memory_limit=memory_limit)
        except _STALE as error:
            raise BundleError(f"{path}: the case index cannot be read ({first_line(error)})") from None

    @classmethod
    def create(
        cls,
        path: str | Path,
        cases: Iterable[Case],
        embeddings: FloatArray,
        description: IndexDescription,
        *,
        replace: bool = False,
    ) -> LanceStore:
        """Write a new index; see `medsd.cases.index.create_index`."""
        writer = _Writer(description)
        folder = local_folder(path)
        if folder is None:
            mode = "overwrite" if replace else "create"
            try:
                writer.write(full_uri(path), cases, embeddings, mode)
            except ValueError as error:
                raise BundleError(f"{path}: {first_line(error)}") from None
        elif (folder / f"{TABLE}.lance").is_dir():
            if not replace:
                raise BundleError(f"{path}: there is a case index already; remove it, or ask to replace it")
            with writing(folder):
                prune(writer.write(full_uri(path), cases, embeddings, "overwrite"))
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BundleError(f"{path}: something else is here; give an index a folder of its own")
        else:
            create_beside(folder, lambda uri: writer.write(uri, cases, embeddings, "create"))
        return cls.open(path)

    @property
    def description(self) -> IndexDescription:
        return self._description

    def __len__(self) -> int:
        return int(self._latest.count_rows())

    def search(
        self,
        embedding: FloatArray,
        k: int,
        *,
        filters: CaseFilter | None,
        exclude_patients: Sequence[str],
        exclude_studies: Sequence[str],
        exact: bool = False,
    ) -> list[Hit]:
        """The k nearest cases; see `medsd.cases.index.CaseStore`."""

        def ask() -> list[Hit]:
            snapshot, pinned = self._current()
            if snapshot.embeddings is None:
                where = filter_sql(filters, self._findings, exclude_patients, exclude_studies)
                return self._scan(pinned, embedding, k, where, exact=exact or not self._approximate)
            positions, similarities = snapshot.nearest(
                embedding, k, self._findings, filters, exclude_patients, exclude_studies
            )
            cases = self._cases(snapshot, pinned, positions)
            return list(map(Hit, cases, similarities.clip(-1, 1).tolist(), snapshot.embeddings[positions]))

        return self._retrying(ask)

    def matching(self, wanted: FloatArray, k: int, *, filters: CaseFilter | None) -> list[Hit]:
        """The k cases whose findings fit a wanted set best; see `medsd.cases.index.CaseStore`."""

        def ask() -> list[Hit]:
            snapshot, pinned = self._current()

            def vectors(positions: Positions) -> FloatArray:
                return self._vectors(snapshot, pinned, positions)

            positions, typical = snapshot.matching(wanted, k, self._findings, filters, vectors)
            cases = self._cases(snapshot, pinned, positions)
            return list(map(Hit, cases, typical.clip(-1, 1).tolist(), vectors(positions)))

        return self._retrying(ask)

    def records(self) -> Iterator[tuple[Case, FloatArray]]:
        """Every case with its embedding (D,), in the order of `embeddings`, a block at a time."""
        _, pinned = self._retrying(self._current)
        size, findings = self.description.embedding_size, self._findings
        for batch in pinned.search().limit(None).to_batches(batch_size=BLOCK):
            rows = pa().Table.from_batches([batch])
            labels = label_matrix(rows["labels"], len(findings))
            fields = rows.select([*KEYS, *FILTER_COLUMNS, *MEDIA]).to_pylist()
            for values, row, vector in zip(fields, labels, matrix(rows["embedding"], size), strict=True):
                yield Case(labels=row, findings=findings.decode(row), **values), vector

    def embeddings(self) -> FloatArray:
        """All embeddings (N, D)."""
        size = self.description.embedding_size

        def read() -> FloatArray:
            snapshot, pinned = self._current()
            if snapshot.embeddings is not None:
                return snapshot.embeddings
            return matrix(pinned.search().select(["embedding"]).limit(None).to_arrow()["embedding"], size)

        return self._retrying(read)

    def table(self) -> pd.DataFrame:
        """Everything but embeddings, thumbnails and notes, a row a case."""
        snapshot, _ = self._retrying(self._current)
        return case_table(snapshot, self._findings)

    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """The values that occur in each of `FILTER_COLUMNS`, sorted."""
        snapshot, _ = self._retrying(self._current)
        return {name: tuple(sorted(column.dictionary.to_pylist())) for name, column in snapshot.categories.items()}

    def add(self, cases: Sequence[Case], embeddings: FloatArray) -> None:
        """Append cases as one new version."""
        blocks = list(batches(cases, embeddings, self.description))
        if blocks:
            with writing(self._folder):
                self._latest.add(pa().Table.from_batches(blocks))

    def remove_patient(self, patient_key: str) -> int:
        """Remove a patient's cases and rewrite every file, so that none of their bytes stay.

        Deleting rows would only mark them; LanceDB's compaction rewrites a file only when a tenth of it is marked.
        """
        if not patient_key:
            raise DataError("remove: give the patient's key; an empty one would mean every case without a patient")
        with writing(self._folder):
            where = f"patient_key = {quoted(patient_key)}"
            removed, indexed = int(self._latest.count_rows(where)), approximate.is_approximate(self._latest)
            if removed:
                kept = self._latest.search().where(f"NOT ({where})").limit(None).to_batches(batch_size=BLOCK)
                connect(self.uri).create_table(TABLE, kept, mode="overwrite")
                self._keep_up(wanted=indexed)
            prune(self._latest)  # even if there was nothing to remove: a crash may have come before the pruning
            self._forget()
        return removed

    def compact(self, *, approximate_above: int | None = None) -> float | None:
        """Merge small files, drop older versions, bring an approximate index up to date.

        Args:
            approximate_above: make an approximate index if there are more cases than this, drop it if there are not;
                None: as the index was described.

        Returns:
            the measured recall of the approximate index; None where the search is exact.
        """
        with writing(self._folder):
            indexed = approximate.is_approximate(self._latest)
            prune(self._latest)
            if approximate_above is None:
                recall = self._keep_up(wanted=indexed)
            else:
                recall = self._keep_up(above=approximate_above)
            prune(self._latest)
            self._forget()
        return recall

    @property
    def approximate(self) -> bool:
        """Whether the search goes through an approximate index."""
        return approximate.is_approximate(self._latest)

    def _keep_up(self, *, wanted: bool | None = None, above: int | None = None) -> float | None:
        limit = self.description.approximate_above if above is None else above
        return approximate.keep_up(self._latest, self.description.embedding_size, limit, wanted=wanted)

    def _current(self) -> tuple[Snapshot, Any]:
        """The newest version in memory, and a table handle that reads the same version."""
        with self._lock:
            state = self._state()  # before the version: were one to come in between, the next question sees it
            if self._snapshot is None or self._snapshot.state != state:
                pinned = connect(self.uri).open_table(TABLE)
                pinned.checkout(pinned.version)
                self._check_still_ours(read_description(pinned.schema.metadata, self.uri))
                self._approximate = approximate.is_approximate(pinned)
                limit = 0 if self._approximate else self._memory_limit
                self._snapshot = _load(pinned, state, self.description, limit)
                self._pinned = pinned
            return self._snapshot, self._pinned

    def _state(self) -> Hashable:
        """Changes with every version.

        In a folder the manifests, one a version: on a busy machine looking at them is milliseconds faster than asking
        LanceDB, which answers from another thread.
        """
        if self._folder is None:
            return int(self._latest.version)
        manifests = self._folder / f"{TABLE}.lance" / "_versions"
        status = manifests.stat()  # an index that was made anew in this place begins again with the same names
        return status.st_ino, status.st_mtime_ns, frozenset(path.name for path in manifests.iterdir())

    def _check_still_ours(self, description: IndexDescription) -> None:
        if (
            description.model_sha256 != self.description.model_sha256
            or description.findings != self.description.findings
        ):
            raise BundleError(f"{self.uri}: the case index was replaced by one of another model; open it again")

    def _forget(self) -> None:
        with self._lock:
            self._snapshot = self._pinned = None

    def _retrying(self, ask: Callable[[], Answer]) -> Answer:
        """Ask again with a fresh version when a writer removed the files of the one in hand."""
        for pause in (*STALE_PAUSES, None):
            try:
                return ask()
            except _STALE as error:
                if pause is None:
                    raise BundleError(f"{self.uri}: the case index cannot be read ({first_line(error)})") from None
                time.sleep(pause)
                self._forget()
        raise AssertionError("unreachable")

    def _cases(self, snapshot: Snapshot, pinned: Any, positions: Positions) -> list[Case]:
        """The cases at `positions`, in that order; only what memory does not hold is read from the table."""
        if not len(positions):
            return []
        row_ids = snapshot.row_ids[positions].tolist()
        rows = pinned.take_row_ids(row_ids).select(list(MEDIA)).with_row_id().to_arrow().to_pylist()
        media = {row.pop("_rowid"): row for row in rows}
        columns = {**snapshot.keys, **snapshot.categories}
        return [
            Case(
                labels=snapshot.labels[position],
                findings=self._findings.decode(snapshot.labels[position]),
                **{name: column[position].as_py() for name, column in columns.items()},
                **media[row_id],
            )
            for position, row_id in zip(positions.tolist(), row_ids, strict=True)
        ]

    def _vectors(self, snapshot: Snapshot, pinned: Any, positions: Positions) -> FloatArray:
        """The embeddings (M, D) at `positions`, from memory or from the table."""
        if snapshot.embeddings is not None:
            return snapshot.embeddings[positions]
        size = self.description.embedding_size
        row_ids = snapshot.row_ids[positions]
        if not len(row_ids):
            return np.zeros((0, size), np.float32)
        rows = pinned.take_row_ids(row_ids.tolist()).select(["embedding"]).with_row_id().to_arrow()
        order = np.argsort(rows["_rowid"].to_numpy())  # the rows come in an order of their own
        places = order[np.searchsorted(rows["_rowid"].to_numpy(), row_ids, sorter=order)]
        return matrix(rows["embedding"], size)[places]

    def _scan(self, pinned: Any, embedding: FloatArray, k: int, where: str, *, exact: bool) -> list[Hit]:
        """LanceDB's own search, exact or through its index, for more cases than memory holds."""
        rows = pa().table({})

        def find(count: int) -> tuple[Positions, list[str], FloatArray]:
            nonlocal rows
            query = approximate.question(pinned, embedding, count, exact=exact)
            rows = (query.where(where, prefilter=True) if where else query).to_arrow()
            vectors = matrix(rows["embedding"], self.description.embedding_size)
            return np.arange(len(rows)), rows["study_key"].to_pylist(), vectors

        kept = nearest_distinct(find, k)
        rows = rows.take(kept)
        vectors = matrix(rows["embedding"], self.description.embedding_size)
        labels = label_matrix(rows["labels"], len(self._findings))
        fields = rows.select([*KEYS, *FILTER_COLUMNS, *MEDIA]).to_pylist()
        cases = [
            Case(labels=row, findings=self._findings.decode(row), **values)
            for row, values in zip(labels, fields, strict=True)
        ]
        return list(map(Hit, cases, (vectors @ embedding).clip(-1, 1).tolist(), vectors))


class _Writer:
    """Writes a whole table; an error met while a block is made comes out as it was, not as LanceDB retells it."""

    def __init__(self, description: IndexDescription) -> None:
        self.description = description

    def write(self, uri: str, cases: Iterable[Case], embeddings: FloatArray, mode: str) -> Any:
        problems: list[Exception] = []

        def blocks() -> Iterator[Any]:
            try:
                yield from batches(cases, embeddings, self.description)
            except Exception as error:
                problems.append(error)
                raise

        reader = pa().RecordBatchReader.from_batches(schema(self.description), blocks())
        try:
            table = connect(uri).create_table(TABLE, reader, mode=mode)
        except Exception:
            if problems:
                raise problems[0] from None
            raise
        approximate.keep_up(table, self.description.embedding_size, self.description.approximate_above)
        return table


def _load(pinned: Any, state: Hashable, description: IndexDescription, memory_limit: int) -> Snapshot:
    size = description.embedding_size
    in_memory = pinned.count_rows() * size * 4 <= memory_limit
    columns = [*KEYS, *FILTER_COLUMNS, "labels"] + ["embedding"] * in_memory
    rows = pinned.search().select(columns).with_row_id(True).limit(None).to_arrow()
    return Snapshot(
        state,
        rows["_rowid"].to_numpy(),
        matrix(rows["embedding"], size) if in_memory else None,
        label_matrix(rows["labels"], len(description.findings)),
        {name: rows[name].combine_chunks() for name in KEYS},
        {name: _dictionary(rows[name]) for name in FILTER_COLUMNS},
    )


def _dictionary(column: Any) -> Any:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.combine_chunks() if hasattr(encoded, "combine_chunks") else encoded
