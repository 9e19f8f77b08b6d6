"""The 2007 Computational Medicine Challenge: a small replica, and the real file where it is."""

from pathlib import Path

import numpy as np
import pytest

from medsd.errors import DataError
from medsd.experiments.compare.datasets import read_set
from medsd.experiments.compare.settings import CompareSettings
from medsd.findings import finding_set
from medsd.settings import Cmc2007Source, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.published_reports import CMC2007_FILE, read_coded_reports
from medsd.studies.sources import cmc2007

DOCUMENT = """<doc id="{number}"><codes><code origin="CMC_MAJORITY">{code}</code>
<code origin="COMPANY1">591</code></codes>
<texts><text type="CLINICAL_HISTORY">Cough.</text><text type="IMPRESSION">Report {number}.</text></texts></doc>"""


def _replica(root: Path, *codes: str, head: str = "") -> Path:
    documents = "".join(DOCUMENT.format(number=number, code=code) for number, code in enumerate(codes))
    (root / CMC2007_FILE).write_text(f"{head}<docs>{documents}</docs>", encoding="utf-8")
    return root


def _read(root: Path, **more: object) -> Manifest:
    return cmc2007.read(Cmc2007Source(source="cmc2007", root=root, **more), SplitSettings())


def test_a_study_is_its_text_with_the_codes_of_the_majority(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path, *["786.2", "486"] * 10, "V72.5"))
    table = manifest.table.set_index("study")
    assert table.loc["3", "note"] == "Cough. Report 3." and table["path"].isna().all()
    assert manifest.findings.decode(manifest.labels[3]) == ("486",)
    assert table.loc["20", "split"] != "test"  # a rare code alone is never tested


def test_a_strange_code_a_document_type_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no 2007ChallengeTrainData\.xml"):
        _read(tmp_path)
    with pytest.raises(DataError, match=r"the code 999\.9 is none of the challenge's"):
        _read(_replica(tmp_path, *["999.9"] * 12))
    with pytest.raises(DataError, match="declares a document type"):
        _read(_replica(tmp_path, "486", head='<!DOCTYPE docs [<!ENTITY a "b">]>'))


def test_the_real_reports_have_the_codes_of_the_set_and_the_fifth_of_the_comparison(data_root: Path) -> None:
    if not (root := data_root / "cmc2007").is_dir():
        pytest.skip(f"no {root}")
    manifest, names = _read(root), finding_set("cmc2007").names
    assert len(manifest) == 978 and (np.nansum(manifest.labels, axis=0) > 0).all()
    compared = read_set("cmc2007", CompareSettings(name="t", root=data_root, sets=["cmc2007"]))
    tested = {compared.raw[row] for row in compared.test}
    assert set(manifest.table["note"].iloc[manifest.rows("test")]) == tested and set(compared.findings) < set(names)
    assert len(_read(root, limit=50)) == 50 and len(read_coded_reports(root / CMC2007_FILE)) == 978
