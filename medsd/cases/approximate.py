"""An approximate index of LanceDB for more cases than memory holds, and the share of neighbours that it finds.

IVF_HNSW_SQ: partitions, in each a graph over 8-bit vectors; the best candidates are compared again in float32 (Malkov
and Yashunin, TPAMI 2020).
"""

import logging
from typing import Any

import numpy as np
from lancedb.index import HnswSq

from medsd.cases.case import FloatArray

log = logging.getLogger(__name__)

PARTITION = 1 << 20  # cases to a partition; LanceDB advises about a million for a graph
EDGES, CONSTRUCTION = 20, 300
REFINE = 8  # candidates compared exactly, in multiples of what is asked for
PROBES = 16  # partitions looked at
QUERIES, NEIGHBOURS = 100, 10  # of the measured recall


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
