"""Runs of the scorer that are killed in the middle: for the test of it, and for the bench over a thousand files."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEY = {"MEDSD_KEY": "a key for tests alone"}


def start(*words: object, **options: object) -> subprocess.Popen[str]:
    """`medsd score WORDS…` in a process group of its own."""
    command = [sys.executable, "-m", "medsd.cli", "score", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | KEY, **options
    )  # type: ignore[call-overload]


def finished_rows(out: Path) -> int:
    """Rows in the segments of `out`."""
    return sum(path.read_bytes().count(b"\n") for path in segments(out))


def segments(out: Path) -> list[Path]:
    """The files of finished rows beside `out`, in the order in which they were written."""
    return sorted(out.with_name(f"{out.name}.parts").glob("block-*.jsonl"), key=lambda path: path.stat().st_mtime_ns)


def kill_often(words: Sequence[object], out: Path, times: int, total: int, rng: random.Random) -> list[int]:
    """Start the scorer and kill it with SIGKILL at random moments, going on each time.

    Args:
        words: of the command line, without --out and --resume.
        out: the table.
        times: kills.
        total: inputs; each kill falls at a random row of its share of the first three quarters, and a random moment
            later: the rest takes longer than that.
        rng: chooses.

    Returns:
        rows that were finished after each kill.
    """
    kept: list[int] = []
    early = total * 3 // 4
    for kill in range(times):
        wanted = rng.randrange(early * kill // times, max(early * (kill + 1) // times, 1))
        run = start(*words, "--out", out, *(["--resume"] if kill else []))
        while finished_rows(out) < wanted and run.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        run.send_signal(signal.SIGKILL)
        said = run.communicate()[1]
        assert run.returncode == -signal.SIGKILL, f"it ended before it was killed: {said}"
        # A kill may fall behind the joining, when the parts are gone and the table, which is moved into place, has all.
        kept.append(finished_rows(out) or total * out.exists())
        assert kept == sorted(kept), f"a finished row was lost: {kept}"
    return kept


def finish(words: Sequence[object], out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """Run the scorer to its end."""
    run = start(*words, "--out", out, *more)
    said, complained = run.communicate(timeout=3600)
    return subprocess.CompletedProcess(run.args, run.returncode, said, complained)
