"""Whether two sets of cases are alike: a classifier that tells them apart, their mean discrepancy, their prevalences.

Everything here takes one row a patient, and knows nothing of bundles; `medsd.evaluation.shift` puts it together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medsd.metrics.intervals import Interval, IntervalOptions, bootstrap
from medsd.metrics.metrics import FloatArray, weighted_auroc

FEW = 10  # patients, on either side, below which nothing is tested
_FOLDS = 5
_PERMUTATIONS = 1000


def tell_apart(before: npt.NDArray[np.floating], after: npt.NDArray[np.floating], options: IntervalOptions) -> Interval:
    """AUROC of telling embeddings (N, D) and (M, D), one a patient, apart: 0.5 where they are alike.

    A logistic regression in five parts, each scored by the fit on the other four; no value with fewer than `FEW`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if min(len(before), len(after)) < FEW:
        return Interval()
    features = np.concatenate([before, after]).astype(np.float64)
    truth = np.repeat([0.0, 1.0], [len(before), len(after)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=options.seed)
    scores = cross_val_predict(classifier, features, truth, cv=folds, method="decision_function")
    drawn = options.draw(np.arange(len(truth)).astype(str))
    (area,) = bootstrap(lambda w: weighted_auroc(truth, scores, w)[:, None], drawn, options.confidence, (0, 1))
    return area


def discrepancy(
    before: npt.NDArray[np.floating], after: npt.NDArray[np.floating], *, seed: int = 0
) -> tuple[float, float]:
    """Squared maximum mean discrepancy of (N, D) and (M, D), and its p value by permutation."""
    features = np.concatenate([before, after]).astype(np.float64)
    lengths = (features**2).sum(1)
    squared = np.maximum(lengths[:, None] + lengths - 2 * features @ features.T, 0)
    typical = float(np.median(squared[np.triu_indices(len(features), 1)]))
    kernel = np.exp(-squared / max(typical, 1e-12))
    weights = np.repeat([-1 / len(before), 1 / len(after)], [len(before), len(after)])
    rng = np.random.default_rng(seed)
    rows = np.stack([weights, *(rng.permutation(weights) for _ in range(_PERMUTATIONS))])  # (1 + R, P)
    found = ((rows @ kernel) * rows).sum(1)
    return float(found[0]), float((1 + (found[1:] >= found[0] - 1e-12).sum()) / (1 + _PERMUTATIONS))


def estimated_prevalence(probabilities: FloatArray, prior: float) -> float | None:
    """The prevalence that probabilities (N,) of a model calibrated at `prior` speak for, by EM; None where undefined.

    Saerens, Latinne and Decaestecker 2002, equations 2.7 to 2.9, for one finding against its absence.
    """
    if not 0 < prior < 1 or not len(probabilities):
        return None
    present, absent = np.asarray(probabilities, dtype=np.float64), 1 - np.asarray(probabilities, dtype=np.float64)
    share = prior
    for _ in range(1000):
        raised = present * share / prior
        new = float((raised / np.maximum(raised + absent * (1 - share) / (1 - prior), 1e-300)).mean())
        if abs(new - share) < 1e-7:
            break
        share = min(max(new, 1e-9), 1 - 1e-9)
    return share


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm, Scand. J. Statist. 1979), in the same order; NaN stays NaN.

    SciPy has no Holm.

    >>> [round(p, 4) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    scaled = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    adjusted = np.empty_like(scaled)
    adjusted[order] = scaled
    return adjusted.tolist()
