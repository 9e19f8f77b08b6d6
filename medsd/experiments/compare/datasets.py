"""The data sets of `medsd compare`, each read from its own files below one root."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import arff
import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.errors import DataError
from medsd.experiments.compare.labelled_set import LabelledSet, find_folder
from medsd.experiments.compare.radiographs import read_radiographs
from medsd.experiments.compare.settings import CompareSettings
from medsd.findings import finding_set
from medsd.studies.published_reports import (
    CMC2007_FILE,
    FEWEST_REPORTS,
    coded,
    common_codes,
    parse_xml,
    read_coded_reports,
    read_reports,
)
from medsd.studies.sources.tables import numbers, read_table
from medsd.studies.splits import fixed_fifth


def read_set(name: str, settings: CompareSettings) -> LabelledSet:
    """Read the set `name` below `settings.root`; files that are missing or damaged are a DataError."""
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
    try:
        elements = parse_xml(path.read_bytes(), str(path)).iter()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}); is the data set complete?") from None
    return tuple(element.attrib["name"] for element in elements if element.tag.rpartition("}")[2] == "label")


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
    """Findings and impression of each report, fourteen findings; one report a patient, so the split is by report."""
    folder = find_folder(settings.root, ("openi_reports", "."), "findings14.csv", "set 'openi'")
    findings = finding_set("nih14")
    table = read_table(folder / "findings14.csv", ["filename", *findings], "Open-i").sort_values("filename")
    texts = {
        report.name: " ".join(report.sections[name] for name in ("findings", "impression") if name in report.sections)
        for report in read_reports(folder / "reports.tgz")
    }
    table[list(findings)] = numbers(table, list(findings), folder / "findings14.csv")
    table = table[[bool(texts.get(name)) for name in table["filename"]]]
    if table.empty:
        raise DataError(f"{folder}: no report of reports.tgz is listed in findings14.csv; they are of different sets")
    labels = table[list(findings)].to_numpy(dtype=np.float32)
    keys = table["filename"].to_numpy(dtype=str)
    return LabelledSet(
        name="openi",
        title="radiology reports of Indiana University (Open-i)",
        origin=(
            "Open-i, CC BY-NC-ND 4.0, read as published; findings and impression as text, NegBio's hand-checked "
            "labels, a fixed fifth of the reports as test part"
        ),
        findings=tuple(findings),
        labels=labels,
        raw=tuple(texts[name] for name in keys),
        patients=keys,
        is_test=fixed_fifth(labels, keys),
    )


_READERS: Mapping[str, Callable[[CompareSettings], LabelledSet]] = {
    **{name: partial(_mulan, name=name) for name in ("yeast", "emotions", "scene", "medical", "enron")},
    "cmc2007": _cmc2007,
    "openi": _openi,
    "radiographs": read_radiographs,
}


def _own_keys(count: int) -> npt.NDArray[np.str_]:
    return np.array([f"{row:06d}" for row in range(count)])


def read_arff(path: Path) -> pd.DataFrame:
    """An ARFF file of numbers, dense or sparse: one float32 column for each attribute, in its order, NaN for "?".

    Raises DataError: the file is missing, or is no ARFF of numbers; the message has the line's number.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            found = arff.load(lines)
        names = [name for name, _ in found["attributes"]]
        table = pd.DataFrame(found["data"], columns=names).astype("float32")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}); is the data set complete?") from None
    except (arff.ArffException, ValueError, IndexError) as error:
        line = getattr(error, "line", -1)
        raise DataError(
            f"{path}{f', line {line}' if line > 0 else ''}: no ARFF file of numbers; is it complete?"
        ) from None
    if table.empty:
        raise DataError(f"{path}: no rows after @data")
    return table
