"""What a few seeds allow to say: means with intervals, and paired tests with their correction.

The test is Student's paired t on the seeds' differences: two trainings share initial weights, order and views of a
seed. Wilcoxon's signed ranks cannot fall below p = 0.0625 with five seeds. Seeds show the variation of training, not of
the choice of test samples; for that there is the bootstrap over test patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from medsd.metrics.intervals import Resamples, bootstrap
from medsd.metrics.two_samples import adjust_p


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds, or over test samples, with its interval; low and high are None where there is none."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The reference against one rival in one metric."""

    difference: SeedMean  # reference minus rival, with its t interval
    p: float  # two-sided, of the paired t test
    p_holm: float  # the same after Holm's correction over all comparisons of the family

    def verdict(self, level: float) -> str:
        """How the reference does: "wins", "loses" or "ties"."""
        if not self.p_holm < level or self.difference.mean == 0:
            return "ties"
        return "wins" if self.difference.mean > 0 else "loses"


def seed_mean(values: npt.ArrayLike, confidence: float) -> SeedMean:
    """Mean of n values ± t · s / √n with n − 1 degrees of freedom."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if array.size < 2:
        return SeedMean(mean)
    half = float(stats.t.ppf((1 + confidence) / 2, array.size - 1) * array.std(ddof=1) / np.sqrt(array.size))
    return SeedMean(mean, mean - half, mean + half)


def compare_pairs(pairs: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], confidence: float) -> list[Comparison]:
    """Test the first of each pair against the second, (seeds,) each, of the same seeds in the same order.

    All pairs are one family for Holm's correction.
    """
    differences = [np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64) for one, other in pairs]
    raw = [_paired_p(difference) for difference in differences]
    return [
        Comparison(seed_mean(difference, confidence), p, corrected)
        for difference, p, corrected in zip(differences, raw, adjust_p(raw).tolist(), strict=True)
    ]


def patient_intervals(
    values: npt.NDArray[np.float64], patients: npt.NDArray[np.str_], resamples: int, confidence: float
) -> list[SeedMean]:
    """Bootstrap intervals of the column means of values (N, K); `patients` (N,) are drawn with all their samples."""
    drawn = Resamples.draw(patients, resamples, seed=0)
    found = bootstrap(lambda weights: (weights @ values) / weights.sum(1, keepdims=True), drawn, confidence)
    return [SeedMean(each.value or 0.0, each.low, each.high) for each in found]


def _paired_p(difference: npt.NDArray[np.float64]) -> float:
    """1 where all differences are 0 (or there is one seed only), 0 where they are all the same other number."""
    if difference.size < 2 or not difference.any():
        return 1.0
    if np.ptp(difference) == 0:
        return 0.0
    return float(stats.ttest_1samp(difference, 0.0).pvalue)
