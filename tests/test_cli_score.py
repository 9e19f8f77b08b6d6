"""`medsd score` at the command line: what it takes and writes, how it ends, how fast it starts."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from medsd.cli import app
from tests.bundles import tiny_bundle

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def site_key(monkeypatch) -> None:
    monkeypatch.setenv("MEDSD_KEY", "a key for tests alone")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny").folder


@pytest.fixture
def films(tmp_path: Path, chest) -> Path:
    """Three films and one file that is none."""
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(3):
        Image.fromarray((chest * (200 + number)).astype(np.uint8)).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"no film")
    return folder


def _score(*words: object, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["score", *map(str, words), "--workers", "1"], input=stdin)


def _names(out: Path) -> list[str]:
    with out.open(newline="") as file:
        return [Path(row["path"]).name for row in csv.DictReader(file)]


def test_everything_that_can_be_given_is_read(bundle: Path, films: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        archive.write(films / "0.png", "0.png")
    (tmp_path / "chosen").write_text(f"{films}/1.png\n")
    (tmp_path / "table.csv").write_text(f"path,note\n{films}/2.png,cough\n")
    given = (f"{films}/[0]*.png", tmp_path / "films.zip", f"@{tmp_path}/chosen", "-", "--list", tmp_path / "table.csv")
    result = _score(bundle, *given, "--out", tmp_path / "out.csv", stdin=f"{films}/3.png\n")
    assert result.exit_code == 0, result.output
    assert _names(tmp_path / "out.csv") == ["0.png", "films.zip!0.png", "1.png", "3.png", "2.png"]


def test_a_refused_input_is_exit_status_1_where_that_is_asked_for(bundle: Path, films: Path, tmp_path: Path):
    for words, status in (((), 0), (("--strict",), 1)):
        result = _score(bundle, films, "--out", tmp_path / "out.csv", *words)
        assert result.exit_code == status
        assert "4 inputs: 3 scored, 0 warned, 1 refused in" in result.output and "(not_an_image 1)" in result.output
    assert _score(bundle, films / "0.png", "--out", tmp_path / "out.csv", "--strict").exit_code == 0


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_embeddings_stand_in_the_order_of_the_rows(bundle: Path, films: Path, tmp_path: Path, suffix: str):
    vectors = tmp_path / f"vectors{suffix}"
    assert _score(bundle, films, "--out", tmp_path / "out.csv", "--embeddings", vectors).exit_code == 0
    if suffix == ".npy":
        found = np.load(vectors)
    else:
        import pandas as pd

        frame = pd.read_parquet(vectors)
        assert [Path(path).name for path in frame.path] == _names(tmp_path / "out.csv")
        found = np.stack(frame.embedding.to_list())
    lengths = np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1, np.nan], atol=1e-5)


@pytest.mark.parametrize("finished", [True, False])
def test_resume_notices_another_gate_in_one_line(bundle: Path, films: Path, tmp_path: Path, finished: bool):
    out = tmp_path / "out.csv"
    assert _score(bundle, films / "0.png", "--out", out).exit_code == 0
    if not finished:  # as a kill just before the end would have left it
        (tmp_path / "out.csv.parts").mkdir()
        made_with = json.loads((tmp_path / "out.csv.run.json").read_text())["made_with"]
        (tmp_path / "out.csv.parts" / "run.json").write_text(json.dumps(made_with))
        out.unlink()
    result = _score(bundle, films, "--out", out, "--resume", "--set", "gate.view=warn")
    rows = "its rows" if finished else "its unfinished rows"
    assert str(result.exception) == (
        f"{out}: {rows} were made with another gate policy; give the same again, or leave --resume out and choose "
        "another output"
    )
    assert _score(bundle, films, "--out", out, "--resume").exit_code == 0
    assert len(_names(out)) == 4


def test_metrics_and_progress_are_told(bundle: Path, films: Path, tmp_path: Path):
    result = _score(bundle, films, "--out", tmp_path / "out.csv", "--metrics", tmp_path / "medsd.prom")
    assert "medsd_score_complete 1.0" in (tmp_path / "medsd.prom").read_text()
    assert "4 of 4 images, 1 refused" in result.stderr


def test_help_loads_nothing_heavy():
    code = "import sys, medsd.cli as cli; sys.argv = ['medsd', 'score', '--help']\n"
    code += "try: cli.main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'numpy', 'pandas', 'pydicom', 'onnxruntime', 'PIL', 'pyarrow', 'torch'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.splitlines()[-1] == "[]"
