"""An approximate index of LanceDB for more cases than memory holds, and how many neighbours it finds.

IVF_HNSW_SQ: partitions, in each a graph over 8-bit vectors, the best candidates compared again in float32 (Malkov and
Yashunin, TPAMI 2020). IVF_PQ without that finds a third of the neighbours. Exact search stays the default: this is made
only above `IndexDescription.approximate_above` cases, and says its recall when it is made.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from medsd.cases.case import FloatArray

log = logging.getLogger(__name__)

PARTITION = 1 << 20  # cases to a partition; LanceDB advises about a million for a graph
EDGES, CONSTRUCTION = 20, 300
REFINE = 8  # candidates compared exactly, in multiples of what is asked for
PROBES = 16  # partitions looked at
QUERIES = 100  # cases that the recall is measured with
NEIGHBOURS = 10


def is_approximate(table: Any) -> bool:
    """Whether the table has an index over its embeddings."""
    return any("embedding" in index.columns for index in table.list_indices())


def build(table: Any) -> None:
    """Make the index of a table anew, in the place of an older one; one more version of the table."""
    from lancedb.index import HnswSq

    partitions = max(1, table.count_rows() // PARTITION)
    config = HnswSq(distance_type="dot", num_partitions=partitions, m=EDGES, ef_construction=CONSTRUCTION)
    table.create_index("embedding", config=config, replace=True)


def drop(table: Any) -> None:
    """Take the index away."""
    for index in table.list_indices():
        if "embedding" in index.columns:
            table.drop_index(index.name)


def question(table: Any, embedding: FloatArray, count: int, *, exact: bool) -> Any:
    """A LanceDB query for the `count` nearest by dot product, exact or through the index."""
    query = table.search(embedding, vector_column_name="embedding", query_type="vector").distance_type("dot")
    if exact:
        return query.bypass_vector_index().limit(count)
    return query.nprobes(PROBES).refine_factor(REFINE).ef(max(256, REFINE * count)).limit(count)


def measure_recall(table: Any, size: int, *, seed: int = 0) -> float:
    """The share of the exact ten nearest that the index finds, over random cases of the table, turned a little.

    Args:
        table: with an index.
        size: D.
        seed: of the draw.
    """
    total, rng = table.count_rows(), np.random.default_rng(seed)
    chosen = np.sort(rng.choice(total, min(QUERIES, total), replace=False))
    rows = table.take_offsets(chosen.tolist()).select(["embedding"]).to_arrow()["embedding"]
    vectors = rows.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(rows), size)
    # A stored vector finds itself; a question that was never stored is what readers ask.
    queries = vectors + rng.normal(0, 0.3 / np.sqrt(size), vectors.shape).astype(np.float32)
    shares = []
    for query in queries / np.linalg.norm(queries, axis=1, keepdims=True):
        exact, found = (set(_row_ids(question(table, query, NEIGHBOURS, exact=way))) for way in (True, False))
        shares.append(len(exact & found) / max(len(exact), 1))
    return float(np.mean(shares))


def keep_up(table: Any, size: int, above: int, *, wanted: bool | None = None) -> float | None:
    """Make, renew or drop the index of a table, whichever its number of cases asks for.

    Args:
        table: after a write.
        size: D.
        above: number of cases from which there is to be an index.
        wanted: True has one made below `above`, too.

    Returns:
        the measured recall, which is logged as well; None where the search stays exact.
    """
    if not (wanted or table.count_rows() > above) or not table.count_rows():
        drop(table)
        return None
    build(table)
    recall = measure_recall(table, size)
    log.info("approximate index over %d cases: recall@%d %.4f", table.count_rows(), NEIGHBOURS, recall)
    return recall


def _row_ids(query: Any) -> list[int]:
    return query.select(["study_key", "_distance"]).with_row_id(True).to_arrow()["_rowid"].to_pylist()
