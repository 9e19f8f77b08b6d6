"""Cases as rows: the Arrow schema of the index, and the blocks that are checked before they are written."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from medsd.cases.case import FILTER_COLUMNS, Case, FloatArray
from medsd.cases.described import SCHEMA_VERSION, IndexDescription
from medsd.cases.exact import Snapshot
from medsd.cases.removals import Removals
from medsd.errors import BundleError, DataError
from medsd.findings import FindingSet
from medsd.strict import read_json

if TYPE_CHECKING:
    import pandas as pd

METADATA = b"medsd"  # of the schema: the description as JSON
BLOCK = 1024  # cases to a record batch
TEXT = ("study_key", "patient_key", *FILTER_COLUMNS, "split")
MEDIA = ("thumbnail", "note_excerpt")
_UNKNOWN = -1.0  # how a label that is NaN is kept: LanceDB takes a long list of numbers for a vector and refuses NaN

Block = tuple[list[Case], FloatArray, FloatArray]


def checked_blocks(
    cases: Iterable[Case], embeddings: FloatArray, description: IndexDescription, removals: Removals
) -> Iterator[Block]:
    """Blocks of cases with labels (M, F) and embeddings (M, D), without the cases of removed patients.

    Raises DataError where embeddings or labels have the wrong shape, values or number.
    """
    embeddings, size = np.asarray(embeddings, dtype=np.float32), description.embedding_size
    if embeddings.ndim != 2 or embeddings.shape[1] != size:
        raise DataError(f"case index: embeddings have shape {embeddings.shape}; this index takes (N, {size})")
    if not np.all(np.abs(np.linalg.norm(embeddings, axis=1) - 1) < 1e-3):  # NaN fails too
        raise DataError("case index: embeddings must be finite and of unit length; divide each by its norm")
    rest, start = iter(cases), 0
    while block := list(islice(rest, BLOCK)):
        vectors = embeddings[start : start + len(block)]
        if len(vectors) < len(block):
            raise DataError(f"case index: more cases than the {len(embeddings)} embeddings")
        start += len(block)
        labels = np.stack([_checked_labels(case, len(description.findings)) for case in block])
        kept = [row for row, case in enumerate(block) if not removals.bars(case)]
        if kept:
            yield [block[row] for row in kept], labels[kept], vectors[kept]
    if start < len(embeddings):
        raise DataError(f"case index: {start} cases for {len(embeddings)} embeddings")


def _checked_labels(case: Case, count: int) -> FloatArray:
    labels = np.asarray(case.labels, dtype=np.float32)
    if labels.shape != (count,):
        raise DataError(f"case index: a case has labels of shape {labels.shape}; this index has {count} findings")
    if not np.all(np.isnan(labels) | (labels == 0) | (labels == 1)):
        raise DataError("case index: labels are 1 (present), 0 (absent) or NaN (unknown)")
    return labels


def schema(description: IndexDescription) -> pa.Schema:
    return pa.schema(
        [
            *(pa.field(name, pa.string(), nullable=False) for name in TEXT),
            pa.field("embedding", pa.list_(pa.float32(), description.embedding_size)),
            pa.field("labels", pa.list_(pa.float32(), len(description.findings))),
            pa.field("thumbnail", pa.binary()),
            pa.field("note_excerpt", pa.string()),
        ],
        metadata={METADATA: description.model_dump_json().encode()},
    )


def record_batch(block: Block, layout: pa.Schema) -> pa.RecordBatch:
    cases, labels, vectors = block
    numbers = {"embedding": vectors, "labels": np.nan_to_num(labels, nan=_UNKNOWN)}

    def column(field: Any) -> Any:
        if field.name in numbers:
            return pa.FixedSizeListArray.from_arrays(pa.array(numbers[field.name].ravel()), type=field.type)
        return pa.array([getattr(case, field.name) for case in cases], field.type)

    return pa.RecordBatch.from_arrays([column(field) for field in layout], schema=layout)


def matrix(column: Any, width: int) -> FloatArray:
    """A column of fixed-size lists as (N, width)."""
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), width)


def label_matrix(column: Any, width: int) -> FloatArray:
    """The labels as (N, width): 1, 0, NaN."""
    labels = matrix(column, width)
    return np.where(labels == _UNKNOWN, np.float32(np.nan), labels)


def cases_of(fields: Iterable[Mapping[str, Any]], labels: Iterable[FloatArray], findings: FindingSet) -> list[Case]:
    """Cases from their text and media, and their labels (N, F)."""
    rows = zip(fields, labels, strict=True)
    return [Case(labels=row, findings=findings.decode(row), **values) for values, row in rows]


def read_description(text: str | bytes, uri: str) -> IndexDescription:
    """The description of an index; raises BundleError if this medsd is too old for it, or it is damaged."""
    try:
        version = read_json(text).get("schema_version", 0)
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"{uri}: case index of schema {version}; this medsd reads up to {SCHEMA_VERSION}: upgrade"
            )
        return IndexDescription.model_validate_json(text)
    except (ValueError, AttributeError, TypeError):
        raise BundleError(f"{uri}: the description of the case index is damaged; make the index anew") from None


def case_table(snapshot: Snapshot, findings: FindingSet) -> "pd.DataFrame":
    """The table that `medsd.cases.index.CaseIndex.table` gives."""
    import pandas as pd

    frame = snapshot.attributes.select(TEXT).to_pandas()
    frame["findings"] = ["|".join(findings.decode(row)) for row in snapshot.labels]
    return pd.concat([frame, pd.DataFrame(snapshot.labels, columns=list(findings))], axis=1)
