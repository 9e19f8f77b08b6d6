"""The sidecar of bad rows: order, silence about patients, and when a source is refused."""

from pathlib import Path

import pandas as pd
import pytest

from medsd.studies.rejected import REASONS, Rejections, TooManyRejected


def test_the_sidecar_is_in_the_order_of_the_table_and_says_why(tmp_path: Path) -> None:
    rejected = Rejections()
    rejected.add(7, "a/b.png", "missing_file")
    rejected.add(2, None, "unreadable_row")
    rejected.add(0, "c.dcm", "view", "c.dcm: the view is lateral")
    rejected.write(tmp_path / "rejected.csv")
    table = pd.read_csv(tmp_path / "rejected.csv", dtype=str, keep_default_na=False)
    assert table.values.tolist() == [
        ["2", "", "unreadable_row", REASONS["unreadable_row"]],
        ["7", "a/b.png", "missing_file", REASONS["missing_file"]],
        ["", "c.dcm", "view", "c.dcm: the view is lateral"],
    ]


@pytest.mark.parametrize(
    ("patient", "path", "shown"),
    [
        ("Doe^Jane", "Doe^Jane/1.dcm", "…/1.dcm"),
        ("00042", "films/chest_00042_1.png", "films/chest_…_1.png"),
        ("7", "films/p7/17_7.png", "films/p7/17_….png"),
        (None, "films/1.png", "films/1.png"),
    ],
)
def test_a_patient_is_not_named_by_a_path(patient: str | None, path: str, shown: str) -> None:
    rejected = Rejections()
    rejected.add(1, path, "view", f"{path}: lateral", patient=patient)
    assert rejected.entries == [(1, shown, "view", f"{shown}: lateral")]


def test_a_column_of_other_splits_says_what_it_has(tmp_path: Path) -> None:
    rejected = Rejections()
    rejected.splits.update(["0"] * 7)
    rejected.extend(range(7), [None] * 7, [None] * 7, "unknown_split")
    with pytest.raises(TooManyRejected, match=r"train, validation or test; the column has '0' \(7\)"):
        rejected.check(7, tmp_path)


def test_half_may_be_bad_and_no_more(tmp_path: Path) -> None:
    rejected = Rejections()
    rejected.extend([1, 2], ["a.png", "b.png"], ["p1", "p2"], "missing_file")
    rejected.check(4, tmp_path)
    rejected.add(3, "c.png", "missing_patient")
    with pytest.raises(TooManyRejected, match="3 of 4 rows cannot be used, 2 of them because of missing_file; row 1: "):
        rejected.check(4, tmp_path)
