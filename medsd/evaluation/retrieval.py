"""How well the learned space finds similar cases: nDCG and recall of the first k neighbours.

Start at `measure_retrieval`. A neighbour's gain is the Jaccard overlap of its known findings with the query's, by the
same set algebra as the loss (`medsd.sd.relations`); the query's own patient is never among the neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from medsd.errors import DataError
from medsd.evaluation.intervals import Interval, Resamples, bootstrap
from medsd.evaluation.metrics import FloatArray
from medsd.sd.relations import LabelPairs

_BLOCK = 4_000_000  # pairs in memory at a time


@dataclass(frozen=True)
class Cases:
    """Studies in the learned space.

    Attributes:
        embeddings: (N, D) of any length; they are compared by cosine.
        target: (N, F) 1, 0 or NaN for unknown.
        patients: (N,) patient keys.
    """

    embeddings: npt.NDArray[np.floating]
    target: npt.NDArray[np.floating]
    patients: Sequence[str] | npt.NDArray[np.str_]

    def __post_init__(self) -> None:
        lengths = {len(self.embeddings), len(self.target), len(self.patients)}
        if len(lengths) != 1 or np.ndim(self.embeddings) != 2 or np.ndim(self.target) != 2:
            raise DataError(
                f"embeddings {np.shape(self.embeddings)}, target {np.shape(self.target)} and {len(self.patients)} "
                "patients do not belong together; each needs one row for each image"
            )
        if not np.isfinite(self.embeddings).all():
            raise DataError("embeddings: a value is NaN or infinite; look for images that the model could not read")


@dataclass(frozen=True)
class QueryScores:
    """The scores of each query, (Q,) each, NaN for a query to which nothing in the index is relevant.

    Attributes:
        ndcg: Σ_r gain_r / log2(r + 1) over the first k, divided by that of the best order (Järvelin and
            Kekäläinen 2002).
        recall: relevant cases among the first k over min(k, relevant cases in the index); relevant is any overlap.
        random_ndcg, random_recall: what a random order gives on average, in closed form.
    """

    ndcg: FloatArray
    recall: FloatArray
    random_ndcg: FloatArray
    random_recall: FloatArray


class RetrievalReport(BaseModel):
    """Means over the queries with patient-level intervals.

    Attributes:
        k: neighbours looked at.
        queries: queries in the means.
        without_relevant: queries left out because no case of another patient shares a known finding with them (or,
            for a normal query, is normal).
        index: cases in the index.
        gain_over_random: nDCG minus that of the random order, on the same resamples.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int
    queries: int
    without_relevant: int
    index: int
    ndcg: Interval
    recall: Interval
    random_ndcg: Interval
    random_recall: Interval
    gain_over_random: Interval


def measure_retrieval(
    queries: Cases, index: Cases, *, k: int = 10, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> RetrievalReport:
    """nDCG@k and recall@k of `queries` against `index`, each with interval, and a random order's for comparison.

    Args:
        queries: usually the test split.
        index: usually the training split; where it holds a query's own patient, those cases are skipped.
        k: how many neighbours are looked at.
        resamples, confidence, seed: of the bootstrap over the queries' patients.

    Raises:
        DataError: embeddings or labels of different width, or k below 1.
    """
    scores = score_queries(queries, index, k=k)
    counted = ~np.isnan(scores.ndcg)
    means = Interval(), Interval(), Interval(), Interval(), Interval()
    if counted.any():
        columns = (
            scores.ndcg,
            scores.recall,
            scores.random_ndcg,
            scores.random_recall,
            scores.ndcg - scores.random_ndcg,
        )
        values = np.column_stack(columns)[counted]  # (Q', 5)
        drawn = Resamples.draw(np.asarray(queries.patients, dtype=np.str_)[counted], resamples, seed)
        means = bootstrap(lambda w: (w @ values) / w.sum(1, keepdims=True), drawn, confidence)  # type: ignore[assignment]
    ndcg, recall, random_ndcg, random_recall, gain = means
    return RetrievalReport(
        k=k,
        queries=int(counted.sum()),
        without_relevant=int((~counted).sum()),
        index=len(index.embeddings),
        ndcg=ndcg,
        recall=recall,
        random_ndcg=random_ndcg,
        random_recall=random_recall,
        gain_over_random=gain,
    )


def score_queries(queries: Cases, index: Cases, *, k: int = 10) -> QueryScores:
    """The scores of each query; see `QueryScores`. Equal similarities come in the order of the index."""
    if k < 1:
        raise DataError(f"k is {k}; look at one neighbour or more")
    if len(queries.embeddings) == 0 or len(index.embeddings) == 0:
        raise DataError("retrieval needs one query and one case or more; a split is empty")
    if np.shape(queries.embeddings)[1] != np.shape(index.embeddings)[1]:
        raise DataError(
            f"queries have {np.shape(queries.embeddings)[1]} dimensions and the index {np.shape(index.embeddings)[1]}; "
            "both must come from the same model"
        )
    pairs = LabelPairs(np.asarray(queries.target, dtype=np.float64), np.asarray(index.target, dtype=np.float64))
    to, those = _unit(queries.embeddings), _unit(index.embeddings)
    both = np.concatenate([np.asarray(cases.patients, dtype=np.str_) for cases in (queries, index)])
    patients, own = np.split(np.unique(both, return_inverse=True)[1], [len(to)])
    step = max(1, _BLOCK // max(1, len(those)))
    blocks = []
    for start in range(0, len(to), step):
        rows = slice(start, start + step)
        allowed = patients[rows, None] != own  # (r, M)
        gain = pairs.counts(rows).jaccard() * allowed
        similarity = np.where(allowed, to[rows] @ those.T, -np.inf)
        blocks.append(_score_block(similarity, gain, allowed, k))
    return QueryScores(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def _score_block(
    similarity: FloatArray, gain: FloatArray, allowed: npt.NDArray[np.bool_], k: int
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """nDCG, recall and their expectations in a random order, (r,) each, of queries (r, M)."""
    k = min(k, gain.shape[1])
    discount = 1 / np.log2(np.arange(2, k + 2))
    first = _largest(similarity, k)
    found = np.take_along_axis(gain, first, axis=1)  # (r, k); a case that is not allowed has gain 0
    best = np.take_along_axis(gain, _largest(gain, k), axis=1) @ discount
    number, relevant = allowed.sum(1), (gain > 0).sum(1)
    some = relevant > 0
    # In a random order of n cases each of the first min(k, n) places has the mean gain.
    places = np.minimum(k, number)
    mean_discount = np.concatenate([[0.0], np.cumsum(discount)])[places]
    return (
        _where(some, found @ discount, best),
        _where(some, (found > 0).sum(1), np.minimum(k, relevant)),
        _where(some, gain.sum(1) * mean_discount, number * best),
        _where(some, relevant * places, number * np.minimum(k, relevant)),
    )


def _largest(values: FloatArray, k: int) -> npt.NDArray[np.intp]:
    """Columns (r, k) of the k largest values of each row, the largest first."""
    columns = np.sort(np.argpartition(-values, k - 1, axis=1)[:, :k], axis=1)  # sorted, so that ties keep the order
    order = np.argsort(-np.take_along_axis(values, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def _where(some: npt.NDArray[np.bool_], part: npt.ArrayLike, whole: npt.ArrayLike) -> FloatArray:
    return np.divide(part, whole, out=np.full(some.shape, np.nan), where=some)


def _unit(embeddings: npt.ArrayLike) -> FloatArray:
    vectors = np.asarray(embeddings, dtype=np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
