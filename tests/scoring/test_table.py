from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.inference.prediction import Prediction
from medsd.scoring import table

FINDINGS = finding_set("phantom8")


def _refused(path: str = "a.png") -> table.Row:
    return table.row(path, Prediction(FINDINGS, "refused", "not_dicom", 'a.png: no, "film"\nat all', model="tiny 1"))


def test_the_columns_are_those_of_the_design():
    names = table.columns(FINDINGS)
    assert names[:8] == ["path", "status", "reason", "message", "study_key", "patient_key", "instance_key", "view"]
    assert names[8:12] == [
        "probability_Atelectasis", "call_Atelectasis", "probability_Cardiomegaly", "call_Cardiomegaly",
    ]  # fmt: skip
    assert names[-3:] == ["out_of_distribution", "model", "model_sha256"]
    assert len(names) == 8 + 2 * 8 + 3


def test_a_row_has_exactly_the_columns():
    assert list(_refused()) == table.columns(FINDINGS)


@pytest.mark.parametrize("suffix", table.SUFFIXES)
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str):
    rows = [
        _refused(),
        _refused("b.png") | {"probability_Mass": 0.25, "call_Mass": "absent", "out_of_distribution": 2.0},
    ]
    table.write_table(tmp_path / f"out{suffix}", rows, table.columns(FINDINGS))
    assert list(table.read_table(tmp_path / f"out{suffix}")) == rows


def test_a_parquet_of_refused_films_alone_keeps_its_types(tmp_path: Path):
    table.write_table(tmp_path / "out.parquet", [_refused()], table.columns(FINDINGS))
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert schema.field("probability_Mass").type == pa.float64()
    assert schema.field("call_Mass").type == pa.string()


def test_a_failed_write_leaves_the_old_table(tmp_path: Path):
    out = tmp_path / "out.csv"
    table.write_table(out, [_refused()], table.columns(FINDINGS))
    before = out.read_bytes()

    def rows():
        yield _refused("b.png")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.write_table(out, rows(), table.columns(FINDINGS))
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_another_suffix_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"out\.xlsx: the results are written as"):
        table.write_table(tmp_path / "out.xlsx", [], [])


def test_a_file_that_is_no_table_is_an_error(tmp_path: Path):
    (tmp_path / "out.parquet").write_text("no table")
    with pytest.raises(DataError, match="is no table of results"):
        list(table.read_table(tmp_path / "out.parquet"))


NASTY = (
    "=1+1",
    "+a",
    "-b",
    "@c",
    "'d",
    "\te",
    "\rf",
    "lone\rreturn",
    "line\nfeed",
    "both\r\n",
    'a "quote", comma',
    " g ",
    "",
)


@pytest.mark.parametrize("defuse", [False, True])
def test_csv_is_read_back_by_every_reader_whatever_the_names(tmp_path: Path, defuse: bool):
    """RFC 4180: a name with CR, LF, a quote or a comma stands in quotes, so that the number of rows holds."""
    rows = [_refused(name) for name in NASTY]
    out = tmp_path / "out.csv"
    table.write_table(out, rows, table.columns(FINDINGS), defuse)
    assert list(table.read_table(out, defused=defuse)) == rows
    with out.open(newline="", encoding="utf-8") as file:
        plain = [row[0] for row in csv.reader(file)][1:]
    framed = pd.read_csv(out, keep_default_na=False, dtype=str)["path"].tolist()
    assert plain == framed
    assert out.read_bytes().endswith(b"\r\n") and len(plain) == len(NASTY)
    if not defuse:
        assert plain == list(NASTY)
        return
    assert not any(text.startswith(("=", "+", "-", "@", "\t", "\r")) for text in plain)
    assert [text for text in plain if not text.startswith("'")] == list(NASTY[7:])


def test_what_no_text_can_hold_is_shown_as_an_escape():
    assert table.printable("a\0b\udcff") == "a\\x00b\\udcff"
