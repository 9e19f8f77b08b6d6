"""Exact search over a version of the index in memory: one matrix product and a partition.

At 200,000 × 128 on two cores LanceDB's own flat search takes eight times as long or more (tests/bench/bench_cases.py),
because it reads and decodes the vectors for each query.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from medsd.cases.case import FILTER_COLUMNS, CaseFilter, Excluded, FloatArray
from medsd.findings import FindingSet
from medsd.sd.relations import LabelPairs

Positions = npt.NDArray[np.intp]
# The same image under two keys gives the same embedding up to rounding.
SAME_EMBEDDING = 1e-6
_CANDIDATES = 5_000  # best fits of a findings query that are ordered by how typical they are
_SAME_FIT = 1e-6
_TINY = 1e-12


@dataclass(frozen=True)
class Snapshot:
    """What a search reads, of one version of the table."""

    row_ids: npt.NDArray[np.uint64]  # (N,), where the store finds each case again in this version
    embeddings: FloatArray | None  # (N, D) of unit length; None if they are too large for memory
    labels: FloatArray  # (N, F): 1, 0, NaN
    attributes: pa.Table  # N rows of text: the keys, the split and `FILTER_COLUMNS`

    def nearest(
        self, query: FloatArray, k: int, findings: FindingSet, filters: CaseFilter | None, excluded: Excluded
    ) -> tuple[Positions, FloatArray]:
        """Positions and cosines of the k nearest cases that may be found, nearest first, none twice."""
        embeddings = self.embeddings
        assert embeddings is not None  # the store scans its table instead
        similarity = embeddings @ query  # (N,)
        barred = self._barred(findings, filters, excluded)
        allowed = None if barred is None else np.flatnonzero(~barred)
        scores = similarity if allowed is None else similarity[allowed]

        def find(count: int) -> tuple[Positions, Sequence[str], FloatArray]:
            best = _largest(scores, count)
            best = best if allowed is None else allowed[best]
            return best, self._study_keys(best), embeddings[best]

        positions = nearest_distinct(find, k)
        return positions, similarity[positions]

    def fits(
        self, wanted: FloatArray, findings: FindingSet, filters: CaseFilter | None
    ) -> tuple[Positions, FloatArray]:
        """Positions of all cases whose findings fit a wanted set (F,), best first, and how well each does: K_s·K_d.

        A case that shares nothing with the set is left out. If nothing is wanted, it is K_d, so that cases with fewer
        findings come first.
        """
        counts = LabelPairs(wanted[None], self.labels).counts()
        fit = np.asarray(counts.weight() if wanted.any() else counts.dissimilarity())[0]  # (N,)
        barred = self._barred(findings, filters, {})
        allowed = np.flatnonzero((fit > 0) if barred is None else (fit > 0) & ~barred)
        best = allowed[np.argsort(-fit[allowed], kind="stable")]
        return best, fit[best]

    def matching(
        self,
        wanted: FloatArray,
        k: int,
        findings: FindingSet,
        filters: CaseFilter | None,
        vectors: Callable[[Positions], FloatArray],
    ) -> tuple[Positions, FloatArray]:
        """Positions of the k cases whose findings fit a wanted set (F,) best, and how typical each is.

        Cases are ordered as `fits` does; equal fits by the cosine to the mean of the best fits, which is returned too.
        `vectors` reads the embeddings (M, D) at positions.
        """
        best, fit = self.fits(wanted, findings, filters)
        best, fit = best[: (most := max(_CANDIDATES, 4 * k))], fit[:most]
        if not len(best):
            return best, np.zeros(0, np.float32)
        embeddings = vectors(best)
        centre = embeddings[fit >= fit[0] - _SAME_FIT].mean(0)
        typical = embeddings @ (centre / max(float(np.linalg.norm(centre)), _TINY))
        order = np.lexsort((best, -typical, -fit.round(6)))
        chosen = order[distinct(self._study_keys(best[order]), embeddings[order], k)]
        return best[chosen], typical[chosen]

    def take(self, positions: Positions) -> "Snapshot":
        """The cases at `positions`, in that order, without their embeddings."""
        return Snapshot(self.row_ids[positions], None, self.labels[positions], self.attributes.take(positions))

    def _study_keys(self, positions: Positions) -> list[str]:
        return self.attributes["study_key"].take(positions).to_pylist()

    def _barred(
        self, findings: FindingSet, filters: CaseFilter | None, excluded: Excluded
    ) -> npt.NDArray[np.bool_] | None:
        """True (N,) for the cases that must not be found; None if every case may be."""
        parts = [self._is_in(column, keys) for column, keys in excluded.items()]
        if filters:
            for names, value in ((filters.present, 1.0), (filters.absent, 0.0)):
                # NaN equals nothing: an unknown finding is neither present nor absent
                parts += [self.labels[:, findings.names.index(name)] != value for name in names]
            wanted = {column: getattr(filters, column) for column in FILTER_COLUMNS}
            parts += [~self._is_in(column, values) for column, values in wanted.items() if values]
        return np.logical_or.reduce(parts) if parts else None

    def _is_in(self, column: str, values: Sequence[str]) -> npt.NDArray[np.bool_]:
        return pc.is_in(self.attributes[column], value_set=pa.array(values, pa.string())).to_numpy()


def nearest_distinct(find: Callable[[int], tuple[Positions, Sequence[str], FloatArray]], k: int) -> Positions:
    """The k nearest without duplicates.

    `find` gives, for a count m, the m nearest: positions, study keys and embeddings (m, D), nearest first.
    """
    count = 2 * k + 8  # room for duplicates, so that one search is nearly always enough
    while k > 0:
        positions, keys, embeddings = find(count)
        kept = distinct(keys, embeddings, k)
        if len(kept) == k or len(positions) < count:
            return positions[kept]
        count *= 2
    return np.zeros(0, np.intp)


def distinct(study_keys: Sequence[str], embeddings: FloatArray, k: int) -> list[int]:
    """The first k positions without duplicates; of each set of duplicates the first stays.

    A case is a duplicate if an earlier one, duplicates included, has its study key or, up to rounding, its embedding.
    """
    kept: list[int] = []
    keys: set[str] = set()
    first = np.ascontiguousarray(embeddings[:, 0])  # few agree in one number, so that few are compared in all
    for position, (key, embedding) in enumerate(zip(study_keys, embeddings, strict=True)):
        if len(kept) == k:
            break
        near = np.flatnonzero(np.abs(first[:position] - first[position]) <= SAME_EMBEDDING)
        same = np.abs(embeddings[near] - embedding).max(1) <= SAME_EMBEDDING
        if key not in keys and not same.any():
            kept.append(position)
        keys |= {key} - {""}
    return kept


def _largest(scores: FloatArray, count: int) -> Positions:
    """Positions of the largest scores, largest first, equal ones in the order of the table."""
    count = min(count, len(scores))
    if count == 0:
        return np.zeros(0, np.intp)
    best = np.argpartition(scores, len(scores) - count)[len(scores) - count :]
    return best[np.lexsort((best, -scores[best]))]
