"""The data sets of `medsd compare`, each read from its own files below one root.

Start at `read_set`. A `LabelledSet` holds raw inputs; `inputs` turns them into numbers with what the training rows
alone teach (means, deviations, the words of TF-IDF), so that neither validation nor test rows leak into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.experiments.compare.arff import read_arff
from medsd.experiments.compare.labelled_set import LabelledSet, find_folder
from medsd.experiments.compare.settings import CompareSettings
from medsd.studies.published_reports import (
    CMC2007_FILE,
    FEWEST_REPORTS,
    coded,
    common_codes,
    parse_xml,
    read_coded_reports,
)
from medsd.studies.splits import fixed_fifth


def read_set(name: str, settings: CompareSettings) -> LabelledSet:
    """Read the set `name` below `settings.root`.

    Raises:
        DataError: its folder or a file of it is missing or is not what it should be.
    """
    return _READERS[name](settings)


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


def _xml_root(path: Path) -> Element:
    try:
        return parse_xml(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}); is the data set complete?") from None


def _cmc2007(settings: CompareSettings) -> LabelledSet:
    """Reports with the majority's ICD-9-CM codes; rare codes, and the reports that have no other, are left out."""
    folder = find_folder(settings.root, ("cmc2007", "."), CMC2007_FILE, "set 'cmc2007'")
    reports = read_coded_reports(folder / CMC2007_FILE)
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
    from medsd.experiments.compare.openi import read_openi

    return read_openi(settings)


def _radiographs(settings: CompareSettings) -> LabelledSet:
    from medsd.experiments.compare.films import read_films

    return read_films(settings)


_READERS: Mapping[str, Callable[[CompareSettings], LabelledSet]] = {
    **{name: partial(_mulan, name=name) for name in ("yeast", "emotions", "scene", "medical", "enron")},
    "cmc2007": _cmc2007,
    "openi": _openi,
    "radiographs": _radiographs,
}


def _own_keys(count: int) -> npt.NDArray[np.str_]:
    return np.array([f"{row:06d}" for row in range(count)])
