"""A batch of 1,000 films that is killed, runs into a full disk, meets a second run, or has hostile films among it.

Run `python -m tests.bench.bench_interrupted`; it prints a line for each and ends with status 1 where one does not hold:

1. SIGKILL at ten random moments, then `--resume`: the table of an uninterrupted run, byte for byte.
2. A disk that fills up (a tmpfs of 200 kB, where it may be mounted; a limit on the size of files elsewhere) and is then
   given room: one line, status 2, and the same table after `--resume`.
3. Two scorers on one output at the same time: the second ends with status 2 and one line, the first as if alone.
4. One mutated film to ten: a row each, a reason for each refused one, every other row bit for bit as without them.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.conftest import dx_dataset, file_bytes
from tests.interrupted import ROOT, finish, finished_rows, kill_often, start
from tests.mutants import Mutants, generated_films

SIDE, KILLS, SMALL_DISK = 96, 10, 200 * 1024


def write_films(folder: Path, count: int) -> None:
    """Tiny DX films of 12 bits that differ, one in twenty cut off in its header."""
    folder.mkdir()
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    lungs = sum(np.exp(-(((x - centre) / 0.13) ** 2) - ((y - 0.4) / 0.28) ** 2) for centre in (0.3, 0.7))
    rng = np.random.default_rng(0)
    for number in range(count):
        film = 0.55 + 0.3 * y - 0.35 * lungs + rng.normal(0, 0.02, y.shape)
        content = file_bytes(dx_dataset((np.clip(film, 0, 1) * 4095).astype(np.uint16), bits_stored=12))
        (folder / f"{number:05d}.dcm").write_bytes(content[:300] if number % 20 == 13 else content)


def compare(what: str, out: Path, whole: Path, failures: list[str]) -> None:
    same = out.exists() and out.read_bytes() == whole.read_bytes()
    if not same:
        failures.append(f"{what}: the table is not that of an uninterrupted run")


def killed(words: list[object], out: Path, whole: Path, count: int, failures: list[str]) -> None:
    kept = kill_often(words, out, KILLS, count, random.Random(2026))
    run = finish(words, out, "--resume", "--json")
    reused = json.loads(run.stdout)["reused"] if run.returncode == 0 else run.stderr
    if reused != kept[-1]:
        failures.append(f"killed: {reused} rows reused of {kept[-1]}")
    compare("killed", out, whole, failures)
    print(f"killed {KILLS} times, after {', '.join(map(str, kept))} rows; {reused} reused at the end")


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of `SMALL_DISK` bytes at `folder`; False where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=False)


def _limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_DISK, SMALL_DISK))


def full_disk(words: list[object], place: Path, whole: Path, failures: list[str]) -> None:
    with small_disk(place) as mounted:
        out = place / "out.csv"
        run = start(*words, "--out", out, **({} if mounted else {"preexec_fn": _limit_files}))
        complaint = run.communicate()[1].splitlines()[-1]
        rows = finished_rows(out)
        if run.returncode != 2 or "make room, then go on with --resume" not in complaint or out.exists():
            failures.append(f"full disk: status {run.returncode}, {complaint}")
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        again = finish(words, out, "--resume", "--json")
        reused = json.loads(again.stdout)["reused"] if again.returncode == 0 else again.stderr
        if reused != rows or not rows:
            failures.append(f"full disk: {reused} rows reused of {rows}")
        compare("full disk", out, whole, failures)
        print(f"{'tmpfs' if mounted else 'limit of file size'} full after {rows} rows: {complaint}")


def two_at_once(words: list[object], out: Path, whole: Path, failures: list[str]) -> None:
    first = start(*words, "--out", out)
    while not finished_rows(out) and first.poll() is None:
        time.sleep(0.01)
    second = finish(words, out)
    if second.returncode != 2 or "another run is writing it" not in second.stderr or second.stderr.count("\n") != 1:
        failures.append(f"two at once: the second ended with {second.returncode}, {second.stderr}")
    first.communicate()
    if first.returncode != 0:
        failures.append(f"two at once: the first ended with {first.returncode}")
    compare("two at once", out, whole, failures)
    print(f"two at once: {second.stderr.strip()}")


def hostile(bundle: Path, folder: Path, whole: Path, out: Path, count: int, failures: list[str]) -> None:
    """Puts a mutant after every tenth film."""
    mutants = Mutants(generated_films(), seed=2026)
    for number in range(count // 10):
        (folder / f"{number * 10 + 9:05d}_mutant.dcm").write_bytes(mutants[number].content)
    run = finish([bundle, folder], out)
    lines = {Path(line.split(",")[0]).name: line for line in out.read_text().splitlines()} if out.exists() else {}
    before = {Path(line.split(",")[0]).name: line for line in whole.read_text().splitlines()}
    changed = [name for name, line in before.items() if lines.get(name) != line]
    with out.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["path"].endswith("_mutant.dcm")]
    silent = [row["path"] for row in rows if row["status"] == "refused" and not (row["reason"] and row["message"])]
    if run.returncode or len(rows) != count // 10 or changed or silent:
        failures.append(
            f"hostile: status {run.returncode}, {len(rows)} rows, {changed} changed, {silent} without reason"
        )
    refused = sum(row["status"] == "refused" for row in rows)
    print(f"hostile: {len(rows)} mutants among {count} films, {refused} refused, {len(changed)} other rows changed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "phantom")
    options = parser.parse_args()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        films, whole, words = place / "films", place / "whole.csv", [options.bundle, place / "films"]
        write_films(films, options.count)
        run = finish(words, whole)
        if run.returncode:
            sys.exit(f"the uninterrupted run failed: {run.stderr}")
        print(run.stdout.strip())
        killed(words, place / "killed.csv", whole, options.count, failures)
        full_disk(words, place / "disk", whole, failures)
        two_at_once(words, place / "twice.csv", whole, failures)
        hostile(options.bundle, films, whole, place / "hostile.csv", options.count, failures)
    for line in failures:
        print(f"FAILED {line}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
