"""How much image and note contribute: shares add up, a telling note is noticed, and sentences find images."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from medsd.errors import DataError
from medsd.evaluation.modalities import ModalityReport, measure_reliance, score_sentences
from medsd.findings import Finding, FindingSet
from medsd.metrics.intervals import IntervalOptions

FINDINGS = FindingSet("two", (Finding("Mass", "Mass"), Finding("Effusion", "Pleural effusion")))
SETTINGS = IntervalOptions(resamples=200, minimum_positives=5)
COUNT = 300


class Readings(NamedTuple):
    image: npt.NDArray[np.float64]
    note: npt.NDArray[np.float64]
    target: npt.NDArray[np.float32]
    patients: npt.NDArray[np.str_]


def readings(image: float, note: float, seed: int = 0) -> Readings:
    """Two findings, each modality's logits with its own strength of signal; two studies a patient."""
    rng = np.random.default_rng(seed)
    target = (rng.random((COUNT, 2)) < 0.4).astype(np.float32)

    def logits(signal: float) -> npt.NDArray[np.float64]:
        return 3 * (signal * (2 * target - 1) + rng.normal(size=target.shape))

    patients = np.repeat([f"p{number}" for number in range(COUNT // 2)], 2)
    return Readings(logits(image), logits(note), target, patients)


def report(image: float, note: float) -> ModalityReport:
    return measure_reliance(*readings(image, note), SETTINGS)


def test_shares_of_the_variance_add_up_to_one_and_follow_the_logits() -> None:
    equal = report(0.8, 0.8)
    assert equal.image.variance_share.value + equal.note.variance_share.value == pytest.approx(1)
    assert 0.45 < equal.image.variance_share.value < 0.55
    large = readings(0.8, 0.8)
    one_sided = measure_reliance(4 * large.image, *large[1:], SETTINGS)
    assert one_sided.image.variance_share.low > 0.8


def test_what_is_withheld_and_what_is_another_patients_costs_what_it_carried() -> None:
    found = report(1.0, 0.0)
    assert found.image.lost_when_withheld.low > 0.15 and found.image.lost_when_shuffled.low > 0.15
    assert found.note.lost_when_withheld.high < 0  # noise does harm
    assert abs(found.note.lost_when_shuffled.value) < 0.03


def test_a_note_that_gives_the_answer_away_is_noticed_and_an_honest_one_is_not() -> None:
    given_away = report(0.4, 5.0)
    assert given_away.note_gives_away and "gives the answer away" in given_away.warning
    assert not report(0.8, 0.8).note_gives_away and report(0.8, 0.8).warning == ""


def test_no_study_lends_to_one_of_its_own_patient() -> None:
    from medsd.evaluation.modalities import _donors

    patients = np.array(["a", "a", "b", "c", "c", "c"])
    assert all((patients[donors] != patients).all() for donors in _donors(patients, 0))


def test_too_few_studies_tell_nothing() -> None:
    few = readings(1, 1)
    with pytest.raises(DataError, match="too few studies"):
        measure_reliance(*(each[:6] for each in few), SETTINGS)


def test_sentences_that_point_to_their_images_find_them_and_others_do_not() -> None:
    study = readings(1, 1)
    images = 2 * study.target - 1 + 0.3 * np.random.default_rng(1).normal(size=study.target.shape)
    found = score_sentences(FINDINGS, np.eye(2), images, study.target, study.patients, SETTINGS)
    assert found.precision.low > 0.9 and found.gain_over_random.low > 0.4
    assert found.findings[1].sentence == "pleural effusion"
    lost = score_sentences(FINDINGS, np.eye(2), np.random.default_rng(2).normal(size=images.shape), study.target,
                           study.patients, SETTINGS)  # fmt: skip
    assert lost.gain_over_random.low < 0.1


def test_an_image_whose_label_is_unknown_is_not_looked_at() -> None:
    study = readings(1, 1)
    target, images = study.target.copy(), 2.0 * study.target - 1
    target[np.flatnonzero(target[:, 0] == 0)[:150], 0] = np.nan
    found = score_sentences(FINDINGS, -np.eye(2), images, target, study.patients, SETTINGS)
    assert found.findings[0].precision.value == 0
    assert found.findings[0].at_random == pytest.approx(np.nanmean(target[:, 0]))


def test_intervals_of_a_precision_stay_within_0_and_1() -> None:
    study = readings(1, 1)
    found = score_sentences(FINDINGS, np.eye(2), 2.0 * study.target - 1, study.target, study.patients, SETTINGS)
    assert all(each.precision.high <= 1 and each.precision.low >= 0 for each in found.findings)
