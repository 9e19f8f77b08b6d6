"""Which studies to label next: the rules of selection, on arrays.

Start at `suggest`. A study is worth a label where the model is unsure of it, where it lies far from everything that is
labelled or already chosen, and where its combination of findings is rare among those; the three are multiplied, so that
none can buy off another. Plain NumPy; `medsd.labelling.pool` brings films and runs here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.sd.relations import LabelPairs, inverse_frequency_weights

FloatArray = npt.NDArray[np.float64]
Measure = Literal["entropy", "margin"]
_BLOCK = 4_000_000  # pairs of a study and a label set in memory at a time: 32 MB an array
_FEW = 1e-12


@dataclass(frozen=True)
class Pool:
    """N studies, what the model says of them, and M that are labelled.

    Attributes:
        probs: (N, F) calibrated probabilities.
        embeddings: (N, D) of unit length.
        patients: (N,) keys; a patient is suggested once. An empty key is a patient of its own.
        labelled: (M, F) labels of the labelled studies: 1, 0, NaN, or probabilities where only those are known.
        labelled_embeddings: (M', D) where they lie; M' may differ from M.
        thresholds: (F,) operating points, NaN where there is none.
    """

    probs: FloatArray
    embeddings: FloatArray
    patients: npt.NDArray[np.str_]
    labelled: FloatArray
    labelled_embeddings: FloatArray
    thresholds: FloatArray

    def __post_init__(self) -> None:
        count, findings = self.probs.shape
        wanted = {
            "embeddings": (self.embeddings.shape[0], count),
            "patients": (self.patients.shape[0], count),
            "labelled": (self.labelled.shape[1], findings),
            "labelled_embeddings": (self.labelled_embeddings.shape[1], self.embeddings.shape[1]),
            "thresholds": (self.thresholds.shape[0], findings),
        }
        for name, (found, needed) in wanted.items():
            if found != needed:
                raise DataError(f"{name} has {found} entries where probs and embeddings have {needed}")


@dataclass(frozen=True)
class Suggestion:
    """One study to label.

    Attributes:
        row: in the pool.
        score: uncertainty · diversity · rarity at the moment of choice, the powers of `Weights` applied.
        uncertainty: 0…1, see `uncertainty`.
        diversity: 0…1, the distance to the nearest labelled or chosen study: (1 − cosine) / 2.
        rarity: 0…1, how little its findings agree with those of the labelled and the chosen, see `agreement`.
    """

    row: int
    score: float
    uncertainty: float
    diversity: float
    rarity: float


@dataclass(frozen=True)
class Weights:
    """Powers of the three factors; 0 leaves one out.

    Attributes:
        uncertainty, diversity, rarity: of the factor's value.
        measure: of the uncertainty.
        finding_power: of the inverse frequency by which findings count in the uncertainty; 0 counts them alike.
        draw: "greedy" takes the highest score each time; "sample" draws in proportion to it, as k-means++ does with
            squared distances (Arthur and Vassilvitskii, SODA 2007), which spares a long list its outliers.
    """

    uncertainty: float = 1.0
    diversity: float = 1.0
    rarity: float = 1.0
    measure: Measure = "entropy"
    finding_power: float = 0.5
    draw: Literal["greedy", "sample"] = "sample"


def suggest(pool: Pool, count: int, *, seed: int = 0, weights: Weights | None = None) -> list[Suggestion]:
    """Choose `count` studies of the pool, the most wanted first; fewer where the pool has fewer patients.

    Each choice joins what the next ones are compared with: in the learned space as one more place that is covered, in
    the rarity with its probabilities as the label set that may be expected. The same seed gives the same list.
    """
    weights = weights or Weights()
    unsure = uncertainty(
        pool.probs,
        measure=weights.measure,
        thresholds=pool.thresholds,
        finding_weights=_finding_weights(pool, weights.finding_power),
    )
    agreed, known = agreement(pool.probs, pool.labelled), float(len(pool.labelled))
    distance = _nearest(pool.embeddings, pool.labelled_embeddings)
    generator, open_ = np.random.default_rng(seed), np.ones(len(unsure), dtype=bool)
    chosen: list[Suggestion] = []
    while len(chosen) < count and open_.any():
        rarity = 1 - agreed / known if known else np.ones_like(agreed)
        score = unsure**weights.uncertainty * distance**weights.diversity * rarity**weights.rarity
        row = _choose(np.where(open_, score, -1.0), weights.draw, generator)
        chosen.append(Suggestion(row, *(float(each[row]) for each in (score, unsure, distance, rarity))))
        open_ &= ~_same_patient(pool.patients, row)
        distance = np.minimum(distance, _distances(pool.embeddings, pool.embeddings[row]))
        agreed, known = agreed + agreement(pool.probs, pool.probs[[row]]), known + 1
    return chosen


def uncertainty(
    probs: npt.ArrayLike,
    *,
    measure: Measure = "entropy",
    thresholds: npt.ArrayLike | None = None,
    finding_weights: npt.ArrayLike | None = None,
) -> FloatArray:
    """How unsure the model is of each study: the weighted mean over the findings of `finding_uncertainty`.

    Returns:
        (N,) in 0…1.
    """
    each = finding_uncertainty(probs, measure=measure, thresholds=thresholds)
    weights = np.ones(each.shape[1]) if finding_weights is None else np.asarray(finding_weights, dtype=np.float64)
    return np.asarray(each @ (weights / weights.sum()))


def finding_uncertainty(
    probs: npt.ArrayLike, *, measure: Measure = "entropy", thresholds: npt.ArrayLike | None = None
) -> FloatArray:
    """How unsure the model is of each finding of each study.

    Args:
        probs: (N, F) calibrated probabilities.
        measure: "entropy" in bits, highest at one half; or "margin", which falls linearly from the operating point,
            where a call turns over, to 0 at the probabilities 0 and 1.
        thresholds: (F,) operating points of the margin; one half where NaN or absent.

    Returns:
        (N, F) in 0…1.
    """
    p = np.asarray(probs, dtype=np.float64).clip(0, 1)
    if measure == "entropy":
        both = np.stack([p, 1 - p])  # scipy.special.entr is the same; `medsd suggest` runs where SciPy is not installed
        return -(both * np.log2(both, where=both > 0, out=np.zeros_like(both))).sum(axis=0)
    points = np.full(p.shape[1], 0.5) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    points = np.where(np.isnan(points), 0.5, points).clip(_FEW, 1 - _FEW)
    return np.where(p < points, p / points, (1 - p) / (1 - points))


def agreement(probs: npt.ArrayLike, labelled: npt.ArrayLike) -> FloatArray:
    """How much the findings of each study agree with those of the labelled ones: Σ K_s·K_d over them.

    S is the study's own set, its probabilities as soft labels, T a labelled one; the factors are those of the SD loss
    (`medsd.sd.relations`), so that a rare combination of common findings is rare here.

    Args:
        probs: (N, F).
        labelled: (M, F) in 0…1 or NaN; equal rows are counted once and weighed by their number.

    Returns:
        (N,) in 0…M.
    """
    sets, counts = _distinct(np.asarray(labelled, dtype=np.float64))
    table = np.asarray(probs, dtype=np.float64)
    if not len(sets):
        return np.zeros(len(table))
    pairs, step = LabelPairs(table, sets), max(1, _BLOCK // len(sets))
    return np.concatenate(
        [pairs.counts(slice(start, start + step)).weight() @ counts for start in range(0, len(table), step)]
        or [np.zeros(0)]
    )


def _distinct(labelled: FloatArray) -> tuple[FloatArray, FloatArray]:
    if not len(labelled):
        return labelled, np.zeros(0)
    sets, counts = np.unique(labelled, axis=0, return_counts=True)
    return sets, counts.astype(np.float64)


def _finding_weights(pool: Pool, power: float) -> FloatArray:
    """Findings that are rare among the labelled count more; without any, by what is expected of the pool."""
    return np.asarray(inverse_frequency_weights(pool.labelled if len(pool.labelled) else pool.probs, power))


def _nearest(embeddings: FloatArray, places: FloatArray) -> FloatArray:
    """(N,) distance to the nearest of `places`; 1 where there are none."""
    distance = np.ones(len(embeddings))
    for start in range(0, len(places), step := max(1, _BLOCK // max(1, len(embeddings)))):
        cosine = (embeddings @ places[start : start + step].T).max(axis=1)
        distance = np.minimum(distance, _as_distance(cosine))
    return distance


def _distances(embeddings: FloatArray, place: FloatArray) -> FloatArray:
    return _as_distance(embeddings @ place)


def _as_distance(cosine: FloatArray) -> FloatArray:
    """A quarter of the squared distance of unit vectors, so that drawing by it is the D² sampling of k-means++."""
    return np.asarray(((1 - cosine) / 2).clip(0, 1))


def _choose(score: FloatArray, draw: str, generator: np.random.Generator) -> int:
    """A row by its score; rows with −1 are taken never. Where every score is 0, any of the open rows."""
    if draw == "greedy":
        return int(score.argmax())
    odds = score.clip(0)
    if not odds.sum() > 0:
        odds = (score >= 0).astype(np.float64)
    return int(generator.choice(len(odds), p=odds / odds.sum()))


def _same_patient(patients: npt.NDArray[np.str_] | Sequence[str], row: int) -> npt.NDArray[np.bool_]:
    keys = np.asarray(patients)
    same = np.arange(len(keys)) == row
    return same | (keys == keys[row]) if keys[row] else same
