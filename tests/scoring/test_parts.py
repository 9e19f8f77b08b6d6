from __future__ import annotations

import errno
import fcntl
import json
from pathlib import Path

import numpy as np
import pytest

from medsd.errors import DataError
from medsd.scoring import embeddings
from medsd.scoring import parts as parts_module
from medsd.scoring.parts import Parts

NAMES = ["path", "status", "reason", "model_sha256"]
MADE_WITH = {"model": "abc", "gate policy": {"view": "refuse"}, "set of notes": ""}


def _row(name: str, status: str = "scored", reason: str = "") -> dict[str, str]:
    return {"path": name, "status": status, "reason": reason, "model_sha256": "abc"}


def _parts(out: Path, resume: bool = False, **options) -> Parts:
    return Parts(out, NAMES, options.pop("made_with", MADE_WITH), resume=resume, **options)


def _append_and_die(out: Path, *names: str) -> None:
    """What a run leaves that ends without a word."""
    with _parts(out) as parts:
        parts.append([_row(name) for name in names])


def test_the_table_is_joined_from_the_parts_and_they_are_gone(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(parts_module, "ROWS", 2)
    with _parts(tmp_path / "out.jsonl") as parts:
        for number in range(5):
            parts.append([_row(f"{number}.png", "refused" if number == 3 else "scored", "view" if number == 3 else "")])
        assert len(list((tmp_path / "out.jsonl.parts").glob("part-*.jsonl"))) == 3
        assert not (tmp_path / "out.jsonl").exists()
        parts.finish({"summary": {}})
    assert [json.loads(line)["path"] for line in (tmp_path / "out.jsonl").open()] == [f"{n}.png" for n in range(5)]
    assert (dict(parts.counts), dict(parts.reasons)) == ({"scored": 4, "refused": 1}, {"view": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.run.json"]


@pytest.mark.parametrize("torn", [b'{"path": "half a li', b"\0" * 40, b"\0" * 40 + b"\n"])
def test_what_a_kill_or_a_power_cut_tears_is_cut_off(tmp_path: Path, torn: bytes):
    _append_and_die(tmp_path / "out.csv", "a.png", "b.png")
    with (tmp_path / "out.csv.parts" / "part-000001.jsonl").open("ab") as file:
        file.write(torn)
    with _parts(tmp_path / "out.csv", resume=True) as parts:
        assert parts.done == {"a.png", "b.png"}
        parts.append([_row("c.png")])
        assert [row["path"] for row in parts.rows()] == ["a.png", "b.png", "c.png"]


def test_a_row_without_its_embedding_is_made_again(tmp_path: Path):
    options = {"embeddings_out": tmp_path / "out.npy", "dimensions": 3}
    with _parts(tmp_path / "out.csv", **options) as parts:
        parts.append([_row("a.png"), _row("b.png", "refused")], [np.ones(3, np.float32), None])
    path = tmp_path / "out.csv.parts" / "part-000001.f32"
    path.write_bytes(path.read_bytes()[:-4])
    with _parts(tmp_path / "out.csv", resume=True, **options) as parts:
        assert parts.done == {"a.png"}
        parts.append([_row("b.png", "refused")], [None])
        parts.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), [[1, 1, 1], [np.nan] * 3])


def test_unfinished_rows_are_not_thrown_away_by_mistake(tmp_path: Path):
    _append_and_die(tmp_path / "out.csv", "a.png")
    with pytest.raises(DataError, match=r"an earlier run left finished rows in out\.csv\.parts; go on with --resume"):
        _parts(tmp_path / "out.csv")
    with _parts(tmp_path / "out.csv", resume=True) as parts:
        assert parts.done == {"a.png"}


def test_a_run_that_was_killed_before_its_first_row_is_in_nobodys_way(tmp_path: Path):
    _append_and_die(tmp_path / "out.csv")
    with _parts(tmp_path / "out.csv") as parts:
        assert parts.done == set()


@pytest.mark.parametrize("changed", ["model", "gate policy", "set of notes"])
@pytest.mark.parametrize("finished", [True, False])
def test_rows_that_were_made_with_something_else_are_not_gone_on_with(tmp_path: Path, changed: str, finished: bool):
    with _parts(tmp_path / "out.csv") as parts:
        parts.append([_row("a.png")])
        if finished:
            parts.finish()
    with pytest.raises(DataError, match=f"rows were made with another {changed}; give the same again") as refused:
        _parts(tmp_path / "out.csv", resume=True, made_with=MADE_WITH | {changed: "another"})
    assert "\n" not in str(refused.value)
    assert (tmp_path / "out.csv.parts").exists() != finished


def test_a_finished_table_is_gone_on_with_even_without_its_record(tmp_path: Path):
    with _parts(tmp_path / "out.csv") as parts:
        parts.append([_row("a.png")])
        parts.finish()
    (tmp_path / "out.csv.run.json").unlink()
    with _parts(tmp_path / "out.csv", resume=True) as parts:
        assert parts.done == {"a.png"}
    with pytest.raises(DataError, match="another model's"):
        (tmp_path / "out.csv.parts" / "run.json").unlink()
        _parts(tmp_path / "out.csv", resume=True, made_with=MADE_WITH | {"model": "xyz"})


def test_a_finished_run_is_gone_on_with_together_with_its_embeddings(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(parts_module, "_ADOPTED", 2)
    options = {"embeddings_out": tmp_path / "out.parquet", "dimensions": 2}
    for names, resume in (("abcde", False), ("fg", True)):
        with _parts(tmp_path / "out.csv", resume=resume, **options) as parts:
            parts.append([_row(name) for name in names], [np.full(2, ord(name), np.float32) for name in names])
            parts.finish()
    found = [vector.tolist() for vector in embeddings.read(tmp_path / "out.parquet", 2)]
    assert found == [[ord(name)] * 2 for name in "abcdefg"]


def test_two_runs_exclude_each_other_until_the_first_ends(tmp_path: Path):
    with _parts(tmp_path / "out.csv") as parts:
        parts.append([_row("a.png")])
        with pytest.raises(DataError, match="another run is writing it"):
            _parts(tmp_path / "out.csv", resume=True)
    with _parts(tmp_path / "out.csv", resume=True) as parts:
        assert parts.done == {"a.png"}


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch, caplog):
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with _parts(tmp_path / "out.csv") as parts:
        parts.append([_row("a.png")])
        parts.finish()
    assert "keeps no locks (Operation not supported)" in caplog.text
    assert (tmp_path / "out.csv").exists()
