"""Splits by patient, stratified over the findings.

A patient's label set is the union of the findings of all the patient's images; patients, not images, are dealt out by
iterative stratification (Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011), through the package of that name.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.errors import DataError
from medsd.settings import SplitSettings


def split_patients(
    labels: npt.NDArray[np.float32],
    patients: Sequence[str] | npt.NDArray[np.str_],
    settings: SplitSettings,
    *,
    fixed_test: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.str_]:
    """Deal the patients out to train, validation and test.

    The result does not depend on the order of the rows: patients are sorted before they are dealt.

    Args:
        labels: (N, F), 1, 0 or NaN.
        patients: (N,) patient of each image.
        settings: shares and seed.
        fixed_test: (N,) True for the images of an official test list; then only train and validation are dealt.

    Returns:
        (N,) array of "train", "validation" or "test".

    Raises:
        DataError: there are too few patients, or the official list divides a patient.
    """
    frame = pd.DataFrame(np.nan_to_num(np.asarray(labels)))
    union = frame.groupby(np.asarray(patients, dtype=str)).max().sort_index()
    if len(union) < 10:
        raise DataError(f"only {len(union)} patients; at least 10 are needed to split them in three")
    split = pd.Series("train", index=union.index)
    rest = union
    if fixed_test is not None and fixed_test.any():
        official = pd.Series(fixed_test).groupby(np.asarray(patients, dtype=str)).agg(["any", "all"])
        if (official["any"] & ~official["all"]).any():
            raise DataError("the official test list divides a patient's images; it is not the list of this data set")
        split[official.index[official["any"]]] = "test"
        rest = union[split.to_numpy() != "test"]
    else:
        split[_draw(union, settings.test, settings.seed)] = "test"
        rest = union[split.to_numpy() != "test"]
    share = settings.validation / (settings.train + settings.validation)
    split[_draw(rest, share, settings.seed + 1)] = "validation"
    result = split.loc[np.asarray(patients, dtype=str)].to_numpy(dtype=str)
    assert_disjoint(result, patients)
    return result


def assert_disjoint(split: npt.NDArray[np.str_], patients: Sequence[str] | npt.NDArray[np.str_]) -> None:
    """Fail where a patient stands in two splits: a mistake of ours, never of the user's."""
    homes = pd.DataFrame({"patient": np.asarray(patients, dtype=str), "split": split}).drop_duplicates()
    assert not homes.duplicated("patient").any(), "a patient stands in two splits"


def _draw(union: pd.DataFrame, share: float, seed: int) -> pd.Index:
    """The patients of a stratified share."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    normal = (union.to_numpy().sum(axis=1, keepdims=True) == 0).astype(int)  # no finding at all is a stratum, too
    target = np.hstack([union.to_numpy(dtype=int), normal])
    splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the package passes arguments by position
        _, drawn = next(splitter.split(np.zeros(len(target)), target))
    return union.index[drawn]
