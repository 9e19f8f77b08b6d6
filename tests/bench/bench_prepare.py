"""`medsd prepare` over a synthetic table of a million films: peak memory of all its processes, and time.

Run `python -m tests.bench.bench_prepare`; it prints a Markdown table. The table has 300,000 patients, of whom some have
one film and a few have dozens; fourteen findings; notes on a third of the rows; and one bad row in five hundred. Its
films are hard links to a few hundred small PNGs, each read and gated like any other: every row goes the whole way.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from medsd.findings import finding_set

PICTURES, SIDE = 300, 96
FINDINGS = tuple(finding_set("nih14"))
RATES = np.array([0.10, 0.03, 0.04, 0.02, 0.12, 0.02, 0.015, 0.002, 0.18, 0.05, 0.06, 0.03, 0.013, 0.05])
WORDS = ("short of breath", "fever and cough", "known pleural effusion", "fall", "rule out pneumonia", "chest pain",
         "after drain", "smoker", "follow-up of a nodule", "before surgery", "no pneumothorax seen before")  # fmt: skip
BAD_EVERY = 500


def write_pictures(folder: Path, rng: np.random.Generator) -> list[Path]:
    """A few hundred films that look like a chest: bright body, dark lungs."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    paths = []
    for number in range(PICTURES):
        shift, height = rng.normal(0, 0.02), rng.normal(0.4, 0.03)
        lungs = sum(np.exp(-(((x - c - shift) / 0.13) ** 2) - ((y - height) / 0.28) ** 2) for c in (0.3, 0.7))
        image = np.clip(0.55 + 0.3 * y - 0.35 * lungs + rng.normal(0, 0.01, x.shape), 0, 1)
        paths.append(folder / f"{number}.png")
        Image.fromarray((image * 255).astype(np.uint8)).save(paths[-1])
    return paths


def patients(rows: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """(rows,) patient of each film: most patients have one or two, a few have dozens."""
    count = max(rows * 3 // 10, 12)
    weight = rng.pareto(1.5, count) + 0.2
    more = rng.choice(count, rows - count, p=weight / weight.sum())
    return np.sort(np.concatenate([np.arange(count), more]))


def write_table(root: Path, rows: int) -> None:
    """The films as hard links and the table that names them."""
    rng = np.random.default_rng(0)
    pictures = write_pictures(root / "pictures", rng)
    whose, chosen = patients(rows, rng), rng.integers(len(pictures), size=rows)
    labels = rng.random((rows, len(FINDINGS)), dtype=np.float32) < RATES
    unknown = rng.random(rows) < 0.05
    with (root / "studies.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "patient", "sex", "age", "view", "indication", *FINDINGS])
        for row in range(rows):
            name = f"films/{row // 1000:04d}/{row:08d}.png"
            if row % 1000 == 0:
                (root / name).parent.mkdir(parents=True)
            os.link(pictures[chosen[row]], root / name)
            who = int(whose[row])
            cells = ["-1" if unknown[row] and f == 8 else str(int(value)) for f, value in enumerate(labels[row])]
            note = ", ".join(rng.choice(WORDS, 4)) if row % 3 == 0 else ""
            line = [name, f"P{who:07d}", "FM"[who % 2], str(20 + who % 70), ("PA", "AP")[row % 2], note, *cells]
            table.writerow(_spoilt(line, row // BAD_EVERY) if row % BAD_EVERY == BAD_EVERY - 1 else line)


def _spoilt(line: list[str], kind: int) -> list[str]:
    """A bad row of one of five kinds."""
    match kind % 5:
        case 0:
            return ["films/none.png", *line[1:]]
        case 1:
            return [line[0], "", *line[2:]]
        case 2:
            return [*line[:-1], "maybe"]
        case 3:
            return ["../" + line[0], *line[1:]]
        case _:
            return line[:-1]


@dataclass
class Memory:
    """Peaks in MB, sampled."""

    main: float = 0.0
    together: float = 0.0
    processes: int = 0
    curve: list[tuple[float, float]] = field(default_factory=list)

    def sample(self, process: int, seconds: float) -> None:
        """Look at a process and its children; shared pages count once (proportional set size)."""
        alive = [process, *_descendants(process)]
        together = sum(_megabytes(one, "Pss") for one in alive)
        self.main, self.together = max(self.main, _megabytes(process, "Rss")), max(self.together, together)
        self.processes = max(self.processes, len(alive))
        self.curve.append((seconds, together))


def _descendants(process: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _megabytes(process: int, kind: str) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return float(line.split()[1]) * 1024 / 1e6
    return 0.0


def run_prepare(config: Path) -> tuple[Memory, float, str]:
    """Run the command; returns memory, seconds and what it said last."""
    command = [sys.executable, "-m", "medsd.cli", "prepare", str(config)]
    memory, started = Memory(), time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        running = subprocess.Popen(command, stdout=said, stderr=said)
        while running.poll() is None:
            memory.sample(running.pid, time.monotonic() - started)
            time.sleep(0.5)
        seconds = time.monotonic() - started
        said.seek(0)
        text = said.read()
    if running.returncode:
        raise SystemExit(f"medsd prepare ended with {running.returncode}:\n{text[-3000:]}")
    return memory, seconds, text.strip().splitlines()[-1]


def write_config(root: Path, path: Path) -> Path:
    """A configuration of the user's own table."""
    tree = {
        "name": "million",
        "findings": "nih14",
        "output": str(root / "runs"),
        "data": {
            "source": "csv",
            "root": str(root),
            "columns": {"view": "view", "age": "age", "sex": "sex", "note": "indication"},
        },
        "splits": {"near_duplicates": False},  # a few pictures stand for all
        "pixels": {"size": 32},
        "network": {"note": {"model": "small-bert"}},
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def rows_of(memory: Memory, seconds: float, rows: int, said: str) -> Iterator[tuple[str, str]]:
    """The table: what, and how much."""
    yield "rows in the table", f"{rows:,}"
    yield "time", f"{seconds:.0f} s ({seconds / rows * 1e3:.2f} ms a row)"
    yield "peak of the main process (RSS)", f"{memory.main:.0f} MB"
    yield f"peak of all {memory.processes} processes together (PSS)", f"{memory.together:.0f} MB"
    yield "last line", said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the table is written and kept; else a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary) / "studies"
        if not (root / "studies.csv").exists():
            write_table(root, options.rows)
        memory, seconds, said = run_prepare(write_config(root, root / "million.yaml"))
    print("| what | figure |\n|---|---|")
    for name, value in rows_of(memory, seconds, options.rows, said):
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
