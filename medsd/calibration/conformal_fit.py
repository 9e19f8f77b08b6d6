"""Conformal scores from validation patients, and their coverage of test patients.

Images of one patient are not exchangeable with those of others, so each calibration patient gives one image, drawn once
(Dunn, Wasserman and Ramdas, JASA 2022, "subsampling once"). An image drawn from a new patient is then covered with at
least the named probability, for each class by itself (Vovk 2003, "Mondrian"), so a change of prevalence does not break
it; another change of the patients or of the images does, and the measured coverage shows it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, betabinom

from medsd.calibration.conformal import RANKS, ConformalScores, checked_coverage, kept_rank, rank, rank_of_kept
from medsd.errors import DataError
from medsd.metrics.intervals import Interval, IntervalOptions, bootstrap, one_a_patient, patient_means
from medsd.metrics.metrics import BoolArray, FloatArray, Keys, checked, checked_patients
from medsd.strict import Described

_DECIMALS = 6


class ClassCoverage(Described):
    """How often one class of a finding was in the set of its test patients, each of whom weighs the same.

    `covered` has a Clopper-Pearson interval. `expected` is where it lies by chance, when validation and test patients
    are alike: the middle share of the beta-binomial distribution that both numbers of patients leave open.
    """

    calibration_patients: int
    patients: int
    covered: Interval
    expected: tuple[float, float] | None


class ConformalFinding(Described):
    """One finding at the named coverage, by class and of all test patients in whom it is known.

    `enough` is False where a class has too few validation patients, and every call is undecided. `decided` is the share
    of test images called present or absent, `neither` of those unlike both classes, whose call is undecided as well.
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
    probs: npt.ArrayLike, target: npt.ArrayLike, patients: Keys, findings: Sequence[str], *, seed: int = 0
) -> dict[str, ConformalScores]:
    """The scores of each finding from the validation split.

    `probs` (N, F) are calibrated, `target` (N, F) is 1, 0 or NaN, `patients` (N,) are keys, `findings` F names; the
    seed is that of the draw of one image a patient. Shapes or values that do not fit are a DataError.
    """
    target, probs = checked(target, probs, findings)
    keys = checked_patients(patients, target)
    # In an order of its own, so that the draw does not depend on the order of the images.
    order = np.lexsort((*probs.T, keys))
    order = order[np.random.default_rng(seed).permutation(len(order))]
    scores = {}
    for f, name in enumerate(findings):
        present, absent = (one_a_patient(order[target[order, f] == label], keys) for label in (1, 0))
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
    patients: Keys,
    scores: Mapping[str, ConformalScores],
    findings: Sequence[str],
    options: IntervalOptions | None = None,
    coverage: float = 0.9,
    groups: Mapping[str, npt.ArrayLike] | None = None,
) -> ConformalReport:
    """How often the sets at `coverage` hold the truth on other patients than those of `scores`, by finding.

    Arguments as for `conformal_scores`, of the test split. `groups` are (N,) values by attribute, for instance
    ``{"sex": …}``; those of fewer patients than `minimum_positives` are too few to tell. Shapes or values that do not
    fit are a DataError.
    """
    target, probs = checked(target, probs)
    present, absent = np.ones(probs.shape, dtype=bool), np.ones(probs.shape, dtype=bool)
    limited = np.zeros(len(findings), dtype=bool)
    for f, name in enumerate(findings):
        if name not in scores:
            raise DataError(f"scores: nothing for {name}; every finding needs its own")
        if (limits := scores[name].limits(checked_coverage(coverage))) is not None:
            present[:, f], absent[:, f] = probs[:, f] >= limits.present, probs[:, f] <= limits.absent
            limited[f] = True
    covered = np.where(np.isnan(target), np.nan, np.where(target == 1, present, absent))
    keys, options = checked_patients(patients, target), options or IntervalOptions()
    sets = _Sets(target, keys, present, absent, covered, limited, coverage, options)
    return ConformalReport(
        coverage=coverage,
        findings=tuple(sets.finding(f, name, scores[name]) for f, name in enumerate(findings)),
        groups=tuple(
            sets.group(attribute, value, np.asarray(values) == value)
            for attribute, values in (groups or {}).items()
            for value in sorted(set(np.asarray(values).tolist()))
        ),
    )


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


@dataclass(frozen=True)
class _Sets:
    """Prediction sets of N images: whether each class, and the truth (NaN where it is unknown), is in them (N, F)."""

    target: FloatArray
    keys: npt.NDArray[np.str_]
    present: BoolArray
    absent: BoolArray
    covered: FloatArray
    limited: BoolArray  # (F,) findings with limits
    coverage: float
    options: IntervalOptions

    def finding(self, f: int, name: str, scores: ConformalScores) -> ConformalFinding:
        present, absent, told = self.present[:, f], self.absent[:, f], bool(self.limited[f])
        known = ~np.isnan(self.covered[:, f])
        everyone = patient_means(self.covered[known, f], self.keys[known])
        return ConformalFinding(
            name=name,
            enough=told,
            present=self._class(f, 1, scores.present_patients, len(scores.present)),
            absent=self._class(f, 0, scores.absent_patients, len(scores.absent)),
            covered=clopper_pearson(everyone, self.options.confidence) if told else Interval(),
            decided=float((present != absent).mean()),
            neither=float((~present & ~absent).mean()),
        )

    def _class(self, f: int, label: int, calibrated_on: int, kept: int) -> ClassCoverage:
        members, confidence = self.target[:, f] == label, self.options.confidence
        means = patient_means(self.covered[members, f], self.keys[members])
        expected, wanted = None, rank(calibrated_on, self.coverage)
        if self.limited[f] and wanted is not None and means.size:
            taken = rank_of_kept(kept_rank(wanted, calibrated_on, kept), calibrated_on, kept)
            tail = (1 - confidence) / 2
            # Angelopoulos and Bates, "A gentle introduction to conformal prediction", 2023, appendix C.
            ends = betabinom.ppf([tail, 1 - tail], means.size, taken, calibrated_on + 1 - taken) / means.size
            expected = (float(ends[0]), float(ends[1]))
        return ClassCoverage(
            calibration_patients=calibrated_on,
            patients=int(means.size),
            covered=clopper_pearson(means, confidence) if self.limited[f] else Interval(),
            expected=expected,
        )

    def group(self, attribute: str, value: str, members: BoolArray) -> ConformalGroup:
        """The group of the images `members` (N,), over the findings with limits."""
        cells = members[:, None] & self.limited
        decided = (self.present != self.absent)[cells]
        return ConformalGroup(
            attribute=attribute,
            value=value,
            patients=len(set(self.keys[members])),
            covered=self._share(cells & ~np.isnan(self.covered)),
            covered_present=self._share(cells & (self.target == 1)),
            decided=float(decided.mean()) if decided.size else None,
        )

    def _share(self, cells: BoolArray) -> Interval:
        """The mean over patients of the share of their `cells` (N, F) that is covered."""
        means = patient_means(self.covered[cells], self.keys[np.nonzero(cells)[0]])
        if means.size < max(self.options.minimum_positives, 2):
            return Interval()
        drawn = self.options.draw(np.arange(means.size).astype(str))
        (found,) = bootstrap(lambda w: (w @ means / w.sum(1))[:, None], drawn, self.options.confidence, (0, 1))
        return found


def _thinned(scores: FloatArray) -> tuple[float, ...]:
    if len(scores) > RANKS:
        scores = scores[[rank_of_kept(place, len(scores), RANKS) - 1 for place in range(1, RANKS + 1)]]
    return tuple(round(float(score), _DECIMALS) for score in scores)
