"""Whether two sets of cases are alike: a classifier that tells them apart, their mean discrepancy, their prevalences.

Everything here knows nothing of bundles; `medsd.evaluation.shift` puts it together. `adjust_p` corrects p values.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import false_discovery_control

from medsd.metrics.intervals import Interval, IntervalOptions, bootstrap
from medsd.metrics.metrics import FloatArray, weighted_auroc

FEW = 10  # patients, on either side, below which nothing is tested
_FOLDS = 5
_PERMUTATIONS = 1000


def tell_apart(before: npt.NDArray[np.floating], after: npt.NDArray[np.floating], options: IntervalOptions) -> Interval:
    """AUROC of telling embeddings (N, D) and (M, D), one a patient, apart: 0.5 where they are alike.

    The scores are those of `cross_validated_scores`; no value with fewer than `FEW`.
    """
    if min(len(before), len(after)) < FEW:
        return Interval()
    truth = np.repeat([0.0, 1.0], [len(before), len(after)])
    scores = cross_validated_scores(np.concatenate([before, after]), truth, seed=options.seed)
    drawn = options.draw(np.arange(len(truth)).astype(str))
    (area,) = bootstrap(lambda w: weighted_auroc(truth, scores, w)[:, None], drawn, options.confidence, (0, 1))
    return area


def cross_validated_scores(
    features: npt.NDArray[np.floating],
    truth: FloatArray,
    *,
    seed: int = 0,
    patients: npt.ArrayLike | None = None,
    weights: FloatArray | None = None,
) -> FloatArray:
    """Scores (N,) of a logistic regression on standardised features (N, D), each by the fit on the other four fifths.

    `truth` (N,) is 1 or 0. The parts divide no patient, where patient keys (N,) are given; else each has the same share
    of both classes. Without `weights` (N,) both classes weigh the same.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    balance = "balanced" if weights is None else None
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight=balance, max_iter=1000))
    folds: Any = GroupKFold(_FOLDS)
    if patients is None:
        folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    scores: FloatArray = cross_val_predict(
        classifier,
        features.astype(np.float64),
        truth,
        groups=patients,
        cv=folds,
        method="decision_function",
        params={"logisticregression__sample_weight": weights},
    )
    return scores


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


def adjust_p(p_values: Sequence[float | None], method: Literal["holm", "benjamini-hochberg"] = "holm") -> FloatArray:
    """p values adjusted for their number, in the same order; NaN where there is none (None or NaN).

    Those of ``holm`` keep the chance of one false claim or more (Scand. J. Statist. 1979; SciPy has no Holm), those of
    ``benjamini-hochberg`` the share of false claims (J. R. Stat. Soc. B 57, 1995).

    >>> adjust_p([0.01, None, 0.04, 0.03]).round(4).tolist()
    [0.03, nan, 0.06, 0.06]
    """
    adjusted = np.array(p_values, dtype=np.float64)
    (tested,) = np.nonzero(~np.isnan(adjusted))
    if method == "holm":
        rising = tested[np.argsort(adjusted[tested])]
        scaled = adjusted[rising] * np.arange(len(rising), 0, -1)
        adjusted[rising] = np.minimum(1, np.maximum.accumulate(scaled))
    elif tested.size:
        adjusted[tested] = false_discovery_control(adjusted[tested])
    return adjusted
