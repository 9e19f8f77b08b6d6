"""Splits by patient, stratified over the findings.

Patients are dealt out by iterative stratification (Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011) over the union of
the findings of their images. Patients differ in their number of images, so patients are then exchanged until the rates
by image lie within `TOLERANCE`.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.errors import DataError
from medsd.settings import SplitSettings
from medsd.studies.manifest import SELECTED

TOLERANCE = 0.02  # most that a finding's rate by image may differ between a split and the whole
COMMON = 50  # positive images from which on a finding's rate is held to `TOLERANCE`
FEWEST = 10  # patients that can be split in three
_TEST_SHARE = 0.2
_MOST_SOURCES = 16
_EXCHANGES = 2000  # each takes milliseconds; a few dozen have been enough on every source
_PAIRS = (32, 256)  # patients of the drawn share and of the rest that are tried against one another at a time


def split_patients(
    labels: npt.NDArray[np.float32],
    patients: Sequence[str] | npt.NDArray[np.str_],
    settings: SplitSettings,
    *,
    fixed_test: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.str_]:
    """Deal the patients out: (N,) "train", "validation" or "test"; the order of the rows does not matter.

    `labels` (N, F) are 1, 0 or NaN, or `strata_of` a table; `patients` (N,) has the patient of each image. `fixed_test`
    (N,) is True for the images of an official test list; then only train and validation are dealt. Raises DataError:
    there are too few patients, or the official list divides a patient.
    """
    names = np.asarray(patients, dtype=str)
    known = pd.DataFrame(np.asarray(labels))
    images = known.groupby(names).agg(["sum", "count"]).sort_index()  # positive and known images of each patient
    if len(images) < FEWEST:
        raise DataError(f"only {len(images)} patients; at least {FEWEST} are needed to split them in three")
    split = pd.Series("train", index=images.index)
    official = _official(fixed_test, names)
    dealt = images.drop(official)
    tested = _draw(dealt, dealt, settings.test, settings.seed) if official.empty else official
    split[tested] = "test"
    rest = images.drop(tested)
    share = settings.validation / (settings.train + settings.validation)
    split[_draw(rest, dealt, share, settings.seed + 1)] = "validation"
    return split.loc[names].to_numpy(dtype=str)


def deal(
    table: pd.DataFrame,
    findings: Sequence[str],
    settings: SplitSettings,
    *,
    people: npt.NDArray[np.str_] | None = None,
    fixed_test: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.object_]:
    """Deal the patients of a table out: (N,) a split each, as `by_use` leaves it.

    Patients are dealt by their images without a `use`. Those who have only selected images are dealt to training and
    the selected part of the test side; all others train.

    `people` (N,) says who counts as one patient, by default the column `patient`; `settings`, `fixed_test` and errors
    as for `split_patients`.
    """
    people = table["patient"].to_numpy(dtype=str) if people is None else people
    labels, use = strata_of(table, findings), table["use"].fillna("").to_numpy(dtype=str)
    split = pd.Series("train", index=people, dtype=object)
    plain = use == ""  # findings of other images would count for theirs, and leave some splits without
    dealt = split_patients(
        labels[plain], people[plain], settings, fixed_test=None if fixed_test is None else fixed_test[plain]
    )
    split.update(pd.Series(dealt, index=people[plain], dtype=object).groupby(level=0).first())
    chosen = (use == "selected") & ~np.isin(people, people[plain])
    if fixed_test is None and len(np.unique(people[chosen])) >= FEWEST:
        tested = split_patients(labels[chosen], people[chosen], settings) == "test"
        split[np.isin(people, people[chosen][tested])] = "test"
    return by_use(split.to_numpy(), use)


def by_use(split: npt.NDArray[np.object_], use: npt.NDArray[np.str_]) -> npt.NDArray[np.object_]:
    """(N,) splits in which images with a `use` (N,) choose and measure nothing; `split` (N,) is that of their patients.

    In the test split a selected image becomes "selected"; other images of validation and test with a `use` have no
    split.
    """
    held = (use != "") & np.isin(split, ("validation", "test"))
    result = split.copy()
    result[held] = None
    result[(use == "selected") & (split == "test")] = SELECTED
    return result


def strata_of(table: pd.DataFrame, findings: Sequence[str]) -> npt.NDArray[np.float32]:
    """(N, F + S) labels, and the source of each image where there are several of `COMMON` images.

    Sources differ in how their images were picked, so each of them is dealt out in the same shares.
    """
    labels = table[list(findings)].to_numpy(dtype=np.float32, na_value=np.nan)
    images = table["source"].value_counts()
    common = images.index[images >= COMMON][:_MOST_SOURCES]
    if len(common) < 2:
        return labels
    return np.hstack([labels, *((table[["source"]] == name).to_numpy(dtype=np.float32) for name in common)])


def fixed_fifth(
    labels: npt.NDArray[np.float32], patients: Sequence[str] | npt.NDArray[np.str_]
) -> npt.NDArray[np.bool_]:
    """(N,) True for the fixed test fifth, by patient, of a data set that has no test part of its own."""
    splits = SplitSettings(train=1 - 2 * _TEST_SHARE, validation=_TEST_SHARE, test=_TEST_SHARE)
    return split_patients(labels, patients, splits) == "test"


def _official(fixed_test: npt.NDArray[np.bool_] | None, names: npt.NDArray[np.str_]) -> pd.Index:
    """The patients of an official test list."""
    if fixed_test is None:
        return pd.Index([])
    listed = pd.Series(fixed_test).groupby(names).agg(["any", "all"])
    if (listed["any"] & ~listed["all"]).any():
        raise DataError("the official test list divides a patient's images; it is not the list of this data set")
    return listed.index[listed["any"]]


def _draw(images: pd.DataFrame, whole: pd.DataFrame, share: float, seed: int) -> pd.Index:
    """A stratified share of patients; `images` has the positive and the known images of each, `whole` of all dealt."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    counts = _counts(images)
    union = counts[..., 0] > 0
    normal = ~union.any(axis=1, keepdims=True)  # no finding at all is a stratum, too
    splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the package passes arguments by position
        _, drawn = next(splitter.split(np.zeros(len(union)), np.hstack([union, normal]).astype(int)))
    inside = np.zeros(len(images), dtype=bool)
    inside[drawn] = True
    return images.index[_exchange(inside, counts, _counts(whole).sum(axis=0), seed)]


def _counts(images: pd.DataFrame) -> npt.NDArray[np.int64]:
    """(P, F, 2) positive and known images of each patient."""
    return images.to_numpy(dtype=np.int64).reshape(len(images), -1, 2)


def _exchange(
    inside: npt.NDArray[np.bool_], counts: npt.NDArray[np.int64], whole: npt.NDArray[np.int64], seed: int
) -> npt.NDArray[np.bool_]:
    """(P,) drawn patients, some exchanged so that the rates by image agree: the best pair of a random few at a time.

    `inside` (P,) is True for the drawn patients, `counts` (P, F, 2) has the positive and known images of each, `whole`
    (F, 2) those of the data set, whose rates are aimed at.
    """
    inside = inside.copy()
    common = whole[:, 0] >= COMMON
    counts, rate = counts[:, common], whole[common, 0] / whole[common, 1]
    total = counts.sum(axis=0)

    def apart(sums: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """How far the rates of a share (…, F, 2), and those of what it leaves, are from the aim: (2, …, F)."""
        parts = np.stack([sums, total - sums])
        return np.abs(parts[..., 0] / np.maximum(parts[..., 1], 1) - rate)

    generator = np.random.default_rng(seed)
    for _ in range(_EXCHANGES):
        sums = counts[inside].sum(axis=0)
        now = apart(sums)
        if now.max(initial=0.0) <= TOLERANCE:
            break
        ours = generator.permutation(np.flatnonzero(inside))[: _PAIRS[0]]
        theirs = generator.permutation(np.flatnonzero(~inside))[: _PAIRS[1]]
        cost = (apart(sums - counts[ours][:, None] + counts[theirs][None]) ** 4).sum(axis=(0, -1))  # the worst counts
        best = np.unravel_index(cost.argmin(), cost.shape)
        if cost[best] < (now**4).sum():
            inside[ours[best[0]]], inside[theirs[best[1]]] = False, True
    return inside
