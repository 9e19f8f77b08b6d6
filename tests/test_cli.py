"""The command line: help with an example for every verb, and one clear line for what cannot be used."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from medsd.cases.case import Case
from medsd.cases.index import create_index
from medsd.cli import app
from medsd.scoring import batch
from tests.bundles import WIDTH, tiny_bundle
from tests.command import medsd
from tests.dicom.drawings import noise_image

VERBS = sorted(command.name or command.callback.__name__ for command in app.registered_commands)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with twelve cases."""
    opened = tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(12, WIDTH)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = rng.integers(0, 2, (12, len(opened.findings))).astype(np.float32)
    cases = [Case(study_key=f"{number:016x}", labels=row) for number, row in enumerate(labels)]
    create_index(opened.cases_path, cases, embeddings, model_sha256=opened.model_sha256, findings=opened.findings)
    return opened.folder


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.png"
    gradient = np.linspace(20, 220, 300 * 300).reshape(300, 300)
    Image.fromarray((gradient + 25 * np.sin(np.arange(300) / 9)).clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0 and f"Example: medsd {verb}" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "none.yaml"), "none.yaml: no such configuration file"),
        (("score", "nowhere", ".", "--out", "x.csv"), "nowhere: no bundle here"),
        (("similar", "nowhere", "film.png"), "nowhere: no bundle here"),
        (("app", "nowhere"), "nowhere: no bundle here"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(arguments: tuple[str, ...], message: str) -> None:
    result = medsd(*arguments)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not result.stdout


def test_an_empty_folder_a_truncated_file_and_a_wrong_suffix_are_said_in_one_line(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = medsd("score", bundle, tmp_path / "empty", "--out", tmp_path / "x.csv")
    assert result.returncode == 2 and "Traceback" not in result.stderr and "empty" in result.stderr
    result = medsd("score", bundle, tmp_path, "--out", tmp_path / "x.docx")
    assert result.returncode == 2 and ".csv" in result.stderr
    (tmp_path / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL")
    result = medsd("similar", bundle, tmp_path / "cut.dcm")
    assert result.returncode == 2 and "Traceback" not in result.stderr and "cut.dcm" in result.stderr


def test_score_writes_a_row_for_each_input_and_says_so_as_json(bundle: Path, film: Path, tmp_path: Path) -> None:
    (film.parent / "other.dcm").write_text("no film")
    result = medsd("score", bundle, film.parent, "--out", tmp_path / "out.csv", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["inputs"] == 2
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3


def test_the_gates_policy_is_read_from_a_file_and_overridden(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray((noise_image(5) * 255).astype(np.uint8)).save(tmp_path / "noise.png")
    (tmp_path / "gate.yaml").write_text("gate: {not_a_chest: refuse}\n", encoding="utf-8")
    given = ["score", str(bundle), str(tmp_path / "noise.png"), "--gate", str(tmp_path / "gate.yaml"), "--json"]
    for override, refused in (((), 1), (("--set", "gate.not_a_chest=warn"), 0)):
        result = CliRunner().invoke(app, [*given, *override, "--out", str(tmp_path / f"{refused}.csv")])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["refused"] == refused


def test_a_wrong_key_of_the_gate_is_named_with_the_nearest(bundle: Path, film: Path, tmp_path: Path) -> None:
    for verb in (("score", bundle, film, "--out", tmp_path / "out.csv"), ("similar", bundle, film), ("app", bundle)):
        result = medsd(*verb, "--set", "gate.veiw=warn")
        assert (result.returncode, result.stdout) == (2, "")
        assert "--set: unknown key 'gate.veiw'; did you mean 'view'?" in result.stderr


def test_similar_prints_cases_with_relation_and_differences_none_twice(bundle: Path, film: Path) -> None:
    result = medsd("similar", bundle, film, "-k", 8, "--json")
    assert result.returncode == 0, result.stderr
    cases = json.loads(result.stdout)["cases"]
    assert len(cases) == len({case["study_key"] for case in cases}) == 8
    assert all(case["relation"] and {"shared", "extra", "missing"} <= set(case) for case in cases)
    assert len(medsd("similar", bundle, film, "-k", 8).stdout.splitlines()) >= 9


def test_similar_says_how_many_findings_cannot_be_called(bundle: Path, film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "undecided"
    shutil.copytree(bundle, folder)
    path = folder / "bundle.json"
    for thresholds, said in (
        ((None, None), "tiny 1: None of 14 findings called present; 14 cannot be called (too few validation images)"),
        ((1.0, None), "tiny 1: None of 14 findings called present; 1 cannot be called (too few validation images)"),
        ((1.0, 1.0), "tiny 1: None of 14 findings called present"),
    ):
        tree = json.loads(path.read_text(encoding="utf-8"))
        for name, point in tree["operating_points"].items():
            point["threshold"] = thresholds[name == "Hernia"]
        path.write_text(json.dumps(tree), encoding="utf-8")
        assert said in medsd("similar", folder, film).stdout.splitlines()


def test_wrong_usage_and_a_full_disk_are_exit_status_2(
    bundle: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [medsd(*words).returncode for words in (("score",), ("score", "--nope"), ("nope",))] == [2, 2, 2]
    monkeypatch.setattr(batch, "score", _raising(OSError(errno.ENOSPC, "full")))
    result = medsd("score", bundle, film, "--out", "x.csv")
    assert result.returncode == 2 and result.stderr.startswith("medsd: No space left on device")
    assert len(result.stderr.strip().splitlines()) == 1


def test_ctrl_c_is_one_line_and_exit_status_130(bundle: Path, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "score", _raising(KeyboardInterrupt()))
    result = medsd("score", bundle, film, "--out", "x.csv")
    assert result.returncode == 130 and result.stderr.strip() == "medsd: interrupted; what was finished is kept"


def _raising(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


def test_the_doctor_names_versions_and_decoders() -> None:
    report = json.loads(medsd("doctor", "--json").stdout)
    assert report["packages"]["pydicom"] and report["decoders"]["JPEG 2000"]
    assert "decoders:" in medsd("doctor").stdout
