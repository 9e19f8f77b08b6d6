"""The serving side in an interpreter where torch, MONAI, transformers and scikit-learn cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bundles import tiny_bundle

BLOCKED = """
import sys
from importlib.abc import MetaPathFinder

class Block(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "monai", "transformers", "sklearn", "ignite", "scipy", "onnx"}:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Block())
"""
SERVE = """
import medsd.cases.ask, medsd.cases.manage, medsd.cases.qdrant
import medsd.doctor, medsd.apps.web.server, medsd.apps.web.app, medsd.scoring.verify, medsd.rest.serve
from medsd.cli import main
sys.argv = ["medsd", "score", *sys.argv[1:]]
main()
"""


def _python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


def test_films_are_scored_and_the_app_is_imported_without_the_training_packages(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", fused=True)
    Image.fromarray((np.random.default_rng(0).random((200, 200)) * 255).astype(np.uint8)).save(tmp_path / "film.png")
    result = _python(SERVE, bundle.folder, tmp_path / "film.png", "--out", tmp_path / "out.csv")
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2


def test_training_verbs_name_the_extra_that_is_missing() -> None:
    config = Path(__file__).parents[1] / "configs" / "phantom.yaml"
    result = _python("from medsd.cli import main\nsys.argv = ['medsd', 'train', sys.argv[1]]\nmain()", config)
    assert result.returncode == 2 and "medsd[train]" in result.stderr and "Traceback" not in result.stderr
