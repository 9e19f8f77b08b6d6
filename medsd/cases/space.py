"""The cases in a plane, for a map of the learned space: the first two principal components of their embeddings.

The projection is linear and deterministic: a new study can be laid into it, and the same index gives the same map.
Neighbours on the map need not be neighbours in the whole space.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medsd.cases.case import FloatArray
from medsd.cases.index import CaseIndex
from medsd.errors import DataError

MOST_POINTS = 1500  # on a map, that a browser draws with ease


@dataclass(frozen=True)
class CasePlane:
    rows: npt.NDArray[np.int64]  # (P,) of the cases shown, as `CaseIndex.table` has them; evenly spread if too many
    points: FloatArray  # (P, 2), their places
    embeddings: FloatArray  # (P, D) of the cases shown
    centre: FloatArray  # (D,), the mean of all embeddings
    axes: FloatArray  # (2, D), the components, of unit length; of each the largest number is positive
    explained: float  # share of the variance that the two keep, 0…1
    total: int  # cases in the index

    def place(self, embedding: FloatArray) -> tuple[float, float]:
        """Where a study of this embedding (D,) lies on the map."""
        x, y = self.axes @ (np.asarray(embedding, np.float32) - self.centre)
        return float(x), float(y)


def lay_out(index: CaseIndex, most: int = MOST_POINTS) -> CasePlane:
    """The map of an index, with `most` cases on it; all of them decide where its axes lie.

    Raises DataError if there are fewer than two cases.
    """
    embeddings = np.asarray(index.embeddings(), np.float32)  # (N, D)
    if len(embeddings) < 2:
        raise DataError(f"a map needs two cases or more; this index has {len(embeddings)}")
    centre = embeddings.mean(axis=0, dtype=np.float64)
    # The scatter matrix is D × D, however many cases there are.
    scatter = embeddings.T.astype(np.float64) @ embeddings - len(embeddings) * np.outer(centre, centre)
    variances, vectors = np.linalg.eigh(scatter)  # ascending
    axes = vectors[:, ::-1][:, :2].T  # (2, D)
    largest = axes[np.arange(2), np.abs(axes).argmax(axis=1)]
    axes = (axes * np.sign(largest)[:, None]).astype(np.float32)
    rows = np.unique(np.linspace(0, len(embeddings) - 1, min(most, len(embeddings))).round().astype(np.int64))
    shown = embeddings[rows]
    total = float(np.clip(variances, 0, None).sum())
    return CasePlane(
        rows=rows,
        points=(shown - centre.astype(np.float32)) @ axes.T,
        embeddings=shown,
        centre=centre.astype(np.float32),
        axes=axes,
        explained=float(np.clip(variances[-2:], 0, None).sum()) / total if total > 0 else 0.0,
        total=len(embeddings),
    )
