"""Open-i's reports: a small replica, and the real archive where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.settings import OpeniSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import openi

REPORT = """<eCitation><uId id="CXR{number}"/><Abstract><AbstractText Label="INDICATION">{indication}</AbstractText>
<AbstractText Label="FINDINGS">Large effusion.</AbstractText></Abstract>
<MeSH><major>{mesh}</major></MeSH></eCitation>"""


def _replica(root: Path) -> Path:
    (root / "ecgen-radiology").mkdir(parents=True)
    for number in range(20):
        mesh = "normal" if number % 2 else "Pleural Effusion"
        text = REPORT.format(number=number, indication="Cough" if number else "", mesh=mesh)
        (root / "ecgen-radiology" / f"{number}.xml").write_text(text, encoding="utf-8")
    return root


def _read(root: Path, **settings: object) -> Manifest:
    return openi.read(OpeniSource(source="openi", root=root, **settings), SplitSettings())


def test_the_note_is_the_indication_alone_and_there_is_no_film(tmp_path: Path) -> None:
    table = _read(_replica(tmp_path)).table.set_index("study")
    assert len(table) == 20 and table["path"].isna().all()
    assert pd.isna(table.loc["CXR0", "note"]) and table.loc["CXR1", "note"] == "Cough"


def test_hand_checked_labels_win_over_the_heading_normal(tmp_path: Path) -> None:
    names = list(finding_set("openi14"))
    manifest = _read(_replica(tmp_path))
    rows = {study: row for row, study in enumerate(manifest.table["study"])}
    assert np.isnan(manifest.labels[rows["CXR2"]]).all() and not manifest.labels[rows["CXR1"]].any()
    cells = ["1" if name == "Effusion" else "0" for name in names]
    (tmp_path / "findings14.csv").write_text(f"filename,{','.join(names)}\nCXR1,{','.join(cells)}\n")
    manifest = _read(tmp_path)
    assert manifest.findings.decode(manifest.labels[rows["CXR1"]]) == ("Effusion",)


def test_what_is_missing_or_damaged_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no reports\.tgz"):
        _read(tmp_path)
    (tmp_path / "reports.tgz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read as an archive"):
        _read(tmp_path)
    (_replica(tmp_path) / "ecgen-radiology" / "1.xml").write_text("<a>")
    with pytest.raises(DataError, match=r"1\.xml is no valid XML"):
        _read(tmp_path)


def test_the_real_reports_are_read_whole(data_root: Path) -> None:
    manifest = _read(data_root / "openi_reports")
    assert len(manifest) == 3245 and manifest.table["note"].notna().sum() > 3000
    assert int(np.isnan(manifest.labels).all(axis=1).sum()) < 100
