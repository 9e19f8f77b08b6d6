"""The case index at 200,000 × 128: its search against NumPy's matrix product with argpartition, opening it, two
processes that read while one writes, a writer that is killed, and the approximate index.

Run `python -m tests.bench.bench_cases`; it prints a Markdown table. The contenders take turns query by query, and
the ratio is the median of the ratios of neighbours in time, so that another program on the machine slows both alike.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsd.cases.case import Case, CaseFilter
from medsd.cases.index import CaseIndex, create_index
from medsd.cases.lance import LanceIndex
from medsd.findings import finding_set

K = 10
NUMPY = "NumPy matrix product + argpartition"
DEFAULT = f"default search, k={K}"
OPEN = """
import sys, time
import lancedb, numpy, pyarrow
from medsd.cases.index import CaseIndex
start = time.perf_counter()
index = CaseIndex.open(sys.argv[1])
opened = time.perf_counter() - start
index.nearest(numpy.ones(index.description.embedding_size))
print(opened, time.perf_counter() - start)
"""
READ = """
import sys, time, numpy
from medsd.cases.index import CaseIndex
index = CaseIndex.open(sys.argv[1])
query, answers = numpy.ones(index.description.embedding_size), 0
print("ready", flush=True)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    assert len(index.nearest(query, 5)) == 5
    answers += 1
print(answers)
"""
WRITE = """
import sys, numpy
from medsd.cases.case import Case
from medsd.cases.index import CaseIndex
index = CaseIndex.open(sys.argv[1])
labels, size = numpy.zeros(len(index.findings), numpy.float32), index.description.embedding_size
vectors = numpy.repeat(numpy.eye(1, size, dtype=numpy.float32), 1000, 0)
print("ready", flush=True)
for turn in range(int(sys.argv[2])):
    index.add([Case(f"k{turn}-{i}", "k", labels, note_excerpt="x" * 2000) for i in range(1000)], vectors)
print("done")
"""


def clustered(count: int, size: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Unit vectors around 200 centres, as a learned space has them."""
    centres = rng.normal(size=(200, size)).astype(np.float32)
    vectors = centres[rng.integers(200, size=count)] + rng.normal(0, 0.7, (count, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def build(folder: Path, vectors: npt.NDArray[np.float32], rng: np.random.Generator) -> CaseIndex:
    findings = finding_set("nih14")
    labels = (rng.random((len(vectors), len(findings))) < 0.1).astype(np.float32)
    thumbnail = rng.bytes(4000)

    def cases() -> Iterator[Case]:
        for i, row in enumerate(labels):
            yield Case(
                f"{i:016x}", f"{i // 3:016x}", row, view=("PA", "AP")[i % 2], sex="FM"[i % 2], age_band="60-69",
                source="bench", split="train", thumbnail=thumbnail, note_excerpt="short of breath",
            )  # fmt: skip

    return create_index(folder, cases(), vectors, model_sha256="0" * 64, findings=findings)


def take_turns(
    contenders: dict[str, Callable[[npt.NDArray[np.float32]], Any]], queries: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float64]]:
    """Seconds of each contender for each query (Q,)."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender(queries[0])
    for query in queries:
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender(query)
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def measure(folder: Path, count: int, size: int, turns: int) -> list[tuple[str, str, str]]:
    """Rows of the table: what, milliseconds, against what."""
    rng = np.random.default_rng(0)
    vectors = clustered(count, size, rng)
    index = build(folder, vectors, rng)
    scan = LanceIndex(folder, memory_limit=0)
    queries = clustered(turns, size, rng)

    def numpy_search(query: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
        return np.argpartition(-(vectors @ query), K)[:K]

    half, rare = CaseFilter(view="PA"), CaseFilter(present=("Effusion",), absent=("Mass",), view="PA")
    taken = take_turns(
        {
            NUMPY: numpy_search,
            DEFAULT: lambda q: index.nearest(q, K),
            "filtered: view (half)": lambda q: index.nearest(q, K, filters=half),
            "filtered: two findings and view (4 %)": lambda q: index.nearest(q, K, filters=rare),
            "one patient left out": lambda q: index.nearest(q, K, exclude_patient=f"{7:016x}"),
        },
        queries,
    )
    beside = take_turns({NUMPY: numpy_search, "scan": lambda q: scan.nearest(q, K)}, queries[:10])
    default = taken[DEFAULT]
    rows = [
        row(NUMPY, taken[NUMPY], taken[NUMPY], "NumPy"),
        row(DEFAULT, default, taken[NUMPY], "NumPy"),
        *(row(name, taken[name], default, "default") for name in list(taken)[2:]),
        row("LanceDB's own flat scan", beside["scan"], beside[NUMPY], "NumPy"),
    ]
    rows.append((f"recall@{K} of the default search", "", f"{recall(index, vectors, queries):.4f}"))
    command = [sys.executable, "-c", OPEN, str(folder)]
    times = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    opened, first = np.median(np.array(times, float), axis=0) * 1e3
    rows += [("open", f"{opened:.1f}", ""), ("open and first answer (reads the vectors)", f"{first:.1f}", "")]
    return [*rows, *together(folder, count), *approximate(folder, queries)]


def together(folder: Path, count: int) -> list[tuple[str, str, str]]:
    """Two processes read for half a minute while a third writes; then a writer is killed in the middle."""

    def start(code: str, value: int) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", code, folder, str(value)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    readers = [start(READ, 30) for _ in range(2)]
    writer = start(WRITE, 5)
    said = [process.communicate()[0].strip() for process in (*readers, writer)]
    failed = sum(process.returncode != 0 for process in (*readers, writer))
    added = len(CaseIndex.open(folder)) - count
    killed = start(WRITE, 1000)
    time.sleep(2)
    killed.kill()
    killed.wait()
    again = CaseIndex.open(folder)
    left, found = (
        len(again) - count - added,
        len(again.nearest(np.ones(again.description.embedding_size, np.float32), K)),
    )
    whole = "whole writes only" if left % 1000 == 0 and found == K else "DAMAGED"
    return [
        (f"two readers while one adds {added:,} cases", "", f"{said[0]} and {said[1]} answers, {failed} failures"),
        ("a writer killed with -9", "", f"readable, {left:,} more cases: {whole}"),
    ]


def approximate(folder: Path, queries: npt.NDArray[np.float32]) -> list[tuple[str, str, str]]:
    """The approximate index over the same cases, asked for below its usual size."""
    index = CaseIndex.open(folder)
    index.remove_patient("k")  # what `together` has added
    found = index.compact(approximate_above=1)
    taken = take_turns(
        {"exact": lambda q: index.nearest(q, K, exact=True), "approximate": lambda q: index.nearest(q, K)}, queries[:10]
    )
    against = row("", taken["approximate"], taken["exact"], "LanceDB's flat scan")
    return [("approximate index", *against[1:]), (f"recall@{K} of the approximate index", "", f"{found:.4f}")]


def row(
    name: str, seconds: npt.NDArray[np.float64], yardstick: npt.NDArray[np.float64], word: str
) -> tuple[str, str, str]:
    """A row of the table: median of the times, median of the ratios."""
    return name, f"{np.median(seconds) * 1e3:.1f}", f"{np.median(seconds / yardstick):.2f} × {word}"


def recall(index: CaseIndex, vectors: npt.NDArray[np.float32], queries: npt.NDArray[np.float32]) -> float:
    """Share of the exact K nearest, by a full sort in float64, that the default search finds."""
    shares = []
    for query in queries:
        exact = {f"{i:016x}" for i in np.argsort(-(vectors.astype(np.float64) @ query), kind="stable")[:K]}
        shares.append(len(exact & {hit.case.study_key for hit in index.nearest(query, K)}) / K)
    return float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder) / "cases", options.count, options.size, options.turns)
    print(f"Case index, {options.count:,} × {options.size}\n\n| what | ms (median) | against |\n|---|---:|---:|")
    for cells in rows:
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
