from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from medsd.errors import DataError
from medsd.scoring import embeddings

VECTORS = np.array([[1, 2], [np.nan, np.nan], [5, 6]], np.float32)


def _write(path: Path) -> None:
    embeddings.write(path, iter([VECTORS[:2], VECTORS[2:]]), iter("abc"), 3, 2)


@pytest.mark.parametrize("suffix", embeddings.SUFFIXES)
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str):
    _write(tmp_path / f"out{suffix}")
    np.testing.assert_array_equal(list(embeddings.read(tmp_path / f"out{suffix}", 2)), VECTORS)
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]


def test_numpy_and_parquet_read_them_without_medsd(tmp_path: Path):
    _write(tmp_path / "out.npy")
    _write(tmp_path / "out.parquet")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), VECTORS)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("path").to_pylist() == ["a", "b", "c"]
    assert table.column("embedding")[2].as_py() == [5, 6]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    _write(tmp_path / "out.npy")
    before = (tmp_path / "out.npy").read_bytes()
    with pytest.raises(ZeroDivisionError):
        embeddings.write(tmp_path / "out.npy", (VECTORS / (1 // number) for number in (1, 0)), iter("ab"), 6, 2)
    assert (tmp_path / "out.npy").read_bytes() == before


def test_other_files_and_other_sizes_are_errors(tmp_path: Path):
    with pytest.raises(DataError, match=r"out\.csv: embeddings are written as \.npy, \.parquet"):
        embeddings.check_format(tmp_path / "out.csv")
    _write(tmp_path / "out.npy")
    with pytest.raises(DataError, match="holds no embeddings of 3 numbers"):
        list(embeddings.read(tmp_path / "out.npy", 3))
