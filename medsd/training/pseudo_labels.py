"""Class-aware pseudo-labels: what a model's probabilities say of studies that nobody has labelled, or not wholly.

Start at `pseudo_labelled`. CAP (Xie et al., NeurIPS 2023, arXiv 2305.02795) takes for each finding as many studies for
present as its rate among the labelled ones lets expect, the surest first, and likewise for absent; in between a label
stays unknown (NaN), which the masked losses and the SD loss leave out. Plain NumPy; the rounds of training are in
`medsd.training.self_training`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError

FloatArray = npt.NDArray[np.floating]
Labels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Thresholds:
    """From where on a probability becomes a label.

    Attributes:
        present: (F,) a probability of at least this is present; infinite where none is.
        absent: (F,) a probability of at most this is absent, always below `present`; −infinite where none is.
    """

    present: npt.NDArray[np.float64]
    absent: npt.NDArray[np.float64]

    def labels(self, probs: FloatArray) -> Labels:
        """Labels float32 (N, F) of probabilities (N, F): 1, 0, or NaN between the thresholds and for a NaN."""
        found = np.full(np.shape(probs), np.nan, np.float32)
        found[probs >= self.present] = 1
        found[probs <= self.absent] = 0
        return found


def class_shares(labels: npt.ArrayLike, *, minimum_positives: int = 1) -> npt.NDArray[np.float64]:
    """The rate of each finding among the studies in which it is known, as CAP estimates the class distribution.

    Args:
        labels: (N, F) 1, 0 or NaN, of the labelled patients.
        minimum_positives: a finding with fewer known positives or negatives has no rate that could be relied on.

    Returns:
        (F,) in 0…1, NaN where there are too few to tell.
    """
    table = _table(labels, "labels")
    positives, negatives = (table == 1).sum(0), (table == 0).sum(0)
    told = np.minimum(positives, negatives) >= max(minimum_positives, 1)
    return np.where(told, positives / np.maximum(positives + negatives, 1), np.nan)


def choose_thresholds(
    probs: npt.ArrayLike, shares: npt.ArrayLike, *, positive: float = 1.0, negative: float = 1.0
) -> Thresholds:
    """CAP's thresholds of each finding.

    Args:
        probs: (N, F) of the studies to label; NaN takes no part.
        shares: (F,) expected rates, see `class_shares`; a finding with NaN is not labelled at all.
        positive: η₁, how much of the expected positives to label, 0…1. The paper takes 1.
        negative: η₀, likewise of the expected negatives.

    Returns:
        Thresholds that label at most η₁·rate·N studies present and at most η₀·(1 − rate)·N absent: fewer where equal
        probabilities would exceed it, because nothing tells those studies apart.

    Raises:
        DataError: shapes that do not fit, or values outside 0…1.
    """
    table, rates = _table(probs, "probs"), np.asarray(shares, dtype=np.float64)
    if rates.shape != table.shape[1:]:
        raise DataError(f"shares have shape {rates.shape}; one is needed for each of {table.shape[1]} findings")
    for name, value in (("positive", positive), ("negative", negative)):
        if not 0 <= value <= 1:
            raise DataError(f"{name} is {value}; it is the part of the expected labels that is given, 0 to 1")
    present, absent = np.full(rates.shape, np.inf), np.full(rates.shape, -np.inf)
    for f in np.flatnonzero(~np.isnan(rates)):
        ordered = np.sort(table[~np.isnan(table[:, f]), f])  # ascending
        present[f] = -_cut(-ordered[::-1], _whole(positive * rates[f] * ordered.size))
        absent[f] = _cut(ordered, _whole(negative * (1 - rates[f]) * ordered.size))
    return Thresholds(present, absent)


def pseudo_labelled(
    probs: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    positive: float = 1.0,
    negative: float = 1.0,
    minimum_positives: int = 1,
) -> Labels:
    """Labels with the unknown ones filled by CAP; what was known stays as it is.

    Rates are those of the known labels, and thresholds are taken over the studies whose label of the finding is
    unknown, so that a study labelled in part is completed by the same rule.

    Args:
        probs: (N, F) what the teacher says of each study.
        labels: (N, F) 1, 0 or NaN, labelled and unlabelled studies together.
        positive, negative: see `choose_thresholds`.
        minimum_positives: see `class_shares`.

    Returns:
        float32 (N, F), 1, 0 or NaN.

    Example:
        >>> import numpy as np
        >>> labels = np.array([[1], [0], [np.nan], [np.nan], [np.nan], [np.nan]])
        >>> probs = np.array([[0.9], [0.2], [0.8], [0.6], [0.3], [0.1]])
        >>> pseudo_labelled(probs, labels, positive=0.5)[:, 0]
        array([ 1.,  0.,  1., nan,  0.,  0.], dtype=float32)
    """
    known, said = _table(labels, "labels").astype(np.float32), _table(probs, "probs")
    if known.shape != said.shape:
        raise DataError(f"probs have shape {said.shape} and labels {known.shape}; both need (studies, findings)")
    asked = np.where(np.isnan(known), said, np.nan)
    thresholds = choose_thresholds(
        asked, class_shares(known, minimum_positives=minimum_positives), positive=positive, negative=negative
    )
    return np.where(np.isnan(known), thresholds.labels(asked), known)


def fixed_labels(probs: npt.ArrayLike, labels: npt.ArrayLike, *, present: float, absent: float) -> Labels:
    """The unknown labels by the same two thresholds for every finding: what CAP is compared with."""
    known, said = _table(labels, "labels").astype(np.float32), _table(probs, "probs")
    each = np.ones(known.shape[1])
    return np.where(np.isnan(known), Thresholds(present * each, absent * each).labels(said), known)


def is_labelled(labels: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """(N,) True for the studies of which at least one finding is known."""
    known: npt.NDArray[np.bool_] = ~np.isnan(_table(labels, "labels"))
    return np.asarray(known.any(axis=1))


def _whole(count: float) -> int:
    return int(count + 1e-9)  # 0.29 · 100 is 28.999…


def _cut(ordered: npt.NDArray[np.float64], count: int) -> float:
    """The largest value that at most `count` of the ascending values do not exceed; −infinite for none."""
    if count >= ordered.size:
        return float(ordered[-1]) if ordered.size else -np.inf
    smaller = int(np.searchsorted(ordered, ordered[count], side="left"))  # values below the first one too many
    return float(ordered[smaller - 1]) if smaller else -np.inf


def _table(values: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise DataError(f"{name} has shape {table.shape}; it needs (studies, findings)")
    if ((table < 0) | (table > 1)).any():
        raise DataError(f"{name} must lie in 0…1, with NaN for unknown")
    return table
