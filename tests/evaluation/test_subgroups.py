"""Subgroups: gaps are differences of the metrics, small groups say so, and a group that reads worse is warned of."""

import numpy as np
import pytest
from scipy.special import expit

from medsd.errors import DataError
from medsd.evaluation.subgroups import COMPARED, Images, SubgroupReport, age_group, measure_subgroups
from medsd.metrics import metrics
from medsd.metrics.intervals import IntervalOptions, metric_intervals
from tests.metrics.measured import measure

NAMES = ("a", "b", "c")
LIMITS = np.array([0.4, 0.5, np.nan])


def split(
    seed: int = 0, n: int = 400, noise_of_women: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Target, probabilities, patients of two images each, and sex; women's logits are noisier where asked."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n // 2), 2)
    women = (rng.random(n // 2) < 0.4)[patient]
    target = (rng.random((n, 3)) < [0.4, 0.3, 0.2]).astype(float)
    target[rng.random((n, 3)) < 0.05] = np.nan
    noise = rng.normal(size=(n, 3)) * np.where(women, noise_of_women, 1.0)[:, None]
    probs = expit(1.5 * np.nan_to_num(target) - 0.8 + noise)
    return target, probs, patient.astype(str), np.where(women, "F", "M")


def images(target: np.ndarray, probs: np.ndarray, patients: np.ndarray, resamples: int = 200) -> Images:
    return Images({name: name for name in NAMES}, target, probs, patients, IntervalOptions(resamples=resamples))


def measured(**changed: object) -> SubgroupReport:
    target, probs, patients, sex = split(**changed)
    return measure_subgroups(images(target, probs, patients, 200), {"sex": sex}, thresholds=LIMITS)


def test_figures_and_gaps_are_those_of_the_metrics_of_group_and_rest() -> None:
    target, probs, _, sex = split()
    report = measured()
    women = report.groups[0]
    inside, outside = (measure(target[rows], probs[rows], LIMITS) for rows in (sex == "F", sex == "M"))
    assert (women.attribute, women.value, women.over) == ("sex", "F", 3)
    for name in COMPARED:
        mine, theirs = (metrics.macro(getattr(part, name)) for part in (inside, outside))
        assert women.figures[name].value.value == pytest.approx(mine)
        assert women.figures[name].gap.value == pytest.approx(mine - theirs)
    for f, finding in enumerate(women.findings):
        assert finding.gap.value == pytest.approx(inside.auroc[f] - outside.auroc[f])
        assert finding.positives == (target[sex == "F", f] == 1).sum()


def test_of_two_groups_the_gaps_are_each_others_and_their_images_are_all() -> None:
    women, men = measured().groups
    assert women.images + men.images == 400
    for name in COMPARED:
        assert women.figures[name].gap.value == pytest.approx(-men.figures[name].gap.value)
        assert women.figures[name].gap.low == pytest.approx(-men.figures[name].gap.high, abs=0.02)


def test_the_interval_of_a_group_is_nearly_that_of_its_images_alone() -> None:
    target, probs, patients, sex = split()
    rows = sex == "F"
    alone = metric_intervals(target[rows], probs[rows], patients[rows], IntervalOptions(resamples=400))["auroc"].macro
    found = measured().groups[0].figures["auroc"].value
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=0.02)


def test_a_group_that_reads_worse_is_warned_of_and_the_better_one_is_not() -> None:
    report = measured(noise_of_women=4.0, n=800)
    said = [sentence for sentence in report.warnings if "AUROC" in sentence]
    assert len(said) == 1
    assert said[0].startswith("sex F: AUROC 0.") and "below that of the others" in said[0]
    assert report.groups[0].figures["auroc"].gap.high < 0


def test_groups_that_are_read_alike_are_not_warned_of() -> None:
    assert measured(n=800).warnings == ()


def test_a_gap_within_the_margin_is_not_warned_of() -> None:
    target, probs, patients, sex = split(noise_of_women=4.0, n=800)
    wide = measure_subgroups(images(target, probs, patients, 50), {"sex": sex}, thresholds=LIMITS, margin=0.6)
    assert wide.warnings == ()


def test_a_small_group_is_too_few_to_tell_and_says_so() -> None:
    target, probs, patients, _ = split()
    view = np.where(np.arange(400) < 12, "LATERAL", "PA")
    report = measure_subgroups(images(target, probs, patients, 50), {"view": view}, thresholds=LIMITS)
    assert [group.over for group in report.groups] == [0, 0]  # nor can the rest be compared with it
    assert report.groups[0].figures["auroc"].value.value is None
    assert report.warnings[0].startswith("view LATERAL: 6 patients, too few to tell")


def test_attributes_with_one_value_are_named_and_not_compared_and_blanks_are_a_group() -> None:
    target, probs, patients, sex = split()
    groups = {"source": np.full(400, "nih14"), "sex": np.where(np.arange(400) % 2, sex, "")}
    report = measure_subgroups(images(target, probs, patients, 20), groups, thresholds=LIMITS)
    assert report.not_compared == ("source",)
    assert [group.value for group in report.groups] == ["F", "M", "not stated"]


def test_unknown_labels_and_one_study_break_nothing() -> None:
    nothing = np.full((1, 3), np.nan)
    report = measure_subgroups(images(nothing, np.full((1, 3), 0.5), ["p"]), {"sex": ["F"]}, thresholds=LIMITS)
    assert (report.groups, report.not_compared) == ((), ("sex",))
    target, probs, patients, sex = split()
    unknown = measure_subgroups(images(target * np.nan, probs, patients, 20), {"sex": sex}, thresholds=LIMITS)
    assert not any(group.over for group in unknown.groups)


@pytest.mark.parametrize(
    ("years", "band"),
    [(0, "0-17"), (17.9, "0-17"), (18, "18-39"), (59, "40-59"), (60, "60 and over"), (120, "60 and over")],
)
def test_ages_fall_into_four_bands(years: float, band: str) -> None:
    assert age_group(years) == band


@pytest.mark.parametrize("years", [float("nan"), -1, 411])
def test_what_is_no_age_is_in_no_band(years: float) -> None:
    assert age_group(years) == ""


def test_values_that_do_not_match_the_images_are_refused() -> None:
    target, probs, patients, sex = split()
    with pytest.raises(DataError, match="sex has 399 values for 400 images"):
        measure_subgroups(images(target, probs, patients), {"sex": sex[1:]}, thresholds=LIMITS)
    with pytest.raises(DataError, match="one patient key for each"):
        measure_subgroups(images(target, probs, patients[1:]), {"sex": sex}, thresholds=LIMITS)
