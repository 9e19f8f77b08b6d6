"""Cases in LanceDB: an embedded table in a folder or an object store, versioned, one writer beside many readers.

Every write is one new version, visible when it is sealed (`medsd.cases.seal`); a reader follows at its next question.
Exact search runs in memory (`medsd.cases.exact`) up to `memory_limit` bytes of embeddings, and in LanceDB's flat scan
beyond, unless an approximate index was made (`medsd.cases.lance_files`).
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from medsd.cases import lance_files
from medsd.cases import rows as case_rows
from medsd.cases.case import FILTER_COLUMNS, Case, CaseFilter, Excluded, FloatArray, Hit
from medsd.cases.exact import Positions, Snapshot, nearest_distinct
from medsd.cases.index import CaseIndex, NewCases
from medsd.cases.removals import Removals
from medsd.cases.seal import CHECKED_AT_OPENING, Seal, SealedFiles
from medsd.errors import BundleError, first_line

TABLE, TABLE_FOLDER = "cases", "cases.lance"
MEMORY_LIMIT = 2 << 30  # bytes of embeddings: four million cases of 128 numbers


class LanceIndex(CaseIndex):
    """Cases in a LanceDB table, in a folder or at the URI of an object store.

    A search runs in memory up to `memory_limit` bytes of embeddings. Raises BundleError if there is no index at `path`,
    or it cannot be read.
    """

    # A busy writer may remove the files of the version in hand several times in a row.
    _pauses = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    _stale = (RuntimeError, OSError, ValueError)

    def __init__(self, path: str | Path, *, memory_limit: int = MEMORY_LIMIT) -> None:
        self._folder = lance_files.local_folder(path)
        if self._folder is not None and not (self._folder / TABLE_FOLDER).is_dir():
            raise BundleError(f"{path}: no case index here; make one with `medsd index`")
        super().__init__(lance_files.full_uri(path))
        self._memory_limit = memory_limit
        self._files = SealedFiles(self.uri, TABLE_FOLDER)
        self._lock = threading.RLock()
        self._sealed: tuple[bytes, Seal] = (b"", Seal(version=0, files={}, removals=Removals()))
        self._snapshot: Snapshot | None = None
        self._pinned: Any = None
        self._approximate = False  # whether the pinned version has an approximate index
        self._retrying(self._pin)

    @classmethod
    def create(cls, path: str | Path, new: NewCases, *, replace: bool) -> Self:
        folder = lance_files.local_folder(path)
        if folder is None:
            try:
                _write(lance_files.full_uri(path), new, replace=replace)
            except ValueError as error:
                raise BundleError(f"{path}: {first_line(error)[:120]}") from None
        elif (folder / TABLE_FOLDER).is_dir():
            if not replace:
                raise BundleError(f"{path}: there is a case index already; remove it, or ask to replace it")
            with lance_files.writing(folder):
                _write(lance_files.full_uri(path), new, replace=True)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BundleError(f"{path}: something else is here; give an index a folder of its own")
        else:
            lance_files.create_beside(folder, lambda uri: _write(uri, new, replace=False))
        return cls(path)

    def __len__(self) -> int:
        return self._retrying(lambda: int(self._pin().count_rows()))

    @property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        attributes = self._retrying(self._current)[0].attributes
        return {name: tuple(sorted(attributes[name].unique().to_pylist())) for name in FILTER_COLUMNS}

    @property
    def approximate(self) -> bool:
        return lance_files.is_approximate(self._retrying(self._pin))

    def _search(
        self, embedding: FloatArray, k: int, filters: CaseFilter | None, excluded: Excluded, *, exact: bool
    ) -> list[Hit]:
        snapshot, pinned = self._current()
        if snapshot.embeddings is None:
            where = lance_files.filter_sql(filters, self.findings, excluded)
            return self._scan(pinned, embedding, k, where, exact=exact or not self._approximate)
        positions, similarities = snapshot.nearest(embedding, k, self.findings, filters, excluded)
        cases = self._cases(snapshot, pinned, positions)
        return list(map(Hit, cases, similarities.clip(-1, 1).tolist(), snapshot.embeddings[positions]))

    def _matching(self, wanted: FloatArray, k: int, filters: CaseFilter | None) -> list[Hit]:
        snapshot, pinned = self._current()

        def vectors(positions: Positions) -> FloatArray:
            return self._vectors(snapshot, pinned, positions)

        positions, typical = snapshot.matching(wanted, k, self.findings, filters, vectors)
        cases = self._cases(snapshot, pinned, positions)
        return list(map(Hit, cases, typical.clip(-1, 1).tolist(), vectors(positions)))

    def records(self) -> Iterator[tuple[Case, FloatArray]]:
        _, pinned = self._retrying(self._current)
        for batch in pinned.search().limit(None).to_batches(batch_size=case_rows.BLOCK):
            rows = pa.Table.from_batches([batch])
            yield from zip(self._cases_in(rows), self._vectors_in(rows), strict=True)

    def embeddings(self) -> FloatArray:
        def read() -> FloatArray:
            snapshot, pinned = self._current()
            if snapshot.embeddings is not None:
                return snapshot.embeddings
            return self._vectors_in(pinned.search().select(["embedding"]).limit(None).to_arrow())

        return self._retrying(read)

    def _facts(self) -> Snapshot:
        return self._current()[0]

    def add(self, cases: Sequence[Case], embeddings: FloatArray) -> int:
        layout = case_rows.schema(self.description)
        with self._writing(rewrites=False) as (table, seal):
            checked = case_rows.checked_blocks(cases, embeddings, self.description, seal.removals)
            blocks = [case_rows.record_batch(block, layout) for block in checked]
            if blocks:
                table.add(pa.Table.from_batches(blocks))
                self._files.seal(table.version, seal.removals, seal)
        return sum(block.num_rows for block in blocks)

    def _remove(self, patient_key: str) -> int:
        """Rewrite every file: deleted rows would only be marked, and compaction keeps a file with few of them."""
        with self._writing() as (table, seal):
            where = f"patient_key = {lance_files.quoted(patient_key)}"
            theirs = table.search().where(where).select(["study_key"]).limit(None).to_arrow()["study_key"].to_pylist()
            indexed = lance_files.is_approximate(table)
            if theirs:
                kept = table.search().where(f"NOT ({where})").limit(None).to_batches(batch_size=case_rows.BLOCK)
                lancedb.connect(self.uri).create_table(TABLE, kept, mode="overwrite")
                about = self.description
                lance_files.keep_up(table, about.embedding_size, about.approximate_above, wanted=indexed)
            _finish(self._files, table, seal.removals.with_patient(patient_key, theirs), seal)
        return len(theirs)

    def readmit_patient(self, patient_key: str) -> bool:
        with self._writing(rewrites=False) as (table, seal):
            if held := seal.removals.holds(patient_key):
                self._files.seal(table.version, seal.removals.without_patient(patient_key), seal)
        return held

    def compact(self, *, approximate_above: int | None = None) -> float | None:
        above = self.description.approximate_above if approximate_above is None else approximate_above
        with self._writing() as (table, seal):
            wanted = approximate_above is None and lance_files.is_approximate(table)
            lance_files.merge(table)
            recall = lance_files.keep_up(table, self.description.embedding_size, above, wanted=wanted)
            _finish(self._files, table, seal.removals, seal)
        return recall

    @contextmanager
    def _writing(self, *, rewrites: bool = True) -> Iterator[tuple[Any, Seal]]:
        """The table to write to, alone, and its seal; with `rewrites`, all files are checked, also a second time."""
        with lance_files.writing(self._folder):
            content, seal = self._files.read()
            if rewrites:
                SealedFiles(self.uri, TABLE_FOLDER).check(seal, content, everything=True)
            table = _connect(self.uri).open_table(TABLE)
            # A writer that was killed may have left a version without a seal. An object store has no lock, so there it
            # may be another writer's, who is about to seal it.
            if self._folder is not None and table.version != seal.version:
                table.restore(seal.version)
            yield table, seal

    def _pin(self) -> Any:
        """A handle that reads the sealed version; all of it is checked, or of a large one what is read first."""
        with self._lock:
            if self._pinned is None or self._files.content() != self._sealed[0]:
                content, seal = self._files.read()
                self._files.check(seal, content, everything=seal.size <= CHECKED_AT_OPENING)
                pinned = lancedb.connect(self.uri).open_table(TABLE)
                pinned.checkout(seal.version)
                said = (pinned.schema.metadata or {}).get(case_rows.METADATA)
                if said is None:
                    raise BundleError(f"{self.uri}: a LanceDB table, but no case index of medsd")
                self._follow(case_rows.read_description(said, self.uri))
                self._approximate = lance_files.is_approximate(pinned)
                self._sealed, self._pinned, self._snapshot = (content, seal), pinned, None
            return self._pinned

    def _current(self) -> tuple[Snapshot, Any]:
        """The newest version in memory, and a table handle that reads the same version."""
        with self._lock:
            pinned = self._pin()
            if self._snapshot is None:
                content, seal = self._sealed
                self._files.check(seal, content, everything=True)
                self._snapshot = self._load(pinned)
            return self._snapshot, pinned

    def _load(self, pinned: Any) -> Snapshot:
        size = pinned.count_rows() * self.description.embedding_size * 4  # bytes
        in_memory = size <= (0 if self._approximate else self._memory_limit)
        columns = [*case_rows.TEXT, "labels"] + ["embedding"] * in_memory
        rows = pinned.search().select(columns).with_row_id(True).limit(None).to_arrow()
        return Snapshot(
            rows["_rowid"].to_numpy(),
            self._vectors_in(rows) if in_memory else None,
            case_rows.label_matrix(rows["labels"], len(self.findings)),
            rows.select(case_rows.TEXT).combine_chunks(),
        )

    def _forget(self) -> None:
        with self._lock:
            self._snapshot = self._pinned = None

    def _why(self, error: Exception) -> str:
        return f"the case index cannot be read ({first_line(error)[:120]})"

    def _cases(self, snapshot: Snapshot, pinned: Any, positions: Positions) -> list[Case]:
        """The cases at `positions`, in that order; only what memory does not hold is read from the table."""
        if not len(positions):
            return []
        text = snapshot.attributes.take(positions).to_pylist()
        media = _taken(pinned, snapshot.row_ids[positions], case_rows.MEDIA).to_pylist()
        fields = [each | beside for each, beside in zip(text, media, strict=True)]
        return case_rows.cases_of(fields, snapshot.labels[positions], self.findings)

    def _cases_in(self, rows: pa.Table) -> list[Case]:
        fields = rows.select([*case_rows.TEXT, *case_rows.MEDIA]).to_pylist()
        return case_rows.cases_of(fields, case_rows.label_matrix(rows["labels"], len(self.findings)), self.findings)

    def _vectors_in(self, rows: pa.Table) -> FloatArray:
        return case_rows.matrix(rows["embedding"], self.description.embedding_size)

    def _vectors(self, snapshot: Snapshot, pinned: Any, positions: Positions) -> FloatArray:
        """The embeddings (M, D) at `positions`, from memory or from the table."""
        if snapshot.embeddings is not None:
            return snapshot.embeddings[positions]
        if not len(positions):
            return np.zeros((0, self.description.embedding_size), np.float32)
        return self._vectors_in(_taken(pinned, snapshot.row_ids[positions], ["embedding"]))

    def _scan(self, pinned: Any, embedding: FloatArray, k: int, where: str, *, exact: bool) -> list[Hit]:
        """LanceDB's own search, exact or through its index, for more cases than memory holds."""
        rows = pa.table({})

        def find(count: int) -> tuple[Positions, list[str], FloatArray]:
            nonlocal rows
            query = lance_files.question(pinned, embedding, count, exact=exact)
            rows = (query.where(where, prefilter=True) if where else query).to_arrow()
            return np.arange(len(rows)), rows["study_key"].to_pylist(), self._vectors_in(rows)

        kept = nearest_distinct(find, k)
        rows = rows.take(kept)
        vectors = self._vectors_in(rows)
        return list(map(Hit, self._cases_in(rows), (vectors @ embedding).clip(-1, 1).tolist(), vectors))


def _taken(pinned: Any, row_ids: npt.NDArray[np.uint64], columns: Sequence[str]) -> pa.Table:
    """Columns of the rows of these numbers, one at least, in their order; LanceDB returns them in one of its own."""
    rows = pinned.take_row_ids(row_ids.tolist()).select(list(columns)).with_row_id().to_arrow()
    order = np.argsort(rows["_rowid"].to_numpy())
    return rows.take(order[np.searchsorted(rows["_rowid"].to_numpy(), row_ids, sorter=order)]).select(list(columns))


def _connect(uri: str) -> Any:
    """A connection that always reads the newest version."""
    return lancedb.connect(uri, read_consistency_interval=timedelta(0))


def _write(uri: str, new: NewCases, *, replace: bool) -> None:
    """Write and seal the table at `uri`; the list of removed patients of one that is replaced stays in force."""
    files = SealedFiles(uri, TABLE_FOLDER)
    try:  # a damaged seal is an error: it may name patients who were removed
        before = Seal.of_bytes(files.content(), uri) if replace else None
    except FileNotFoundError:
        before = None
    removals = before.removals if before else Removals()
    layout = case_rows.schema(new.description)
    problems: list[Exception] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for block in case_rows.checked_blocks(*new, removals):
                yield case_rows.record_batch(block, layout)
        except Exception as error:
            problems.append(error)
            raise

    reader = pa.RecordBatchReader.from_batches(layout, batches())
    try:
        table = _connect(uri).create_table(TABLE, reader, mode="overwrite" if replace else "create")
    except Exception:
        if problems:  # LanceDB would report it in words of its own
            raise problems[0] from None
        raise
    lance_files.keep_up(table, new.description.embedding_size, new.description.approximate_above)
    if before:
        _finish(files, table, removals, before)
    else:
        files.seal(table.version, removals, None)


def _finish(files: SealedFiles, table: Any, removals: Removals, before: Seal) -> None:
    """Seal what was written, so that readers follow; then remove the older versions, and seal what is left."""
    lance_files.merge(table)
    files.seal(table.version, removals, before)
    lance_files.prune(table)
    files.seal(table.version, removals, before)
