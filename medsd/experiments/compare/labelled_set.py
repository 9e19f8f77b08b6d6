"""A data set of a comparison: features, labels, patients, and how it is split."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfTransformer, TfidfVectorizer

from medsd.errors import DataError
from medsd.settings import SplitSettings
from medsd.studies.splits import split_patients

IntArray = npt.NDArray[np.int64]
Texts = tuple[str, ...]
_MOST_WORDS = 2000


@dataclass(frozen=True)
class LabelledSet:
    """Samples with findings, dealt out to train and test."""

    name: str
    title: str  # in the report
    origin: str  # where it comes from, on what terms
    findings: tuple[str, ...]  # names of the label columns
    labels: npt.NDArray[np.float32]  # (N, F) 1 or 0
    raw: Texts | npt.NDArray[np.float32]  # N texts, or (N, V, D): V views of D numbers, the first of them unchanged
    patients: npt.NDArray[np.str_]  # (N,); a set without patients has a key for each sample
    is_test: npt.NDArray[np.bool_]  # (N,)

    @property
    def train(self) -> IntArray:
        """Rows of the training part."""
        return np.flatnonzero(~self.is_test)

    @property
    def test(self) -> IntArray:
        """Rows of the test part."""
        return np.flatnonzero(self.is_test)

    def divided(self, share: float) -> tuple[IntArray, IntArray]:
        """The training rows dealt out to fitting and validation, by patient, the same for every loss and seed."""
        splits = SplitSettings(train=(1 - share) / 2, validation=share / 2, test=0.5)
        split = split_patients(self.labels, self.patients, splits, fixed_test=self.is_test)
        return np.flatnonzero(split == "train"), np.flatnonzero(split == "validation")

    def inputs(self, fit: IntArray) -> npt.NDArray[np.float32]:
        """All rows as float32 (N, V, D), scaled by the rows `fit`; texts, and words present or not, as TF-IDF rows."""
        if isinstance(self.raw, tuple):
            words = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), max_features=_MOST_WORDS)
            return _usual_size(words.fit([self.raw[row] for row in fit]).transform(self.raw).toarray())
        if np.isin(self.raw[:1000], (0, 1)).all():
            flat = self.raw[:, 0]
            return _usual_size(TfidfTransformer().fit(flat[fit]).transform(flat).toarray())
        seen = self.raw[fit]
        mean, deviation = seen.mean((0, 1), dtype=np.float64), seen.std((0, 1), dtype=np.float64)
        return np.nan_to_num((self.raw - mean) / np.where(deviation > 1e-8, deviation, 1)).astype(np.float32)

    def digest(self) -> str:
        """sha256 over everything that a result depends on."""
        raw = np.array(self.raw, dtype=np.str_) if isinstance(self.raw, tuple) else self.raw
        found = hashlib.sha256()
        for part in (self.labels, self.is_test, self.patients, raw):
            found.update(f"{part.dtype} {part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        return found.hexdigest()


def find_folder(root: Path, names: tuple[str, ...], needed: str, what: str) -> Path:
    """The first folder of `root`/`names` that has the file `needed`; a DataError names the places looked at."""
    for name in names:
        if (root / name / needed).exists():
            return root / name
    places = ", ".join(str(root / name) for name in names)
    raise DataError(f"{what}: no {needed} in {places}; set the folder with --set root=FOLDER")


def _usual_size(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Unit rows (N, D) as (N, 1, D) with entries of mean square 1, as standardised inputs have."""
    return (rows * np.sqrt(rows.shape[1])).astype(np.float32)[:, None, :]
