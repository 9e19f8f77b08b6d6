"""How well a model reads groups of patients, each against all the others: by sex, age band, view, source or another.

Start at `measure_subgroups`. A group is compared with the rest over the findings with enough cases in both, and on the
same resamples of patients, so that a gap has an interval of its own. Where a group is too small, or the model is worse
for it by more than a margin and more than chance, the report has a sentence for the card.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.errors import DataError
from medsd.metrics.intervals import Interval, IntervalOptions, Resamples, bootstrap, rarer_patients, row_means
from medsd.metrics.metrics import BoolArray, FloatArray, checked, checked_patients, enough, weighted_metrics
from medsd.strict import Described

NOT_STATED = "not stated"
# Means over findings that are compared, and whether more of it is better.
COMPARED: dict[str, bool] = {"auroc": True, "sensitivity": True, "specificity": True, "calibration_error": False}
_AGES = ((18, "0-17"), (40, "18-39"), (60, "40-59"), (121, "60 and over"))


class FindingGap(Described):
    """The AUROC of one finding in a group, and what it is above that of the rest."""

    name: str
    positives: int
    auroc: Interval
    gap: Interval


class GroupFigure(Described):
    """One figure of a group, a mean over findings, and what it is above that of the rest."""

    value: Interval = Interval()
    gap: Interval = Interval()


class GroupReport(Described):
    """One group, such as "sex" "F", against the rest, over the `over` findings with enough cases in both.

    Where there are none, `figures`, which are named as `COMPARED`, have no value.
    """

    attribute: str
    value: str
    images: int
    patients: int
    over: int
    figures: dict[str, GroupFigure]
    findings: tuple[FindingGap, ...]


class SubgroupReport(Described):
    """All groups of one split, with sentences on those that are too small and those for which the model is worse.

    That is where a gap is above `margin` and its interval leaves out 0. `not_compared`: attributes with one value.
    """

    margin: float
    groups: tuple[GroupReport, ...]
    not_compared: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Images:
    """N images that a model has read, and how to measure them.

    `titles` of the F findings, by name, in column order; target (N, F) 1, 0 or NaN, probs (N, F) in 0…1, patients (N,).
    """

    titles: dict[str, str]
    target: FloatArray
    probs: FloatArray
    patients: npt.NDArray[np.str_]
    options: IntervalOptions = field(default_factory=IntervalOptions)

    def drawn(self) -> Resamples:
        """The resamples of the patients."""
        return self.options.draw(self.patients)

    def told(self, *sides: BoolArray) -> npt.NDArray[np.int64]:
        """Columns of the findings with enough cases in each of the sides (N,)."""
        enough_of = [enough(self.target[rows], self.options.minimum_positives) for rows in sides]
        return np.flatnonzero(np.all(enough_of, axis=0))

    def gaps(
        self, members: BoolArray, columns: npt.NDArray[np.int64], found: Sequence[Interval]
    ) -> tuple[FindingGap, ...]:
        """The findings of `columns`; `found` are their AUROCs among `members`, and then their gaps."""
        names, positives = list(self.titles), (self.target[members] == 1).sum(0)
        halves = zip(columns, found[: len(columns)], found[len(columns) :], strict=True)
        return tuple(
            FindingGap(name=names[f], positives=int(positives[f]), auroc=auroc.within(0, 1), gap=gap)
            for f, auroc, gap in halves
        )


def measure_subgroups(
    images: Images, groups: Mapping[str, npt.ArrayLike], *, thresholds: npt.ArrayLike, margin: float = 0.05
) -> SubgroupReport:
    """Measure every group of N images against all others.

    `groups` are (N,) values by attribute; an empty one is "not stated", a group of its own. `thresholds` (F,) are NaN
    where there is no operating point; `margin` as of `SubgroupReport`. Shapes or values that do not fit are a
    DataError.
    """
    target, _ = checked(images.target, images.probs)
    keys, limits = checked_patients(images.patients, target), np.asarray(thresholds, dtype=np.float64)
    drawn, reports, not_compared = images.drawn(), [], []
    for attribute, given in groups.items():
        values = np.array([str(value).strip() or NOT_STATED for value in np.asarray(given).tolist()])
        if values.shape != keys.shape:
            raise DataError(f"{attribute} has {len(values)} values for {len(target)} images; give one for each")
        names = sorted(set(values.tolist()), key=lambda name: (name == NOT_STATED, name))
        if len(names) < 2:
            not_compared.append(attribute)
            continue
        reports += [_report(images, attribute, name, values == name, limits, drawn) for name in names]
    fewest = images.options.minimum_positives
    warnings = [sentence for report in reports for sentence in warnings_of(report, margin, fewest)]
    return SubgroupReport(
        margin=margin, groups=tuple(reports), not_compared=tuple(not_compared), warnings=tuple(warnings)
    )


def warnings_of(report: GroupReport, margin: float, minimum_positives: int) -> list[str]:
    """The sentences on a group: it is too small, or the model is worse for it by more than `margin` and than chance."""
    who = f"{report.attribute} {report.value}"
    if not report.over:
        return [
            f"{who}: {report.patients} patients, too few to tell how well the model reads them "
            f"(no finding has {minimum_positives} positives and negatives both here and among the others)."
        ]
    return [
        f"{who}: {'AUROC' if name == 'auroc' else name.replace('_', ' ')} {compared.value.value:.3f}, "
        f"{abs(compared.gap.value or 0):.3f} {'below' if more_is_better else 'above'} that of the others "
        f"({compared.gap.low:+.3f} to {compared.gap.high:+.3f}), over {report.over} findings."
        for name, more_is_better in COMPARED.items()
        if _worse((compared := report.figures[name]).gap, margin, more_is_better)
    ]


def age_group(years: float) -> str:
    """Four bands of age, each wide enough to have cases; empty where it is unknown or no age."""
    if not 0 <= years <= 120:  # False for NaN, too
        return ""
    return next(name for limit, name in _AGES if years < limit)


def groups_of(table: pd.DataFrame) -> dict[str, npt.NDArray[np.str_]]:
    """Sex, age band, view and source of the rows of a manifest's table; empty where it is unknown."""
    texts = table[["sex", "view", "source"]].fillna("").astype(str)
    groups = texts.assign(age=table["age"].astype("float64").map(age_group))
    return {name: groups[name].to_numpy(dtype=np.str_) for name in ("sex", "age", "view", "source")}


def _worse(gap: Interval, margin: float, more_is_better: bool) -> bool:
    if gap.value is None or gap.low is None or gap.high is None:
        return False
    return (gap.value < -margin and gap.high < 0) if more_is_better else (gap.value > margin and gap.low > 0)


def _report(
    images: Images, attribute: str, value: str, members: BoolArray, thresholds: FloatArray, drawn: Resamples
) -> GroupReport:
    """The group of the images `members` (N,) against the others."""
    columns, sides = images.told(members, ~members), (members, ~members)
    figures = dict.fromkeys(COMPARED, GroupFigure())
    gaps: tuple[FindingGap, ...] = ()
    if columns.size:
        target, probs, limits = images.target[:, columns], images.probs[:, columns], thresholds[columns]

        def statistic(weights: FloatArray) -> FloatArray:
            inside, outside = (weighted_metrics(target[s], probs[s], weights[:, s], limits) for s in sides)
            both = [(inside[name], inside[name] - outside[name]) for name in COMPARED]
            means = [row_means(values) for pair in both for values in pair]  # value and gap of each figure
            return np.column_stack([*means, inside["auroc"], inside["auroc"] - outside["auroc"]])

        rarest = min(int(rarer_patients(target[rows], drawn.patient_of[rows]).min()) for rows in sides)
        found = bootstrap(statistic, drawn, images.options.confidence, (-1, 1), cases=rarest)
        figures = {
            name: GroupFigure(value=found[2 * i].within(0, 1), gap=found[2 * i + 1]) for i, name in enumerate(COMPARED)
        }
        gaps = images.gaps(members, columns, found[2 * len(COMPARED) :])
    return GroupReport(
        attribute=attribute,
        value=value,
        images=int(members.sum()),
        patients=len(set(images.patients[members])),
        over=int(columns.size),
        figures=figures,
        findings=gaps,
    )
