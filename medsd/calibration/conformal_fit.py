"""Conformal scores from validation patients, and their coverage of test patients.

`conformal_scores` makes what a bundle carries (`medsd.calibration.conformal`); `measure_conformal` measures it for
evaluation.json. The promise holds for patients, not for images: images of one patient are not exchangeable with those
of others, so each calibration patient gives one image, drawn once (Dunn, Wasserman and Ramdas, JASA 2022, "subsampling
once"). An image drawn from a new patient is then covered with at least the named probability, whatever the model. The
promise holds for each class by itself (Vovk 2003, "Mondrian"), so a change of prevalence does not break it; another
change of the patients or of the images does, and the measured coverage shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, betabinom

from medsd.calibration.conformal import RANKS, ConformalScores, checked_coverage, kept_rank, rank, rank_of_kept
from medsd.errors import DataError
from medsd.metrics.intervals import Interval, Resamples, bootstrap
from medsd.metrics.metrics import BoolArray, FloatArray, checked, checked_patients
from medsd.strict import Described

_DECIMALS = 6


class ClassCoverage(Described):
    """How often one class of a finding was in the set of its test patients, each of whom weighs the same.

    Attributes:
        calibration_patients, patients: of this class, on validation and on test.
        covered: with a Clopper-Pearson interval; None where there is no limit, or no test patient.
        expected: where `covered` lies by chance, when validation and test patients are alike: the middle share of the
            beta-binomial distribution that both numbers of patients leave open.
    """

    calibration_patients: int
    patients: int
    covered: Interval
    expected: tuple[float, float] | None


class ConformalFinding(Described):
    """One finding at the named coverage.

    Attributes:
        enough: False where a class has too few validation patients; every call is undecided then.
        present, absent: by class.
        covered: of all test patients in whom it is known.
        decided: share of test images called present or absent.
        neither: share of test images unlike both classes, whose call is undecided as well.
    """

    name: str
    enough: bool
    present: ClassCoverage
    absent: ClassCoverage
    covered: Interval
    decided: float
    neither: float


class ConformalGroup(Described):
    """A group of test patients: coverage over all findings with limits, with bootstrap intervals over patients."""

    attribute: str
    value: str
    patients: int
    covered: Interval
    covered_present: Interval
    decided: float | None


class ConformalReport(Described):
    """Conformal calls on one split at the named coverage."""

    coverage: float
    findings: tuple[ConformalFinding, ...]
    groups: tuple[ConformalGroup, ...] = ()


def conformal_scores(
    probs: npt.ArrayLike,
    target: npt.ArrayLike,
    patients: Sequence[str] | npt.NDArray[np.str_],
    findings: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, ConformalScores]:
    """The scores of each finding from the validation split.

    Args:
        probs: (N, F) calibrated probabilities.
        target: (N, F) 1, 0 or NaN for unknown.
        patients: (N,) patient keys.
        findings: F names, in column order.
        seed: of the draw of one image a patient.

    Raises:
        DataError: shapes or values that do not fit.
    """
    target, probs = checked(target, probs)
    keys = checked_patients(patients, target)
    if target.shape[1] != len(findings):
        raise DataError(f"target has {target.shape[1]} columns for {len(findings)} findings; give one name for each")
    # In an order of its own, so that the draw does not depend on the order of the images.
    order = np.lexsort((*probs.T, keys))
    order = order[np.random.default_rng(seed).permutation(len(order))]
    scores = {}
    for f, name in enumerate(findings):
        present, absent = (_one_a_patient(order, target[:, f] == label, keys) for label in (1, 0))
        # Rounded to the safe side, so that what was covered stays so.
        falling = -np.sort(-np.floor(probs[present, f] * 10**_DECIMALS) / 10**_DECIMALS)
        rising = np.sort(np.ceil(probs[absent, f] * 10**_DECIMALS) / 10**_DECIMALS)
        scores[name] = ConformalScores(
            present=_thinned(falling),
            absent=_thinned(rising),
            present_patients=len(present),
            absent_patients=len(absent),
        )
    return scores


def measure_conformal(
    probs: npt.ArrayLike,
    target: npt.ArrayLike,
    patients: Sequence[str] | npt.NDArray[np.str_],
    scores: Mapping[str, ConformalScores],
    findings: Sequence[str],
    *,
    coverage: float = 0.9,
    groups: Mapping[str, npt.ArrayLike] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    minimum_positives: int = 10,
    seed: int = 0,
) -> ConformalReport:
    """How often the sets at `coverage` hold the truth on other patients than those of the scores.

    Args:
        probs, target, patients, findings: as for `conformal_scores`, of the test split.
        scores: by finding.
        coverage: what is promised.
        groups: (N,) values by attribute, for instance ``{"sex": …}``.
        confidence, resamples, seed: of the intervals.
        minimum_positives: groups of fewer patients are too few to tell.

    Raises:
        DataError: shapes or values that do not fit.
    """
    target, probs = checked(target, probs)
    keys = checked_patients(patients, target)
    checked_coverage(coverage)
    present, absent, limited = _members(probs, scores, findings, coverage)
    covered = np.where(np.isnan(target), np.nan, np.where(target == 1, present, absent))
    reports = []
    for f, name in enumerate(findings):
        known = scores[name]
        counts = (known.present_patients, known.absent_patients)
        kept = (len(known.present), len(known.absent))
        by_class = [
            _class_coverage(
                covered[:, f],
                target[:, f] == label,
                keys,
                n,
                k,
                coverage=coverage,
                confidence=confidence,
                told=limited[f],
            )
            for label, n, k in zip((1, 0), counts, kept, strict=True)
        ]
        everyone = _patient_means(covered[:, f], ~np.isnan(covered[:, f]), keys)
        reports.append(
            ConformalFinding(
                name=name,
                enough=bool(limited[f]),
                present=by_class[0],
                absent=by_class[1],
                covered=clopper_pearson(everyone, confidence) if limited[f] else Interval(),
                decided=float((present[:, f] != absent[:, f]).mean()),
                neither=float((~present[:, f] & ~absent[:, f]).mean()),
            )
        )
    told = _Told(covered[:, limited], target[:, limited], (present != absent)[:, limited], keys)
    doubt = _Doubt(confidence, resamples, minimum_positives, seed)
    found = tuple(
        told.group(attribute, value, np.asarray(values) == value, doubt)
        for attribute, values in (groups or {}).items()
        for value in sorted(set(np.asarray(values).tolist()))
    )
    return ConformalReport(coverage=coverage, findings=tuple(reports), groups=found)


def clopper_pearson(means: FloatArray, confidence: float) -> Interval:
    """The mean with the exact interval of a binomial share (Clopper and Pearson, Biometrika 1934).

    `means` (n,) are 0 or 1, or shares where a patient has several images, which spread less: the interval is then wide.
    SciPy's takes whole numbers only.
    """
    n, k = means.size, float(means.sum())
    if n == 0:
        return Interval()
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k > 0 else 0.0
    high = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return Interval(value=k / n, low=min(low, k / n), high=max(high, k / n))


def _members(
    probs: FloatArray, scores: Mapping[str, ConformalScores], findings: Sequence[str], coverage: float
) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Whether present and absent are in the set of each image (N, F), and which findings have limits (F,)."""
    present, absent = np.ones(probs.shape, dtype=bool), np.ones(probs.shape, dtype=bool)
    limited = np.zeros(len(findings), dtype=bool)
    for f, name in enumerate(findings):
        if name not in scores:
            raise DataError(f"scores: nothing for {name}; every finding needs its own")
        limits = scores[name].limits(coverage)
        if limits is not None:
            present[:, f], absent[:, f] = probs[:, f] >= limits.present, probs[:, f] <= limits.absent
            limited[f] = True
    return present, absent, limited


def _class_coverage(
    covered: FloatArray,
    members: BoolArray,
    keys: npt.NDArray[np.str_],
    calibration_patients: int,
    kept: int,
    *,
    coverage: float,
    confidence: float,
    told: bool,
) -> ClassCoverage:
    means = _patient_means(covered, members, keys)
    expected = None
    wanted = rank(calibration_patients, coverage)
    if told and wanted is not None and means.size:
        taken = rank_of_kept(kept_rank(wanted, calibration_patients, kept), calibration_patients, kept)
        tail = (1 - confidence) / 2
        # Angelopoulos and Bates, "A gentle introduction to conformal prediction", 2023, appendix C.
        ends = betabinom.ppf([tail, 1 - tail], means.size, taken, calibration_patients + 1 - taken) / means.size
        expected = (float(ends[0]), float(ends[1]))
    return ClassCoverage(
        calibration_patients=calibration_patients,
        patients=int(means.size),
        covered=clopper_pearson(means, confidence) if told else Interval(),
        expected=expected,
    )


@dataclass(frozen=True)
class _Doubt:
    """How intervals of groups are made."""

    confidence: float
    resamples: int
    minimum_positives: int
    seed: int

    def share(self, covered: FloatArray, cells: BoolArray, keys: npt.NDArray[np.str_]) -> Interval:
        """Mean over patients of the share covered among their `cells` (n, F), with an interval over patients."""
        rows, _ = np.nonzero(cells)
        means = _patient_means(covered[cells], np.ones(len(rows), dtype=bool), keys[rows])
        if means.size < max(self.minimum_positives, 2):
            return Interval()
        drawn = Resamples.draw(np.arange(means.size).astype(str), self.resamples, self.seed)
        (found,) = bootstrap(
            lambda weights: (weights @ means / weights.sum(1))[:, None], drawn, self.confidence, (0, 1)
        )
        return found


@dataclass(frozen=True)
class _Told:
    """The findings that have limits, (N, K) each, and the patients (N,)."""

    covered: FloatArray
    target: FloatArray
    decided: BoolArray
    keys: npt.NDArray[np.str_]

    def group(self, attribute: str, value: str, members: BoolArray, doubt: _Doubt) -> ConformalGroup:
        """The group of the images `members` (N,)."""
        covered, keys = self.covered[members], self.keys[members]
        return ConformalGroup(
            attribute=attribute,
            value=value,
            patients=len(set(keys)),
            covered=doubt.share(covered, ~np.isnan(covered), keys),
            covered_present=doubt.share(covered, self.target[members] == 1, keys),
            decided=float(self.decided[members].mean()) if covered.size else None,
        )


def _patient_means(covered: FloatArray, members: BoolArray, keys: npt.NDArray[np.str_]) -> FloatArray:
    """The mean of each patient's members (P,)."""
    if not members.any():
        return np.zeros(0)
    _, patient_of = np.unique(keys[members], return_inverse=True)
    return np.bincount(patient_of, covered[members].astype(np.float64)) / np.bincount(patient_of)


def _one_a_patient(
    order: npt.NDArray[np.int64], members: BoolArray, keys: npt.NDArray[np.str_]
) -> npt.NDArray[np.int64]:
    """The rows of the first member of each patient, in `order`."""
    drawn = order[members[order]]
    _, first = np.unique(keys[drawn], return_index=True)
    return drawn[first]


def _thinned(scores: FloatArray) -> tuple[float, ...]:
    if len(scores) > RANKS:
        scores = scores[[rank_of_kept(place, len(scores), RANKS) - 1 for place in range(1, RANKS + 1)]]
    return tuple(round(float(score), _DECIMALS) for score in scores)
