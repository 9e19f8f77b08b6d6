"""What has moved is named, and what has not is not."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from medsd.evaluation.shift import ShiftReport, Side, measure_shift
from medsd.metrics.intervals import Interval, IntervalOptions

FINDINGS = (("Effusion", "Pleural effusion"), ("Pneumonia", "Pneumonia"), ("Hernia", "Hiatal hernia"))


def side(seed: int, n: int = 200, *, pneumonia: float = 0.2) -> Side:
    """Patients of a hospital, two images each; hernias are unlabelled."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.random(n) < 0.3, rng.random(n) < pneumonia, np.full(n, False)], axis=1).astype(float)
    labels[:, 2] = np.nan
    ages = np.array([f"{10 * d}-{10 * d + 9}" for d in rng.integers(2, 9, n)])
    attributes = {"view": rng.choice(["PA", "AP"], n, p=[0.7, 0.3]), "sex": rng.choice(["F", "M"], n), "age": ages}
    patients = np.array([f"{seed}-{i // 2}" for i in range(n)])
    return Side(labels, patients, rng.normal(size=(n, 6)), attributes)


def report(after: Side, **more: object) -> ShiftReport:
    return measure_shift(
        side(0, 400),
        after,
        FINDINGS,
        IntervalOptions(resamples=100),
        probabilities=np.full((len(after.labels), 3), 0.3),
        priors={"Effusion": 0.3},
        **more,
    )


def moved(found: ShiftReport) -> set[str]:
    names = {p.name for p in found.prevalences if p.moved} | {a.attribute for a in found.attributes if a.moved}
    return names | ({"appearance"} if found.appearance is not None and found.appearance.moved else set())


def with_other_images(one: Side) -> Side:
    return replace(one, embeddings=one.embeddings + np.array([2.5, 0, 0, 0, 0, 0]))


def with_older_patients(one: Side) -> Side:
    return replace(one, attributes={**one.attributes, "age": np.full(len(one.labels), "80-89")})


def with_other_views(one: Side) -> Side:
    return replace(one, attributes={**one.attributes, "view": np.full(len(one.labels), "AP")})


@pytest.mark.parametrize(
    ("change", "what", "said"),
    [
        (lambda one: one, set(), "Prevalences alike; images look alike"),
        (lambda one: side(1, pneumonia=0.8), {"Pneumonia"}, "Prevalence of Pneumonia 0.1"),
        (with_other_images, {"appearance"}, "images look different (AUC of telling them apart 0.9"),
        (with_older_patients, {"age"}, "ages differ (80-89 0."),
        (with_other_views, {"view"}, "views differ ("),
    ],
)
def test_only_what_moved_is_named(change: Callable[[Side], Side], what: set[str], said: str) -> None:
    found = report(change(side(1)))
    assert moved(found) == what
    assert said in found.sentence and found.sentence.endswith(".")


def test_prevalences_are_estimated_only_where_images_look_alike() -> None:
    assert report(side(1)).prevalences[0].estimated is not None
    assert report(with_other_images(side(1))).prevalences[0].estimated is None


def test_a_finding_that_nobody_has_has_an_interval_all_the_same() -> None:
    after = side(1)
    after.labels[:, 1] = 0
    found = report(after).prevalences[1]
    assert found.after.value == found.after.low == 0 and 0.01 < found.after.high < 0.06 and found.moved


def test_a_finding_that_is_never_labelled_is_unknown() -> None:
    hernia = report(side(1)).prevalences[2]
    assert (hernia.labelled, hernia.moved, hernia.after.value, hernia.estimated) == (0, None, None, None)


def test_prevalences_and_their_difference_are_those_of_the_images() -> None:
    before, after = side(0, 400), side(1)
    found = report(after).prevalences[0]
    assert found.before.value == pytest.approx(before.labels[:, 0].mean(), abs=1e-6)
    assert found.difference.value == pytest.approx(after.labels[:, 0].mean() - before.labels[:, 0].mean(), abs=1e-6)
    assert found.difference.low < found.difference.value < found.difference.high


def test_images_that_the_bundles_own_test_images_equal_in_strangeness_have_not_moved() -> None:
    strange = with_other_images(side(1))
    alike = report(strange, own=Interval(value=0.97, low=0.95, high=0.99)).appearance
    assert alike.moved is False and alike.adjusted < 0.05


def test_images_beyond_the_limit_are_counted_against_the_false_alarm_rate() -> None:
    found = report(side(1), beyond=np.repeat([1.0, 0.0], [10, 90]), false_alarm_rate=0.01)
    assert found.appearance.beyond.value == pytest.approx(0.1) and found.appearance.beyond_p < 1e-6
    assert "10 % of them beyond the limit" in found.sentence


def test_five_patients_are_too_few_to_tell_anything() -> None:
    found = report(side(1, 10))
    assert moved(found) == set() and "too few to tell" in found.sentence
