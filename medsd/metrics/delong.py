"""DeLong's test: whether two models on the same studies differ in AUROC.

With one study a patient this is the test of DeLong, DeLong and Clarke-Pearson (Biometrics 1988). Studies of one patient
are not independent of each other; for them it is that of Obuchowski (Biometrics 1997), which agrees where each patient
has one. statsmodels and scipy have neither.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from medsd.metrics.intervals import Interval, IntervalOptions
from medsd.metrics.metrics import FloatArray, Keys, checked, checked_patients, enough
from medsd.strict import Described


class DeLong(Described):
    """The test of one AUROC difference, first minus second model, two-sided; all None with too few cases.

    `difference` has its normal interval, within −1…1, where the spread can be told. `p` is 1 where the models agree in
    every pair.
    """

    first: float | None = None
    second: float | None = None
    difference: Interval = Interval()
    standard_error: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class DeLongTests:
    """The test of each finding, in column order, and of the mean AUROC over the `over` findings that can be told."""

    findings: tuple[DeLong, ...]
    macro: DeLong
    over: int


def delong(
    target: npt.ArrayLike,
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    patients: Keys,
    options: IntervalOptions | None = None,
) -> DeLongTests:
    """Test the AUROC difference of two models, finding by finding and on average.

    The variance is that of the differences of the structural components V10 of the positives and V01 of the negatives:
    S10/m + S01/n (DeLong et al. 1988, equation 5). Components are summed within a patient, and positives and negatives
    of the same patient add 2 S11/(m n) (Obuchowski 1997). The mean over findings adds the components of all findings
    within the patient; its patients' sums have the usual correction P / (P − 1).

    `target` (N, F) is 1, 0 or NaN, the scores (N, F) speak for the finding where they are higher, `patients` (N,) are
    keys. `options` say the confidence of the normal intervals, and how many positives and negatives are needed. Shapes
    or values that do not fit are a DataError.
    """
    options = options or IntervalOptions()
    target, first = checked(target, scores_a, probabilities=False)
    _, second = checked(target, scores_b, probabilities=False)
    names, patient_of = np.unique(checked_patients(patients, target), return_inverse=True)
    results, told, influences = [DeLong()] * target.shape[1], [], []
    for f in np.flatnonzero(enough(target, max(options.minimum_positives, 2))):
        known = ~np.isnan(target[:, f])
        areas, variance, influence = _compare(
            target[known, f], first[known, f], second[known, f], patient_of[known], len(names)
        )
        results[f] = _test(areas, variance, options.confidence)
        told.append(areas)
        influences.append(influence)
    if not told:
        return DeLongTests(tuple(results), DeLong(), 0)
    of_mean = np.mean(influences, axis=0)  # (P,)
    variance = len(names) / max(len(names) - 1, 1) * float((of_mean**2).sum())
    return DeLongTests(tuple(results), _test(np.mean(told, axis=0), variance, options.confidence), over=len(told))


def structural_components(truth: FloatArray, scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """V10 of the positives (m,) and V01 of the negatives (n,), whose means are the AUROC (Sun and Xu 2014, eq. 4).

    `truth` (m + n,) is 1 or 0, both present. A positive's component is the share of negatives below it, ties counted as
    half; a negative's the share of positives above it.
    """
    positive = truth == 1
    ranks = rankdata(scores)
    within_positives, within_negatives = rankdata(scores[positive]), rankdata(scores[~positive])
    m, n = int(positive.sum()), int((~positive).sum())
    return (ranks[positive] - within_positives) / n, 1 - (ranks[~positive] - within_negatives) / m


def _compare(
    truth: FloatArray, first: FloatArray, second: FloatArray, patient_of: npt.NDArray[np.int64], patients: int
) -> tuple[FloatArray, float, FloatArray]:
    """The two AUROCs (2,), the variance of their difference, and what each patient adds to it (P,)."""
    positive = truth == 1
    m, n = int(positive.sum()), int((~positive).sum())
    tens, ones = zip(*(structural_components(truth, scores) for scores in (first, second)), strict=True)
    areas = np.mean(tens, axis=1)
    # Sums of the centred differences of the components within each patient (P,).
    ten = np.bincount(patient_of[positive], tens[0] - tens[1] - (areas[0] - areas[1]), patients)
    one = np.bincount(patient_of[~positive], ones[0] - ones[1] - (areas[0] - areas[1]), patients)
    variance = (
        _corrected(patient_of[positive]) * float((ten**2).sum()) / m**2
        + _corrected(patient_of[~positive]) * float((one**2).sum()) / n**2
        + 2 * _corrected(patient_of) * float((ten * one).sum()) / (m * n)
    )
    return areas, max(variance, 0.0), ten / m + one / n


def _corrected(patient_of: npt.NDArray[np.int64]) -> float:
    """I / (I − 1) for I patients; NaN for one, whose spread cannot be told."""
    clusters = len(np.unique(patient_of))
    return clusters / (clusters - 1) if clusters > 1 else float("nan")


def _test(areas: FloatArray, variance: float, confidence: float) -> DeLong:
    (first, second), error = areas.tolist(), float(np.sqrt(variance))
    difference = first - second
    if np.isnan(error):
        return DeLong(first=first, second=second, difference=Interval(value=difference))
    if error < 1e-12:  # rounding of equal components
        error, p = 0.0, 1.0 if abs(difference) < 1e-12 else None
    else:
        p = 2 * float(norm.sf(abs(difference / error)))
    half = float(norm.ppf((1 + confidence) / 2)) * error
    interval = Interval(value=difference, low=difference - half, high=difference + half).within(-1, 1)
    return DeLong(first=first, second=second, difference=interval, standard_error=error, p=p)
