"""The data sets of `medsd compare`, each read from its own files below one root.

Start at `read_set`. A `LabelledSet` holds raw inputs; `inputs` turns them into numbers with what the training rows
alone teach (means, deviations, the words of TF-IDF), so that neither validation nor test rows leak into it.
"""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.evaluation.compare.arff import read_arff
from medsd.evaluation.compare.settings import CompareSettings
from medsd.settings import SplitSettings
from medsd.studies.cmc2007_reports import FEWEST_REPORTS, TABLE, coded, common_codes, read_coded_reports
from medsd.studies.splits import fixed_fifth, split_patients

IntArray = npt.NDArray[np.int64]
Texts = tuple[str, ...]
_MOST_WORDS = 2000


@dataclass(frozen=True)
class LabelledSet:
    """Samples with findings, dealt out to train and test.

    Attributes:
        name: of the set.
        title: what the report calls it.
        origin: where it comes from and on what terms.
        findings: names of the label columns.
        labels: (N, F) 1 or 0.
        raw: N texts, or float32 (N, V, D): V views of D numbers, the first of them unchanged.
        patients: (N,) who a sample is of; a set without patients has a key for each sample.
        is_test: (N,) bool.
    """

    name: str
    title: str
    origin: str
    findings: tuple[str, ...]
    labels: npt.NDArray[np.float32]
    raw: Texts | npt.NDArray[np.float32]
    patients: npt.NDArray[np.str_]
    is_test: npt.NDArray[np.bool_]

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
        """All rows as float32 (N, V, D), scaled by the rows `fit`."""
        if isinstance(self.raw, tuple):
            return _tf_idf(self.raw, fit)
        return _words_scaled(self.raw, fit) if _is_binary(self.raw) else _standardised(self.raw, fit)

    def digest(self) -> str:
        """sha256 over everything that a result depends on."""
        raw = np.array(self.raw, dtype=np.str_) if isinstance(self.raw, tuple) else self.raw
        found = hashlib.sha256()
        for part in (self.labels, self.is_test, self.patients, raw):
            found.update(f"{part.dtype} {part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        return found.hexdigest()


def read_set(name: str, settings: CompareSettings) -> LabelledSet:
    """Read the set `name` below `settings.root`.

    Raises:
        DataError: its folder or a file of it is missing or is not what it should be.
    """
    return _READERS[name](settings)


def find_folder(root: Path, names: tuple[str, ...], needed: str, what: str) -> Path:
    """The first folder of `root`/`names` that has the file `needed`.

    Raises:
        DataError: none has; the message names the places looked at.
    """
    for name in names:
        if (root / name / needed).exists():
            return root / name
    places = ", ".join(str(root / name) for name in names)
    raise DataError(f"{what}: no {needed} in {places}; set the folder with --set root=FOLDER")


def _mulan(settings: CompareSettings, name: str) -> LabelledSet:
    """Official train and test parts; the labels are the attributes that the .xml names."""
    folder = find_folder(settings.root, (name, f"mulan/{name}"), f"{name}-train.arff", f"set '{name}'")
    findings = _label_names(folder / f"{name}.xml")
    parts = [read_arff(folder / f"{name}-{part}.arff") for part in ("train", "test")]
    for part in parts:
        missing = [finding for finding in findings if finding not in part]
        if missing or list(part.columns) != list(parts[0].columns):
            raise DataError(f"{folder}: {name}.xml and the two parts do not belong together; unpack the set again")
    labels = np.concatenate([part[list(findings)].to_numpy(dtype=np.float32) for part in parts])
    raw = np.concatenate([part.drop(columns=list(findings)).to_numpy(dtype=np.float32) for part in parts])
    return LabelledSet(
        name=name,
        title=name,
        origin="Mulan's multi-label benchmarks, official train and test parts",
        findings=findings,
        labels=labels,
        raw=raw[:, None, :],
        patients=_own_keys(len(raw)),
        is_test=np.arange(len(raw)) >= len(parts[0]),
    )


def _label_names(path: Path) -> tuple[str, ...]:
    return tuple(
        element.attrib["name"] for element in _xml_root(path).iter() if element.tag.rpartition("}")[2] == "label"
    )


def _xml_root(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}); is the data set complete?") from None
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: no valid XML (line {error.position[0]})") from None


def _cmc2007(settings: CompareSettings) -> LabelledSet:
    """Reports with the majority's ICD-9-CM codes; rare codes, and the reports that have no other, are left out."""
    reports = read_coded_reports(find_folder(settings.root, ("cmc2007", "."), TABLE, "set 'cmc2007'") / TABLE)
    codes = common_codes(reports)
    labels = coded(reports, codes)
    kept = labels.any(1)
    labels, keys = labels[kept], _own_keys(int(kept.sum()))
    return LabelledSet(
        name="cmc2007",
        title="radiology reports with ICD-9-CM codes (cmc2007)",
        origin=(
            "2007 Computational Medicine Challenge, free for research; the majority's codes with at least "
            f"{FEWEST_REPORTS} reports, a fixed fifth as test part"
        ),
        findings=codes,
        labels=labels,
        raw=tuple(reports[row].text for row in np.flatnonzero(kept)),
        patients=keys,
        is_test=fixed_fifth(labels, keys),
    )


def _openi(settings: CompareSettings) -> LabelledSet:
    from medsd.evaluation.compare.openi import read_openi

    return read_openi(settings)


def _radiographs(settings: CompareSettings) -> LabelledSet:
    from medsd.evaluation.compare.films import read_films

    return read_films(settings)


_READERS: Mapping[str, Callable[[CompareSettings], LabelledSet]] = {
    **{name: partial(_mulan, name=name) for name in ("yeast", "emotions", "scene", "medical", "enron")},
    "cmc2007": _cmc2007,
    "openi": _openi,
    "radiographs": _radiographs,
}


def _own_keys(count: int) -> npt.NDArray[np.str_]:
    return np.array([f"{row:06d}" for row in range(count)])


def _is_binary(raw: npt.NDArray[np.float32]) -> bool:
    return bool(np.isin(raw[:1000], (0, 1)).all())


def _standardised(raw: npt.NDArray[np.float32], fit: IntArray) -> npt.NDArray[np.float32]:
    seen = raw[fit]
    mean, deviation = seen.mean((0, 1), dtype=np.float64), seen.std((0, 1), dtype=np.float64)
    return np.nan_to_num((raw - mean) / np.where(deviation > 1e-8, deviation, 1)).astype(np.float32)


def _words_scaled(raw: npt.NDArray[np.float32], fit: IntArray) -> npt.NDArray[np.float32]:
    """Words present or not, as TF-IDF rows."""
    from sklearn.feature_extraction.text import TfidfTransformer

    flat = raw[:, 0]
    return _usual_size(TfidfTransformer().fit(flat[fit]).transform(flat).toarray())


def _tf_idf(texts: Texts, fit: IntArray) -> npt.NDArray[np.float32]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), max_features=_MOST_WORDS)
    vectorizer.fit([texts[row] for row in fit])
    return _usual_size(vectorizer.transform(texts).toarray())


def _usual_size(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Unit rows (N, D) as (N, 1, D) with entries of mean square 1, as standardised inputs have."""
    return (rows * np.sqrt(rows.shape[1])).astype(np.float32)[:, None, :]
