"""How well the learned space finds similar cases; start at `measure_retrieval`.

nDCG and recall take the Jaccard overlap of the known findings as gain, by the set algebra of the loss
(`medsd.sd.relations`); `Rankings` holds the figures of published image retrieval. They are computed here because a
bundle is measured without torch, which torchmetrics needs; the tests hold each against torchmetrics.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.metrics.intervals import Interval, IntervalOptions, bootstrap
from medsd.metrics.metrics import FloatArray, Keys, ratio
from medsd.sd.relations import LabelPairs, PairCounts
from medsd.strict import Described

_BLOCK = 2_000_000  # pairs in memory at a time
FIGURES = ("Chance", "P@1", "P@5", "P@10", "mAP", "Recall@5", "Hit@5", "nDCG@10", "nDCG@100")


@dataclass(frozen=True)
class Cases:
    """Studies in the learned space: embeddings (N, D), compared by cosine; target (N, F) 1, 0, NaN; patients (N,)."""

    embeddings: npt.NDArray[np.floating]
    target: npt.NDArray[np.floating]
    patients: Keys

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

    nDCG: Σ_r gain_r / log2(r + 1) over the first k, over that of the best order (Järvelin and Kekäläinen 2002); recall:
    relevant cases (any overlap) among the first k over min(k, relevant cases); both for a random order, in closed form.
    """

    ndcg: FloatArray
    recall: FloatArray
    random_ndcg: FloatArray
    random_recall: FloatArray


class Ranked(Described):
    """The mean of each of `FIGURES` over some queries; `without_relevant` are left out, as nothing is relevant to them.

    Figures lie in 0…1 (see `score_rankings`). None has a value where the queries are of too few patients.
    """

    queries: int
    without_relevant: int
    figures: dict[str, Interval]


class Rankings(Described):
    """The figures of published image retrieval, over all queries, those with a known finding, and the others.

    In `findings` the queries have the finding, and so must a relevant case; `mean` is over the `over` with enough
    cases.
    """

    images: Ranked
    with_finding: Ranked
    without_finding: Ranked
    findings: dict[str, Ranked]
    mean: dict[str, Interval]
    over: int


class RetrievalReport(Described):
    """Means over the queries with patient-level intervals.

    `queries` leaves out those `without_relevant`: no case of another patient shares a known finding (or, for a query
    without findings, has none). `index` counts cases; `gain_over_random` is nDCG minus that of a random order.
    """

    k: int
    queries: int
    without_relevant: int
    index: int
    ndcg: Interval
    recall: Interval
    random_ndcg: Interval
    random_recall: Interval
    gain_over_random: Interval
    rankings: Rankings | None = None


@dataclass(frozen=True)
class _Means:
    """Means over queries (Q,) of these patients, with intervals; a query without a value (NaN) is left out."""

    patients: npt.NDArray[np.str_]
    options: IntervalOptions

    def told(self, values: FloatArray, minimum: int) -> npt.NDArray[np.bool_]:
        """Which of the layers (L,) of values (L, Q, K) have queries of `minimum` patients or more."""
        return self._of_patients(values) >= max(1, minimum)

    def of(
        self, values: FloatArray, *, minimum: int = 1, bounds: tuple[float, float] = (-np.inf, np.inf)
    ) -> tuple[Interval, ...]:
        """The means (K,) of values (L, Q, K) over the queries, then over the layers that can be told."""
        told = self.told(values, minimum)
        if not told.any():
            return (Interval(),) * values.shape[2]
        cases, values = int(self._of_patients(values)[told].min()), values[told]
        some = ~np.isnan(values[:, :, 0]).all(0)
        counted = (~np.isnan(values[:, some, 0])).astype(np.float64)  # (L, Q')
        filled = np.nan_to_num(values[:, some])

        def statistic(weights: FloatArray) -> FloatArray:
            number = (counted @ weights.T)[:, :, None]  # (L, R, 1)
            means: FloatArray = ratio(weights @ filled, number).mean(0)
            return means

        return bootstrap(statistic, self.options.draw(self.patients[some]), self.options.confidence, bounds, cases)

    def _of_patients(self, values: FloatArray) -> npt.NDArray[np.int64]:
        return np.array([len(np.unique(self.patients[~np.isnan(layer[:, 0])])) for layer in values])


def measure_retrieval(
    queries: Cases, index: Cases, options: IntervalOptions | None = None, *, k: int = 10, names: Sequence[str] = ()
) -> RetrievalReport:
    """nDCG@k and recall@k of `queries` against `index`, with intervals, and those of a random order for comparison.

    Cases of a query's own patient are skipped. With `names` of the F findings, `Rankings` are measured, too.

    Embeddings or labels of different width are a DataError.
    """
    scores = score_queries(queries, index, k=k)
    means = _Means(np.asarray(queries.patients, dtype=np.str_), options or IntervalOptions())
    columns = {**vars(scores), "gain_over_random": scores.ndcg - scores.random_ndcg}
    found = means.of(np.column_stack(list(columns.values()))[None])
    counted = ~np.isnan(scores.ndcg)
    return RetrievalReport(
        k=k,
        queries=int(counted.sum()),
        without_relevant=int((~counted).sum()),
        index=len(index.embeddings),
        **dict(zip(columns, found, strict=True)),
        rankings=_rankings(queries, index, names, means) if names else None,
    )


def _rankings(queries: Cases, index: Cases, names: Sequence[str], means: _Means) -> Rankings:
    minimum = means.options.minimum_positives
    overall, by_finding = score_rankings(queries, index)
    has = np.asarray(queries.target) == 1  # (Q, F)
    with_finding = has.any(1)

    def ranked(values: FloatArray, asked: npt.NDArray[np.bool_]) -> Ranked:
        values = np.where(asked[:, None], values, np.nan)
        counted = int((~np.isnan(values[:, 0])).sum())
        figures = dict(zip(FIGURES, means.of(values[None], minimum=minimum, bounds=(0, 1)), strict=True))
        return Ranked(queries=counted, without_relevant=int(asked.sum()) - counted, figures=figures)

    return Rankings(
        images=ranked(overall, np.ones(len(has), dtype=bool)),
        with_finding=ranked(overall, with_finding),
        without_finding=ranked(overall, ~with_finding),
        findings={name: ranked(by_finding[f], has[:, f]) for f, name in enumerate(names)},
        mean=dict(zip(FIGURES, means.of(by_finding, minimum=minimum, bounds=(0, 1)), strict=True)),
        over=int(means.told(by_finding, minimum).sum()),
    )


def score_queries(queries: Cases, index: Cases, *, k: int = 10) -> QueryScores:
    """The scores of each query; see `QueryScores`. Equal similarities come in the order of the index."""
    blocks = [
        _score_block(similarity, counts.jaccard() * allowed, allowed, k)
        for _, similarity, allowed, counts in _blocks(queries, index)
    ]
    return QueryScores(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def score_rankings(queries: Cases, index: Cases) -> tuple[FloatArray, FloatArray]:
    """The figures of published image retrieval of each query, over the whole ranking of the other patients' cases.

    Over all findings a case is relevant that shares a known finding with the query, or has none as the query has none;
    its gain is 2^r − 1 for r shared findings, 1 for two without (Zhao et al., CVPR 2015). For one finding, the queries
    have it, and a case is relevant (gain 1) that has it. A case whose label is unknown is not relevant.

    - Chance: relevant cases over all cases, the precision of a random order.
    - P@k: relevant cases among the first k, over k.
    - mAP: the mean of the precision at the rank of every relevant case.
    - Recall@5: relevant cases among the first 5, over all that are relevant.
    - Hit@5: 1 if one of the first 5 is relevant, which metric learning calls Recall@5 (Oh Song et al., CVPR 2016).
    - nDCG@k: Σ_i gain_i / log2(i + 1) over the first k, divided by that of the best order.

    Returns (Q, K) over all findings and (F, Q, K) for each, in the order of `FIGURES`; NaN where nothing is relevant,
    or a query does not have the finding.
    """
    has, present = np.asarray(queries.target) == 1, np.asarray(index.target) == 1
    number, findings = has.shape
    overall, by_finding = (np.full((*shape, number, len(FIGURES)), np.nan) for shape in ((), (findings,)))
    for rows, similarity, allowed, counts in _blocks(queries, index):
        order = np.argsort(-similarity, axis=1, kind="stable")
        shared = counts.shared if counts.both_empty is None else counts.shared + counts.both_empty
        cases = allowed.sum(1)
        overall[rows] = _figures(np.take_along_axis((2**shared - 1) * allowed, order, axis=1), cases)
        for f in range(findings):
            asked = np.flatnonzero(has[rows, f])
            relevant = np.take_along_axis(present[:, f] & allowed[asked], order[asked], axis=1)
            by_finding[f, rows][asked] = _figures(relevant.astype(np.float64), cases[asked])
    return overall, by_finding


def _figures(gain: FloatArray, cases: npt.NDArray[np.int64]) -> FloatArray:
    """`FIGURES` (r, K) of gains (r, M) in the order of the ranking, of which the first `cases` (r,) are candidates."""
    length = gain.shape[1]
    relevant = gain > 0
    hits = np.cumsum(relevant, axis=1)
    total = hits[:, -1]
    precisions = (hits / np.arange(1, length + 1) * relevant).sum(1)
    first = {k: hits[:, min(k, length) - 1] for k in (1, 5, 10)}
    columns = [
        ratio(total, cases),
        *(found / k for k, found in first.items()),
        *(ratio(part, total) for part in (precisions, first[5])),
        first[5] > 0,
        *(_ndcg(gain, k) for k in (10, 100)),
    ]
    return np.where(total[:, None] > 0, np.column_stack(columns), np.nan)


def _ndcg(gain: FloatArray, k: int) -> FloatArray:
    """nDCG (r,) of the first k of gains (r, M) in the order of the ranking."""
    k = min(k, gain.shape[1])
    discount = 1 / np.log2(np.arange(2, k + 2))
    best = np.take_along_axis(gain, _largest(gain, k), axis=1) @ discount
    return ratio(gain[:, :k] @ discount, best)


def _blocks(queries: Cases, index: Cases) -> Iterator[tuple[slice, FloatArray, npt.NDArray[np.bool_], PairCounts]]:
    """Rows of the queries, with (r, M) cosines (−∞ for the own patient's cases), other patients' cases, and set sizes.

    Raises DataError: embeddings or labels of different width, or none.
    """
    if len(queries.embeddings) == 0 or len(index.embeddings) == 0:
        raise DataError("retrieval needs one query and one case or more; a split is empty")
    if np.shape(queries.embeddings)[1] != np.shape(index.embeddings)[1]:
        raise DataError(
            f"queries have {np.shape(queries.embeddings)[1]} dimensions and the index {np.shape(index.embeddings)[1]}; "
            "both must come from the same model"
        )
    pairs = LabelPairs(np.asarray(queries.target, dtype=np.float64), np.asarray(index.target, dtype=np.float64))
    to, those = unit(queries.embeddings), unit(index.embeddings)
    both = np.concatenate([np.asarray(cases.patients, dtype=np.str_) for cases in (queries, index)])
    patients, own = np.split(np.unique(both, return_inverse=True)[1], [len(to)])
    step = max(1, _BLOCK // len(those))
    for start in range(0, len(to), step):
        rows = slice(start, start + step)
        allowed = patients[rows, None] != own  # (r, M)
        yield rows, np.where(allowed, to[rows] @ those.T, -np.inf), allowed, pairs.counts(rows)


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
        ratio(found @ discount, best, some),
        ratio((found > 0).sum(1), np.minimum(k, relevant), some),
        ratio(gain.sum(1) * mean_discount, number * best, some),
        ratio(relevant * places, number * np.minimum(k, relevant), some),
    )


def _largest(values: FloatArray, k: int) -> npt.NDArray[np.intp]:
    """Columns (r, k) of the k largest values of each row, the largest first."""
    columns = np.sort(np.argpartition(-values, k - 1, axis=1)[:, :k], axis=1)  # sorted, so that ties keep the order
    order = np.argsort(-np.take_along_axis(values, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def unit(embeddings: npt.ArrayLike) -> FloatArray:
    """Embeddings (N, D) scaled to unit length."""
    vectors = np.asarray(embeddings, dtype=np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
