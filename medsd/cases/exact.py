"""Exact search over a version of the index held in memory: one matrix product and a partition.

Measured at 200,000 × 128 on two cores: LanceDB's own flat search takes 8 to 20 times as long as this, because it
decodes every column from its pages anew for each query (tests/bench/bench_cases.py). So LanceDB keeps the record and
this answers, up to a size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medsd.cases.case import FILTER_COLUMNS, CaseFilter, FloatArray
from medsd.findings import FindingSet


@dataclass(frozen=True)
class Snapshot:
    """What a search reads, of one version of the table.

    Attributes:
        version: of the table.
        row_ids: uint64 (N,), where the store finds each case again in this version.
        embeddings: float32 (N, D), of unit length.
        labels: float32 (N, F): 1, 0, NaN.
        keys: pyarrow string arrays (N,) by column: study_key, patient_key, split.
        categories: pyarrow dictionary arrays (N,) by column of `FILTER_COLUMNS`.
    """

    version: int
    row_ids: npt.NDArray[np.uint64]
    embeddings: FloatArray
    labels: FloatArray
    keys: dict[str, Any]
    categories: dict[str, Any]

    def nearest(
        self, query: FloatArray, k: int, findings: FindingSet, filters: CaseFilter | None, patient: str, study: str
    ) -> tuple[npt.NDArray[np.intp], FloatArray]:
        """Positions and cosines of the k nearest cases that may be found, nearest first."""
        similarity = self.embeddings @ query  # (N,)
        barred = self._barred(findings, filters, patient, study)
        if barred is not None:
            similarity[barred] = -np.inf
        k = min(k, len(similarity))
        if k == 0:
            return np.zeros(0, np.intp), np.zeros(0, np.float32)
        best = np.argpartition(similarity, len(similarity) - k)[-k:]
        best = best[np.lexsort((best, -similarity[best]))]  # equal cosines in the order of the table
        best = best[similarity[best] > -np.inf]
        return best, similarity[best]

    def _barred(
        self, findings: FindingSet, filters: CaseFilter | None, patient: str, study: str
    ) -> npt.NDArray[np.bool_] | None:
        """True (N,) for the cases that must not be found; None when every case may."""
        parts = [
            _equals(self.keys[column], key) for column, key in (("patient_key", patient), ("study_key", study)) if key
        ]
        if filters:
            for names, value in ((filters.present, 1.0), (filters.absent, 0.0)):
                # NaN equals nothing: an unknown finding is neither present nor absent
                parts += [self.labels[:, findings.names.index(name)] != value for name in names]
            for column in FILTER_COLUMNS:
                if getattr(filters, column):
                    parts.append(~_is_in(self.categories[column], getattr(filters, column)))
        return np.logical_or.reduce(parts) if parts else None


def _equals(column: Any, value: str) -> npt.NDArray[np.bool_]:
    import pyarrow.compute as pc

    return pc.equal(column, value).to_numpy(zero_copy_only=False)


def _is_in(column: Any, values: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    codes = [code for code, word in enumerate(column.dictionary.to_pylist()) if word in values]
    return np.isin(column.indices.to_numpy(), codes)
