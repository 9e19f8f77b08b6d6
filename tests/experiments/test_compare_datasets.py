"""The sets of a comparison: files read as they are, splits that hold, nothing learned from held-out rows."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import arff

from medsd.errors import DataError
from medsd.experiments.compare.datasets import read_arff, read_set
from medsd.experiments.compare.labelled_set import LabelledSet
from medsd.experiments.compare.settings import CompareSettings, SetName

DENSE = "@relation 'a set'\n@attribute 'one two' numeric\n@ATTRIBUTE b {0,1}\n% said\n\n@data\n1.5,1\n?,0\n"


def settings_at(root: Path) -> CompareSettings:
    return CompareSettings(name="trial", root=root, output=root / "runs", sets=("yeast",))


def labelled(raw: object, labels: np.ndarray, is_test: np.ndarray) -> LabelledSet:
    keys = np.array([f"p{row // 2:03d}" for row in range(len(labels))])  # two samples a patient
    names = tuple(f"f{column}" for column in range(labels.shape[1]))
    return LabelledSet("made", "made", "made", names, labels, raw, keys, is_test)  # type: ignore[arg-type]


@pytest.fixture
def made() -> LabelledSet:
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 4)) < 0.4).astype(np.float32)
    return labelled(rng.normal(3, 2, (60, 1, 5)).astype(np.float32), labels, np.arange(60) >= 40)


def test_a_dense_file_is_read_with_quoted_names_and_unknown_values(tmp_path: Path) -> None:
    (tmp_path / "a.arff").write_text(DENSE)
    table = read_arff(tmp_path / "a.arff")
    assert list(table.columns) == ["one two", "b"]
    np.testing.assert_array_equal(table.to_numpy(), [[1.5, 1], [np.nan, 0]])


def test_sparse_rows_hold_zero_where_nothing_is_named(tmp_path: Path) -> None:
    header = "@relation r\n" + "".join(f"@attribute w{n} {{0,1}}\n" for n in range(4))
    (tmp_path / "a.arff").write_text(header + "@data\n{1 1, 3 1}\n{}\n")
    np.testing.assert_array_equal(read_arff(tmp_path / "a.arff").to_numpy(), [[0, 1, 0, 1], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1.5,1", "1.5", r"a\.arff, line 7: no ARFF file of numbers"),
        ("?,0", "{5 1}", r"a\.arff, line 8: no ARFF"),
        ("?,0", "{-1 1}", r"a\.arff, line 8: no ARFF"),
        ("1.5,1", "word,1", r"a\.arff, line 7: no ARFF"),
        ("@data", "", "no ARFF file of numbers"),
        ("1.5,1\n?,0\n", "", "no rows"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "a.arff").write_text(DENSE.replace(old, new))
    with pytest.raises(DataError, match=message):
        read_arff(tmp_path / "a.arff")


def test_yeast_is_read_as_scipy_reads_it(data_root: Path) -> None:
    path = data_root / "mulan" / "yeast" / "yeast-test.arff"
    theirs, _ = arff.loadarff(path)
    expected = np.array([[float(value) for value in row] for row in theirs.tolist()])
    np.testing.assert_allclose(read_arff(path).to_numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "train", "test", "findings"),
    [("yeast", 1500, 917, 14), ("emotions", 391, 202, 6), ("scene", 1211, 1196, 6), ("medical", 333, 645, 45),
     ("enron", 1123, 579, 53)],
)  # fmt: skip
def test_mulans_official_parts_are_kept(data_root: Path, name: SetName, train: int, test: int, findings: int) -> None:
    data = read_set(name, settings_at(data_root / "mulan"))
    assert (len(data.train), len(data.test), len(data.findings)) == (train, test, findings)
    assert set(np.unique(data.labels)) == {0, 1}


def test_reports_have_a_fixed_fifth_as_test_part(data_root: Path) -> None:
    data = read_set("cmc2007", settings_at(data_root))
    assert len(data.findings) == 25 and data.labels.any(1).all() and (data.labels.sum(0) >= 4).all()
    assert len(data.test) / len(data.labels) == pytest.approx(0.2, abs=0.02)
    again = read_set("cmc2007", settings_at(data_root / "cmc2007"))
    np.testing.assert_array_equal(again.is_test, data.is_test)


def test_open_i_reports_meet_their_findings(data_root: Path) -> None:
    data = read_set("openi", settings_at(data_root))
    effusion = data.labels[:, data.findings.index("Effusion")] == 1
    assert isinstance(data.raw, tuple)
    says = np.array(["effusion" in text.lower() for text in data.raw])
    assert len(data.raw) > 3000 and says[effusion].mean() > 0.9


def test_a_missing_folder_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set 'yeast': no yeast-train\.arff in .*mulan/yeast; .*--set root=FOLDER"):
        read_set("yeast", settings_at(tmp_path))


def test_an_archive_that_was_cut_off_is_an_error_of_one_line(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "reports.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.xml"), io.BytesIO(b""))
    names = "Atelectasis,Cardiomegaly,Effusion,Infiltration,Mass,Nodule,Pneumonia,Pneumothorax,Consolidation,Edema,"
    (tmp_path / "findings14.csv").write_text(f"filename,{names}Emphysema,Fibrosis,Pleural_Thickening,Hernia\n")
    with pytest.raises(DataError, match=r"reports\.tgz: 1\.xml is no valid XML"):
        read_set("openi", settings_at(tmp_path))


def test_validation_is_dealt_by_patient_from_training_rows_alone(made: LabelledSet) -> None:
    fit, held = made.divided(0.25)
    assert sorted([*fit, *held]) == made.train.tolist()
    assert not set(made.patients[fit]) & set(made.patients[held])
    assert len(held) == pytest.approx(10, abs=4)


def test_inputs_are_scaled_by_the_fitted_rows_alone(made: LabelledSet) -> None:
    fit = made.train
    moved = np.array(made.raw)
    moved[made.test] += 100
    before, after = made.inputs(fit), replace(made, raw=moved).inputs(fit)
    np.testing.assert_array_equal(before[fit], after[fit])
    np.testing.assert_allclose(before[fit].mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(before[fit].std((0, 1)), 1, atol=1e-5)


def test_words_of_held_out_texts_are_not_learned() -> None:
    texts = tuple(["lungs clear", "heart large"] * 20 + ["lungs clear zebra zebra"] * 20)
    labels = np.tile([[1, 0], [0, 1]], (30, 1)).astype(np.float32)
    data = labelled(texts, labels, np.arange(60) >= 40)
    inputs = data.inputs(data.train)
    assert inputs.shape == (60, 1, 6)  # lungs, clear, heart, large and two pairs of words
    np.testing.assert_array_equal(inputs[40], inputs[0])


def test_the_digest_follows_labels_split_and_inputs(made: LabelledSet) -> None:
    flipped = replace(made, labels=1 - made.labels)
    other_split = replace(made, is_test=~made.is_test)
    other_input = replace(made, raw=np.array(made.raw) + 1)
    assert len({each.digest() for each in (made, flipped, other_split, other_input)}) == 4
    assert replace(made).digest() == made.digest()
