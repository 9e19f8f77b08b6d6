"""What is done to a LanceDB table and the files under it: writing alone, pruning, filters, the approximate index.

The approximate index is for more cases than memory holds. It is IVF_HNSW_SQ: partitions, in each a graph over 8-bit
vectors; the best candidates are compared again in float32 (Malkov and Yashunin, TPAMI 2020).
"""

import contextlib
import logging
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from lancedb.index import HnswSq

from medsd.cases.case import FILTER_COLUMNS, CaseFilter, Excluded, FloatArray
from medsd.errors import BundleError, first_line
from medsd.findings import FindingSet

log = logging.getLogger(__name__)

_NEVER = timedelta(days=36_500)
PARTITION = 1 << 20  # cases to a partition; LanceDB advises about a million for a graph
EDGES, CONSTRUCTION = 20, 300
REFINE = 8  # candidates compared exactly, in multiples of what is asked for
PROBES = 16  # partitions looked at
QUERIES, NEIGHBOURS = 100, 10  # of the measured recall


def create_beside(folder: Path, write: Callable[[str], Any]) -> None:
    """Write in a temporary sibling and rename it; what a crash leaves is never at `folder`."""
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
        write(str(part))
        part.replace(folder)
    except (OSError, RuntimeError) as error:
        raise _cannot_write(folder, error) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def merge(table: Any) -> None:
    """Merge small files into a new version; the older ones stay for those who read them."""
    table.optimize(cleanup_older_than=_NEVER)


def prune(table: Any) -> None:
    """Remove every version but the newest, with the files of failed writes."""
    with warnings.catch_warnings():
        # It warns that readers of older versions fail; ours ask again.
        warnings.filterwarnings("ignore", message="optimize", category=UserWarning)
        table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)


@contextlib.contextmanager
def writing(folder: Path | None) -> Iterator[None]:
    """One writer at a time; the system frees the lock when a process dies. An object store has no such lock."""
    if folder is None:
        yield
        return
    try:
        with FileLock(folder / ".write.lock"):
            yield
    except (OSError, RuntimeError) as error:
        raise _cannot_write(folder, error) from None


def _cannot_write(folder: Path, error: Exception) -> BundleError:
    return BundleError(f"{folder}: the case index cannot be written ({first_line(error)[:120]})")


def local_folder(path: str | Path) -> Path | None:
    """The folder, or None for the URI of an object store."""
    return None if isinstance(path, str) and "://" in path else Path(path)


def full_uri(path: str | Path) -> str:
    folder = local_folder(path)
    return str(path) if folder is None else str(folder.absolute())


def quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def filter_sql(filters: CaseFilter | None, findings: FindingSet, excluded: Excluded) -> str:
    """The filter as an SQL condition of LanceDB, values escaped; an empty string if all may be found."""
    parts = [f"{column} != {quoted(key)}" for column, keys in excluded.items() for key in keys]
    filters = filters or CaseFilter()
    for names, value in ((filters.present, "1.0"), (filters.absent, "0.0")):
        parts += [f"labels[{findings.names.index(name) + 1}] = {value}" for name in names]  # SQL counts from one
    for column in FILTER_COLUMNS:
        if values := getattr(filters, column):
            parts.append(f"{column} IN ({', '.join(map(quoted, values))})")
    return " AND ".join(parts)


def is_approximate(table: Any) -> bool:
    """Whether the table has an index over its embeddings."""
    return any("embedding" in index.columns for index in table.list_indices())


def question(table: Any, embedding: FloatArray, count: int, *, exact: bool) -> Any:
    """A LanceDB query for the `count` nearest by dot product, exact or through the index."""
    query = table.search(embedding, vector_column_name="embedding", query_type="vector").distance_type("dot")
    if exact:
        return query.bypass_vector_index().limit(count)
    return query.nprobes(PROBES).refine_factor(REFINE).ef(max(256, REFINE * count)).limit(count)


def keep_up(table: Any, size: int, above: int, *, wanted: bool = False) -> float | None:
    """Make, renew or drop the index of a table after a write; returns the measured recall, None if the search is exact.

    There is an index if there are more cases than `above`, or if it is `wanted`; `size` is D.
    """
    count = table.count_rows()
    if not count or not (wanted or count > above):
        for index in table.list_indices():
            if "embedding" in index.columns:
                table.drop_index(index.name)
        return None
    config = HnswSq(
        distance_type="dot", num_partitions=max(1, count // PARTITION), m=EDGES, ef_construction=CONSTRUCTION
    )
    table.create_index("embedding", config=config, replace=True)
    recall = _measure_recall(table, size)
    log.info("approximate index over %d cases: recall@%d %.4f", count, NEIGHBOURS, recall)
    return recall


def _measure_recall(table: Any, size: int) -> float:
    """The share of the exact ten nearest that the index finds, over random cases of the table, turned a little."""
    total, rng = table.count_rows(), np.random.default_rng(0)
    chosen = np.sort(rng.choice(total, min(QUERIES, total), replace=False))
    rows = table.take_offsets(chosen.tolist()).select(["embedding"]).to_arrow()["embedding"]
    vectors = rows.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(rows), size)
    # A stored vector finds itself, so the questions are vectors that were never stored.
    queries = vectors + rng.normal(0, 0.3 / np.sqrt(size), vectors.shape).astype(np.float32)
    shares = []
    for query in queries / np.linalg.norm(queries, axis=1, keepdims=True):
        asked = (question(table, query, NEIGHBOURS, exact=way) for way in (True, False))
        answers = (each.select(["study_key", "_distance"]).with_row_id(True).to_arrow() for each in asked)
        exact, found = (set(rows["_rowid"].to_pylist()) for rows in answers)
        shares.append(len(exact & found) / max(len(exact), 1))
    return float(np.mean(shares))
