"""Splits: by patient, stratified, the same whatever the order of rows."""

import numpy as np
import pandas as pd
import pytest

from medsd.errors import DataError
from medsd.settings import SplitSettings
from medsd.studies.splits import COMMON, TOLERANCE, split_patients

RNG = np.random.default_rng(3)
PATIENTS = np.array([f"p{number:04d}" for number in RNG.integers(0, 700, 1500)])
LABELS = (RNG.random((1500, 5)) < [0.3, 0.2, 0.1, 0.06, 0.5]).astype(np.float32)


def test_no_patient_stands_in_two_splits_and_shares_hold() -> None:
    split = split_patients(LABELS, PATIENTS, SplitSettings())
    homes = {(patient, part) for patient, part in zip(PATIENTS, split, strict=True)}
    assert len(homes) == len(set(PATIENTS))
    of_patients = np.array([part for _, part in homes])
    for part, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert np.mean(of_patients == part) == pytest.approx(share, abs=0.02)


def _farthest(labels: np.ndarray, split: np.ndarray) -> float:
    """The largest difference of a common finding's rate by image between a split and the whole, unknowns left out."""
    common = np.nansum(labels, axis=0) >= COMMON
    rates = np.stack([np.nanmean(labels[split == part], axis=0) for part in ("train", "validation", "test")])
    return float(np.abs(rates - np.nanmean(labels, axis=0))[:, common].max())


@pytest.mark.parametrize("seed", range(6))
def test_common_findings_have_the_same_rate_in_each_split_though_some_patients_have_many_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    films = rng.geometric(0.5, 1200) + (rng.random(1200) < 0.02) * rng.integers(5, 60, 1200)
    patients = np.repeat([f"p{number:04d}" for number in range(1200)], films)
    labels = np.repeat(rng.random((1200, 14)) < rng.uniform(0.02, 0.3, 14), films, axis=0).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    split = split_patients(labels, patients, SplitSettings(seed=seed))
    assert _farthest(labels, split) <= TOLERANCE + 1e-6
    assert np.mean(pd.Series(split, index=patients).groupby(level=0).first() == "test") == pytest.approx(0.2, abs=0.02)


def test_what_an_official_list_leaves_is_held_to_the_rates_of_what_it_leaves() -> None:
    official = np.isin(PATIENTS, np.unique(PATIENTS)[::4])
    split = split_patients(LABELS, PATIENTS, SplitSettings(), fixed_test=official)
    dealt, part = LABELS[~official], split[~official]
    assert np.abs(dealt[part == "validation"].mean(axis=0) - dealt.mean(axis=0)).max() <= TOLERANCE + 1e-6


def test_the_split_does_not_depend_on_the_order_of_rows() -> None:
    order = RNG.permutation(len(PATIENTS))
    split = split_patients(LABELS, PATIENTS, SplitSettings())
    np.testing.assert_array_equal(split_patients(LABELS[order], PATIENTS[order], SplitSettings()), split[order])


def test_an_official_test_list_is_followed_to_the_letter() -> None:
    official = np.isin(PATIENTS, np.unique(PATIENTS)[::4])
    split = split_patients(LABELS, PATIENTS, SplitSettings(), fixed_test=official)
    np.testing.assert_array_equal(split == "test", official)
    assert {"train", "validation"} <= set(split)


def test_an_official_list_that_divides_a_patient_is_refused() -> None:
    official = np.zeros(len(PATIENTS), dtype=bool)
    names, counts = np.unique(PATIENTS, return_counts=True)
    official[np.flatnonzero(names[counts > 1][0] == PATIENTS)[0]] = True
    with pytest.raises(DataError, match="divides a patient"):
        split_patients(LABELS, PATIENTS, SplitSettings(), fixed_test=official)


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(DataError, match="only 3 patients"):
        split_patients(LABELS[:6], ["a", "a", "b", "b", "c", "c"], SplitSettings())
