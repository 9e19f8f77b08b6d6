"""Whether labels follow from the view, or from how the images were picked, which a pooled AUROC hides.

A bedside image (AP) is taken of sicker patients, so a network that tells AP from PA ranks sick above healthy without
seeing a finding. Tested for each finding: whether it occurs more often in one view, and whether the AUROC over all
pairs of images differs from that over pairs of one view (the covariate-adjusted AUROC: Janes and Pepe, Biometrika 96,
2009, here weighted by pairs). p values are adjusted for the number of findings (Benjamini and Hochberg 1995).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medsd.evaluation.subgroups import FindingGap, Images
from medsd.metrics.intervals import Interval, Resamples, bootstrap, p_value, rarer_patients, row_means
from medsd.metrics.metrics import BoolArray, FloatArray, enough, or_none, ratio, weighted_auroc, weighted_aurocs
from medsd.metrics.two_samples import adjust_p
from medsd.strict import Described


class PartReport(Described):
    """The AUROC in a part of the images, for instance "PA", and over the images of the headline (`pooled`).

    Means over the `over` findings with enough cases on both sides; `gap` is the first less the second, on the same
    resamples.
    """

    name: str
    images: int
    patients: int
    over: int
    auroc: Interval = Interval()
    pooled: Interval = Interval()
    gap: Interval = Interval()
    findings: tuple[FindingGap, ...] = ()


class FindingViews(Described):
    """How one finding depends on the view: its prevalence by view, and its AUROC over all pairs of images and within
    views.

    `difference` is `pooled` less `within`. The p values of no difference are adjusted; None with too few cases.
    """

    name: str
    prevalence: dict[str, float]
    prevalence_p: float | None
    pooled: Interval
    within: Interval
    difference: Interval
    difference_p: float | None


class ViewReport(Described):
    """The views of the headline's images; images without a stated view count in the headline only.

    `parts` are each view against all. AUROCs are means over the `over` findings told, as of `FindingViews`. A p value
    below `level` is beyond chance; `warnings` are empty where neither prevalence nor AUROC depends on the view.
    """

    level: float
    parts: tuple[PartReport, ...]
    over: int
    pooled: Interval = Interval()
    within: Interval = Interval()
    difference: Interval = Interval()
    difference_p: float | None = None
    findings: tuple[FindingViews, ...] = ()
    warnings: tuple[str, ...] = ()


def measure_part(name: str, images: Images, members: BoolArray, headline: BoolArray, drawn: Resamples) -> PartReport:
    """Measure the images of `members` (N,) beside those of `headline` (N,); they may be among them, or not."""
    counts = {"images": int(members.sum()), "patients": len(set(images.patients[members]))}
    sides, columns = (members, headline), images.told(members, headline)
    if not columns.size:
        return PartReport(name=name, over=0, **counts)
    target, probs = images.target[:, columns], images.probs[:, columns]

    def statistic(weights: FloatArray) -> FloatArray:
        inside, whole = (weighted_aurocs(target[rows], probs[rows], weights[:, rows]) for rows in sides)
        means = row_means(inside), row_means(whole)
        return np.column_stack([*means, means[0] - means[1], inside, inside - whole])

    cases = np.minimum(*(rarer_patients(target[rows], drawn.patient_of[rows]) for rows in sides)).tolist()
    of_values = [*[min(cases)] * 3, *cases * 2]
    auroc, pooled, gap, *each = bootstrap(statistic, drawn, images.options.confidence, (-1, 1), cases=of_values)
    return PartReport(
        name=name,
        over=int(columns.size),
        auroc=auroc.within(0, 1),
        pooled=pooled.within(0, 1),
        gap=gap,
        findings=images.gaps(members, columns, each),
        **counts,
    )


def measure_views(images: Images, view: Sequence[str] | npt.NDArray[np.str_]) -> ViewReport | None:
    """Measure each view, and test whether labels and AUROC depend on it.

    `view` (N,) is empty where it is not stated. None where fewer than two views are stated.
    """
    views = np.asarray(view, dtype=np.str_)
    names = sorted(set(views.tolist()) - {""}, reverse=True)  # PA, then AP
    if len(names) < 2:
        return None
    drawn, everything = images.drawn(), np.ones(len(views), dtype=bool)
    parts = tuple(measure_part(name, images, views == name, everything, drawn) for name in names)
    report = ViewReport(level=1 - images.options.confidence, parts=parts, over=0)
    columns = np.flatnonzero(enough(images.target[views != ""], images.options.minimum_positives))
    if columns.size:
        report = report.model_copy(update=_told_by_views(images, views, names, columns, drawn))
    return report.model_copy(update={"warnings": tuple(_warnings(report, images.titles))})


def selection_warning(picked: int, trained: int) -> str:
    """The warning that `picked` of the `trained` training images were picked by finding; "" where none were."""
    if not picked:
        return ""
    return (
        f"{picked} of {trained} training images were picked by finding. How an image was picked depends on its "
        "labels, so the model may have learned the former instead of the findings. The headline figures are measured "
        "on images that were not picked."
    )


def _told_by_views(
    images: Images, views: npt.NDArray[np.str_], names: list[str], columns: npt.NDArray[np.int64], drawn: Resamples
) -> dict[str, Any]:
    """Fields of the report: how the findings in `columns`, and their mean, depend on the view."""
    target, probs, stated = images.target[:, columns], images.probs[:, columns], views != ""
    confidence, titles, width = images.options.confidence, list(images.titles), 3 + len(names)

    def statistic(weights: FloatArray) -> FloatArray:
        each = [_of_finding(target[:, f], probs[:, f], views, names, weights) for f in range(len(columns))]
        means = [row_means(np.column_stack([of_finding[:, k] for of_finding in each])) for k in range(3)]
        return np.column_stack([*means, *each])

    cases = rarer_patients(target[stated], drawn.patient_of[stated])
    of_values = [*[int(cases.min())] * 3, *np.repeat(cases, width).tolist()]
    found = bootstrap(statistic, drawn, confidence, (-1, 1), cases=of_values)
    p_values = [p_value(each, confidence, n) for each, n in zip(found, of_values, strict=True)]
    starts = range(3, len(found), width)  # of the values of each finding
    of_auroc = adjust_p([p_values[2], *(p_values[start + 2] for start in starts)], "benjamini-hochberg")
    of_prevalence = adjust_p([_smallest(p_values[start + 3 : start + width]) for start in starts], "benjamini-hochberg")
    return {
        "over": len(columns),
        "pooled": found[0].within(0, 1),
        "within": found[1].within(0, 1),
        "difference": found[2],
        "difference_p": or_none(of_auroc[0]),
        "findings": tuple(
            FindingViews(
                name=titles[column],
                prevalence={
                    name: float(np.nanmean(target[views == name, f]))
                    for name in names
                    if not np.isnan(target[views == name, f]).all()
                },
                prevalence_p=or_none(of_prevalence[f]),
                pooled=found[start].within(0, 1),
                within=found[start + 1].within(0, 1),
                difference=found[start + 2],
                difference_p=or_none(of_auroc[1 + f]),
            )
            for f, (column, start) in enumerate(zip(columns, starts, strict=True))
        ),
    }


def _smallest(p_values: Sequence[float | None]) -> float | None:
    """The smallest p of the views, adjusted for their number; None where fewer than two are told.

    Each view is tested against all others: of two views this is a single test.
    """
    tests = [p for p in p_values if p is not None]
    return min(1.0, min(tests) * (len(tests) - 1)) if len(tests) > 1 else None


def _of_finding(
    target: FloatArray, probs: FloatArray, views: npt.NDArray[np.str_], names: list[str], weights: FloatArray
) -> FloatArray:
    """(R, 3 + V): AUROC over all pairs of images, over pairs of one view, and the first less the second.

    Then for each view how much more often the finding occurs in it than in all others.
    """
    known = ~np.isnan(target) & (views != "")
    won, pairs, shares = np.zeros(len(weights)), np.zeros(len(weights)), []
    for name in names:
        rows = known & (views == name)
        weight, truth = weights[:, rows], target[rows]
        count = (weight @ truth) * (weight @ (1 - truth))
        won += np.nan_to_num(weighted_auroc(truth, probs[rows], weight)) * count
        pairs += count
        shares.append(_share(target, weights, rows) - _share(target, weights, known & ~rows))
    pooled = weighted_auroc(target[known], probs[known], weights[:, known])
    within = ratio(won, pairs)
    return np.column_stack([pooled, within, pooled - within, *shares])


def _share(target: FloatArray, weights: FloatArray, rows: BoolArray) -> FloatArray:
    """(R,) the share of the rows that have the finding; NaN where a resample has none of them."""
    return ratio(weights[:, rows] @ target[rows], weights[:, rows].sum(1))


def _warnings(report: ViewReport, titles: dict[str, str]) -> list[str]:
    said = []
    prevalent = [each for each in report.findings if _beyond(each.prevalence_p, report.level)]
    if prevalent:
        rates = "; ".join(
            f"{titles[each.name]} {', '.join(f'{view} {share:.3f}' for view, share in each.prevalence.items())}"
            for each in prevalent
        )
        said.append(
            "The labels depend on the view: the prevalence differs between views, beyond chance, for "
            f"{len(prevalent)} of {report.over} findings ({rates}). A model can rank these by the view alone; compare "
            "the figures within views."
        )
    apart = [each for each in report.findings if _beyond(each.difference_p, report.level)]
    if apart or _beyond(report.difference_p, report.level):
        each = "; ".join(f"{titles[f.name]} {f.pooled.value:.3f} and {f.within.value:.3f}" for f in apart)
        said.append(
            "The AUROC over all images differs from that within views, beyond chance: the mean over "
            f"{report.over} findings is {report.pooled.value:.3f} over all pairs of images and "
            f"{report.within.value:.3f} over pairs of one view (difference {report.difference})"
            + (f"; {each}" if apart else "")
            + ". The second figure measures the findings; the difference comes from the view."
        )
    return said


def _beyond(p: float | None, level: float) -> bool:
    return p is not None and p < level
