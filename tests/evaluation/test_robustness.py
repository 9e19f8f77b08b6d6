"""Changes of an image: each does what it says and no more; flips are counted against the operating points."""

import numpy as np
import pytest

from medsd.evaluation.robustness import CHANGES, Said, contrast, gamma, measure_changes, turned
from medsd.findings import Finding, FindingSet
from medsd.metrics.intervals import IntervalOptions

FINDINGS = FindingSet("two", (Finding("Mass", "Mass"), Finding("Effusion", "Pleural effusion")))
SETTINGS = IntervalOptions(resamples=100, minimum_positives=5)
IMAGE = np.linspace(0, 1, 96 * 80, dtype=np.float32).reshape(96, 80)


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_leaves_an_image_of_the_same_size_in_range_and_mildly_changed(name: str) -> None:
    before = IMAGE.copy()
    changed = CHANGES[name](IMAGE)
    assert changed.shape == IMAGE.shape and changed.dtype == np.float32
    assert changed.min() >= 0 and changed.max() <= 1
    assert 0 < np.abs(changed - IMAGE).mean() < 0.12
    np.testing.assert_array_equal(IMAGE, before)  # the image that was given is not touched


def test_turning_gamma_and_contrast_do_what_their_numbers_say() -> None:
    np.testing.assert_allclose(turned(IMAGE, 180), IMAGE[::-1, ::-1], atol=1e-5)
    np.testing.assert_allclose(gamma(IMAGE, 2.0), IMAGE**2, atol=1e-6)
    assert contrast(IMAGE, 0.5).std() == pytest.approx(IMAGE.std() / 2, rel=1e-4)


def said(shift: float = 0.0, seed: int = 0) -> tuple[Said, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = (rng.random((60, 2)) < 0.4).astype(np.float32)
    probabilities = np.clip(0.3 * target + 0.6 * rng.random((60, 2)) + shift, 0, 1)
    return Said(probabilities, np.eye(60)), target, np.repeat([f"p{n}" for n in range(30)], 2)


def test_nothing_flips_where_nothing_changes_and_everything_where_all_calls_turn() -> None:
    before, target, patients = said()
    turned_round = Said(1 - before.probabilities, -before.embeddings)
    after = {"none": before, "all": turned_round}
    report = measure_changes(FINDINGS, before, after, target, patients, np.array([0.5, 0.5]), SETTINGS)
    none, everything = report.changes
    assert none.flipped.value == none.moved.value == none.auroc_lost.value == 0 and none.likeness.value == 1
    assert everything.flipped.value == 1 and everything.likeness.value == -1
    assert everything.auroc_lost.value > 0.4


def test_flips_are_counted_over_findings_with_a_threshold() -> None:
    before, target, patients = said()
    moved = Said(np.column_stack([before.probabilities[:, 0], 1 - before.probabilities[:, 1]]), before.embeddings)
    limits = np.array([0.5, 0.5])
    report = measure_changes(FINDINGS, before, {"second": moved}, target, patients, limits, SETTINGS)
    assert report.changes[0].flipped.value == pytest.approx(0.5)
    assert report.changes[0].most_flipped == ("Effusion", 1.0)
    alone = measure_changes(FINDINGS, before, {"second": moved}, target, patients, np.array([0.5, np.nan]), SETTINGS)
    assert alone.changes[0].flipped.value == 0
    without = measure_changes(FINDINGS, before, {"x": moved}, target, patients, np.array([np.nan] * 2), SETTINGS)
    assert without.changes[0].most_flipped is None and without.changes[0].flipped.value is None
