"""The wheel in an environment of its own: what it holds is enough for `doctor`, `score`, `similar` and the app."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.test_docs import ROOT, answer, free_port

PHANTOM = ROOT / "models" / "phantom"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist, which is built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "medsd", source / "medsd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source / "dist"), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert len(list((source / "dist").glob("*.tar.gz"))) == 1
    (found,) = (source / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def medsd(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `medsd` of a new environment, with the dependencies of this one and medsd from the wheel."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    # A path in a .pth file comes after the environment's own, and .pth files there (the editable medsd) do not count.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder / "bin" / "medsd"


def run(*command: object, folder: Path) -> str:
    done = subprocess.run([str(one) for one in command], cwd=folder, env=bare(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def bare(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "MEDSD_KEY": "a key for the tests of medsd", "HOME": str(folder)}


def test_the_wheel_holds_every_data_file_and_no_report(wheel: Path) -> None:
    held = set(ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "medsd").rglob("*")
        if path.is_file() and not {"__pycache__", "reports"} & set(path.parts)
    }
    assert wanted - held == set()
    assert [name for name in held if not name.startswith(("medsd/", "medsd-"))] == []
    assert [name for name in held if "/reports/" in name] == []


def test_the_wheel_reads_scores_and_finds_similar_cases(medsd: Path, tmp_path: Path) -> None:
    where = run(medsd.with_name("python"), "-c", "import medsd; print(medsd.__file__)", folder=tmp_path)
    assert where.startswith(str(medsd.parents[1]))
    assert "onnxruntime" in run(medsd, "doctor", folder=tmp_path)
    run(medsd, "score", PHANTOM, PHANTOM / "examples", "--out", "rows.csv", folder=tmp_path)
    assert len((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()) == 7
    assert "Pleural effusion" in run(medsd, "similar", PHANTOM, "--words", "effusion", "-k", 1, folder=tmp_path)
    run(medsd, "card", PHANTOM, "--out", "card", folder=tmp_path)


def test_the_wheel_serves_the_app(medsd: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [str(medsd), "app", str(PHANTOM), "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, env=bare(tmp_path), stdout=subprocess.DEVNULL) as process:
        try:
            assert "medsd" in answer(f"http://127.0.0.1:{port}/", process)
        finally:
            process.terminate()
