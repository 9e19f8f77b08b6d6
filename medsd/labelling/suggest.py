"""Which studies to label next: the rules of selection, on arrays.

Start at `suggest`. A study is worth a label where the model is unsure of it, where it lies far from everything that is
labelled or already chosen, and where its combination of findings is rare among those; the three are multiplied.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from medsd.sd.relations import LabelPairs, inverse_frequency_weights

FloatArray = npt.NDArray[np.float64]
_BLOCK = 4_000_000  # pairs of a study and a label set in memory at a time: 32 MB an array


@dataclass(frozen=True)
class Pool:
    """N studies, what the model says of them, and M that are labelled."""

    probs: FloatArray  # (N, F) calibrated
    embeddings: FloatArray  # (N, D) of unit length
    patients: npt.NDArray[np.str_]  # (N,) keys; a patient is suggested once, an empty key is a patient of its own
    labelled: FloatArray  # (M, F) labels: 1, 0, NaN, or probabilities where only those are known
    labelled_embeddings: FloatArray  # (M', D) where the labelled studies lie; M' may differ from M


@dataclass(frozen=True)
class Suggestion:
    row: int  # in the pool
    score: float  # uncertainty · diversity · rarity at the moment of choice, the powers of `Weights` applied
    uncertainty: float  # 0…1, see `uncertainty`
    diversity: float  # 0…1, the distance to the nearest labelled or chosen study: (1 − cosine) / 2
    rarity: float  # 0…1, how little its findings agree with those of the labelled and the chosen, see `agreement`


@dataclass(frozen=True)
class Weights:
    """Powers of the three factors; 0 leaves one out."""

    uncertainty: float = 1.0
    diversity: float = 1.0
    rarity: float = 1.0
    finding_power: float = 0.5  # of the inverse frequency by which findings count in the uncertainty; 0: all alike
    # "greedy" takes the highest score each time; "sample" draws in proportion to it, as k-means++ does with squared
    # distances (Arthur and Vassilvitskii, SODA 2007), which spares a long list its outliers.
    draw: Literal["greedy", "sample"] = "sample"


def suggest(pool: Pool, count: int, *, seed: int = 0, weights: Weights | None = None) -> list[Suggestion]:
    """Choose `count` studies of the pool, the most wanted first; fewer where the pool has fewer patients.

    Each choice joins what the next ones are compared with: in the learned space as one more place that is covered, in
    the rarity with its probabilities as the label set that may be expected. The same seed gives the same list.
    """
    weights = weights or Weights()
    # Findings that are rare among the labelled count more; without any, by what is expected of the pool.
    known_labels = pool.labelled if len(pool.labelled) else pool.probs
    unsure = uncertainty(pool.probs, inverse_frequency_weights(known_labels, weights.finding_power))
    agreed, known = agreement(pool.probs, pool.labelled), float(len(pool.labelled))
    distance = _nearest(pool.embeddings, pool.labelled_embeddings)
    generator, open_ = np.random.default_rng(seed), np.ones(len(unsure), dtype=bool)
    chosen: list[Suggestion] = []
    while len(chosen) < count and open_.any():
        rarity = 1 - agreed / known if known else np.ones_like(agreed)
        score = unsure**weights.uncertainty * distance**weights.diversity * rarity**weights.rarity
        row = _choose(np.where(open_, score, -1.0), weights.draw, generator)
        chosen.append(Suggestion(row, *(float(each[row]) for each in (score, unsure, distance, rarity))))
        open_[row] = False
        if patient := pool.patients[row]:
            open_ &= pool.patients != patient
        distance = np.minimum(distance, _as_distance(pool.embeddings @ pool.embeddings[row]))
        agreed, known = agreed + agreement(pool.probs, pool.probs[[row]]), known + 1
    return chosen


def uncertainty(probs: npt.ArrayLike, finding_weights: npt.ArrayLike) -> FloatArray:
    """(N,) in 0…1, how unsure the model is of each study: `finding_uncertainty`, averaged with weights (F,)."""
    weights = np.asarray(finding_weights, dtype=np.float64)
    return np.asarray(finding_uncertainty(probs) @ (weights / weights.sum()))


def finding_uncertainty(probs: npt.ArrayLike) -> FloatArray:
    """(N, F) in 0…1, how unsure the model is of each finding: the entropy in bits, highest at a probability of 0.5."""
    p = np.asarray(probs, dtype=np.float64).clip(0, 1)
    both = np.stack([p, 1 - p])  # scipy.special.entr is the same; `medsd suggest` runs where SciPy is not installed
    return -(both * np.log2(both, where=both > 0, out=np.zeros_like(both))).sum(axis=0)


def agreement(probs: npt.ArrayLike, labelled: npt.ArrayLike) -> FloatArray:
    """How much the findings of each study agree with those of the labelled ones: Σ K_s·K_d over them.

    S is the study's own set, its probabilities as soft labels, T a labelled one; the factors are those of the SD loss
    (`medsd.sd.relations`), so that a rare combination of common findings is rare here.

    Of `probs` (N, F) and `labelled` (M, F), in 0…1 or NaN, (N,) in 0…M. Equal rows are counted once and weighed.
    """
    table, given = np.asarray(probs, dtype=np.float64), np.asarray(labelled, dtype=np.float64)
    if not len(given):
        return np.zeros(len(table))
    sets, counts = np.unique(given, axis=0, return_counts=True)
    pairs, step = LabelPairs(table, sets), max(1, _BLOCK // len(sets))
    return np.concatenate(
        [pairs.counts(slice(start, start + step)).weight() @ counts for start in range(0, len(table), step)]
        or [np.zeros(0)]
    )


def _nearest(embeddings: FloatArray, places: FloatArray) -> FloatArray:
    """(N,) distance to the nearest of `places`; 1 where there are none."""
    distance = np.ones(len(embeddings))
    for start in range(0, len(places), step := max(1, _BLOCK // max(1, len(embeddings)))):
        cosine = (embeddings @ places[start : start + step].T).max(axis=1)
        distance = np.minimum(distance, _as_distance(cosine))
    return distance


def _as_distance(cosine: FloatArray) -> FloatArray:
    """A quarter of the squared distance of unit vectors, so that drawing by it is the D² sampling of k-means++."""
    return np.asarray(((1 - cosine) / 2).clip(0, 1))


def _choose(score: FloatArray, draw: str, generator: np.random.Generator) -> int:
    """A row by its score; rows with −1 are never taken. Where every score is 0, any of the open rows."""
    if draw == "greedy":
        return int(score.argmax())
    odds = score.clip(0)
    if not odds.sum() > 0:
        odds = (score >= 0).astype(np.float64)
    return int(generator.choice(len(odds), p=odds / odds.sum()))
