"""A folder with a table of the user's own: columns by the settings, findings in one column or in many."""

from csv import writer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsd import privacy
from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.settings import CsvColumns, CsvSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import csv
from tests.studies.images import write_image

COLUMNS = CsvColumns(image="file", patient="who", view="view", age="years", sex="gender", note="indication")
HEADER = "file,who,view,years,gender,indication,heart,Edema,all\n"


@pytest.fixture(autouse=True)
def _nobody_is_known() -> None:
    """Messages redact the patients of this test, and not those of tests before it in the same process."""
    privacy._identities._values.clear()


def _replica(root: Path, count: int = 24, last: str = "") -> Path:
    rows = []
    for number in range(count):
        write_image(root / "films" / f"{number}.png")
        heart, edema = ("1", "no") if number % 2 else ("-1", "")
        rows.append(f"films/{number}.png,p{number // 2},pa,61,female,cough,{heart},{edema},Cardiomegaly;wet\n")
    (root / "studies.csv").write_text(HEADER + "".join(rows) + last, encoding="utf-8")
    return root


def _read(root: Path, **settings: object) -> Manifest:
    values = {"columns": COLUMNS, "finding_columns": {"Cardiomegaly": "heart", "Edema": "Edema"}, **settings}
    return csv.read(CsvSource(source="csv", root=root, **values), SplitSettings(), finding_set("nih14"))


def _rejected(manifest: Manifest) -> list[tuple[int, str, str, str]]:
    return manifest.rejected.entries


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


def test_columns_that_are_not_read_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    _read(_replica(tmp_path), finding_columns={})  # "heart" is no finding's name
    assert "studies.csv: columns that are not read: heart, all" in caplog.text


def test_findings_in_one_column_are_split_and_translated(tmp_path: Path) -> None:
    names = {"finding_columns": {}, "finding_list": "all", "separator": ";", "finding_names": {"wet": "Edema"}}
    manifest = _read(_replica(tmp_path, last=",p99,pa,61,f,,,,\n"), **names)
    assert manifest.findings.decode(manifest.labels[0]) == ("Cardiomegaly", "Edema")
    assert not np.isnan(manifest.labels[0]).any() and np.isnan(manifest.labels[-1]).all()
    assert np.isnan(_read(tmp_path, unlisted="unknown", **names).labels[0]).sum() == 12


def test_a_row_without_a_image_is_a_study_with_a_note_alone(tmp_path: Path) -> None:
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
    path.write_text(path.read_text().replace(",train", ",fold 1"))
    left = _read(tmp_path, columns=columns)
    assert left.counts() == {"train": 0, "validation": 6, "test": 12}
    assert _rejected(left)[0] == (
        1,
        "films/0.png",
        "unknown_split",
        "column 'part': a split is train, validation or test",
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"columns": CsvColumns()},
            r"columns image, patient are missing; set data\.columns\.image, data\.columns\.patient; the table has file",
        ),
        ({"finding_columns": {"Fracture": "heart"}}, r"data\.finding_columns: Fracture is no finding of nih14"),
        (
            {"finding_columns": {"Edema": "all"}},
            r"row 1, column 'all': labels are 1, 0, -1 or empty; 24 of 24 cells cannot be read",
        ),
        ({"finding_columns": {}, "finding_list": "all"}, r"row 1, column 'all': lists a word .* 24 of 24"),
        (
            {"images": Path("none")},
            r"24 of 24 rows cannot be used, 24 .* missing_file; row 1: there is",
        ),
        ({"table": Path("other.csv")}, r"other\.csv: no such table"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _read(_replica(tmp_path), **settings)


def test_bad_rows_are_left_out_with_their_reasons(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = {
        "missing_patient": "films/4.png,,pa,,,,,,\n",
        "missing_file": "films/p98/none.png,p98,pa,61,f,,1,0,\n",
        "path_outside_root": "../../p97/film.png,p97,pa,61,f,,1,0,\n",
        "unreadable_row": "films/extra.png,p95\n",
        "duplicate_row": "films/0.png,p0,pa,61,f,,1,0,\n",
    }
    write_image(tmp_path / "films" / "extra.png")
    manifest = _read(_replica(tmp_path, last="".join(bad.values()) + "films/extra.png,p94,,,,,1,0,\n"))
    assert len(manifest) == 25 and list(manifest.source_rows) == [*range(1, 25), 30]
    assert sorted((row, reason) for row, _, reason, _ in _rejected(manifest)) == list(enumerate(bad, 25))
    assert "5 of 30 rows are left out" in caplog.text
    told = caplog.text + repr(_rejected(manifest))
    assert not any(name in told for name in ("p98", "p97")) and "films/…/none.png" in told


def test_a_image_under_two_studies_and_a_patient_in_two_splits_are_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"{name}.png")
    rows = "s1,a.png,p1,train,1\ns2,a.png,p2,test,1\ns3,b.png,p3,test,1\ns4,c.png,p3,train,1\n"
    more = "".join(f"n{n},,p{n},validation,0\n" for n in range(9, 15))
    (tmp_path / "studies.csv").write_text("id,image,patient,part,Edema\n" + rows + more)
    manifest = _read(tmp_path, columns=CsvColumns(study="id", split="part"), finding_columns={})
    assert [entry[0::2] for entry in _rejected(manifest)] == [
        (2, "duplicate_image"),
        (3, "divided_patient"),
        (4, "divided_patient"),
    ]


CELLS = {
    1.0: ("1", "1.0", " Yes", "Y", "TRUE", "t", "pos", "Positive", "present"),
    0.0: ("0", "0.0", "no", "N", "False", "neg", "negative", "absent"),
    np.nan: (
        "",
        " ",
        "nan",
        "NaN",
        "NA",
        "n/a",
        "None",
        "null",
        "<NA>",
        "-",
        "?",
        "-1",
        "\u22121",
        "-1.0",
        "uncertain",
    ),
}


@pytest.mark.parametrize(("cell", "value"), [(cell, value) for value, cells in CELLS.items() for cell in cells])
def test_a_cell_says_what_people_and_programs_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cell: str, value: float
) -> None:
    manifest = _read(_replica(tmp_path, last=f',p99,,,,fell,{cell},"{cell}",\n'))
    np.testing.assert_array_equal(manifest.labels[-1, [1, 3]], [value, value])
    assert len(manifest) == 25 and "cannot be read" not in caplog.text


def test_a_cell_that_cannot_be_read_is_unknown_and_listed_and_its_row_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = _read(_replica(tmp_path, last=",p98,,,,fell,Doe Jane 7,0,\n,p99,,,,fell,1,2,\n"))
    assert len(manifest) == 26 and not _rejected(manifest)
    np.testing.assert_array_equal(manifest.labels[-2:, [1, 3]], [[np.nan, 0], [1, np.nan]])
    assert [(row, reason) for row, _, reason, _ in manifest.rejected.remarks] == [
        (25, "unreadable_label"),
        (26, "unreadable_label"),
    ]
    assert (
        "column 'heart': 1 of 26 cells cannot be read and count as unknown: row 25 (like 'Aaa Aaaa 9')" in caplog.text
    )
    assert "column 'Edema': 1 of 14 cells" in caplog.text
    manifest.rejected.write(tmp_path / "rejected.csv")
    told = (tmp_path / "rejected.csv").read_text() + caplog.text
    assert "the row stays" in told and "Doe" not in told and "7" not in told.split("26,")[0].split("25,")[1]


def test_a_list_with_another_word_is_read_as_far_as_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = {"finding_columns": {}, "finding_list": "all", "separator": ";", "finding_names": {"wet": "Edema"}}
    manifest = _read(_replica(tmp_path, last=",p98,pa,61,f,,,,Cardiomegaly;odd\n,p99,,,,,,,nan\n"), **names)
    labels = manifest.labels
    assert len(manifest) == 26 and labels[-2, 1] == 1 and np.isnan(np.delete(labels[-2], 1)).all()
    assert np.isnan(labels[-1]).all() and "column 'all': 1 of 25 cells cannot be read" in caplog.text
    assert "data.finding_names translates your words, data.separator stands between them" in caplog.text


def test_an_image_with_contradicting_labels_is_told_and_its_label_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = "films/1.png,p0,pa,61,f,,0,no,\nfilms/3.png,p1,pa,61,f,,1,no,\nfilms/0.png,p0,pa,61,f,,,yes,\n"
    manifest = _read(_replica(tmp_path, last=more))
    assert [entry[::2] for entry in _rejected(manifest)] == [(row, "duplicate_row") for row in (25, 26, 27)]
    np.testing.assert_array_equal(manifest.labels[[1, 3, 0]][:, [1, 3]], [[np.nan, 0], [1, 0], [np.nan, 1]])
    assert "1 images are labelled twice with contradicting labels" in caplog.text
    assert "rows 2 and 25" in caplog.text and "films/1.png" not in caplog.text


def test_a_missing_patient_study_or_note_may_be_written_as_a_word(tmp_path: Path) -> None:
    manifest = _read(_replica(tmp_path, last=",nan,,,,fell,1,0,\nNaN,p98,,,,fell,1,0,\nNone,p99,,,,NA,1,0,\n"))
    assert [entry[::2] for entry in _rejected(manifest)] == [(25, "missing_patient")]
    assert manifest.table["path"].iloc[-2:].isna().all() and pd.isna(manifest.table["note"].iloc[-1])


@pytest.mark.parametrize("kind", ["studies.csv.gz", "studies.parquet", "typed.parquet"])
def test_a_table_may_be_gzipped_or_parquet(tmp_path: Path, kind: str) -> None:
    expected = _read(_replica(tmp_path))
    table = pd.read_csv(tmp_path / "studies.csv", dtype=None if kind.startswith("typed") else str)
    if kind.endswith("gz"):
        table.to_csv(tmp_path / kind, index=False)
    else:
        table.to_parquet(tmp_path / kind)
    manifest = _read(tmp_path, table=Path(kind))
    assert manifest.data_hash() == expected.data_hash() and manifest.split_hash() == expected.split_hash()


def test_portions_do_not_change_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _replica(tmp_path, last='films/7.png\n"films/0\n.png",p99,,,,,1,0,\n,p88,,,,"a\nb",1,0,\n')
    whole = _read(tmp_path)
    monkeypatch.setattr("medsd.studies.sources.tables.BLOCK", 300)
    parts = _read(tmp_path)
    assert parts.data_hash() == whole.data_hash() and list(parts.source_rows) == [*range(1, 25), 27]
    assert sorted(_rejected(parts)) == sorted(_rejected(whole)) and len(_rejected(whole)) == 2


def test_a_public_table_is_read_with_its_images_in_a_folder_of_their_own(data_root: Path) -> None:
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


def test_spellings_of_one_number_are_one_patient_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _replica(tmp_path)
    path = tmp_path / "studies.csv"
    header, *rows = path.read_text().splitlines()
    spellings = ["00012", "12", "12.0", " 12", "P12", " P12 ", *(f"q{number}" for number in range(6, 24))]
    rows = [row.replace(row.split(",")[1], spelled, 1) for row, spelled in zip(rows, spellings, strict=True)]
    path.write_text("\n".join([header, *rows]))
    manifest = _read(tmp_path)
    assert list(manifest.table["patient"][:7]) == ["12", "12", "12", "12", "P12", "P12", "q6"]
    assert manifest.table["split"][:4].nunique() == manifest.table["split"][4:6].nunique() == 1
    assert "2 patients are written in several ways" in caplog.text
    assert "00012" not in caplog.text and "P12" not in caplog.text


def test_spellings_of_one_patient_in_two_splits_of_ones_own_are_left_out(tmp_path: Path) -> None:
    _replica(tmp_path)
    path = tmp_path / "studies.csv"
    header, *rows = path.read_text().splitlines()
    rows = [f"{row},{'train' if number else 'test'}" for number, row in enumerate(rows)]
    rows[:2] = [rows[0].replace(",p0,", ",0012,"), rows[1].replace(",p0,", ",12,")]
    path.write_text("\n".join([header + ",part", *rows]))
    manifest = _read(tmp_path, columns=COLUMNS.model_copy(update={"split": "part"}))
    assert [(row, reason) for row, _, reason, _ in _rejected(manifest)] == [
        (1, "divided_patient"),
        (2, "divided_patient"),
    ]


@pytest.mark.parametrize("word", ["val", "Valid", "DEV", " validation ", "development"])
def test_other_words_for_the_splits_are_understood(tmp_path: Path, word: str) -> None:
    _replica(tmp_path)
    path = tmp_path / "studies.csv"
    header, *rows = path.read_text().splitlines()
    splits = ["Train", word, "TEST"]
    path.write_text("\n".join([header + ",part", *(f"{row},{splits[i // 2 % 3]}" for i, row in enumerate(rows))]))
    manifest = _read(tmp_path, columns=COLUMNS.model_copy(update={"split": "part"}))
    assert manifest.counts() == {"train": 8, "validation": 8, "test": 8}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_delimiter_and_encoding_are_found_out(tmp_path: Path, delimiter: str, encoding: str) -> None:
    _replica(tmp_path)
    path = tmp_path / "studies.csv"
    text = path.read_text().replace("cough", "Müdigkeit, Ödem").replace(";", " ")
    rows = [line.split(",", 5) for line in text.splitlines()]
    rows = [[*row[:5], *row[5].rsplit(",", 3)] for row in rows]
    with path.open("w", encoding=encoding, newline="") as file:
        writer(file, delimiter=delimiter).writerows(rows)
    table = _read(tmp_path).table
    assert len(table) == 24 and table["note"].iloc[0] == "Müdigkeit, Ödem" and table["path"].iloc[0] == "films/0.png"


def test_one_broken_byte_far_down_a_table_does_not_end_the_run(tmp_path: Path) -> None:
    path = _replica(tmp_path) / "studies.csv"
    path.write_bytes(path.read_bytes() + b"films/23.png,p90,pa,61,f,caf\xe9,1,0,\n")
    assert len(_read(tmp_path)) == 24  # the film stands in an earlier row


def test_a_table_that_is_elsewhere_or_is_no_table_says_what_to_set(tmp_path: Path) -> None:
    _replica(tmp_path)
    with pytest.raises(DataError, match=r"other\.csv: no such table; set data\.table .*has studies\.csv"):
        _read(tmp_path, table=Path("other.csv"))
    (tmp_path / "studies.xlsx").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(DataError, match=r"a workbook .*save it as CSV"):
        _read(tmp_path, table=Path("studies.xlsx"))


def test_a_missing_column_names_its_key_and_the_nearest_column(tmp_path: Path) -> None:
    _replica(tmp_path)
    columns = COLUMNS.model_copy(update={"patient": "Who", "age": "year"})
    with pytest.raises(
        DataError, match=r"data\.columns\.patient \(did you mean 'who'\?\), data\.columns\.age .*'years'"
    ):
        _read(tmp_path, columns=columns)
    with pytest.raises(DataError, match=r"data\.finding_columns\.Edema \(did you mean 'Edema'\?\)"):
        _read(tmp_path, finding_columns={"Edema": "edema"})


def test_a_table_without_the_list_of_findings_names_the_columns_that_are_findings(tmp_path: Path) -> None:
    _replica(tmp_path)
    with pytest.raises(DataError, match=r"Edema have columns of their own: set data\.finding_list=null"):
        _read(tmp_path, finding_columns={}, finding_list="findings")


def test_spaces_around_the_names_of_columns_and_empty_lines_above_them_do_not_count(tmp_path: Path) -> None:
    _replica(tmp_path)
    path, whole = tmp_path / "studies.csv", _read(tmp_path)
    path.write_text("\n\n" + path.read_text().replace("file,who,", " file, who ,", 1))
    pd.testing.assert_frame_equal(_read(tmp_path).table, whole.table)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(128, 200)), bytes(200)])
def test_what_is_no_text_is_no_table(tmp_path: Path, content: bytes) -> None:
    _replica(tmp_path)
    (tmp_path / "studies.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"studies\.csv: no text, so no table"):
        _read(tmp_path)
    (tmp_path / "studies.csv").write_bytes(b"\n")
    with pytest.raises(DataError, match=r"studies\.csv: the table is empty"):
        _read(tmp_path)


def test_a_wrong_delimiter_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one column only; leave data\.delimiter out"):
        _read(_replica(tmp_path), delimiter=";")


def test_paths_may_be_written_as_on_windows(tmp_path: Path) -> None:
    _replica(tmp_path)
    path, whole = tmp_path / "studies.csv", _read(tmp_path)
    path.write_text(path.read_text().replace("films/", "films\\") + "..\\x.png,p99,,,,,,,\n")
    manifest = _read(tmp_path)
    assert list(manifest.table["path"]) == list(whole.table["path"])
    assert [reason for _, _, reason, _ in _rejected(manifest)] == ["path_outside_root"]


def test_patients_who_differ_in_signs_alone_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _replica(tmp_path)
    path = tmp_path / "studies.csv"
    path.write_text(path.read_text().replace(",p3,", ",P-03,").replace(",p4,", ",P3,").replace(",p5,", ",1-23,"))
    path.write_text(path.read_text().replace(",p6,", ",12-3,"))
    assert _read(tmp_path).table["patient"].nunique() == 12
    assert "1 groups of patients differ only in capitals" in caplog.text and "P-03" not in caplog.text


def test_a_table_without_a_first_line_of_names_is_told_so_without_its_cells(tmp_path: Path) -> None:
    _replica(tmp_path)
    path = tmp_path / "studies.csv"
    path.write_text(path.read_text().split("\n", 1)[1])
    with pytest.raises(DataError, match="does not look like names of columns") as caught:
        _read(tmp_path)
    assert "p0" not in str(caught.value) and "cough" not in str(caught.value)
