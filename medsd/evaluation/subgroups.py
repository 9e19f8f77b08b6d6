"""How well a model reads groups of patients, each against all the others: by sex, age band, view, source or another.

Start at `measure_subgroups`. A group is compared with the rest over the findings with enough cases in both, and on the
same resamples of patients, so that a gap has an interval of its own. Where a group is too small, or the model is worse
for it by more than a margin and more than chance, the report has a sentence for the card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.errors import DataError
from medsd.metrics.intervals import Interval, Resamples, bootstrap, rarer_patients, row_means
from medsd.metrics.metrics import BoolArray, FloatArray, checked, checked_patients, enough, weighted_metrics
from medsd.strict import Described

NOT_STATED = "not stated"
# Means over findings that are compared, and whether more of it is better.
COMPARED: dict[str, bool] = {"auroc": True, "sensitivity": True, "specificity": True, "calibration_error": False}
_WORDS = {
    "auroc": "AUROC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "calibration_error": "calibration error",
}
_AGES = ((18, "0-17"), (40, "18-39"), (60, "40-59"), (121, "60 and over"))


class FindingGap(Described):
    """The AUROC of one finding in a group, and what it is above that of the rest."""

    name: str
    positives: int
    auroc: Interval
    gap: Interval


class GroupFigure(Described):
    """One figure of a group, a mean over findings, and what it is above that of the rest."""

    value: Interval
    gap: Interval


class GroupReport(Described):
    """One group, such as "sex" "F", against the rest, over the findings with enough cases in both.

    Attributes:
        over: how many findings those are; where it is 0, `figures`, which are named as `COMPARED`, have no value.
        findings: those findings.
    """

    attribute: str
    value: str
    images: int
    patients: int
    over: int
    figures: dict[str, GroupFigure]
    findings: tuple[FindingGap, ...]

    @property
    def too_few(self) -> bool:
        """Whether the group has too few cases for any figure."""
        return self.over == 0


class SubgroupReport(Described):
    """All groups of one split.

    Attributes:
        margin: gaps above it, whose interval leaves out 0, are warned of.
        not_compared: attributes of which all studies have the same value, or none.
        warnings: sentences, for groups that are too small and groups for which the model is worse.
    """

    margin: float
    groups: tuple[GroupReport, ...]
    not_compared: tuple[str, ...]
    warnings: tuple[str, ...]


def measure_subgroups(
    findings: Sequence[str],
    target: npt.ArrayLike,
    probs: npt.ArrayLike,
    patients: Sequence[str] | npt.NDArray[np.str_],
    groups: Mapping[str, npt.ArrayLike],
    *,
    thresholds: npt.ArrayLike,
    margin: float = 0.05,
    resamples: int = 1000,
    confidence: float = 0.95,
    minimum_positives: int = 10,
    seed: int = 0,
) -> SubgroupReport:
    """Measure every group against all other studies.

    Args:
        findings: F names, in column order.
        target: (N, F) 1, 0 or NaN for unknown.
        probs: (N, F) in 0…1.
        patients: (N,) patient keys.
        groups: by attribute (N,) values; an empty one is "not stated", a group of its own.
        thresholds: (F,) operating points, NaN where there is none.
        margin: see `SubgroupReport`.
        resamples, confidence, minimum_positives, seed: as for `medsd.metrics.intervals.metric_intervals`.

    Raises:
        DataError: shapes or values that do not fit.
    """
    target, probs = checked(target, probs)
    limits = np.asarray(thresholds, dtype=np.float64)
    keys = checked_patients(patients, target)
    study = _Study(
        tuple(findings),
        target,
        probs,
        limits,
        keys,
        Resamples.draw(keys, resamples, seed),
        confidence,
        minimum_positives,
    )
    reports, not_compared = [], []
    for attribute, given in groups.items():
        values = np.array([str(value).strip() or NOT_STATED for value in np.asarray(given).tolist()])
        if values.shape != keys.shape:
            raise DataError(f"{attribute} has {len(values)} values for {len(target)} images; give one for each")
        names = sorted(set(values.tolist()), key=lambda name: (name == NOT_STATED, name))
        if len(names) < 2:
            not_compared.append(attribute)
            continue
        reports += [study.report(attribute, name, values == name) for name in names]
    warnings = [sentence for report in reports for sentence in warnings_of(report, margin, minimum_positives)]
    return SubgroupReport(
        margin=margin, groups=tuple(reports), not_compared=tuple(not_compared), warnings=tuple(warnings)
    )


def warnings_of(report: GroupReport, margin: float, minimum_positives: int) -> list[str]:
    """The sentences on a group: it is too small, or the model is worse for it by more than `margin` and than chance."""
    who = f"{report.attribute} {report.value}"
    if report.too_few:
        return [
            f"{who}: {report.patients} patients, too few to tell how well the model reads them "
            f"(no finding has {minimum_positives} positives and negatives both here and among the others)."
        ]
    return [
        f"{who}: {_WORDS[name]} {compared.value.value:.3f}, {abs(compared.gap.value):.3f} "
        f"{'below' if more_is_better else 'above'} that of the others "
        f"({compared.gap.low:+.3f} to {compared.gap.high:+.3f}), over {report.over} findings."
        for name, more_is_better in COMPARED.items()
        if (compared := report.figures[name]).value.value is not None
        and compared.gap.value is not None
        and compared.gap.low is not None
        and compared.gap.high is not None
        and _worse(compared.gap.value, compared.gap.low, compared.gap.high, margin, more_is_better)
    ]


def age_group(years: float) -> str:
    """Four bands of age, each wide enough to have cases; empty where it is unknown or no age."""
    if not 0 <= years <= 120:  # False for NaN, too
        return ""
    return next(name for limit, name in _AGES if years < limit)


def groups_of(table: pd.DataFrame) -> dict[str, npt.NDArray[np.str_]]:
    """Sex, age band, view and source of the rows of a manifest's table; empty where it is unknown."""
    ages = [age_group(float(age)) for age in table["age"].astype("float64")]
    texts = {name: table[name].fillna("").astype(str) for name in ("sex", "view", "source")}
    groups = {"sex": texts["sex"], "age": ages, "view": texts["view"], "source": texts["source"]}
    return {name: np.asarray(values, dtype=np.str_) for name, values in groups.items()}


def _worse(value: float, low: float, high: float, margin: float, more_is_better: bool) -> bool:
    return (value < -margin and high < 0) if more_is_better else (value > margin and low > 0)


@dataclass(frozen=True)
class _Study:
    findings: tuple[str, ...]
    target: FloatArray
    probs: FloatArray
    limits: FloatArray
    keys: npt.NDArray[np.str_]
    drawn: Resamples
    confidence: float
    minimum_positives: int

    def report(self, attribute: str, value: str, members: BoolArray) -> GroupReport:
        told = enough(self.target[members], self.minimum_positives) & enough(
            self.target[~members], self.minimum_positives
        )
        columns = np.flatnonzero(told)
        figures = {name: GroupFigure(value=Interval(), gap=Interval()) for name in COMPARED}
        gaps: tuple[FindingGap, ...] = ()
        if columns.size:
            figures, gaps = self._compare(members, columns)
        return GroupReport(
            attribute=attribute,
            value=value,
            images=int(members.sum()),
            patients=len(set(self.keys[members])),
            over=int(columns.size),
            figures=figures,
            findings=gaps,
        )

    def _compare(
        self, members: BoolArray, columns: npt.NDArray[np.int64]
    ) -> tuple[dict[str, GroupFigure], tuple[FindingGap, ...]]:
        target, probs, limits = self.target[:, columns], self.probs[:, columns], self.limits[columns]

        def statistic(weights: FloatArray) -> FloatArray:
            inside, outside = (
                weighted_metrics(target[rows], probs[rows], weights[:, rows], limits) for rows in (members, ~members)
            )
            both = [(inside[name], inside[name] - outside[name]) for name in COMPARED]
            means = [row_means(values) for pair in both for values in pair]  # value and gap of each figure
            return np.column_stack([*means, inside["auroc"], inside["auroc"] - outside["auroc"]])

        rarest = min(
            int(rarer_patients(target[rows], self.drawn.patient_of[rows]).min()) for rows in (members, ~members)
        )
        found = bootstrap(statistic, self.drawn, self.confidence, (-1, 1), cases=rarest)
        figures = {
            name: GroupFigure(value=found[2 * i].within(0, 1), gap=found[2 * i + 1]) for i, name in enumerate(COMPARED)
        }
        aurocs, gaps = np.split(np.arange(2 * len(COMPARED), len(found)), 2)
        positives = (target[members] == 1).sum(0)
        return figures, tuple(
            FindingGap(
                name=self.findings[column],
                positives=int(positives[i]),
                auroc=found[aurocs[i]].within(0, 1),
                gap=found[gaps[i]],
            )
            for i, column in enumerate(columns)
        )
