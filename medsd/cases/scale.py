"""Where a cosine stands among training pairs of the same relation.

The model has seen these pairs, so new studies tend to stand a little lower.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medsd.cases.case import FloatArray
from medsd.cases.described import RELATION_WORDS, SimilarityScale
from medsd.sd.relations import relation_matrix

ROWS = 1500  # cases whose pairs are looked at: about a million
POINTS = 33
FEWEST = 200  # pairs of a relation; fewer give no percentile


def fit_scale(
    embeddings: FloatArray, labels: npt.ArrayLike, patients: Sequence[str], *, seed: int = 0
) -> SimilarityScale | None:
    """The quantiles of the cosine by relation, over pairs of different patients; None if all have too few.

    `embeddings` are (N, D) of unit length, `labels` (N, F) 1, 0 or NaN, `patients` N keys, of which an empty one is a
    patient of its own. If there are more than `ROWS` cases, that many are drawn by `seed`.
    """
    rows = np.arange(len(embeddings))
    if len(rows) > ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, ROWS, replace=False))
    if len(rows) < 2:
        return None
    chosen = np.asarray(embeddings)[rows]
    cosines = chosen @ chosen.T
    relations = np.asarray(relation_matrix(np.asarray(labels)[rows]))
    whose = np.asarray(patients, dtype=str)[rows]
    apart = (whose[:, None] != whose) | (whose == "")  # (N, N) True for pairs of two patients
    np.fill_diagonal(apart, False)
    found = {word: cosines[(relations == number) & apart] for number, word in RELATION_WORDS.items()}
    levels = np.linspace(0, 1, POINTS)
    quantiles = {
        word: tuple(np.quantile(values.astype(np.float64), levels).round(5).tolist())
        for word, values in found.items()
        if len(values) >= FEWEST
    }
    if not quantiles:
        return None
    return SimilarityScale(pairs={word: len(values) for word, values in found.items()}, quantiles=quantiles)
