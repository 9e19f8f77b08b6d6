"""Cases in LanceDB: an embedded table in a folder or an object store, versioned, one writer beside many readers.

`LanceStore` is a `medsd.cases.index.CaseStore`. Every write is one new version, visible when it is sealed
(`medsd.cases.seal`); a reader follows at its next question. Every file is compared with its checksum before it is
read. Exact search runs in memory (`medsd.cases.exact`) up to `memory_limit` bytes of embeddings, and in LanceDB's flat
scan beyond, unless there are so many cases that an approximate index was made (`medsd.cases.approximate`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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
    merge,
    pa,
    prune,
    quoted,
    writing,
)
from medsd.cases.removals import Removals
from medsd.cases.rows import BLOCK, KEYS, MEDIA, batches, case_table, label_matrix, matrix, read_description, schema
from medsd.cases.seal import CHECKED_AT_OPENING, Seal, SealedFiles
from medsd.errors import BundleError, DataError
from medsd.findings import FindingSet

if TYPE_CHECKING:
    import pandas as pd

TABLE, TABLE_FOLDER = "cases", "cases.lance"
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
        self._files = SealedFiles(uri, TABLE_FOLDER)
        self._lock = threading.RLock()
        self._sealed: tuple[bytes, Seal] = (b"", Seal(0, {}, Removals()))
        self._snapshot: Snapshot | None = None
        self._pinned: Any = None
        self._approximate = False  # whether the pinned version has an approximate index
        self._description: IndexDescription | None = None
        self._retrying(self._pin)

    @classmethod
    def open(cls, path: str | Path, *, memory_limit: int = MEMORY_LIMIT) -> LanceStore:
        """Open the index at `path`; raises BundleError when there is none or it cannot be read."""
        folder = local_folder(path)
        if folder is not None and not (folder / TABLE_FOLDER).is_dir():
            raise BundleError(f"{path}: no case index here; make one with `medsd index`")
        return cls(full_uri(path), memory_limit=memory_limit)

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
            try:
                writer.write(full_uri(path), cases, embeddings, replace=replace)
            except ValueError as error:
                raise BundleError(f"{path}: {first_line(error)}") from None
        elif (folder / TABLE_FOLDER).is_dir():
            if not replace:
                raise BundleError(f"{path}: there is a case index already; remove it, or ask to replace it")
            with writing(folder):
                writer.write(full_uri(path), cases, embeddings, replace=True)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BundleError(f"{path}: something else is here; give an index a folder of its own")
        else:
            create_beside(folder, lambda uri: writer.write(uri, cases, embeddings))
        return cls.open(path)

    @property
    def description(self) -> IndexDescription:
        assert self._description is not None  # since the store was opened
        return self._description

    @property
    def _findings(self) -> FindingSet:
        return self.description.vocabulary

    def __len__(self) -> int:
        return int(self._retrying(self._pin).count_rows())

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

    def add(self, cases: Sequence[Case], embeddings: FloatArray) -> int:
        """Append cases as one new version; see `medsd.cases.index.CaseStore`."""
        with self._writing(rewrites=False) as (table, seal):
            blocks = list(batches(cases, embeddings, self.description, seal.removals))
            if blocks:
                table.add(pa().Table.from_batches(blocks))
                self._files.seal(table.version, seal.removals, seal)
        return sum(block.num_rows for block in blocks)

    def remove_patient(self, patient_key: str) -> int:
        """Remove a patient's cases and rewrite every file, so that none of their bytes stay.

        Deleting rows would only mark them; LanceDB's compaction rewrites a file only when a tenth of it is marked.
        """
        if not patient_key:
            raise DataError("remove: give the patient's key; an empty one would mean every case without a patient")
        with self._writing() as (table, seal):
            where = f"patient_key = {quoted(patient_key)}"
            theirs = table.search().where(where).select(["study_key"]).limit(None).to_arrow()["study_key"].to_pylist()
            indexed = approximate.is_approximate(table)
            if theirs:
                kept = table.search().where(f"NOT ({where})").limit(None).to_batches(batch_size=BLOCK)
                connect(self.uri).create_table(TABLE, kept, mode="overwrite")
                self._keep_up(table, wanted=indexed)
            _finish(self._files, table, seal.removals.with_patient(patient_key, theirs), seal)
        return len(theirs)

    def readmit_patient(self, patient_key: str) -> bool:
        """Let a removed patient be added again; see `medsd.cases.index.CaseStore`."""
        with self._writing(rewrites=False) as (table, seal):
            if held := seal.removals.holds(patient_key):
                self._files.seal(table.version, seal.removals.without_patient(patient_key), seal)
        return held

    def compact(self, *, approximate_above: int | None = None) -> float | None:
        """Merge small files, drop older versions, bring an approximate index up to date.

        Args:
            approximate_above: make an approximate index if there are more cases than this, drop it if there are not;
                None: as the index was described.

        Returns:
            the measured recall of the approximate index; None where the search is exact.
        """
        with self._writing() as (table, seal):
            indexed = approximate.is_approximate(table)
            merge(table)
            if approximate_above is None:
                recall = self._keep_up(table, wanted=indexed)
            else:
                recall = self._keep_up(table, above=approximate_above)
            _finish(self._files, table, seal.removals, seal)
        return recall

    @property
    def approximate(self) -> bool:
        """Whether the search goes through an approximate index."""
        return approximate.is_approximate(self._retrying(self._pin))

    def _keep_up(self, table: Any, *, wanted: bool | None = None, above: int | None = None) -> float | None:
        limit = self.description.approximate_above if above is None else above
        return approximate.keep_up(table, self.description.embedding_size, limit, wanted=wanted)

    @contextmanager
    def _writing(self, *, rewrites: bool = True) -> Iterator[tuple[Any, Seal]]:
        """The table to write to, alone, and its seal; with `rewrites`, what is written again was checked before."""
        with writing(self._folder):
            content, seal = self._files.read()
            if rewrites:
                SealedFiles(self.uri, TABLE_FOLDER).check(
                    seal, content, everything=True
                )  # also what was checked before
            table = connect(self.uri, read_consistency_interval=timedelta(0)).open_table(TABLE)
            # A writer that was killed may have left a version without a seal. An object store has no lock, so there it
            # may be another writer's, who is about to seal it.
            if self._folder is not None and table.version != seal.version:
                table.restore(seal.version)
            yield table, seal

    def _pin(self) -> Any:
        """A handle that reads the sealed version, which is checked: all of it, or of a large one what is read first."""
        with self._lock:
            if self._pinned is None or self._files.content() != self._sealed[0]:
                content, seal = self._files.read()
                self._files.check(seal, content, everything=seal.size <= CHECKED_AT_OPENING)
                pinned = connect(self.uri).open_table(TABLE)
                pinned.checkout(seal.version)
                self._follow(read_description(pinned.schema.metadata, self.uri))
                self._approximate = approximate.is_approximate(pinned)
                self._sealed, self._pinned, self._snapshot = (content, seal), pinned, None
            return self._pinned

    def _current(self) -> tuple[Snapshot, Any]:
        """The newest version in memory, and a table handle that reads the same version."""
        with self._lock:
            pinned = self._pin()
            if self._snapshot is None:
                content, seal = self._sealed
                self._files.check(seal, content, everything=True)
                self._snapshot = _load(pinned, self.description, 0 if self._approximate else self._memory_limit)
            return self._snapshot, pinned

    def _follow(self, description: IndexDescription) -> None:
        ours = self._description
        if ours and (description.model_sha256 != ours.model_sha256 or description.findings != ours.findings):
            raise BundleError(f"{self.uri}: the case index was replaced by one of another model; open it again")
        self._description = ours or description

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

    def write(self, uri: str, cases: Iterable[Case], embeddings: FloatArray, *, replace: bool = False) -> None:
        """Write and seal the table at `uri`; the list of removed patients of one that is replaced stays in force."""
        problems: list[Exception] = []
        files = SealedFiles(uri, TABLE_FOLDER)
        before = files.read_if_there() if replace else None
        removals = before.removals if before else Removals()

        def blocks() -> Iterator[Any]:
            try:
                yield from batches(cases, embeddings, self.description, removals)
            except Exception as error:
                problems.append(error)
                raise

        reader = pa().RecordBatchReader.from_batches(schema(self.description), blocks())
        try:
            database = connect(uri, read_consistency_interval=timedelta(0))
            table = database.create_table(TABLE, reader, mode="overwrite" if replace else "create")
        except Exception:
            if problems:
                raise problems[0] from None
            raise
        approximate.keep_up(table, self.description.embedding_size, self.description.approximate_above)
        if before:
            _finish(files, table, removals, before)
        else:
            files.seal(table.version, removals, None)


def _finish(files: SealedFiles, table: Any, removals: Removals, before: Seal) -> None:
    """Seal what was written, so that readers follow; then remove the older versions, and seal what is left."""
    merge(table)
    files.seal(table.version, removals, before)
    prune(table)
    files.seal(table.version, removals, before)


def _load(pinned: Any, description: IndexDescription, memory_limit: int) -> Snapshot:
    size = description.embedding_size
    in_memory = pinned.count_rows() * size * 4 <= memory_limit
    columns = [*KEYS, *FILTER_COLUMNS, "labels"] + ["embedding"] * in_memory
    rows = pinned.search().select(columns).with_row_id(True).limit(None).to_arrow()
    return Snapshot(
        rows["_rowid"].to_numpy(),
        matrix(rows["embedding"], size) if in_memory else None,
        label_matrix(rows["labels"], len(description.findings)),
        {name: rows[name].combine_chunks() for name in KEYS},
        {name: _dictionary(rows[name]) for name in FILTER_COLUMNS},
    )


def _dictionary(column: Any) -> Any:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.combine_chunks() if hasattr(encoded, "combine_chunks") else encoded
