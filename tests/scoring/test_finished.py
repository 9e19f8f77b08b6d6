"""The finished rows of a run: kept whatever ends it, taken up again, joined in the order of the inputs."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import uuid
from pathlib import Path

import numpy as np
import pytest

from medsd.errors import DataError
from medsd.scoring import embeddings
from medsd.scoring import finished as finished_module
from medsd.scoring.finished import FinishedRows
from medsd.scoring.remote import download
from medsd.scoring.segments import MOST, Block, block_size, write_segment

COLUMNS = ["path", "status", "reason", "model_sha256"]
MADE_WITH = {"model": "abc", "gate policy": {"view": "refuse"}, "set of notes": ""}
WIDTH = 3


@pytest.fixture(params=["path", "url"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    return tmp_path / "out.csv" if request.param == "path" else f"memory://{uuid.uuid4().hex}/out.csv"


def _row(name: str, status: str = "scored", reason: str = "") -> dict[str, str]:
    return {"path": name, "status": status, "reason": reason, "model_sha256": "abc"}


def _vector(name: str) -> np.ndarray | None:
    return None if name == "b" else np.full(WIDTH, ord(name), np.float32)


def _open(
    out: Path | str, names: str = "abc", *, resume: bool = False, vectors: str = "", made_with: dict = MADE_WITH
) -> FinishedRows:
    beside = out.with_suffix(vectors) if isinstance(out, Path) else out.replace(".csv", vectors)
    options = {"embeddings_out": beside, "dimensions": WIDTH} if vectors else {}
    return FinishedRows(out, COLUMNS, made_with, list(names), batch_size=2, resume=resume, **options)


def _add(rows: FinishedRows, names: str) -> None:
    """As the local engine does."""
    rows.append([_row(name) for name in names], [_vector(name) for name in names])
    rows.flush()


def _write(rows: FinishedRows, names: str, width: int = 0) -> Block:
    """As a worker of a cluster does."""
    block = Block(list(names))
    write_segment(rows.store, block.key, [_row(name) for name in names], [_vector(name) for name in names], width)
    return block


def _finish(rows: FinishedRows) -> None:
    rows.join()
    rows.finish({"summary": {}})


def _paths(out: Path | str, tmp_path: Path) -> str:
    here = out if isinstance(out, Path) else tmp_path / "down.csv"
    assert isinstance(out, Path) or download(out, here)
    with here.open(newline="") as file:
        return "".join(row["path"] for row in csv.DictReader(file))


def test_the_table_is_joined_from_the_segments_and_they_are_gone(tmp_path: Path):
    with _open(tmp_path / "out.jsonl", "abcde") as rows:
        for name in "abcde":
            rows.append([_row(name, *(("refused", "view") if name == "d" else ()))])
            rows.flush()
        assert len(list((tmp_path / "out.jsonl.parts").glob("block-*.jsonl"))) == 5
        assert not (tmp_path / "out.jsonl").exists()
        _finish(rows)
    assert [json.loads(line)["path"] for line in (tmp_path / "out.jsonl").open()] == [*"abcde"]
    assert (dict(rows.counts), dict(rows.reasons)) == ({"scored": 4, "refused": 1}, {"view": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.run.json"]


def test_blocks_of_a_cluster_are_joined_in_the_order_of_the_inputs(out: Path | str, tmp_path: Path):
    with _open(out) as rows:
        rows.take([_write(rows, "c"), _write(rows, "ab")])
        _finish(rows)
        assert rows.counts == {"scored": 3}
    assert _paths(out, tmp_path) == "abc"
    assert rows.store.names() == set()


def test_an_interrupted_run_keeps_its_last_rows_too(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), _open(tmp_path / "out.csv") as rows:
        rows.append([_row("a")])
        raise KeyboardInterrupt
    with _open(tmp_path / "out.csv", resume=True) as rows:
        assert rows.done == {"a"} and [block.names for block in rows.waiting] == [["b"], ["c"]]


def test_unfinished_rows_are_not_thrown_away_by_mistake(out: Path | str):
    with _open(out) as rows:
        _write(rows, "ab")
    with pytest.raises(DataError, match=r"an earlier run left finished rows in out\.csv\.parts; go on with --resume"):
        _open(out)
    with _open(out, resume=True) as rows:
        assert rows.done == {"a", "b"} and [block.names for block in rows.waiting] == [["c"]]


def test_either_engine_goes_on_from_the_other_and_from_other_inputs(tmp_path: Path):
    out = tmp_path / "out.csv"
    with _open(out, "abcdef") as rows:
        _write(rows, "cd")
        _add(rows, "a")
    with _open(out, "zabcdef", resume=True) as rows:
        assert rows.done == {"a", "c", "d"}
        for block in rows.waiting:
            _write(rows, "".join(block.names))
        rows.take(rows.waiting)
        _finish(rows)
    assert sorted(_paths(out, tmp_path)) == sorted("abcdefz")


def test_a_run_that_was_killed_before_its_first_row_blocks_nobody(out: Path | str):
    with _open(out) as rows:
        pass
    assert rows.store.names() == set()
    with _open(out) as rows:
        assert rows.done == set()


@pytest.mark.parametrize("changed", ["model", "gate policy", "set of notes"])
@pytest.mark.parametrize("finished", [True, False])
def test_rows_that_were_made_with_something_else_are_not_gone_on_with(tmp_path: Path, changed: str, finished: bool):
    with _open(tmp_path / "out.csv", "a") as rows:
        _add(rows, "a")
        if finished:
            _finish(rows)
    with pytest.raises(DataError, match=f"rows were made with another {changed}; give the same again") as refused:
        _open(tmp_path / "out.csv", resume=True, made_with=MADE_WITH | {changed: "another"})
    assert "\n" not in str(refused.value)
    assert (tmp_path / "out.csv.parts").exists() != finished


def test_a_finished_table_is_gone_on_with_even_without_its_record(tmp_path: Path):
    with _open(tmp_path / "out.csv", "a") as rows:
        _add(rows, "a")
        _finish(rows)
    (tmp_path / "out.csv.run.json").unlink()
    with _open(tmp_path / "out.csv", resume=True) as rows:
        assert rows.done == {"a"}
    with pytest.raises(DataError, match="another model's"):
        _open(tmp_path / "out.csv", resume=True, made_with=MADE_WITH | {"model": "xyz"})


@pytest.mark.parametrize("vectors", [".npy", ".parquet"])
def test_a_finished_run_is_gone_on_with_together_with_its_embeddings(
    out: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vectors: str
):
    monkeypatch.setattr(finished_module, "_CHUNK", 2)
    with _open(out, "abc", vectors=vectors) as rows:
        _add(rows, "abc")
        _finish(rows)
    for _ in range(2):  # the second run meets what the first left behind
        with _open(out, "abcde", resume=True, vectors=vectors) as rows:
            assert rows.done >= {*"abc"}
            _write(rows, "de", WIDTH)
    with _open(out, "abcde", resume=True, vectors=vectors) as rows:
        assert not rows.waiting
        _finish(rows)
    assert _paths(out, tmp_path) == "abcde"
    if isinstance(out, Path):
        found = np.stack(list(embeddings.read(out.with_suffix(vectors), WIDTH)))
        np.testing.assert_array_equal(found[:, 0], [97, np.nan, 99, 100, 101])


def test_a_run_that_is_killed_after_the_table_was_written_adds_no_row_twice(tmp_path: Path):
    out = tmp_path / "out.csv"
    with _open(out, "a") as rows:
        _add(rows, "a")
        _finish(rows)
    with _open(out, "abc", resume=True) as rows:
        _add(rows, "bc")
        rows.join()  # and no finish
    with _open(out, "abc", resume=True) as rows:
        assert not rows.waiting
        _finish(rows)
    assert _paths(out, tmp_path) == "abc"


@pytest.mark.parametrize("torn", [b'{"path": "a", "sta', b"\0" * 40, b""])
def test_a_damaged_segment_is_scored_again(out: Path | str, torn: bytes):
    with _open(out) as rows:
        rows.store.write(f"block-{Block(['z']).key}.jsonl", torn)  # no block of these inputs
        _write(rows, "ab")
    with _open(out, resume=True) as rows:
        assert rows.done == {"a", "b"} and [block.names for block in rows.waiting] == [["c"]]


@pytest.mark.parametrize("vectors", ["", ".npy"])
def test_a_segment_that_is_damaged_before_it_is_joined_is_removed_and_said(tmp_path: Path, vectors: str):
    with _open(tmp_path / "out.csv", vectors=vectors) as rows:
        rows.take([_write(rows, "ab", WIDTH), second := _write(rows, "c", WIDTH)])
        name = f"block-{second.key}{vectors or '.jsonl'}"
        rows.store.write(name, rows.store.read(name)[:-8])
        with pytest.raises(DataError, match=r"a segment of its rows is damaged, and was removed; .* --resume"):
            rows.join()
    with _open(tmp_path / "out.csv", resume=True, vectors=vectors) as rows:
        assert rows.done == {"a", "b"}


def test_two_runs_exclude_each_other_until_the_first_ends(tmp_path: Path):
    with _open(tmp_path / "out.csv") as rows:
        for _ in range(2):
            with pytest.raises(DataError, match="another run is writing it"):
                _open(tmp_path / "out.csv", resume=True)
        _add(rows, "a")
    with _open(tmp_path / "out.csv", resume=True) as rows:
        assert rows.done == {"a"}


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch, caplog):
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with _open(tmp_path / "out.csv") as rows:
        _add(rows, "abc")
        _finish(rows)
    assert "keeps no locks (Operation not supported)" in caplog.text
    assert (tmp_path / "out.csv").exists()


def test_blocks_depend_on_the_inputs_alone():
    assert [block_size(count, 8) for count in (1, 64 * 8, 64 * 8 + 1, 10**6)] == [8, 8, 16, MOST]
    assert block_size(10**6, 512) == 512
    assert Block(["a", "b"]).key != Block(["b", "a"]).key
    assert Block.from_json(Block(["\udcff"], {"\udcff": "ä"}).to_json()) == Block(["\udcff"], {"\udcff": "ä"})
