"""The files of an index are checked before they are believed, and a patient who was removed stays out."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medsd.cases import seal as seal_module
from medsd.cases.index import CaseIndex, create_index
from medsd.cases.removals import Removals
from medsd.cases.seal import SEAL, Seal, SealedFiles
from medsd.errors import BundleError
from tests.cases.conftest import MODEL, N
from tests.cases.test_lance import canary_case, files

POSITIONS = 20
MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture
def grown(tmp_path, cases, embeddings, findings) -> Path:
    """An index with every kind of file: two data files, an approximate index, manifests and transactions."""
    arguments = {"model_sha256": MODEL, "findings": findings, "approximate_above": 20}
    create_index(tmp_path / "cases", cases[:100], embeddings[:100], **arguments).add(cases[100:], embeddings[100:])
    return tmp_path / "cases"


def flip(path: Path, position: int) -> bytes:
    """Change one bit of a file; returns what it held before."""
    before = path.read_bytes()
    changed = bytearray(before)
    changed[position % len(before)] ^= 1 << position % 8
    path.write_bytes(changed)
    return before


@pytest.mark.parametrize("most", [seal_module.CHECKED_AT_OPENING, 0], ids=["small", "large"])
def test_a_flipped_bit_in_any_file_is_an_error_that_names_the_file(grown, embeddings, monkeypatch, most):
    """A small index is checked when it is opened, a large one before its first answer."""
    monkeypatch.setattr("medsd.cases.lance.CHECKED_AT_OPENING", most)
    there = [path for path in files(grown) if path.stat().st_size]
    assert {path.suffix for path in there} >= {".lance", ".manifest", ".txn", ".idx", ".json"}
    positions = np.random.default_rng(5).integers(0, 1 << 30, max(POSITIONS, 2 * len(there))).tolist()
    for number, position in enumerate(positions):
        path = there[number % len(there)]
        before = flip(path, position)
        with pytest.raises(
            BundleError, match=r"was changed after it was written.*copy the whole index again"
        ) as caught:
            CaseIndex.open(grown).nearest(embeddings[0], 3)
        assert path.name in str(caught.value)
        path.write_bytes(before)
    assert CaseIndex.open(grown).nearest(embeddings[0], 1)[0].case.study_key == "study0000"


@pytest.mark.parametrize("write", ["compact", "remove"])
def test_damaged_files_are_not_written_again_as_good_ones(grown, write):
    index = CaseIndex.open(grown)
    flip(next(iter(sorted((grown / "cases.lance" / "data").iterdir()))), 700)
    with pytest.raises(BundleError, match=r"data/.* was changed"):
        index.compact() if write == "compact" else index.remove_patient("patient0001")


def test_an_addition_does_not_hide_earlier_damage(grown, cases, embeddings):
    index = CaseIndex.open(grown)
    flip(next(iter(sorted((grown / "cases.lance" / "data").iterdir()))), 700)
    index.add(cases[:1], embeddings[:1])
    with pytest.raises(BundleError, match="was changed"):
        CaseIndex.open(grown)


@pytest.mark.parametrize("name", ["nih14", "phantom"])
def test_the_indexes_that_ship_are_sealed(tmp_path, name):
    shutil.copytree(MODELS / name / "cases", tmp_path / "cases")
    assert len(CaseIndex.open(tmp_path / "cases").embeddings()) > 0
    data = next((tmp_path / "cases" / "cases.lance" / "data").iterdir())
    flip(data, data.stat().st_size // 2)
    with pytest.raises(BundleError, match=data.name):
        CaseIndex.open(tmp_path / "cases")


def test_an_index_behind_a_uri_is_checked_too(tmp_path, cases, embeddings, findings):
    uri = (tmp_path / "c").as_uri()
    create_index(uri, cases, embeddings, model_sha256=MODEL, findings=findings)
    flip(next((tmp_path / "c" / "cases.lance" / "data").iterdir()), 900)
    with pytest.raises(BundleError, match=r"data/.* was changed"):
        CaseIndex.open(uri)


UNSEALED = """
import os, sys, numpy as np
from medsd.cases.case import Case
from medsd.cases.index import CaseIndex
from medsd.cases.seal import SealedFiles
SealedFiles.seal = lambda *_: os._exit(9)
index = CaseIndex.open(sys.argv[1])
index.add([Case("lost", "somebody", np.zeros(len(index.findings), np.float32))], np.eye(1, 16, dtype=np.float32))
"""


def test_a_version_that_was_never_sealed_is_not_read_and_not_kept(grown, findings):
    run = subprocess.run([sys.executable, "-c", UNSEALED, grown], check=False)
    assert run.returncode == 9
    index = CaseIndex.open(grown)
    assert len(index) == N and "lost" not in index.table()["study_key"].tolist()
    index.add([canary_case(findings)], np.eye(1, 16, dtype=np.float32))
    assert len(index) == N + 1 and "lost" not in index.table()["study_key"].tolist()


def test_a_seal_is_read_as_it_was_written():
    removals = Removals().with_patient("p", ["s", ""])
    seal = Seal(version=3, files={"data/a": (7, "0" * 64)}, removals=removals)
    assert Seal.of_bytes(seal.to_bytes(), "here") == seal
    assert "p" not in removals.patients and len(removals.patients) == 1
    with pytest.raises(BundleError, match=SEAL):
        Seal.of_bytes(seal.to_bytes().replace(b"3", b"4"), "here")


def test_each_file_is_read_once_for_its_checksum(grown, embeddings, cases, monkeypatch):
    read: list[str] = []
    sha256 = SealedFiles._sha256
    monkeypatch.setattr(SealedFiles, "_sha256", lambda self, name: (read.append(name), sha256(self, name))[1])
    reader = CaseIndex.open(grown)
    reader.nearest(embeddings[0])
    assert len(read) == len(set(read)) == len(files(grown / "cases.lance"))
    read.clear()
    CaseIndex.open(grown).add(cases[:1], embeddings[:1])
    read.clear()
    reader.nearest(embeddings[0])
    assert len([name for name in read if name.startswith("data/")]) == 1


def test_a_patient_who_was_removed_stays_out_of_a_replaced_index(grown, cases, embeddings, findings):
    index = CaseIndex.open(grown)
    assert index.remove_patient("patient0003") == 2
    arguments = {"model_sha256": MODEL, "findings": findings, "replace": True}
    again = create_index(grown, iter(cases), embeddings, **arguments)
    assert len(again) == N - 2 and "patient0003" not in again.table()["patient_key"].tolist()
    assert "patient0003" not in "".join(path.read_text("latin-1") for path in files(grown))
