"""Open-i's reports: a small replica, and the real archive where it is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.settings import OpeniSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import in_findings, openi
from tests.studies.images import write_image

REPORT = """<eCitation><uId id="CXR{number}"/><Abstract><AbstractText Label="INDICATION">{indication}</AbstractText>
<AbstractText Label="FINDINGS">Large effusion.</AbstractText></Abstract>
<MeSH><major>{mesh}</major></MeSH><parentImage id="CXR{number}_IM-1-1001"/><parentImage id="CXR{number}_IM-1-2001"/>
</eCitation>"""


def _replica(root: Path) -> Path:
    (root / "ecgen-radiology").mkdir(parents=True)
    for number in range(20):
        mesh = "normal" if number % 2 else "Pleural Effusion"
        text = REPORT.format(number=number, indication="Cough" if number else "", mesh=mesh)
        (root / "ecgen-radiology" / f"{number}.xml").write_text(text, encoding="utf-8")
    return root


def _read(root: Path, **settings: object) -> Manifest:
    return openi.read(OpeniSource(source="openi", root=root, **settings), SplitSettings())


def test_the_note_is_the_indication_alone_and_there_is_no_image(tmp_path: Path) -> None:
    table = _read(_replica(tmp_path)).table.set_index("study")
    assert len(table) == 20 and table["path"].isna().all()
    assert pd.isna(table.loc["CXR0", "note"]) and table.loc["CXR1", "note"] == "Cough"


def test_the_note_may_be_findings_and_impression_to_classify_the_report(tmp_path: Path) -> None:
    table = _read(_replica(tmp_path), note="report").table.set_index("study")
    assert set(table["note"]) == {"Large effusion."}


def test_hand_checked_labels_win_over_the_heading_normal(tmp_path: Path) -> None:
    names = list(finding_set("openi14"))
    manifest = _read(_replica(tmp_path))
    rows = {study: row for row, study in enumerate(manifest.table["study"])}
    assert np.isnan(manifest.labels[rows["CXR2"]]).all() and not manifest.labels[rows["CXR1"]].any()
    cells = ["1" if name == "Effusion" else "0" for name in names]
    (tmp_path / "findings14.csv").write_text(f"filename,{','.join(names)}\nCXR1,{','.join(cells)}\n")
    manifest = _read(tmp_path)
    assert manifest.findings.decode(manifest.labels[rows["CXR1"]]) == ("Effusion",)


def test_hernia_was_never_checked_and_is_known_in_normal_reports_alone(tmp_path: Path) -> None:
    names = list(finding_set("openi14"))
    lines = [f"CXR{number},{','.join('0' * len(names))}" for number in (1, 2)]
    (_replica(tmp_path) / "findings14.csv").write_text("\n".join([f"filename,{','.join(names)}", *lines]) + "\n")
    manifest = _read(tmp_path)
    hernia = dict(zip(manifest.table["study"], manifest.labels[:, names.index("Hernia")], strict=True))
    assert hernia["CXR1"] == 0 and np.isnan(hernia["CXR2"])


@pytest.mark.parametrize(
    ("headings", "present"),
    [
        (("normal",), ()),
        (("cardiomegaly/mild",), ("Cardiomegaly",)),
        (("pulmonary atelectasis/base/left", "opacity/lung/base/left"), ("Opacity/lung", "Pulmonary Atelectasis")),
        (("pulmonary emphysema", "cardiac shadow/enlarged/mild"), ("Cardiomegaly", "Emphysema")),
        (("thickening/pleura/apex", "hernia, hiatal/large"), ("Hernia, Hiatal", "Thickening/pleura")),
        (("thickening/bronchi", "opacity/breast", "cardiac shadow/obscured", "spine/degenerative"), ()),
    ],
)
def test_the_first_part_of_a_heading_names_the_finding(headings: tuple[str, ...], present: tuple[str, ...]) -> None:
    mesh = finding_set("mesh")
    assert mesh.decode(openi.mesh_labels(headings, mesh)) == present


@pytest.mark.parametrize("headings", [(), ("no indexing",), ("technical quality of image unsatisfactory ",)])
def test_a_report_that_was_not_indexed_is_unknown(headings: tuple[str, ...]) -> None:
    assert np.isnan(openi.mesh_labels(headings, finding_set("mesh"))).all()


def test_images_are_joined_to_their_reports_by_name(tmp_path: Path) -> None:
    _replica(tmp_path)
    for film in ("CXR1_IM-1-1001.png", "CXR1_IM-1-2001.png", "CXR2_IM-1-1001.png"):
        write_image(tmp_path / "NLMCXR_png" / film)
    table = _read(tmp_path, images=Path("NLMCXR_png"), labels="mesh").table
    assert table.groupby("study")["path"].count().to_dict() | {"CXR1": 2, "CXR2": 1} == {
        f"CXR{number}": {1: 2, 2: 1}.get(number, 0) for number in range(20)
    }
    with pytest.raises(DataError, match=r"no image of Open-i is here; check data\.images"):
        _read(tmp_path, images=Path("elsewhere"))


def test_what_is_missing_or_damaged_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"reports\.tgz"):
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
    hernia = manifest.labels[:, manifest.findings.names.index("Hernia")]
    assert np.nansum(hernia) == 0 and np.isnan(hernia).sum() > 1000


def test_the_checked_labels_of_the_real_reports_are_their_headings(data_root: Path) -> None:
    checked = _read(data_root / "openi_reports")
    headed = in_findings(_read(data_root / "openi_reports", labels="mesh"), finding_set("nih14"))
    assert list(checked.table["study"]) == list(headed.table["study"])
    for name, one, other in zip(checked.findings, checked.labels.T, headed.labels.T, strict=True):
        known = ~np.isnan(one) & ~np.isnan(other)
        both, either = ((one == 1) & (other == 1))[known].sum(), one[known].sum() + other[known].sum()
        assert either == 0 or 2 * both / either >= 0.87, name  # F1; the table is in tests/bench/bench_mesh.py
