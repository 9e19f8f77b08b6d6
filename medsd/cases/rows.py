"""Cases as rows: the Arrow schema of the index, the blocks that are written, and the checks before them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from medsd.bundle.layout import finding_entries
from medsd.cases.case import FILTER_COLUMNS, Case, FloatArray
from medsd.cases.described import APPROXIMATE_ABOVE, IndexDescription, SimilarityScale, VoteRule
from medsd.cases.exact import Snapshot
from medsd.cases.removals import Removals
from medsd.errors import BundleError, DataError
from medsd.findings import FindingSet
from medsd.strict import read_json

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 2  # 2: scale, vote and approximate_above in the description
METADATA = b"medsd"  # of the schema: the description as JSON
BLOCK = 1024  # cases to a record batch
KEYS = ("study_key", "patient_key", "split")
MEDIA = ("thumbnail", "note_excerpt")
_UNKNOWN = -1.0  # how a label that is NaN is kept: LanceDB takes a long list of numbers for a vector and refuses NaN


def describe(
    model_sha256: str,
    findings: FindingSet,
    embedding_size: int,
    *,
    model: str = "",
    public: bool = False,
    scale: SimilarityScale | None = None,
    vote: VoteRule | None = None,
    approximate_above: int = APPROXIMATE_ABOVE,
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
        scale=scale,
        vote=vote,
        approximate_above=approximate_above,
    )


def batches(
    cases: Iterable[Case], embeddings: FloatArray, description: IndexDescription, removals: Removals
) -> Iterator[Any]:
    """Record batches of the cases with their embeddings, checked, without those of removed patients."""
    import pyarrow as pa

    layout = schema(description)
    embeddings = np.asarray(embeddings, dtype=np.float32)
    _check_embeddings(embeddings, description.embedding_size)
    rest, start = iter(cases), 0
    while block := list(islice(rest, BLOCK)):
        vectors = embeddings[start : start + len(block)]
        if len(vectors) < len(block):
            raise DataError(f"case index: more cases than the {len(embeddings)} embeddings")
        start += len(block)
        labels = np.stack([_checked_labels(case, len(description.findings)) for case in block])
        kept = [row for row, case in enumerate(block) if not removals.bars(case)]
        columns = [_column(field, [block[row] for row in kept], vectors[kept], labels[kept]) for field in layout]
        if kept:
            yield pa.RecordBatch.from_arrays(columns, schema=layout)
    if start < len(embeddings):
        raise DataError(f"case index: {start} cases for {len(embeddings)} embeddings")


def _column(field: Any, block: Sequence[Case], vectors: FloatArray, labels: FloatArray) -> Any:
    import pyarrow as pa

    values = {"embedding": vectors, "labels": np.nan_to_num(labels, nan=_UNKNOWN)}.get(field.name)
    if values is not None:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=field.type)
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


def schema(description: IndexDescription) -> Any:
    import pyarrow as pa

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


def matrix(column: Any, width: int) -> FloatArray:
    """A column of fixed-size lists as (N, width)."""
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), width)


def label_matrix(column: Any, width: int) -> FloatArray:
    """The labels as (N, width): 1, 0, NaN for unknown, which older indexes hold as NaN itself."""
    labels = matrix(column, width)
    return np.where(labels == _UNKNOWN, np.float32(np.nan), labels)


def read_description(metadata: dict[bytes, bytes] | None, uri: str) -> IndexDescription:
    text = (metadata or {}).get(METADATA)
    if text is None:
        raise BundleError(f"{uri}: a LanceDB table, but no case index of medsd; make one with `medsd index`")
    return read_description_json(text, uri)


def read_description_json(text: str | bytes, uri: str) -> IndexDescription:
    """The description of an index; raises BundleError where this medsd is too old for it, or it is damaged."""
    try:
        version = read_json(text).get("schema_version", 0)
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"{uri}: case index of schema {version}; this medsd reads up to {SCHEMA_VERSION}: upgrade"
            )
        return IndexDescription.model_validate_json(text)
    except (ValueError, AttributeError, TypeError):
        raise BundleError(f"{uri}: the case index does not describe itself as medsd writes it; make it anew") from None


def check_batch(cases: Sequence[Case], embeddings: FloatArray, description: IndexDescription) -> None:
    """Compare cases and their embeddings with what the index takes.

    Raises:
        DataError: embeddings or labels of the wrong shape, not of unit length, or fewer than there are cases.
    """
    _check_embeddings(embeddings, description.embedding_size)
    if len(embeddings) < len(cases):
        raise DataError("case index: more cases than embeddings")
    for case in cases:
        _checked_labels(case, len(description.findings))


def case_table(snapshot: Snapshot, findings: FindingSet) -> pd.DataFrame:
    """A version of the index as the table that `medsd.cases.index.CaseIndex.table` gives."""
    import pandas as pd

    columns = {name: column.to_pylist() for name, column in {**snapshot.keys, **snapshot.categories}.items()}
    order = ("study_key", "patient_key", *FILTER_COLUMNS, "split")
    frame = pd.DataFrame({name: columns[name] for name in order})
    frame["findings"] = ["|".join(findings.decode(row)) for row in snapshot.labels]
    return pd.concat([frame, pd.DataFrame(snapshot.labels, columns=list(findings))], axis=1)
