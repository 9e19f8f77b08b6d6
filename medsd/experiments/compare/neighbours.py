"""Which relations the neighbours of a query stand in, next to a random and to the ideal order.

The relation is that of the neighbour's label set T to the query's S (`medsd.sd.relations`): R1 disjoint, R2 equal, R3
overlap, R4 superset, R5 subset. The ideal order is that of falling Jaccard overlap, which is the gain of nDCG; cases of
equal gain share its places evenly.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medsd.metrics.metrics import ratio
from medsd.metrics.retrieval import Cases, unit
from medsd.sd.relations import LabelPairs, Relation

FloatArray = npt.NDArray[np.float64]
RELATIONS = (Relation.DISJOINT, Relation.EQUAL, Relation.OVERLAP, Relation.SUPERSET, Relation.SUBSET)


@dataclass(frozen=True)
class RelationTable:
    """Five rows, R1 to R5; column k − 1 is about the first k neighbours.

    `right` is, of the places that the ideal order gives to a relation, the share that the neighbours give to it too:
    Σ_q min(n_q, b_q) / Σ_q b_q with n_q found and b_q ideal neighbours of the relation among the first k of query q.
    """

    found: FloatArray  # (5, k) share of the first k neighbours that stand in the relation, mean over the queries
    ideal: FloatArray  # (5, k) the same in the ideal order
    random: FloatArray  # (5,) the same in a random order, whatever k
    right: FloatArray  # (5, k), NaN where the ideal order has none


def relation_table(queries: Cases, index: Cases, k: int) -> RelationTable:
    """Count the relations of the first k neighbours in `index`, leaving out queries to which nothing is relevant.

    Cases of the query's own patient are skipped; k is at most the number of cases.
    """
    counts = LabelPairs(np.asarray(queries.target, np.float64), np.asarray(index.target, np.float64)).counts()
    allowed = np.asarray(queries.patients)[:, None] != np.asarray(index.patients)[None, :]  # (Q, M)
    gain = np.where(allowed, counts.jaccard(), -1.0)
    some = (gain > 0).any(1)
    gain, allowed = gain[some], allowed[some]
    relation = np.asarray(counts.relation())[some]
    similarity = np.where(allowed, unit(queries.embeddings)[some] @ unit(index.embeddings).T, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    nearest = np.take_along_axis(relation, order, axis=1)  # (Q, k)
    found = np.stack([np.cumsum(nearest == each, axis=1) for each in RELATIONS])  # (5, Q, k)
    ideal = _ideal_counts(gain, relation, k)
    places = np.arange(1, k + 1)
    both, best = np.minimum(found, ideal).sum(1), ideal.sum(1)  # (5, k)
    return RelationTable(
        found=found.mean(1) / places,
        ideal=ideal.mean(1) / places,
        random=np.array([((relation == each) & allowed).sum(1) / allowed.sum(1) for each in RELATIONS]).mean(1),
        right=ratio(both, best, best > 1e-9),
    )


def _ideal_counts(gain: FloatArray, relation: npt.NDArray[np.integer], k: int) -> FloatArray:
    """Neighbours of each relation (5, Q, k) among the first 1…k of the ideal order, ties shared evenly."""
    found = np.zeros((len(RELATIONS), len(gain), k))
    for q, (gains, relations) in enumerate(zip(gain, relation, strict=True)):
        levels, level_of = np.unique(-gains, return_inverse=True)  # the best gain first
        sizes = np.bincount(level_of, minlength=len(levels))
        before = np.cumsum(sizes) - sizes
        taken = np.clip(np.arange(1, k + 1)[None, :] - before[:, None], 0, sizes[:, None])  # (levels, k)
        for r, each in enumerate(RELATIONS):
            of_relation = np.bincount(level_of, weights=relations == each, minlength=len(levels))
            found[r, q] = (of_relation / sizes) @ taken
    return found
