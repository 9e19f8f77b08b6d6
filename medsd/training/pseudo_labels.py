"""Class-aware pseudo-labels: labels for unknown findings from a model's probabilities.

CAP (Xie et al., NeurIPS 2023, arXiv 2305.02795) labels as many studies present as the rate of a finding among the
labelled ones predicts, the surest first, and likewise absent. Labels in between stay unknown (NaN).
"""

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.metrics.metrics import class_counts, enough, ratio

Labels = npt.NDArray[np.float32]


def pseudo_labelled(
    probs: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    positive: float = 1.0,
    negative: float = 1.0,
    minimum_positives: int = 1,
) -> Labels:
    """Labels with the unknown ones filled by CAP; known labels stay.

    For each finding the rate r is that of its known labels. Among the N studies where it is unknown, at most η₁·r·N are
    labelled present and at most η₀·(1 − r)·N absent: fewer where equal probabilities would exceed the number.

    Args:
        probs: (N, F) of the teacher; NaN takes no part.
        labels: (N, F) 1, 0 or NaN, labelled and unlabelled studies together; the result is alike, float32.
        positive, negative: η₁ and η₀ in [0, 1]; the paper takes 1.
        minimum_positives: a finding with fewer known positives or negatives is not labelled.

    Raises:
        DataError: shapes that do not fit, or values outside [0, 1].

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
    present, absent = choose_thresholds(
        asked, class_shares(known, minimum_positives=minimum_positives), positive=positive, negative=negative
    )
    found = known.copy()
    found[asked >= present] = 1
    found[asked <= absent] = 0
    return found


def class_shares(labels: npt.ArrayLike, *, minimum_positives: int = 1) -> npt.NDArray[np.float64]:
    """The rate (F,) of each finding among the studies (N, F) in which it is known; NaN where too few are known."""
    positives, negatives = class_counts(table := _table(labels, "labels"))
    return ratio(positives, positives + negatives, enough(table, minimum_positives))


def choose_thresholds(
    probs: npt.ArrayLike, shares: npt.ArrayLike, *, positive: float = 1.0, negative: float = 1.0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """CAP's thresholds: (F,) from which probability on a finding is present, or ∞; (F,) up to which it is absent or −∞.

    `probs` (N, F) are of the studies to label, `shares` (F,) the expected rates; a finding with NaN is not labelled.
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
        present[f] = -_cut(-ordered[::-1], positive * rates[f] * ordered.size)
        absent[f] = _cut(ordered, negative * (1 - rates[f]) * ordered.size)
    return present, absent


def is_labelled(labels: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """(N,) True for the studies of which at least one finding is known."""
    return np.asarray((~np.isnan(_table(labels, "labels"))).any(axis=1))


def _cut(ordered: npt.NDArray[np.float64], expected: float) -> float:
    """The largest value that at most `expected` of the ascending values do not exceed; −∞ for none."""
    count = int(expected + 1e-9)  # 0.29 · 100 is 28.999…
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
