"""Exact search over a version of the index held in memory: one matrix product and a partition.

Measured at 200,000 × 128 on two cores (tests/bench/bench_cases.py): LanceDB's own flat search takes eight times as long
as NumPy's product or more, because it reads and decodes the vectors anew for each query. So LanceDB keeps the record
and this answers, up to a size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medsd.cases.case import FILTER_COLUMNS, CaseFilter, FloatArray
from medsd.findings import FindingSet
from medsd.sd.relations import LabelPairs

Positions = npt.NDArray[np.intp]
# The same film under two keys gives the same embedding but for the rounding of another batch size.
SAME_EMBEDDING = 1e-6
# How many of the best fits of a findings query are put in order by how typical they are; bounds what is read.
_CANDIDATES = 5_000
_SAME_FIT = 1e-6
_TINY = 1e-12


@dataclass(frozen=True)
class Snapshot:
    """What a search reads, of one version of the table.

    Attributes:
        row_ids: uint64 (N,), where the store finds each case again in this version.
        embeddings: float32 (N, D), of unit length; None where they are too many for memory.
        labels: float32 (N, F): 1, 0, NaN.
        keys: pyarrow string arrays (N,) by column: study_key, patient_key, split.
        categories: pyarrow dictionary arrays (N,) by column of `FILTER_COLUMNS`.
    """

    row_ids: npt.NDArray[np.uint64]
    embeddings: FloatArray | None
    labels: FloatArray
    keys: dict[str, Any]
    categories: dict[str, Any]

    def nearest(
        self,
        query: FloatArray,
        k: int,
        findings: FindingSet,
        filters: CaseFilter | None,
        patients: Sequence[str],
        studies: Sequence[str],
    ) -> tuple[Positions, FloatArray]:
        """Positions and cosines of the k nearest cases that may be found, nearest first, none twice."""
        embeddings = self.embeddings
        assert embeddings is not None  # the store scans its table instead
        similarity = embeddings @ query  # (N,)
        barred = self._barred(findings, filters, patients, studies)
        allowed = None if barred is None else np.flatnonzero(~barred)
        scores = similarity if allowed is None else similarity[allowed]

        def find(count: int) -> tuple[Positions, Sequence[str], FloatArray]:
            best = _largest(scores, count)
            best = best if allowed is None else allowed[best]
            return best, self.keys["study_key"].take(best).to_pylist(), embeddings[best]

        positions = nearest_distinct(find, k)
        return positions, similarity[positions]

    def matching(
        self,
        wanted: FloatArray,
        k: int,
        findings: FindingSet,
        filters: CaseFilter | None,
        vectors: Callable[[Positions], FloatArray],
    ) -> tuple[Positions, FloatArray]:
        """Positions of the k cases whose findings fit a wanted set (F,) best, and how typical each is.

        Best fit first, by K_s·K_d of the wanted set; a case that shares nothing with it is no answer. Where nothing is
        wanted, the fewer findings a case has the better. Among equal fits the most typical come first: the cosine to
        the mean of the best ones, also given. `vectors` reads the embeddings (M, D) at positions.
        """
        counts = LabelPairs(wanted[None], self.labels).counts()
        fit = np.asarray(counts.weight() if wanted.any() else counts.dissimilarity())[0]  # (N,)
        barred = self._barred(findings, filters)
        allowed = np.flatnonzero((fit > 0) if barred is None else (fit > 0) & ~barred)
        best = allowed[np.argsort(-fit[allowed], kind="stable")[: max(_CANDIDATES, 4 * k)]]
        if not len(best):
            return best, np.zeros(0, np.float32)
        embeddings = vectors(best)
        centre = embeddings[fit[best] >= fit[best[0]] - _SAME_FIT].mean(0)
        typical = embeddings @ (centre / max(float(np.linalg.norm(centre)), _TINY))
        order = np.lexsort((best, -typical, -fit[best].round(6)))

        def find(count: int) -> tuple[Positions, Sequence[str], FloatArray]:
            first = order[:count]
            return first, self.keys["study_key"].take(best[first]).to_pylist(), embeddings[first]

        chosen = nearest_distinct(find, k)
        return best[chosen], typical[chosen]

    def _barred(
        self,
        findings: FindingSet,
        filters: CaseFilter | None,
        patients: Sequence[str] = (),
        studies: Sequence[str] = (),
    ) -> npt.NDArray[np.bool_] | None:
        """True (N,) for the cases that must not be found; None when every case may."""
        keys = (("patient_key", patients), ("study_key", studies))
        parts = [_equals(self.keys[column], key) for column, given in keys for key in given if key]
        if filters:
            for names, value in ((filters.present, 1.0), (filters.absent, 0.0)):
                # NaN equals nothing: an unknown finding is neither present nor absent
                parts += [self.labels[:, findings.names.index(name)] != value for name in names]
            for column in FILTER_COLUMNS:
                if getattr(filters, column):
                    parts.append(~_is_in(self.categories[column], getattr(filters, column)))
        return np.logical_or.reduce(parts) if parts else None


def nearest_distinct(find: Callable[[int], tuple[Positions, Sequence[str], FloatArray]], k: int) -> Positions:
    """The k nearest without duplicates.

    Args:
        find: gives, for a count m, the m nearest: positions, study keys and embeddings (m, D), nearest first.
        k: how many are wanted.
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

    A case is a duplicate when it shares its study key with an earlier one, duplicates included, or its embedding is
    equal to that of one up to rounding.
    """
    kept: list[int] = []
    keys: set[str] = set()
    for position, (key, embedding) in enumerate(zip(study_keys, embeddings, strict=True)):
        if len(kept) == k:
            break
        if key not in keys and not _has_equal(embeddings[:position], embedding):
            kept.append(position)
        keys |= {key} - {""}
    return kept


def _has_equal(embeddings: FloatArray, embedding: FloatArray) -> bool:
    return bool((np.abs(embeddings - embedding).max(1) <= SAME_EMBEDDING).any())


def _largest(scores: FloatArray, count: int) -> Positions:
    """Positions of the largest scores, largest first, equal ones in the order of the table."""
    count = min(count, len(scores))
    if count == 0:
        return np.zeros(0, np.intp)
    best = np.argpartition(scores, len(scores) - count)[len(scores) - count :]
    return best[np.lexsort((best, -scores[best]))]


def _equals(column: Any, value: str) -> npt.NDArray[np.bool_]:
    import pyarrow.compute as pc

    return pc.equal(column, value).to_numpy(zero_copy_only=False)


def _is_in(column: Any, values: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    chosen = np.array([word in values for word in column.dictionary.to_pylist()], bool)  # one a code
    return chosen[column.indices.to_numpy()]
