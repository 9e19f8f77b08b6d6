"""Open-i's radiology reports with the hand-checked findings of NegBio, read from the archive as it is published.

Demner-Fushman et al., JAMIA 2016; Peng et al., NegBio, AMIA 2018. The reports are CC BY-NC-ND 4.0: they are read, and
no altered copy is written.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medsd.errors import DataError
from medsd.experiments.compare.labelled_set import LabelledSet, find_folder
from medsd.experiments.compare.settings import CompareSettings
from medsd.findings import finding_set
from medsd.studies.published_reports import OpeniReport, read_reports
from medsd.studies.splits import fixed_fifth

_TABLE, _ARCHIVE = "findings14.csv", "reports.tgz"
_SECTIONS = ("findings", "impression")


def read_openi(settings: CompareSettings) -> LabelledSet:
    """Findings and impression of each report, fourteen findings; one report a patient, so the split is by report.

    Raises:
        DataError: the table or the archive is missing or damaged.
    """
    folder = find_folder(settings.root, ("openi_reports", "."), _TABLE, "set 'openi'")
    findings = finding_set("nih14")
    table = _read_table(folder / _TABLE, list(findings))
    texts = {report.name: _text(report) for report in read_reports(folder / _ARCHIVE)}
    table = table[[bool(texts.get(name)) for name in table["filename"]]]
    if table.empty:
        raise DataError(f"{folder}: no report of {_ARCHIVE} is listed in {_TABLE}; they belong to different sets")
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


def _text(report: OpeniReport) -> str:
    """Findings and impression in one."""
    return " ".join(report.sections[name] for name in _SECTIONS if name in report.sections)


def _read_table(path: Path, findings: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype={"filename": str})
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a CSV table ({type(error).__name__})") from None
    missing = [column for column in ("filename", *findings) if column not in table]
    if missing:
        raise DataError(f"{path}: the columns {', '.join(missing)} are missing")
    return table.sort_values("filename").reset_index(drop=True)
