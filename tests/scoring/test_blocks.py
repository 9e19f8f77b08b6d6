from __future__ import annotations

import csv
import uuid
from pathlib import Path

import numpy as np
import pytest

from medsd.errors import DataError
from medsd.scoring.blocks import MOST, Block, Blocks, block_size, write_block
from medsd.scoring.parts import Parts

COLUMNS = ["path", "status", "reason", "model_sha256"]
FACTS = {"model": "m"}
WIDTH = 3
FIRST, SECOND = Block(["a", "b"], {}), Block(["c"], {})


@pytest.fixture(params=["path", "url"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    return tmp_path / "out.csv" if request.param == "path" else f"memory://{uuid.uuid4().hex}/out.csv"


def _vectors(out: Path | str) -> Path | str:
    return out.with_suffix(".npy") if isinstance(out, Path) else out.replace(".csv", ".npy")


def _open(out: Path | str, resume: bool = False, facts: dict[str, str] = FACTS, vectors: bool = False) -> Blocks:
    place = _vectors(out) if vectors else None
    return Blocks(out, COLUMNS, facts, resume=resume, embeddings_out=place, dimensions=WIDTH if vectors else 0)


def _rows(block: Block) -> list[dict[str, str]]:
    return [{"path": name, "status": "scored", "reason": "", "model_sha256": "m"} for name in block.names]


def _write(blocks: Blocks, block: Block, width: int = 0) -> None:
    vectors = [None if name == "b" else np.full(WIDTH, ord(name), np.float32) for name in block.names]
    write_block(blocks.store, block.key, _rows(block), vectors, width)


def _paths(out: Path | str, tmp_path: Path) -> list[str]:
    from medsd.scoring.remote import download

    here = out if isinstance(out, Path) else tmp_path / "down.csv"
    assert isinstance(out, Path) or download(out, here)
    with here.open(newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


def test_blocks_are_joined_in_the_order_of_the_inputs(out: Path | str, tmp_path: Path):
    with _open(out) as blocks:
        _write(blocks, SECOND)
        _write(blocks, FIRST)
        blocks.join([FIRST, SECOND])
        blocks.finish({"summary": {}})
        assert blocks.counts == {"scored": 3}
    assert _paths(out, tmp_path) == ["a", "b", "c"]
    assert blocks.store.names() == set()


def test_a_run_that_is_left_keeps_its_blocks(out: Path | str):
    with _open(out) as blocks:
        _write(blocks, SECOND)
    with pytest.raises(DataError, match=r"out.csv.parts; go on with --resume"):
        _open(out)
    with _open(out, resume=True) as blocks:
        assert blocks.has([FIRST, SECOND]) == {SECOND.key}


def test_rows_of_another_model_are_not_gone_on_with(out: Path | str):
    with _open(out) as blocks:
        _write(blocks, FIRST)
    with pytest.raises(DataError, match="its unfinished rows were made with another model"):
        _open(out, resume=True, facts={"model": "n"})


def test_a_finished_table_is_gone_on_from(out: Path | str, tmp_path: Path):
    with _open(out, vectors=True) as blocks:
        _write(blocks, FIRST, WIDTH)
        blocks.join([FIRST])
        blocks.finish({})
    for _ in range(2):  # the second run meets what the first left behind
        with _open(out, resume=True, vectors=True) as blocks:
            assert blocks.done == {"a", "b"}
            _write(blocks, SECOND, WIDTH)
    with _open(out, resume=True, vectors=True) as blocks:
        blocks.join([SECOND])
        blocks.finish({})
    assert _paths(out, tmp_path) == ["a", "b", "c"]
    if isinstance(out, Path):
        nan = [np.nan] * WIDTH
        np.testing.assert_array_equal(np.load(_vectors(out)), [[97] * WIDTH, nan, [99] * WIDTH])


def test_a_damaged_block_is_removed_and_said(out: Path | str):
    with _open(out) as blocks:
        _write(blocks, FIRST)
        blocks.store.write(f"block-{SECOND.key}.jsonl", b'{"path": "c", "sta')
        with pytest.raises(DataError, match=r"a block of its rows is damaged, and was removed; .* --resume"):
            blocks.join([FIRST, SECOND])
        assert blocks.has([FIRST, SECOND]) == {FIRST.key}


def test_a_run_without_a_block_leaves_nothing(out: Path | str):
    with _open(out) as blocks:
        pass
    assert blocks.store.names() == set()
    if isinstance(out, Path):
        assert not out.with_name("out.csv.parts").exists()


def test_the_two_engines_do_not_mix_their_unfinished_rows(tmp_path: Path):
    out = tmp_path / "out.csv"
    with _open(out) as blocks:
        _write(blocks, FIRST)
    with pytest.raises(DataError, match=r"go on with --resume"):
        Parts(out, COLUMNS, FACTS, resume=False)
    with pytest.raises(DataError, match=r"made with another choice of --engine"):
        Parts(out, COLUMNS, FACTS, resume=True)
    other = tmp_path / "other.csv"
    with Parts(other, COLUMNS, FACTS, resume=False) as parts:
        parts.append(_rows(FIRST))
    with pytest.raises(DataError, match=r"made with another choice of --engine"):
        _open(other, resume=True)


def test_a_second_run_on_one_path_is_refused(tmp_path: Path):
    with _open(tmp_path / "out.csv"), pytest.raises(DataError, match="another run is writing it"):
        _open(tmp_path / "out.csv", resume=True)


def test_blocks_depend_on_the_inputs_alone():
    assert [block_size(count, 8) for count in (1, 64 * 8, 64 * 8 + 1, 10**6)] == [8, 8, 16, MOST]
    assert block_size(10**6, 512) == 512
    assert Block(["a", "b"], {}).key != Block(["b", "a"], {}).key
    assert Block.from_json(Block(["\udcff"], {"\udcff": "ä"}).to_json()) == Block(["\udcff"], {"\udcff": "ä"})
