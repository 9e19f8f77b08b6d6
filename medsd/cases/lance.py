"""Cases in LanceDB: an embedded table in a folder or an object store, versioned, one writer beside many readers.

`LanceStore` is a `medsd.cases.index.CaseStore`. Every write is one new version, visible when its manifest is; a
reader follows at its next question. Exact search runs in memory (`medsd.cases.exact`) up to `memory_limit` bytes of
embeddings, and in LanceDB's flat scan beyond.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from medsd.bundle.layout import finding_entries
from medsd.cases.case import FILTER_COLUMNS, Case, CaseFilter, FloatArray, Hit, IndexDescription
from medsd.cases.exact import Snapshot
from medsd.errors import BundleError, DataError
from medsd.findings import FindingSet

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
TABLE = "cases"
METADATA = b"medsd"
BLOCK = 1024  # cases to a record batch
MEMORY_LIMIT = 2 << 30  # bytes of embeddings: four million cases of 128 numbers
KEYS = ("study_key", "patient_key", "split")
STALE_RETRIES = 3
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
        self._memory_limit = memory_limit
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._pinned: Any = None
        # Zero: every question looks whether there is a newer version; a removed patient must not linger in an answer.
        self._latest = _connect(uri, read_consistency_interval=timedelta(0)).open_table(TABLE)
        self._description = _read_description(self._latest.schema.metadata, uri)

    @classmethod
    def open(cls, path: str | Path, *, memory_limit: int = MEMORY_LIMIT) -> LanceStore:
        """Open the index at `path`; raises BundleError when there is none or it cannot be read."""
        folder = _local(path)
        if folder is not None and not (folder / f"{TABLE}.lance").is_dir():
            raise BundleError(f"{path}: no case index here; make one with `medsd index`")
        try:
            return cls(_uri(path), memory_limit=memory_limit)
        except _STALE as error:
            raise BundleError(f"{path}: the case index cannot be read ({_first_line(error)})") from None

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
        folder = _local(path)
        if folder is None:
            mode = "overwrite" if replace else "create"
            try:
                writer.write(_connect(_uri(path)), cases, embeddings, mode)
            except ValueError as error:
                raise BundleError(f"{path}: {_first_line(error)}") from None
        elif (folder / f"{TABLE}.lance").is_dir():
            if not replace:
                raise BundleError(f"{path}: there is a case index already; remove it, or ask to replace it")
            with _writing(folder):
                table = writer.write(_connect(_uri(path)), cases, embeddings, "overwrite")
                _prune(table)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BundleError(f"{path}: something else is here; give an index a folder of its own")
        else:
            _create_beside(folder, lambda uri: writer.write(_connect(uri), cases, embeddings, "create"))
        return cls.open(path)

    @property
    def description(self) -> IndexDescription:
        return self._description

    def __len__(self) -> int:
        return int(self._latest.count_rows())

    def search(
        self, embedding: FloatArray, k: int, *, filters: CaseFilter | None, exclude_patient: str, exclude_study: str
    ) -> list[Hit]:
        """The k nearest cases by exact search; see `medsd.cases.index.CaseStore`."""
        if len(self) * self.description.embedding_size * 4 > self._memory_limit:
            return self._retrying(lambda: self._scan(embedding, k, filters, exclude_patient, exclude_study))

        def look_up() -> list[Hit]:
            snapshot, pinned = self._current()
            rows, similarities = snapshot.nearest(
                embedding, k, self.description.vocabulary, filters, exclude_patient, exclude_study
            )
            cases = self._take(pinned, snapshot.row_ids[rows].tolist())
            return [
                Hit(case, float(similarity), snapshot.embeddings[row])
                for case, similarity, row in zip(cases, similarities, rows, strict=True)
            ]

        return self._retrying(look_up)

    def embeddings(self) -> FloatArray:
        """All embeddings (N, D)."""
        return self._retrying(self._current)[0].embeddings

    def table(self) -> pd.DataFrame:
        """Everything but embeddings, thumbnails and notes, a row a case."""
        import pandas as pd

        snapshot, _ = self._retrying(self._current)
        findings = self.description.vocabulary
        columns = {name: column.to_pylist() for name, column in {**snapshot.keys, **snapshot.categories}.items()}
        order = ("study_key", "patient_key", *FILTER_COLUMNS, "split")
        frame = pd.DataFrame({name: columns[name] for name in order})
        frame["findings"] = ["|".join(findings.decode(row)) for row in snapshot.labels]
        return pd.concat([frame, pd.DataFrame(snapshot.labels, columns=list(findings))], axis=1)

    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """The values that occur in each of `FILTER_COLUMNS`, sorted."""
        snapshot, _ = self._retrying(self._current)
        return {name: tuple(sorted(column.dictionary.to_pylist())) for name, column in snapshot.categories.items()}

    def add(self, cases: Sequence[Case], embeddings: FloatArray) -> None:
        """Append cases as one new version."""
        batches = list(_batches(cases, embeddings, self.description))
        if batches:
            with _writing(_local(self.uri)):
                self._latest.add(_pa().Table.from_batches(batches))

    def remove_patient(self, patient_key: str) -> int:
        """Remove a patient's cases and rewrite every file, so that none of their bytes stay.

        Deleting rows would only mark them; LanceDB's compaction rewrites a file only when a tenth of it is marked.
        """
        if not patient_key:
            raise DataError("remove: give the patient's key; an empty one would mean every case without a patient")
        with _writing(_local(self.uri)):
            where = f"patient_key = {_quoted(patient_key)}"
            removed = int(self._latest.count_rows(where))
            if removed:
                kept = self._latest.search().where(f"NOT ({where})").limit(None).to_batches(batch_size=BLOCK)
                _connect(self.uri).create_table(TABLE, kept, mode="overwrite")
            _prune(self._latest)  # even if there was nothing to remove: a crash may have come before the pruning
            self._forget()
        return removed

    def compact(self) -> None:
        """Merge small files and drop older versions."""
        with _writing(_local(self.uri)):
            _prune(self._latest)

    def _current(self) -> tuple[Snapshot, Any]:
        """The newest version in memory, and a table handle that reads the same version."""
        with self._lock:
            version = self._latest.version
            if self._snapshot is None or self._snapshot.version != version:
                pinned = _connect(self.uri).open_table(TABLE)
                pinned.checkout(version)
                self._snapshot = _load(pinned, version, self.description)
                self._pinned = pinned
            return self._snapshot, self._pinned

    def _forget(self) -> None:
        with self._lock:
            self._snapshot = self._pinned = None

    def _retrying(self, ask: Callable[[], Answer]) -> Answer:
        """Ask again with a fresh version when a writer removed the files of the one in hand."""
        for left in reversed(range(STALE_RETRIES)):
            try:
                return ask()
            except _STALE as error:
                if not left:
                    raise BundleError(f"{self.uri}: the case index cannot be read ({_first_line(error)})") from None
                self._forget()
        raise AssertionError("unreachable")

    def _scan(self, embedding: FloatArray, k: int, filters: CaseFilter | None, patient: str, study: str) -> list[Hit]:
        """LanceDB's own exact scan, for an index too large for memory."""
        query = self._latest.search(embedding, vector_column_name="embedding", query_type="vector")
        query = query.distance_type("dot").bypass_vector_index().limit(k)
        where = filter_sql(filters, self.description.vocabulary, patient, study)
        rows = (query.where(where, prefilter=True) if where else query).to_arrow()
        vectors = _matrix(rows["embedding"], self.description.embedding_size)
        similarities = vectors @ embedding
        return [Hit(case, float(s), v) for case, s, v in zip(self._decode(rows), similarities, vectors, strict=True)]

    def _take(self, pinned: Any, row_ids: list[int]) -> list[Case]:
        """The cases of the row ids, in their order."""
        if not row_ids:
            return []
        columns = [name for name in pinned.schema.names if name != "embedding"]
        rows = pinned.take_row_ids(row_ids).select(columns).with_row_id().to_arrow()
        by_id = dict(zip(rows["_rowid"].to_pylist(), self._decode(rows), strict=True))
        return [by_id[row_id] for row_id in row_ids]

    def _decode(self, rows: Any) -> list[Case]:
        findings = self.description.vocabulary
        labels = _matrix(rows["labels"], len(findings))
        names = ("study_key", "patient_key", *FILTER_COLUMNS, "split", "thumbnail", "note_excerpt")
        fields = rows.select(list(names)).to_pylist()
        return [
            Case(labels=row, findings=findings.decode(row), **values)
            for row, values in zip(labels, fields, strict=True)
        ]


def describe(
    model_sha256: str, findings: FindingSet, embedding_size: int, *, model: str = "", public: bool = False
) -> IndexDescription:
    """The description of an index made now."""
    return IndexDescription(
        schema_version=SCHEMA_VERSION,
        model_sha256=model_sha256,
        model=model,
        finding_set=findings.key,
        findings=finding_entries(findings),
        embedding_size=embedding_size,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        public=public,
    )


def filter_sql(filters: CaseFilter | None, findings: FindingSet, patient: str = "", study: str = "") -> str:
    """The filter as an SQL condition of LanceDB, values escaped; an empty string where all may be found.

    It says what `medsd.cases.exact.Snapshot` computes; a test compares the two.
    """
    parts = [f"{column} != {_quoted(key)}" for column, key in (("patient_key", patient), ("study_key", study)) if key]
    filters = filters or CaseFilter()
    for names, value in ((filters.present, "1.0"), (filters.absent, "0.0")):
        parts += [f"labels[{findings.names.index(name) + 1}] = {value}" for name in names]  # SQL counts from one
    for column in FILTER_COLUMNS:
        if values := getattr(filters, column):
            parts.append(f"{column} IN ({', '.join(map(_quoted, values))})")
    return " AND ".join(parts)


class _Writer:
    """Writes a whole table; an error met while a block is made comes out as it was, not as LanceDB retells it."""

    def __init__(self, description: IndexDescription) -> None:
        self.description = description

    def write(self, connection: Any, cases: Iterable[Case], embeddings: FloatArray, mode: str) -> Any:
        problems: list[DataError] = []

        def blocks() -> Iterator[Any]:
            try:
                yield from _batches(cases, embeddings, self.description)
            except DataError as error:
                problems.append(error)
                raise

        reader = _pa().RecordBatchReader.from_batches(_schema(self.description), blocks())
        try:
            return connection.create_table(TABLE, reader, mode=mode)
        except Exception:
            if problems:
                raise problems[0] from None
            raise


def _batches(cases: Iterable[Case], embeddings: FloatArray, description: IndexDescription) -> Iterator[Any]:
    """Record batches of the cases with their embeddings, checked."""
    pa, schema = _pa(), _schema(description)
    embeddings = np.asarray(embeddings, dtype=np.float32)
    _check_embeddings(embeddings, description.embedding_size)
    rest, start = iter(cases), 0
    while block := list(islice(rest, BLOCK)):
        vectors = embeddings[start : start + len(block)]
        if len(vectors) < len(block):
            raise DataError(f"case index: more cases than the {len(embeddings)} embeddings")
        labels = np.stack([_checked_labels(case, len(description.findings)) for case in block])
        columns = [_column(pa, field, block, vectors, labels) for field in schema]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
        start += len(block)
    if start < len(embeddings):
        raise DataError(f"case index: {start} cases for {len(embeddings)} embeddings")


def _column(pa: Any, field: Any, block: Sequence[Case], vectors: FloatArray, labels: FloatArray) -> Any:
    matrix = {"embedding": vectors, "labels": labels}.get(field.name)
    if matrix is not None:
        return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), type=field.type)
    return pa.array([getattr(case, field.name) for case in block], field.type)


def _check_embeddings(embeddings: FloatArray, size: int) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] != size:
        raise DataError(f"case index: embeddings have shape {embeddings.shape}; this index takes (N, {size})")
    lengths = np.linalg.norm(embeddings, axis=1)
    if not np.all(np.abs(lengths - 1) < 1e-3):  # NaN fails too
        raise DataError("case index: embeddings must be finite and of unit length; divide each by its norm")


def _checked_labels(case: Case, count: int) -> FloatArray:
    labels = np.asarray(case.labels, dtype=np.float32)
    if labels.shape != (count,):
        raise DataError(f"case index: a case has labels of shape {labels.shape}; this index has {count} findings")
    if not np.all(np.isnan(labels) | (labels == 0) | (labels == 1)):
        raise DataError("case index: labels are 1 (present), 0 (absent) or NaN (unknown)")
    return labels


def _schema(description: IndexDescription) -> Any:
    pa = _pa()
    text = [
        pa.field(name, pa.string(), nullable=False) for name in ("study_key", "patient_key", *FILTER_COLUMNS, "split")
    ]
    return pa.schema(
        [
            *text,
            pa.field("embedding", pa.list_(pa.float32(), description.embedding_size)),
            pa.field("labels", pa.list_(pa.float32(), len(description.findings))),
            pa.field("thumbnail", pa.binary()),
            pa.field("note_excerpt", pa.string()),
        ],
        metadata={METADATA: description.model_dump_json().encode()},
    )


def _load(pinned: Any, version: int, description: IndexDescription) -> Snapshot:
    columns = [*KEYS, *FILTER_COLUMNS, "labels", "embedding"]
    rows = pinned.search().select(columns).with_row_id(True).limit(None).to_arrow()
    return Snapshot(
        version,
        rows["_rowid"].to_numpy(),
        _matrix(rows["embedding"], description.embedding_size),
        _matrix(rows["labels"], len(description.findings)),
        {name: rows[name].combine_chunks() for name in KEYS},
        {name: _dictionary(rows[name]) for name in FILTER_COLUMNS},
    )


def _dictionary(column: Any) -> Any:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.combine_chunks() if hasattr(encoded, "combine_chunks") else encoded


def _matrix(column: Any, width: int) -> FloatArray:
    """A column of fixed-size lists as (N, width)."""
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), width)


def _read_description(metadata: dict[bytes, bytes] | None, uri: str) -> IndexDescription:
    text = (metadata or {}).get(METADATA)
    if text is None:
        raise BundleError(f"{uri}: a LanceDB table, but no case index of medsd; make one with `medsd index`")
    version = json.loads(text).get("schema_version", 0)
    if version > SCHEMA_VERSION:
        raise BundleError(f"{uri}: case index of schema {version}; this medsd reads up to {SCHEMA_VERSION}: upgrade")
    return IndexDescription.model_validate_json(text)


def _create_beside(folder: Path, write: Callable[[str], Any]) -> None:
    """Write in a temporary sibling and rename it; what a crash leaves is never at `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    part.mkdir()
    try:
        write(str(part))
        part.replace(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _prune(table: Any) -> None:
    """Merge small files and remove every version but the newest, with the files of failed writes."""
    with warnings.catch_warnings():
        # It warns that readers of older versions fail; ours ask again (`_retrying`).
        warnings.filterwarnings("ignore", message="optimize", category=UserWarning)
        table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)


@contextlib.contextmanager
def _writing(folder: Path | None) -> Iterator[None]:
    """One writer at a time; the kernel lets go when a process dies. An object store has no such lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        folder = None
    if folder is None:
        yield
        return
    with (folder / ".write.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _connect(uri: str, **options: Any) -> Any:
    import lancedb

    return lancedb.connect(uri, **options)


def _pa() -> Any:
    import pyarrow

    return pyarrow


def _local(path: str | Path) -> Path | None:
    """The folder, or None for the URI of an object store."""
    return None if isinstance(path, str) and "://" in path else Path(path)


def _uri(path: str | Path) -> str:
    folder = _local(path)
    return str(path) if folder is None else str(folder.absolute())


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:120]
