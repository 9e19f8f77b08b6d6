"""20,000 mutated DICOM files through the gate and the model: each a prediction or a reason, in bounded time and memory.

Run `MEDSD_DATA=folder python -m tests.bench.bench_mutated`; it prints a table and ends with status 1, naming the
mutant, on a traceback, on more than 10 s of processor time or on more than 2 GB. `--only INDEX` makes one mutant again
and reads it here. Originals are the files of the folder `dicom` of the real data and phantoms in further transfer
syntaxes. Mutants are made in the processes that decode them; one in twenty also goes through `medsd score` as a file.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import itertools
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path

from medsd.dicom.gate import GatePolicy
from medsd.inference.predict import Predictor, Study
from medsd.preprocessing.decode import Decoder, decode_all
from medsd.preprocessing.image import DecodedImage, read_image
from medsd.scoring.batch import read_safely
from tests.mutants import Mutants, generated_films

SEED = 2026
MOST_SECONDS, MOST_BYTES = 10.0, 2 * 1024**3
BATCH = 16
FILES = 20  # one mutant in so many goes through the command line
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Measured(DecodedImage):
    """An image, the processor time and the most bytes that reading it took, and what escaped from `read_image`."""

    mutant: str = ""
    seconds: float = 0.0
    peak: int = 0
    escaped: str = field(default="", repr=False)


@dataclass(frozen=True)
class MutantDecoder(Decoder):
    """Reads the mutant whose index is the name of the path."""

    folder: str = ""
    seed: int = SEED

    def __call__(self, source: Path | bytes, name: str = "") -> DecodedImage:
        mutant = mutants(self.folder, self.seed)[int(str(source))]
        _forget_peak()
        begun, escaped = time.process_time(), ""
        try:
            film = read_image(mutant.content, self.spec, policy=self.policy, name=str(source), keep_image=False)
        except BaseException:
            film, escaped = DecodedImage("refused", "escaped"), traceback.format_exc()
        known = {item.name: getattr(film, item.name) for item in fields(DecodedImage)}
        seconds = time.process_time() - begun
        return Measured(**known, mutant=str(mutant), seconds=seconds, peak=_peak(), escaped=escaped)


@lru_cache(maxsize=1)
def mutants(folder: str, seed: int) -> Mutants:
    """The mutants of the real files in `folder` and of generated ones."""
    real = {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.dcm"))}
    return Mutants(real | generated_films(), seed)


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@dataclass
class Account:
    """What the mutants came to."""

    outcomes: collections.Counter[tuple[str, str, str]] = field(default_factory=collections.Counter)
    rows: dict[int, tuple[str, str]] = field(default_factory=dict)
    seconds: list[tuple[float, str]] = field(default_factory=list)
    peaks: list[tuple[int, str]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def enter(self, index: int, film: DecodedImage, status: str, reason: str) -> None:
        """Count one mutant; `status` and `reason` are the prediction's."""
        self.rows[index] = (status, reason)
        self.outcomes[status, reason, _detail(film)] += 1
        if not isinstance(film, Measured):  # the helper had to be replaced
            self.stopped.append(f"mutant {index}: {film.message}")
            return
        self.seconds.append((film.seconds, film.mutant))
        self.peaks.append((film.peak, film.mutant))
        if film.escaped:
            self.failures.append(f"{film.mutant}: a traceback\n{film.escaped}")
        if film.seconds > MOST_SECONDS:
            self.failures.append(f"{film.mutant}: {film.seconds:.1f} s")
        if film.peak > MOST_BYTES:
            self.failures.append(f"{film.mutant}: {film.peak / 2**20:.0f} MB")
        if status == "refused" and not reason:
            self.failures.append(f"{film.mutant}: refused without a reason")

    def table(self) -> str:
        lines = ["| outcome | reason | | mutants |", "|---|---|---|---:|"]
        lines += [f"| {' | '.join(key)} | {count:,} |" for key, count in self.outcomes.most_common()]
        times = sorted(seconds for seconds, _ in self.seconds)
        lines += ["", f"median {times[len(times) // 2] * 1e3:.1f} ms, 99.9th percentile "
                  f"{times[min(len(times) - 1, len(times) * 999 // 1000)]:.2f} s; slowest:"]  # fmt: skip
        lines += [f"  {seconds:.2f} s  {name}" for seconds, name in sorted(self.seconds, reverse=True)[:5]]
        lines += ["largest peaks of a process:"]
        lines += [f"  {peak / 2**20:.0f} MB  {name}" for peak, name in sorted(self.peaks, reverse=True)[:5]]
        lines += [f"helpers stopped or down: {len(self.stopped)}", *(f"  {line}" for line in self.stopped[:40])]
        return "\n".join(lines)


def _detail(film: DecodedImage) -> str:
    """What of a message tells one kind of refusal from another."""
    if "more memory" in film.message:
        return "memory"
    return "crash" if "decoder crashed" in film.message else ""


def in_memory(options: argparse.Namespace, predictor: Predictor, account: Account) -> None:
    """All mutants through `read_image` in helper processes and the model here, as the batch scorer does it."""
    decoder = MutantDecoder(
        predictor.bundle.description.pixels, predictor.policy, folder=options.folder, seed=options.seed
    )
    indices = range(options.first, options.first + options.count)
    films = decode_all(map(Path, map(str, indices)), decoder, workers=options.workers, ahead=2 * BATCH)
    for portion in _portions(films):
        predictions = read_safely(predictor, [Study(film) for _, film in portion])
        for (path, film), prediction in zip(portion, predictions, strict=True):
            account.enter(int(str(path)), film, prediction.status, prediction.reason)
        done = len(account.rows)
        if sys.stderr.isatty() or done % 1000 < BATCH:
            print(f"{done:,} mutants", file=sys.stderr, flush=True)


def _portions(films: Iterable[tuple[Path, DecodedImage]]) -> Iterator[list[tuple[Path, DecodedImage]]]:
    films = iter(films)
    while portion := list(itertools.islice(films, BATCH)):
        yield portion


def as_files(options: argparse.Namespace, account: Account) -> str:
    """One mutant in `FILES` through `medsd score`; the rows must be those of the same mutants in memory."""
    made = mutants(options.folder, options.seed)
    chosen = range(options.first, options.first + options.count, FILES)
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place) / "films", Path(place) / "out.csv"
        folder.mkdir()
        for index in chosen:
            (folder / f"{index}.dcm").write_bytes(made[index].content)
        command = [sys.executable, "-m", "medsd.cli", "score", options.bundle, str(folder), "--out", str(out)]
        run = subprocess.run(
            [*command, "--workers", str(options.workers)], capture_output=True, text=True, check=False, cwd=ROOT,
            env=os.environ | {"MEDSD_KEY": "a key for benches alone"},
        )  # fmt: skip
        if run.returncode or "Traceback" in run.stderr or not out.exists():
            account.failures.append(f"medsd score: status {run.returncode}\n{run.stderr[-4000:]}")
            return "medsd score did not end well"
        with out.open(newline="", encoding="utf-8") as file:
            rows = {int(Path(row["path"]).stem): (row["status"], row["reason"]) for row in csv.DictReader(file)}
    other = [index for index in chosen if rows.get(index) != account.rows[index]]
    # A file's suffix may say what its content does not, and the clock is not the same twice.
    other = [index for index in other if "too_slow" not in (rows.get(index, ("", ""))[1], account.rows[index][1])]
    account.failures += [f"{made[i]}: {account.rows[i]} in memory, {rows.get(i)} as a file" for i in other]
    return f"medsd score over {len(chosen):,} of them as files: {len(rows):,} rows, {len(other)} unlike those in memory"


def one(options: argparse.Namespace, predictor: Predictor) -> None:
    """Make one mutant again and read it in this process."""
    mutant = mutants(options.folder, options.seed)[options.only]
    if options.write:
        options.write.write_bytes(mutant.content)
    _forget_peak()
    begun = time.perf_counter()
    prediction = predictor(mutant.content, name=str(options.only))
    took = time.perf_counter() - begun
    print(f"{mutant}: {prediction.status} {prediction.reason} {prediction.message}\n{took:.2f} s, {_peak() >> 20} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bundle", default=str(ROOT / "models" / "phantom"))
    parser.add_argument("--only", type=int, help="the index of one mutant, to be read in this process")
    parser.add_argument("--write", type=Path, help="where to write that one")
    options = parser.parse_args()
    options.folder = str(Path(os.environ.get("MEDSD_DATA") or ROOT.parent / "shared" / "data") / "dicom")
    if not Path(options.folder).is_dir():
        sys.exit(f"real data: no folder {options.folder}; set MEDSD_DATA")
    predictor = Predictor(options.bundle, provider="cpu", policy=GatePolicy(max_seconds=MOST_SECONDS), threads=1)
    if options.only is not None:
        return one(options, predictor)
    begun, account = time.monotonic(), Account()
    in_memory(options, predictor, account)
    files = as_files(options, account)
    print(f"{options.count:,} mutants, seed {options.seed}, {time.monotonic() - begun:.0f} s\n\n{account.table()}")
    print(files)
    for failure in account.failures:
        print(f"FAILED {failure}")
    sys.exit(bool(account.failures))


if __name__ == "__main__":
    main()
