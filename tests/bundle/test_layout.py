"""A bundle's description is believed only of files inside its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from medsd.bundle.layout import DESCRIPTION, MODEL, Bundle, file_sha256
from medsd.errors import BundleError
from tests.bundles import tiny_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_bundle(tmp_path / "bundle")
    (tmp_path / "other.txt").write_text("somebody else's", encoding="utf-8")
    return tmp_path / "bundle"


def _listing(folder: Path, files: dict[str, str]) -> None:
    path = folder / DESCRIPTION
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(tree | {"files": {**tree["files"], **files}}), encoding="utf-8")


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["../other.txt", "/other.txt", "weights/../../other.txt", "..\\other.txt", "a\0b"])
def test_a_listed_file_may_not_lie_outside(folder: Path, name: str, verify: bool) -> None:
    other = folder.parent / "other.txt"
    listed = str(other) if name.startswith("/") else name
    _listing(folder, {listed: file_sha256(other)})
    with pytest.raises(BundleError, match="which leads out of the bundle") as caught:
        Bundle.open(folder, verify=verify)
    assert "\n" not in str(caught.value)


def test_a_link_out_of_the_bundle_is_refused_and_one_within_is_not(folder: Path) -> None:
    shutil.move(folder / MODEL, folder / "graph.onnx")
    (folder / MODEL).symlink_to("graph.onnx")
    assert Bundle.open(folder).model_path.is_file()
    shutil.move(folder / "graph.onnx", folder.parent / "graph.onnx")
    (folder / MODEL).unlink()
    (folder / MODEL).symlink_to(folder.parent / "graph.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx', which leads out"):
        Bundle.open(folder)


def test_a_graph_without_a_hash_is_not_trusted(folder: Path) -> None:
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {}}), encoding="utf-8")
    with pytest.raises(BundleError, match=r"no sha256 of model\.onnx"):
        Bundle.open(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema_version": 1, "schema_version": 1}'], ids=["deep", "twice"])
def test_a_hostile_description_is_one_line(folder: Path, text: str) -> None:
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"bundle\.json: cannot be read") as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)
