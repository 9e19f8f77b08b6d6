"""Every metric of a set at once, for the tests."""

from types import SimpleNamespace

import numpy as np
import numpy.typing as npt

from medsd.metrics import metrics


def measure(
    target: npt.ArrayLike, probs: npt.ArrayLike, thresholds: npt.ArrayLike | None = None, *, minimum_positives: int = 10
) -> SimpleNamespace:
    """The metrics by name, (F,) each and NaN with fewer positives or negatives than `minimum_positives`; micro_f1."""
    limits = np.full(np.shape(target)[1], np.nan) if thresholds is None else thresholds
    called = metrics.calls(target, probs, limits)
    found = {
        name: getattr(metrics, name)(target, probs, minimum_positives=minimum_positives)
        for name in metrics.THRESHOLD_FREE
    }
    told = metrics.enough(target, minimum_positives)
    found |= {name: np.where(told, called[name], np.nan) for name in metrics.AT_THRESHOLD}
    return SimpleNamespace(**found, micro_f1=called["micro_f1"][0])
