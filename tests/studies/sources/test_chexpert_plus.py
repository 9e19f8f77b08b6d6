"""CheXpert Plus: a small replica of Stanford AIMI's own layout."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.settings import CheXpertPlusSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import chexpert_plus
from tests.studies.images import write_image

FINDINGS = list(finding_set("chexpert14"))


def _row(number: int, view: str, split: str) -> dict[str, object]:
    place = f"{split}/patient{number:05d}/study1/view1_{view.lower()}"
    return {
        "path_to_image": f"{place}.jpg",
        "path_to_dcm": f"{place}.dcm" if number else "",
        "frontal_lateral": view,
        "ap_pa": "AP" if view == "Frontal" else "",
        "deid_patient_id": f"patient{number:05d}",
        "patient_report_date_order": 1,
        "report": 'FINAL REPORT\n"Large" effusion,\nno edema.',
        "section_narrative": "Large effusion.",
        "section_clinical_history": "Cough, fever." if number % 2 else "",
        "section_history": "" if number % 3 else " 61-year-old. ",
        "section_findings": "Large effusion.",
        "section_impression": "Large effusion.",
        "age": 61.0,
        "sex": "Female",
        "split": split,
    }


def _label(film: object, **values: float | None) -> str:
    present = dict.fromkeys(["No Finding", *FINDINGS]) | {name.replace("_", " "): v for name, v in values.items()}
    return json.dumps({"path_to_image": film, **present})


def _replica(root: Path, folder: str = "PNG/PNG", suffix: str = ".png") -> Path:
    rows = [_row(number, view, "train") for number in range(24) for view in ("Frontal", "Lateral")]
    rows += [_row(number, "Frontal", "valid") for number in range(24, 28)]
    for row in rows:
        write_image((root / folder / str(row["path_to_image"])).with_suffix(suffix if suffix == ".png" else ".png"))
        if suffix == ".dcm":
            film = root / folder / str(row["path_to_image"])
            film.with_suffix(".png").rename(film.with_suffix(".dcm"))
    pd.DataFrame(rows).to_csv(root / "df_chexpert_plus_240401.csv", index=False)
    (root / "chexbert_labels").mkdir()
    for section, present in (("impression", 1.0), ("findings", 0.0), ("report", None)):
        lines = [_label(row["path_to_image"], Pleural_Effusion=present, Edema=-1.0) for row in rows[2:]]
        (root / "chexbert_labels" / f"{section}_fixed.json").write_text("\n".join(lines) + "\n")
    return root


def _read(root: Path, **settings: object) -> Manifest:
    return chexpert_plus.read(CheXpertPlusSource(source="chexpert_plus", root=root, **settings), SplitSettings())


def test_the_official_layout_is_read_and_png_files_stand_for_the_jpg_of_the_table(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path))
    first = manifest.table.iloc[0]
    assert len(manifest) == 28 and (manifest.root / first["path"]).is_file()
    assert first["path"] == "PNG/PNG/train/patient00000/study1/view1_frontal.png"
    assert (first["patient"], first["study"]) == ("patient00000", "patient00000/study1")
    assert (first["sex"], first["age"], first["view"]) == ("F", 61, "AP")


def test_the_dicom_copy_is_read_by_its_own_column_where_it_has_the_image(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path, "DICOM", ".dcm"), format="dicom", frontal_only=False)
    assert len(manifest) == 50 and manifest.table["path"].str.endswith(".dcm").all()
    assert (manifest.table["view"] == "LATERAL").sum() == 23


def test_the_note_is_the_history_and_nothing_that_the_reader_wrote(tmp_path: Path) -> None:
    notes = _read(_replica(tmp_path)).table["note"]
    assert notes.iloc[:4].where(notes.notna(), None).tolist()[:3] == ["61-year-old.", "Cough, fever.", None]
    assert notes.iloc[3] == "Cough, fever.\n61-year-old."
    assert not notes.str.contains("effusion").any() and _read(tmp_path, notes=False).table["note"].isna().all()


def test_labels_come_from_the_part_of_the_report_that_is_asked_for(tmp_path: Path) -> None:
    effusion = FINDINGS.index("Pleural Effusion")
    labels = _read(_replica(tmp_path)).labels
    assert np.isnan(labels[0]).all() and labels[1, effusion] == 1  # the first film has no line: unknown throughout
    assert np.isnan(labels[1, FINDINGS.index("Edema")]) and labels[1, FINDINGS.index("Fracture")] == 0
    assert _read(tmp_path, labels="findings").labels[1, effusion] == 0
    assert np.isnan(_read(tmp_path, labels="report", unmentioned="unknown").labels[1, effusion])


def test_the_valid_rows_are_the_test_set(tmp_path: Path) -> None:
    table = _read(_replica(tmp_path)).table
    assert set(table.loc[table["split"] == "test", "patient"]) == {f"patient{number:05d}" for number in range(24, 28)}
    assert (_read(tmp_path, official_split=False).table["split"] == "test").sum() > 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is no object"),
        ('{"path_to_image": "a"}', "line 1 is no object"),
        (_label("a", Edema=2.0), "row 1, column 'Edema': labels are 1, 0, -1 or empty"),
        (_label(7), "line 1: path_to_image is no text"),
        ("[" * 100_000, "line 1 is no object"),
    ],
)
def test_a_damaged_line_of_labels_is_named(tmp_path: Path, line: str, message: str) -> None:
    (_replica(tmp_path) / "chexbert_labels" / "impression_fixed.json").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        _read(tmp_path)


def test_what_is_missing_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no df_chexpert_plus_\*\.csv"):
        _read(tmp_path)
    (_replica(tmp_path) / "chexbert_labels" / "impression_fixed.json").unlink()
    with pytest.raises(DataError, match=r"no chexbert_labels/impression_fixed\.json"):
        _read(tmp_path)
    table = pd.read_csv(tmp_path / "df_chexpert_plus_240401.csv")
    table.assign(path_to_image="a.jpg").to_csv(tmp_path / "df_chexpert_plus_240401.csv", index=False)
    with pytest.raises(DataError, match="row 1: path_to_image is not"):
        _read(tmp_path)
