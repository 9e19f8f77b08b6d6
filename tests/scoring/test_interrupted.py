"""What is left of a batch that was killed, ran into a full disk, or met a second run: every finished row, each once."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsd.bundle.layout import Bundle
from medsd.errors import DataError
from medsd.scoring import finished as finished_module
from medsd.scoring.batch import score
from medsd.scoring.request import ScoringRequest
from tests.command import medsd
from tests.interrupted import KEY, ROOT, finish, kill_often

FILMS = 120


@pytest.fixture(autouse=True)
def site_key(monkeypatch) -> None:
    for name, value in KEY.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, chest) -> Path:
    """Films that differ, one in ten of them none."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(FILMS):
        path = folder / f"{number:04d}.png"
        if number % 10 == 7:
            path.write_bytes(b"no film")
        else:
            Image.fromarray((chest * (100 + number)).astype(np.uint8)).save(path, compress_level=1)
    return folder


def test_a_batch_that_is_killed_again_and_again_ends_as_one_that_is_not(
    image_bundle: Bundle, many: Path, tmp_path: Path
):
    words = (image_bundle.folder, many, "--batch-size", 4, "--workers", 1)
    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    score(ScoringRequest(image_bundle, [many], whole, batch_size=4))
    kept = kill_often(words, killed, times=3, total=FILMS, rng=random.Random(7))
    run = medsd("score", *words, "--out", killed, "--resume", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["reused"] == kept[-1] > 0
    assert killed.read_bytes() == whole.read_bytes()


def test_embeddings_stay_in_line_with_the_rows_of_a_killed_run(image_bundle: Bundle, many: Path, tmp_path: Path):
    score(ScoringRequest(image_bundle, [many], tmp_path / "whole.csv", embeddings=tmp_path / "whole.npy", batch_size=4))
    killed, vectors = tmp_path / "killed.csv", tmp_path / "killed.npy"
    words = (image_bundle.folder, many, "--batch-size", 4, "--workers", 1, "--embeddings", vectors)
    kill_often(words, killed, times=1, total=FILMS, rng=random.Random(3))
    (tmp_path / "killed.csv.parts" / f"block-{'0' * 24}.npy").write_bytes(b"embeddings whose rows were not written")
    run = medsd("score", *words, "--out", killed, "--resume")
    assert run.returncode == 0, run.stderr
    np.testing.assert_array_equal(np.load(vectors), np.load(tmp_path / "whole.npy"))
    assert killed.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_second_scorer_on_one_output_refuses_in_one_line(image_bundle: Bundle, many: Path, tmp_path: Path):
    words, out = (image_bundle.folder, many), tmp_path / "out.csv"
    with finished_module.open_locked(tmp_path / "out.csv.parts", out):
        run = finish(words, out)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.splitlines() == [
        f"medsd: {out}: another run is writing it (process {os.getpid()} on {os.uname().nodename}); wait for that one, "
        "or choose another output"
    ]


def test_the_lock_of_a_dead_process_is_taken_over(image_bundle: Bundle, many: Path, tmp_path: Path):
    (tmp_path / "out.csv.parts").mkdir()
    (tmp_path / "out.csv.parts" / "lock").write_text("process 1 on elsewhere")
    assert score(ScoringRequest(image_bundle, [many / "000?.png"], tmp_path / "out.csv")).inputs == 10


def _limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then the write fails with EFBIG, as a full disk's with ENOSPC
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


# Each batch becomes a segment at once, however fast the machine: the table is the first file above the limit.
EAGER = "import medsd.scoring.finished as finished; finished._EVERY_S = 0; from medsd.cli import main; main()"


def test_a_disk_that_fills_up_loses_no_finished_row(image_bundle: Bundle, many: Path, tmp_path: Path):
    words, out = (image_bundle.folder, many, "--batch-size", 4, "--workers", 1), tmp_path / "out.csv"
    command = [sys.executable, "-c", EAGER, "score", *map(str, (*words, "--out", out))]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | KEY,
        preexec_fn=_limit_files,
    )  # fmt: skip
    complaint = run.communicate()[1].splitlines()[-1]
    assert run.returncode == 2
    assert "cannot be written (File too large)" in complaint and "make room, then go on with --resume" in complaint
    assert not out.exists()
    again = medsd("score", *words, "--out", out, "--resume", "--json")
    score(ScoringRequest(image_bundle, [many], tmp_path / "whole.csv", batch_size=4))
    assert json.loads(again.stdout)["reused"] > 8
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_disk_that_is_full_when_the_table_is_joined_keeps_the_segments(
    image_bundle: Bundle, many: Path, tmp_path: Path, monkeypatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out.csv"
    with monkeypatch.context() as patched:
        patched.setattr(finished_module, "write_table", full)
        with pytest.raises(
            DataError, match=r"No space left on device\); the finished rows are kept in out\.csv\.parts"
        ):
            score(ScoringRequest(image_bundle, [many / "000?.png"], out))
    assert not out.exists()
    summary = score(ScoringRequest(image_bundle, [many / "000?.png"], out, resume=True))
    assert (summary.inputs, summary.reused) == (10, 10)
