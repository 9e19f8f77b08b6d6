"""What differs between the cases that a bundle learned from and another set of studies; start at `measure_shift`.

How the images look to the network, how often each finding occurs, and who is examined how (view, sex, age) are tested
on one image a patient, and all tests together are held to one level (Holm, Scand. J. Statist. 6, 1979). With many
patients every difference is significant; "moved" is what is significant and larger than a named margin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, chi2_contingency, fisher_exact, ks_2samp

from medsd.calibration.conformal_fit import clopper_pearson
from medsd.evaluation.saved import Measured
from medsd.metrics.intervals import Interval, IntervalOptions, Resamples, bootstrap, one_a_patient
from medsd.metrics.metrics import FloatArray, ratio
from medsd.metrics.two_samples import FEW, adjust_p, discrepancy, estimated_prevalence, tell_apart
from medsd.strict import Described

SHIFT = "shift.json"
# Margins below which a significant difference is not called one.
PREVALENCE_MARGIN = 0.02
ATTRIBUTE_MARGIN = 0.1  # of Cramér's V, and of Kolmogorov and Smirnov's distance
APPEARANCE_MARGIN = 0.6  # AUROC of telling images apart, where the bundle does not say what its own test images give
_MOST = 2000  # patients of each side that the tests of images take
_NAMED = 4  # findings in the sentence
_AGES, _ATTRIBUTES = "age", ("view", "sex")

Strings = npt.NDArray[np.str_]


class Tested(Described):
    """What was tested, with its p value, alone and adjusted for all tests; None where there are too few to tell."""

    p: float | None
    adjusted: float | None = None
    moved: bool | None = None

    def judged(self, adjusted: float, level: float, large: bool) -> Self:
        """The same with its adjusted p value, and whether it has moved; `large`: more than its margin."""
        if self.p is None:
            return self
        return self.model_copy(update={"adjusted": adjusted, "moved": adjusted < level and large})


class AppearanceShift(Tested):
    """How images look to the network: whether embeddings of the two sides can be told apart.

    See `medsd.metrics.two_samples.tell_apart`, and Lopez-Paz and Oquab, ICLR 2017.
    """

    told_apart: Interval  # AUROC
    own: Interval | None  # the same for the bundle's own test images; None where the bundle does not say it
    discrepancy: float | None  # squared maximum mean discrepancy (Gretton et al., JMLR 13, 2012), which `p` is of
    beyond: Interval | None  # share above the limit of the out-of-distribution check, each patient weighing the same
    false_alarm_rate: float | None  # of that check, among images like those of the training
    beyond_p: float | None  # chance of so many, or more, at that rate


class PrevalenceShift(Tested):
    """How often one finding occurs among the images in which it is known, before and after.

    `labelled` and `positives` are of the new set. `estimated` is what probabilities alone say of the new prevalence
    (Saerens, Latinne and Decaestecker, Neural Computation 14, 2002); right only if images with the finding, and
    without, look as before, and so None where images have moved.
    """

    name: str
    title: str
    labelled: int
    positives: int
    before: Interval
    after: Interval
    difference: Interval
    estimated: float | None


class AttributeShift(Tested):
    """View, sex or age of one image a patient, with the `shares` by value, before and after.

    `patients` with a value, before and after. The size is Cramér's V of χ², or the Kolmogorov-Smirnov distance.
    """

    attribute: str
    patients: tuple[int, int]
    shares: dict[str, tuple[float, float]]
    test: Literal["chi2", "kolmogorov-smirnov"]
    size: float | None


class ShiftReport(Measured):
    """The whole of shift.json; `images` and `patients` are of the bundle's cases, and of the new set."""

    images: tuple[int, int]
    patients: tuple[int, int]
    seed: int
    appearance: AppearanceShift | None
    prevalences: tuple[PrevalenceShift, ...]
    attributes: tuple[AttributeShift, ...]
    sentence: str


@dataclass(frozen=True)
class Side:
    """The cases of a bundle, or the studies of another set."""

    labels: FloatArray  # (N, F) 1, 0 or NaN
    patients: Strings  # (N,) keys; an empty one is a patient of its own
    embeddings: npt.NDArray[np.floating]  # (N, D)
    attributes: Mapping[str, Strings]  # (N,) by name: view, sex, and age as a decade ("60-69"); "" where it is unknown

    def one_a_patient(self, seed: int) -> Self:
        """One image of each patient, drawn."""
        order = np.random.default_rng(seed).permutation(len(self.patients))
        keys = np.array([key or f"\0{row}" for row, key in enumerate(self.patients.tolist())], dtype=np.str_)
        rows = one_a_patient(order, keys)
        attributes = {name: values[rows] for name, values in self.attributes.items()}
        drawn = {name: getattr(self, name)[rows] for name in ("labels", "patients", "embeddings")}
        return replace(self, attributes=attributes, **drawn)


def measure_shift(
    before: Side,
    after: Side,
    findings: Sequence[tuple[str, str]],
    options: IntervalOptions,
    *,
    probabilities: FloatArray,
    priors: Mapping[str, float],
    beyond: FloatArray | None = None,
    false_alarm_rate: float | None = None,
    own: Interval | None = None,
    images: bool = True,
) -> ShiftReport:
    """Compare the cases that the bundle learned from with studies of another set that it has read.

    Args:
        findings: F names with their titles, in column order.
        probabilities: (N, F) calibrated, of `after`.
        priors: prevalences at which the probabilities were calibrated, by name; others are not estimated.
        beyond: (P,) the share of each patient's images above the out-of-distribution limit, refused ones among them.
        images: whether the model reads images; else their appearance is not compared.
    """
    both, ones = (before, after), (before.one_a_patient(options.seed), after.one_a_patient(options.seed))
    estimates = [
        estimated_prevalence(probabilities[:, column], priors[name]) if name in priors else None
        for column, (name, _) in enumerate(findings)
    ]
    prevalences = _prevalences(both, ones, findings, estimates, options)
    attributes = [_attribute(name, ones) for name in (*_ATTRIBUTES, _AGES)]
    appearances = [_appearance(ones, options, own, beyond, false_alarm_rate)] if images else []
    adjusted = iter(adjust_p([part.p for part in (*prevalences, *attributes, *appearances)]).tolist())
    level = 1 - options.confidence
    # Images have moved where they are told apart better than the bundle's own test images.
    margin = APPEARANCE_MARGIN if own is None else max(own.high or own.value or 0, 0.5)
    prevalences = [
        each.judged(next(adjusted), level, abs(each.difference.value or 0) >= PREVALENCE_MARGIN) for each in prevalences
    ]
    attributes = [each.judged(next(adjusted), level, (each.size or 0) >= ATTRIBUTE_MARGIN) for each in attributes]
    appearances = [each.judged(next(adjusted), level, (each.told_apart.low or 0) > margin) for each in appearances]
    if any(part.moved is not False for part in appearances):  # estimates need images that look as before
        prevalences = [each.model_copy(update={"estimated": None}) for each in prevalences]
    report = ShiftReport.of(
        options,
        images=(len(before.labels), len(after.labels)),
        patients=(len(ones[0].labels), len(ones[1].labels)),
        appearance=appearances[0] if appearances else None,
        prevalences=tuple(prevalences),
        attributes=tuple(attributes),
        sentence="",
    )
    return report.model_copy(update={"sentence": sentence_of(report)})


def sentence_of(report: ShiftReport) -> str:
    """Which things moved and which not, in one sentence."""
    parts = [*_prevalences_told(report), *([] if report.appearance is None else [_appearance_told(report.appearance)])]
    names = {"view": "views", "sex": "sexes", "age": "ages"}
    moved = [a for a in report.attributes if a.moved]
    parts += [f"{names[a.attribute]} differ ({_largest(a)})" for a in moved]
    if alike := [names[a.attribute] for a in report.attributes if a.moved is False]:
        parts.append(f"{_and(alike)} alike, as far as can be told")
    if unknown := [names[a.attribute] for a in report.attributes if a.moved is None]:
        parts.append(f"{_and(unknown)} too few to tell")
    return "; ".join(parts)[:1].upper() + "; ".join(parts)[1:] + "."


Sides = tuple[Side, Side]


def _appearance(
    ones: Sides, options: IntervalOptions, own: Interval | None, beyond: FloatArray | None, rate: float | None
) -> AppearanceShift:
    rng, share, beyond_p = np.random.default_rng(options.seed), None, None
    first, second = (one.embeddings[rng.permutation(len(one.labels))[:_MOST]] for one in ones)
    area = tell_apart(first, second, options)
    distance, p = (None, None) if area.value is None else discrepancy(first, second, seed=options.seed)
    if beyond is not None and len(beyond) and rate is not None:
        # Whole patients: shares of those with several images are rounded down together.
        beyond_p = float(binomtest(int(beyond.sum() + 1e-9), len(beyond), rate, alternative="greater").pvalue)
        share = clopper_pearson(beyond.astype(np.float64), options.confidence)
    return AppearanceShift(
        told_apart=area,
        own=own,
        discrepancy=distance,
        p=p,
        beyond=share,
        false_alarm_rate=None if share is None else rate,
        beyond_p=beyond_p,
    )


def _prevalences(
    both: Sides,
    ones: Sides,
    findings: Sequence[tuple[str, str]],
    estimates: Sequence[float | None],
    options: IntervalOptions,
) -> list[PrevalenceShift]:
    drawn = [replace(options, seed=options.seed + i).draw(side.patients) for i, side in enumerate(both)]
    together = Resamples(
        np.hstack([each.counts for each in drawn]),
        np.concatenate([drawn[0].patient_of, drawn[1].patient_of + drawn[0].counts.shape[1]]),
    )

    def statistic(weights: FloatArray) -> FloatArray:
        parts = zip(np.split(weights, [len(both[0].labels)], axis=1), both, strict=True)
        first, second = (ratio(w @ (side.labels == 1), w @ ~np.isnan(side.labels)) for w, side in parts)
        return np.column_stack([first, second, second - first])

    # In how many patients of each side each finding is known (2, F).
    patients = np.array([[len(np.unique(side.patients[~np.isnan(label)])) for label in side.labels.T] for side in both])
    cases = [*patients[0], *patients[1], *patients.min(axis=0)]
    found = bootstrap(statistic, together, options.confidence, (-1, 1), cases)
    shifts = []
    for column, ((name, title), estimated) in enumerate(zip(findings, estimates, strict=True)):
        first, second, difference = found[column :: len(findings)]
        # Positives and negatives among one image of each patient in whom it is known.
        counts = [[int((one.labels[:, column] == label).sum()) for label in (1, 0)] for one in ones]
        told = patients[:, column].min() >= FEW
        exact = told and min(sum(each) for each in counts) >= FEW
        shifts.append(
            PrevalenceShift(
                name=name,
                title=title,
                labelled=int((~np.isnan(both[1].labels[:, column])).sum()),
                positives=int((both[1].labels[:, column] == 1).sum()),
                before=_never_or_always(first, patients[0, column], options.confidence) if told else Interval(),
                after=_never_or_always(second, patients[1, column], options.confidence) if told else Interval(),
                difference=difference if told else Interval(),
                estimated=estimated,
                p=float(fisher_exact(counts).pvalue) if exact else None,
            )
        )
    return shifts


def _never_or_always(found: Interval, patients: int, confidence: float) -> Interval:
    """Where no resample can differ, the interval of so many patients without one exception."""
    if found.value not in (0.0, 1.0):
        return found.within(0, 1)
    return clopper_pearson(np.full(patients, found.value), confidence)


def _attribute(name: str, ones: Sides) -> AttributeShift:
    given = [one.attributes[name] for one in ones]
    values = [each[each != ""] for each in given]
    names = sorted(set(values[0].tolist()) | set(values[1].tolist()))
    counts = np.array([[int((each == value).sum()) for value in names] for each in values])  # (2, V)
    size, p = None, None
    if min(map(len, values)) >= FEW:
        if name == _AGES:
            found = ks_2samp(*([int(band.split("-")[0].rstrip("+")) for band in each.tolist()] for each in values))
            size, p = float(found.statistic), float(found.pvalue)
        elif len(names) > 1:
            found = chi2_contingency(counts, correction=False)
            size, p = float(np.sqrt(found.statistic / counts.sum())), float(found.pvalue)
        else:
            size, p = 0.0, 1.0
    totals = np.maximum(counts.sum(1), 1)
    return AttributeShift(
        attribute=name,
        patients=(len(values[0]), len(values[1])),
        shares={value: (counts[0, i] / totals[0], counts[1, i] / totals[1]) for i, value in enumerate(names)},
        test="kolmogorov-smirnov" if name == _AGES else "chi2",
        size=size,
        p=p,
    )


def _prevalences_told(report: ShiftReport) -> list[str]:
    told = [p for p in report.prevalences if p.moved is not None]
    moved = sorted((p for p in told if p.moved), key=lambda p: -abs(p.difference.value or 0))
    if not told:
        return ["prevalences too few to tell"]
    if not moved:
        return ["prevalences alike"]
    named = ", ".join(f"of {p.title} {p.before.value:.2f} → {p.after.value:.2f}" for p in moved[:_NAMED])
    more = f" and of {len(moved) - _NAMED} more findings" if len(moved) > _NAMED else ""
    alike = "" if len(moved) == len(told) else f", of the other {len(told) - len(moved)} that can be told alike"
    return [f"prevalence {named}{more}{alike}"]


def _appearance_told(a: AppearanceShift) -> str:
    if a.moved is None:
        return "images too few to tell"
    own = "" if a.own is None or a.own.value is None else f", {a.own.value:.2f} among its own test images"
    beyond = "" if a.beyond is None else f"; {100 * (a.beyond.value or 0):.0f} % of them beyond the limit"
    look = "images look different" if a.moved else "images look alike"
    return f"{look} (AUC of telling them apart {a.told_apart.value:.2f}{own}{beyond})"


def _largest(attribute: AttributeShift) -> str:
    name, (before, after) = max(attribute.shares.items(), key=lambda item: abs(item[1][1] - item[1][0]))
    return f"{name} {before:.2f} → {after:.2f}"


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
