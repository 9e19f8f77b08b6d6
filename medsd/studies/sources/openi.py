"""Open-i: radiology reports of Indiana University; of each, what was known before the film was read is the note.

Layout: `reports.tgz` (or NLM's `NLMCXR_reports.tgz`) as published, or its folder `ecgen-radiology/` unpacked, and, if
there, `findings14.csv` with NegBio's hand-checked labels. The note is the INDICATION alone: findings and impression
give the answer away. There are no films here, so a study is its note. Without a row in `findings14.csv`, the MeSH
heading «normal» means that all fourteen findings are absent; otherwise they are unknown. One report is one patient.

Demner-Fushman D, Kohli MD, Rosenman MB, et al. Preparing a collection of radiology examinations for distribution and
retrieval. JAMIA 2016;23:304–310. Peng Y, Wang X, Lu L, et al. NegBio. AMIA 2018.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.settings import OpeniSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.openi_reports import OpeniReport, read_reports
from medsd.studies.sources.tables import limited, manifest_of, numbers, read_table

CITATION = "Demner-Fushman et al., JAMIA 2016; Peng et al., NegBio, AMIA 2018; CC BY-NC-ND 4.0"
_OWNER = "Open-i"
_TABLE = "findings14.csv"


def read(settings: OpeniSource, splits: SplitSettings) -> Manifest:
    """Read the reports below `settings.root`; see the module for the layout.

    Raises:
        DataError: the folder or the reports are missing or damaged, or the table has not its columns.
    """
    root, findings = settings.root, finding_set("openi14")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set data.root to the folder of {_OWNER}'s reports")
    reports = [(r.name, r.sections.get("indication"), r.headings == ("normal",)) for r in _reports(root)]
    table = pd.DataFrame(reports, columns=["study", "note", "normal"]).drop_duplicates("study")
    table = table.assign(patient=table["study"], source="openi")
    labels = pd.DataFrame(np.nan, index=table["study"], columns=list(findings), dtype=np.float32)
    labels[table["normal"].to_numpy(dtype=bool)] = 0.0
    if (root / _TABLE).is_file():
        checked = read_table(root / _TABLE, ["filename", *findings], _OWNER)
        known = pd.DataFrame(
            numbers(checked, list(findings), root / _TABLE), index=checked["filename"], columns=list(findings)
        )
        labels.update(known[~known.index.duplicated()])
    table[list(findings)] = labels.to_numpy()
    return manifest_of(limited(table, settings.limit), findings, root, splits)


def _reports(root: Path) -> Iterator[OpeniReport]:
    names = ("ecgen-radiology", "reports.tgz", "NLMCXR_reports.tgz")
    for name in names:
        if (root / name).exists():
            return read_reports(root / name)
    raise DataError(f"{root}: no reports.tgz, NLMCXR_reports.tgz or ecgen-radiology/ here; Open-i publishes them")
