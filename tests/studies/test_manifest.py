"""The manifest: what it keeps, what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.studies.manifest import Manifest, complete

FINDINGS = finding_set("nih14")


def _manifest(**columns: object) -> Manifest:
    table = pd.DataFrame(
        {
            "study": ["a", "b", "c"],
            "patient": ["1", "1", "2"],
            "path": ["a.png", "b.png", "c.png"],
            "split": ["train", "train", "test"],
            "Edema": [1.0, 0.0, np.nan],
        }
    ).assign(**columns)
    return Manifest(complete(table, FINDINGS), FINDINGS, Path("somewhere"))


@pytest.mark.parametrize("split", ["train", None])
def test_a_manifest_survives_a_round_trip_with_its_hashes(tmp_path: Path, split: str | None) -> None:
    manifest = _manifest(note=["short of breath", None, "äöü"], split=["test", "test", split])
    manifest.write(tmp_path / "studies.parquet")
    again = Manifest.read(tmp_path / "studies.parquet")
    assert (again.data_hash(), again.split_hash()) == (manifest.data_hash(), manifest.split_hash())
    np.testing.assert_array_equal(again.labels, manifest.labels)
    assert again.findings == manifest.findings


def test_unmentioned_findings_are_unknown_not_absent() -> None:
    labels = _manifest().labels
    assert np.isnan(labels[:, 0]).all()
    np.testing.assert_array_equal(labels[:, FINDINGS.names.index("Edema")], [1, 0, np.nan])


def test_hashes_do_not_depend_on_the_order_of_rows() -> None:
    manifest = _manifest()
    turned = Manifest(manifest.table.iloc[::-1].reset_index(drop=True), FINDINGS, manifest.root)
    assert (turned.data_hash(), turned.split_hash()) == (manifest.data_hash(), manifest.split_hash())
    assert _manifest(split=["test", "test", "train"]).split_hash() != manifest.split_hash()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"split": ["train", "test", "test"]}, "two splits"),
        ({"split": ["train", "train", "dev"]}, "split must be one of"),
        ({"Edema": [0.5, 0, 1]}, "labels must be 1, 0 or empty; others stand in Edema"),
        ({"patient": ["1", None, "2"]}, "rows without a patient"),
        ({"study": ["a", "a", "c"], "path": ["a.png", "a.png", "c.png"]}, "same study and path twice"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(columns: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _manifest(**columns)


def test_files_that_are_no_manifest_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `medsd prepare` first"):
        Manifest.read(tmp_path / "missing.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        Manifest.read(tmp_path / "text.parquet")
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="no manifest of medsd"):
        Manifest.read(tmp_path / "other.parquet")


def test_rows_are_taken_out_with_their_places(tmp_path: Path) -> None:
    manifest = replace(_manifest(), source_rows=np.array([4, 7, 9]))
    left = manifest.without([1])
    assert list(left.table["study"]) == ["a", "c"] and list(left.source_rows) == [4, 9]
    assert left.rejected is manifest.rejected and manifest.without([]) is manifest


def test_a_file_is_written_in_groups_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsd.studies.manifest.ROW_GROUP", 2)
    _manifest().write(tmp_path / "studies.parquet")
    assert pq.ParquetFile(tmp_path / "studies.parquet").num_row_groups == 2
    assert len(Manifest.read(tmp_path / "studies.parquet")) == 3
