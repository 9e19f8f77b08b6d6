"""Class-aware pseudo-labels: labels for unknown findings from a model's probabilities.

CAP (Xie et al., NeurIPS 2023, arXiv 2305.02795) labels as many studies present as the rate of a finding among the
labelled ones predicts, the surest first, and likewise absent. Labels in between stay unknown (NaN).
"""

import numpy as np
import numpy.typing as npt

from medsd.metrics.metrics import enough

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

    Example:
        >>> import numpy as np
        >>> labels = np.array([[1], [0], [np.nan], [np.nan], [np.nan], [np.nan]])
        >>> probs = np.array([[0.9], [0.2], [0.8], [0.6], [0.3], [0.1]])
        >>> pseudo_labelled(probs, labels, positive=0.5)[:, 0]
        array([ 1.,  0.,  1., nan,  0.,  0.], dtype=float32)
    """
    known, said = np.asarray(labels, dtype=np.float64), np.asarray(probs, dtype=np.float64)
    found = known.astype(np.float32)
    for f in np.flatnonzero(enough(known, minimum_positives)):
        rate = float(np.nanmean(known[:, f]))
        asked = np.where(np.isnan(known[:, f]), said[:, f], np.nan)
        ordered = np.sort(asked[~np.isnan(asked)])  # ascending
        found[asked >= -_cut(-ordered[::-1], positive * rate * ordered.size), f] = 1
        found[asked <= _cut(ordered, negative * (1 - rate) * ordered.size), f] = 0
    return found


def is_labelled(labels: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """(N,) True for the studies of which at least one finding is known."""
    return np.asarray((~np.isnan(labels)).any(axis=1))


def _cut(ordered: npt.NDArray[np.float64], expected: float) -> float:
    """The largest value that at most `expected` of the ascending values do not exceed; −∞ for none."""
    count = int(expected + 1e-9)  # 0.29 · 100 is 28.999…
    if count >= ordered.size:
        return float(ordered[-1]) if ordered.size else -np.inf
    smaller = int(np.searchsorted(ordered, ordered[count], side="left"))  # values below the first one too many
    return float(ordered[smaller - 1]) if smaller else -np.inf
