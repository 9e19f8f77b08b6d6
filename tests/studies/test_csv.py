"""A folder with a table of the user's own: columns by the settings, findings in one column or in many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.settings import CsvColumns, CsvSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import csv
from tests.studies.films import write_film

COLUMNS = CsvColumns(image="file", patient="who", view="view", age="years", sex="gender", note="indication")
HEADER = "file,who,view,years,gender,indication,heart,Edema,all\n"


def _replica(root: Path, count: int = 24, last: str = "") -> Path:
    rows = []
    for number in range(count):
        write_film(root / "films" / f"{number}.png")
        heart, edema = ("1", "no") if number % 2 else ("-1", "")
        rows.append(f"films/{number}.png,p{number // 2},pa,61,female,cough,{heart},{edema},Cardiomegaly;wet\n")
    (root / "studies.csv").write_text(HEADER + "".join(rows) + last, encoding="utf-8")
    return root


def _read(root: Path, **settings: object) -> Manifest:
    values = {"columns": COLUMNS, "finding_columns": {"Cardiomegaly": "heart", "Edema": "Edema"}, **settings}
    return csv.read(CsvSource(source="csv", root=root, **values), SplitSettings(), finding_set("nih14"))


def test_columns_are_taken_from_where_the_settings_say(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path), name="ward 3")
    first = manifest.table.iloc[0]
    assert list(first[["patient", "path", "note", "view", "age", "sex", "source"]]) == [
        "p0", "films/0.png", "cough", "PA", 61, "F", "ward 3",
    ]  # fmt: skip
    assert sum(manifest.counts().values()) == len(manifest) == 24


def test_findings_in_columns_of_their_own_may_be_unknown_or_uncertain(tmp_path: Path) -> None:
    labels = _read(_replica(tmp_path)).labels
    np.testing.assert_array_equal(labels[:2, 1], [np.nan, 1])
    np.testing.assert_array_equal(labels[:2, 3], [np.nan, 0])
    assert np.isnan(np.delete(labels, [1, 3], axis=1)).all()
    assert _read(tmp_path, uncertain="absent").labels[0, 1] == 0
    named_alike = _read(tmp_path, finding_columns={}).labels
    assert np.isnan(named_alike[:, 1]).all() and named_alike[1, 3] == 0


def test_findings_in_one_column_are_split_and_translated(tmp_path: Path) -> None:
    names = {"finding_columns": {}, "finding_list": "all", "separator": ";", "finding_names": {"wet": "Edema"}}
    manifest = _read(_replica(tmp_path, last=",p99,pa,61,f,,,,\n"), **names)
    assert manifest.findings.decode(manifest.labels[0]) == ("Cardiomegaly", "Edema")
    assert not np.isnan(manifest.labels[0]).any() and np.isnan(manifest.labels[-1]).all()
    assert np.isnan(_read(tmp_path, unlisted="unknown", **names).labels[0]).sum() == 12


def test_a_row_without_a_film_is_a_study_with_a_note_alone(tmp_path: Path) -> None:
    last = _read(_replica(tmp_path, last=",p99,,,,fell,1,0,\n")).table.iloc[-1]
    assert pd.isna(last["path"]) and last["note"] == "fell" and last["study"] == "row 24"


def test_a_split_of_your_own_is_followed(tmp_path: Path) -> None:
    _replica(tmp_path)
    path = tmp_path / "studies.csv"
    header, *rows = path.read_text().splitlines()
    splits = ["train", "validation", "test", "test"]
    path.write_text("\n".join([header + ",part", *(f"{row},{splits[i // 2 % 4]}" for i, row in enumerate(rows))]))
    columns = COLUMNS.model_copy(update={"split": "part"})
    assert _read(tmp_path, columns=columns).counts() == {"train": 6, "validation": 6, "test": 12}
    path.write_text(path.read_text().replace(",train", ",training"))
    with pytest.raises(DataError, match="line 2, column 'part': a split is train, validation, test"):
        _read(tmp_path, columns=columns)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": CsvColumns()}, r"the columns image, patient are missing; data\.columns names"),
        ({"finding_columns": {"Fracture": "heart"}}, r"data\.finding_columns: Fracture is no finding of nih14"),
        ({"finding_columns": {"Edema": "all"}}, r"line 2, column 'all': labels are 1, 0, -1 or empty"),
        ({"finding_columns": {}, "finding_list": "all"}, r"line 2, column 'all': 'Cardiomegaly;wet' is no finding"),
        ({"table": Path("other.csv")}, r"other\.csv: no such table"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _read(_replica(tmp_path), **settings)


def test_a_row_without_a_patient_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 26: no patient"):
        _read(_replica(tmp_path, last="films/0.png,,pa,,,,,,\n"))


def test_films_that_are_not_there_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (_replica(tmp_path) / "films" / "3.png").unlink()
    assert len(_read(tmp_path)) == 23 and "1 of 24 listed films are not here" in caplog.text


def test_a_public_table_is_read_with_its_films_in_a_folder_of_their_own(data_root: Path) -> None:
    columns = CsvColumns(image="Image Index", patient="Patient ID", view="View Position")
    more = {"columns": columns, "finding_columns": {}, "finding_list": "Finding Labels"}
    manifest = _read(data_root / "nih_cxr", table=Path("labels.csv"), images=Path("images"), **more)
    assert len(manifest) == 1763 and int(manifest.labels[:, manifest.findings.names.index("Pneumonia")].sum()) == 561


def test_the_split_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path))
    header, *rows = (tmp_path / "studies.csv").read_text().splitlines()
    (tmp_path / "studies.csv").write_text("\n".join([header, *reversed(rows)]))
    again = _read(tmp_path)
    assert again.split_hash() == manifest.split_hash() and again.data_hash() == manifest.data_hash()
    assert (manifest.table.groupby("patient")["split"].nunique() == 1).all()
