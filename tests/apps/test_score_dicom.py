from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsd.apps.score_dicom import main
from tests.bundles import tiny_bundle


@pytest.fixture
def folder(tmp_path: Path, chest, monkeypatch) -> Path:
    monkeypatch.setenv("MEDSD_KEY", "a key for tests alone")
    tiny_bundle(tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    Image.fromarray((chest * 255).astype(np.uint8)).save(tmp_path / "images" / "one.png")
    return tmp_path


def _arguments(folder: Path, *more: str) -> list[str]:
    return [str(folder / "bundle"), str(folder / "images"), "--out", str(folder / "out.csv"), *more]


def test_it_writes_the_table_and_one_line(folder: Path, capsys):
    assert main(_arguments(folder, "--quiet")) == 0
    assert capsys.readouterr().out.startswith("1 inputs: 1 scored, 0 warned, 0 refused in ")
    assert len((folder / "out.csv").read_text().splitlines()) == 2


def test_it_speaks_json(folder: Path, capsys):
    assert main(_arguments(folder, "--json", "--quiet")) == 0
    assert json.loads(capsys.readouterr().out)["scored"] == 1


def test_bad_input_is_one_line_and_status_two(folder: Path, capsys):
    arguments = _arguments(folder)
    arguments[1] = str(folder / "nowhere")
    assert main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.count("\n") == 1
    assert "nowhere: does not exist" in streams.err


def test_bad_usage_is_status_two(folder: Path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(_arguments(folder, "--workers", "0"))
    assert stopped.value.code == 2
    assert "give 1 or more" in capsys.readouterr().err


def test_the_gate_is_given_as_a_file_or_a_word(folder: Path, capsys):
    (folder / "gate.yaml").write_text("gate: {min_side: 5000}\n")
    assert main(_arguments(folder, "--gate", str(folder / "gate.yaml"), "--json", "--quiet")) == 0
    assert json.loads(capsys.readouterr().out)["reasons"] == {"too_small": 1}
    assert main(_arguments(folder, "--set", "gate.min_side=5000", "--strict", "--quiet")) == 1
    assert "1 refused" in capsys.readouterr().out


def test_a_wrong_gate_is_one_line_and_status_two(folder: Path, capsys):
    assert main(_arguments(folder, "--set", "gate.veiw=warn", "--quiet")) == 2
    assert capsys.readouterr().err == "score_dicom: --set: unknown key 'gate.veiw'; did you mean 'view'?\n"
