"""Confounding by view: a score that is the view is warned of, an honest one is not, and figures are comparable."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from medsd.calibration.types import OperatingPoint, PlattCalibration
from medsd.evaluation.confounding import ViewReport, measure_views, selection_warning
from medsd.evaluation.report import Beside, EvaluationReport, evaluate
from medsd.evaluation.subgroups import Images
from medsd.findings import finding_set
from medsd.metrics.intervals import IntervalOptions
from medsd.settings import EvaluationSettings

TITLES = {"a": "A", "b": "B", "c": "C", "d": "D"}


def study(seed: int, *, by_view: float, score: str = "findings", n: int = 400) -> tuple[Images, np.ndarray]:
    """Images of patients with several each; `by_view` is how much more likely findings are in AP (log odds).

    The score sees the findings, the view alone, or both.
    """
    rng = np.random.default_rng(seed)
    patient = np.sort(rng.integers(n // 2, size=n))
    bedside = rng.random(n) < expit(rng.normal(size=n)[patient])
    chance = expit(np.linspace(-1.5, -0.5, 4) + 0.7 * rng.normal(size=n)[patient, None] + by_view * bedside[:, None])
    target = (rng.random((n, 4)) < chance).astype(float)
    target[rng.random((n, 4)) < 0.02] = np.nan
    noise = rng.normal(size=(n, 4))
    seen = {"findings": 1.2 * np.nan_to_num(target) + noise, "view": bedside[:, None] + 0.01 * noise}
    seen["both"] = seen["findings"] + bedside[:, None]
    images = Images(TITLES, target, expit(seen[score]), patient.astype(str), IntervalOptions(resamples=100, seed=seed))
    return images, np.where(bedside, "AP", "PA")


def warned(report: ViewReport | None) -> tuple[bool, bool]:
    """Whether prevalence, and whether the AUROC, is warned of."""
    assert report is not None
    said = " ".join(report.warnings)
    return "labels depend on the view" in said, "differs from that within" in said


@pytest.mark.parametrize("score", ["view", "both"])
def test_a_score_that_follows_the_view_is_warned_of(score: str) -> None:
    report = measure_views(*study(1, by_view=1.5, score=score))
    assert warned(report) == (True, True)
    assert report.within.value < report.pooled.value - 0.03 and report.difference.low > 0
    if score == "view":
        assert report.within.value == pytest.approx(0.5, abs=0.05)
        assert all(part.gap.value < -0.05 for part in report.parts)


def test_honest_scores_are_warned_of_no_more_often_than_stated() -> None:
    seeds = 20
    found = [warned(measure_views(*study(seed, by_view=0))) for seed in range(seeds)]
    rates = np.mean(found, axis=0)
    assert (rates <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / seeds)).all(), rates


def test_labels_that_go_with_the_view_are_named_and_an_honest_score_is_not_blamed() -> None:
    found = np.array([warned(measure_views(*study(seed, by_view=1.2))) for seed in range(8)])
    assert found[:, 0].all() and found[:, 1].sum() <= 1
    said = measure_views(*study(1, by_view=1.2)).warnings[0]
    assert "4 of 4 findings" in said and "A PA 0." in said and ", AP 0." in said


def test_a_view_that_shifts_scores_and_no_labels_is_told_too() -> None:
    report = measure_views(*study(2, by_view=0, score="both", n=1200))
    assert warned(report) == (False, True) and report.within.value > report.pooled.value


def test_figures_within_a_view_and_over_all_are_those_of_scikit_learn_over_the_same_findings() -> None:
    images, view = study(3, by_view=1.0)
    images.target[(view == "AP") & (images.target[:, 0] == 1), 0] = 0  # A cannot be told in AP
    report = measure_views(images, view)
    assert [part.name for part in report.parts] == ["PA", "AP"]
    for part, told in zip(report.parts, (range(4), range(1, 4)), strict=True):
        rows = view == part.name
        assert part.over == len(told) and part.images == rows.sum()
        for interval, chosen in ((part.auroc, rows), (part.pooled, np.ones_like(rows))):
            areas = []
            for f in told:
                known = chosen & ~np.isnan(images.target[:, f])
                areas.append(roc_auc_score(images.target[known, f], images.probs[known, f]))
            assert interval.value == pytest.approx(np.mean(areas))
        assert part.gap.value == pytest.approx(part.auroc.value - part.pooled.value)
        assert part.gap.low < part.gap.value < part.gap.high


def test_the_auroc_within_views_counts_the_pairs_of_one_view() -> None:
    images, view = study(4, by_view=1.0, n=120)
    images = replace(images, options=IntervalOptions(resamples=100, minimum_positives=3))
    finding = measure_views(images, view).findings[1]
    won = pairs = 0.0
    for name in ("PA", "AP"):
        rows = view == name
        have, have_not = (images.probs[rows & (images.target[:, 1] == label), 1] for label in (1, 0))
        won += (have[:, None] > have_not).sum() + (have[:, None] == have_not).sum() / 2
        pairs += have.size * have_not.size
    assert finding.within.value == pytest.approx(won / pairs)


def test_one_view_gives_no_report_and_views_not_stated_are_left_out() -> None:
    images, view = study(5, by_view=1.0)
    assert measure_views(images, np.full(len(view), "PA")) is None
    assert measure_views(images, np.where(view == "AP", "AP", "")) is None
    some = np.where(np.arange(len(view)) % 3, view, "")
    assert sum(part.images for part in measure_views(images, some).parts) == (some != "").sum()


def test_too_few_findings_say_so_and_nothing_is_warned_of() -> None:
    images, view = study(6, by_view=1.5, score="view", n=30)
    report = measure_views(replace(images, options=IntervalOptions(resamples=100, minimum_positives=40)), view)
    assert (report.over, report.warnings, report.pooled.value) == (0, (), None)
    assert all((part.over, part.auroc.value) == (0, None) for part in report.parts)


def evaluated(beside: Beside | None = None) -> EvaluationReport:
    findings = finding_set("phantom8")
    rng = np.random.default_rng(0)
    target = (rng.random((200, 8)) < 0.4).astype(float)
    logits = target + rng.normal(size=target.shape)
    points = {name: OperatingPoint(threshold=0.5, rule="f1", positives=50, negatives=50) for name in findings}
    return evaluate(
        findings,
        logits,
        target,
        [f"p{i // 2}" for i in range(200)],
        calibration={name: PlattCalibration(slope=1, intercept=0) for name in findings},
        operating_points=points,
        settings=EvaluationSettings(bootstrap=40),
        groups={"view": np.where(np.arange(200) % 3, "PA", "AP")},
        beside=beside,
    )


def test_selected_images_stand_apart_and_change_no_figure_of_the_headline() -> None:
    rng = np.random.default_rng(1)
    target = (rng.random((80, 8)) < 0.5).astype(float)
    logits, patients = 3 * target + rng.normal(size=target.shape), np.arange(80).astype(str)
    beside = Beside(logits, target, patients, picked=12, trained=90)
    alone, report = evaluated(), evaluated(beside)
    assert report.macro == alone.macro and report.views == alone.views and alone.selected is None
    assert (report.selected.images, report.selected.over) == (80, 8)
    areas = [roc_auc_score(target[:, f], logits[:, f]) for f in range(8)]
    assert report.selected.auroc.value == pytest.approx(np.mean(areas), abs=1e-6)
    assert report.selected.pooled.value == pytest.approx(report.macro["auroc"].interval.value)
    assert report.selected.gap.low > 0
    assert report.selection_warning == selection_warning(12, 90) and "12 of 90 training images" in report.warnings[-1]
    lines = report.lines()
    assert lines[0].startswith("macro AUROC 0.") and lines[1].startswith("within PA: 0.")
    assert lines[3].startswith("selected images: 0.") and lines[-1].startswith("warning: 12 of 90")


def test_without_selected_images_nothing_is_said_of_them() -> None:
    assert selection_warning(0, 100) == "" and evaluated().warnings == ()
