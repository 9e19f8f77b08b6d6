"""Odd cells and images that are labelled twice, in the layouts of the public data sets."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsd.errors import DataError
from medsd.studies.sources.cells import LabelCells, agreed, label_value, listed_words, shape
from tests.studies.sources import test_chexpert, test_chexpert_plus, test_mimic, test_nih14, test_padchest, test_vindr

TWICE = "1 images are labelled twice with contradicting labels, which count as unknown: rows "


@given(st.text(max_size=40))
def test_any_cell_is_read_or_told(text: str) -> None:
    value = label_value(text)
    assert value is None or np.isnan(value) or value in (1.0, 0.0, -1.0)
    words = listed_words(text)
    assert words is None or all(word.strip() for word in words)


@given(st.lists(st.text("abc '\"", min_size=1, max_size=8).filter(lambda word: word.strip()), max_size=5))
def test_a_list_that_python_wrote_comes_back(words: list[str]) -> None:
    assert listed_words(repr(words)) == [" ".join(word.split()) for word in words]


def test_a_shape_shows_no_letter_and_no_digit_of_the_value() -> None:
    assert shape("Müller, J. 00471") == "Aaaaaa, A. 99999"
    assert shape("x" * 100) == "a" * 15 + "…"


def test_a_column_of_which_most_is_unreadable_is_another_column(tmp_path: Path) -> None:
    cells = LabelCells()
    values = cells.read(pd.Series(["1", "Doe", "Roe", ""], name="who"), np.arange(1, 5))
    np.testing.assert_array_equal(values, [1, np.nan, np.nan, np.nan])
    with pytest.raises(DataError, match=r"row 2, column 'who': labels are 1, 0, -1 or empty; 2 of 3") as raised:
        cells.tell(tmp_path)
    assert "Doe" not in str(raised.value)


def test_rows_that_agree_are_joined_and_those_that_do_not_are_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = pd.DataFrame(
        {"Edema": [1, 0, np.nan, 1, 1], "Mass": [1, np.nan, np.nan, 0, 0]}, index=["a", "a", "b", "b", "c"]
    )
    left = agreed(labels.astype("float32"), np.arange(1, 6), tmp_path)
    np.testing.assert_array_equal(left.loc[["a", "b", "c"]], [[np.nan, 1], [1, 0], [1, 0]])
    assert TWICE + "1 and 2" in caplog.text and "'a'" not in caplog.text


def test_nih_lists_with_empty_and_odd_cells(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = test_nih14._replica(tmp_path)
    table = root / "Data_Entry_2017.csv"
    lines = table.read_text().splitlines()
    for at, text in ((1, "nan"), (2, ""), (3, "Effusion|Odd"), (4, " Effusion | Edema ")):
        fields = lines[at].split(",")
        lines[at] = ",".join([fields[0], text, *fields[2:]])
    lines.append(lines[5].replace(lines[5].split(",")[1], "Mass"))
    table.write_text("\n".join(lines) + "\n")
    manifest = test_nih14._read(tmp_path)
    effusion, edema = (manifest.findings.names.index(name) for name in ("Effusion", "Edema"))
    assert len(manifest) == 40 and np.isnan(manifest.labels[:2]).all()
    assert manifest.labels[2, effusion] == 1 and np.isnan(np.delete(manifest.labels[2], effusion)).all()
    assert manifest.labels[3, effusion] == manifest.labels[3, edema] == 1 and np.isnan(manifest.labels[4]).any()
    assert "column 'Finding Labels': 1 of 39 cells cannot be read" in caplog.text and TWICE + "5 and 41" in caplog.text


def test_mimic_labels_of_a_study_that_stands_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = test_mimic._replica(tmp_path) / "mimic-cxr-2.0.0-chexpert.csv.gz"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    again = table.iloc[[0]].assign(Edema="1.0" if table["Edema"][0] in ("0.0", "") else "0.0", Fracture="odd")
    first = table.iloc[[0]].assign(Edema="0.0" if again["Edema"].iloc[0] == "1.0" else "1.0", Fracture="True")
    rest = table.iloc[1:].assign(Fracture="N")
    pd.concat([first, rest, again]).to_csv(path, index=False)
    manifest = test_mimic._read(tmp_path)
    edema, fracture = (manifest.findings.names.index(name) for name in ("Edema", "Fracture"))
    row = int(np.flatnonzero(manifest.table["study"] == f"s{table['study_id'][0]}")[0])
    assert np.isnan(manifest.labels[row, edema]) and f"{TWICE}1 and {len(table) + 1}" in caplog.text
    assert "column 'Fracture': 1 of" in caplog.text and fracture >= 0


def test_chexpert_cells_in_words_stay_and_odd_ones_are_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = test_chexpert._replica(tmp_path)
    table = pd.read_csv(root / "train.csv", dtype=str, keep_default_na=False)
    before = test_chexpert._read(tmp_path)
    table["Fracture"], table["Edema"] = "N/A", "No"
    table.loc[0, "Edema"] = "odd"
    pd.concat([table, table[table["Frontal/Lateral"] == "Frontal"].iloc[[1]].assign(Edema="Y")]).to_csv(
        root / "train.csv", index=False
    )
    manifest = test_chexpert._read(tmp_path)
    edema = manifest.findings.names.index("Edema")
    assert len(manifest) == len(before)
    assert "column 'Edema': 1 of" in caplog.text and f" and {len(table) + 1}" in caplog.text
    assert (manifest.labels[:, edema] == 0).any()


def test_vindr_readers_who_left_a_cell_empty_do_not_vote(tmp_path: Path) -> None:
    path = test_vindr._replica(tmp_path) / "annotations" / "image_labels_train.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[table["image_id"] == "a0", "ILD"] = ["True", "nan", "NA"]
    table.to_csv(path, index=False)
    manifest = test_vindr._read(tmp_path)
    assert manifest.labels[0, manifest.findings.names.index("ILD")] == 1


def test_chexpert_plus_labels_that_are_none_are_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = test_chexpert_plus._replica(tmp_path) / "chexbert_labels" / "impression_fixed.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].replace('"Edema": -1.0', '"Edema": 3.0'), *lines[1:]]) + "\n")
    assert len(test_chexpert_plus._read(tmp_path)) and "column 'Edema': 1 of" in caplog.text


def test_a_padchest_image_in_two_rows_is_kept_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = test_padchest._replica(tmp_path) / test_padchest.TABLE
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[2].replace("multiple nodules", "consolidation")]) + "\n")
    manifest = test_padchest._read(tmp_path)
    assert len(manifest) == 32 and TWICE + "2 and 49" in caplog.text
    nodule = manifest.findings.names.index("nodule")
    assert np.isnan(manifest.labels[0, nodule])
