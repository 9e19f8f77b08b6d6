"""How fast the batch scorer is, against each of its two limits measured alone and against a plain loop.

Run `python -m tests.bench.bench_score`; it prints a table for each encoding and ends with status 1 where a bound is not
kept. In every round, one after another: pydicom decodes the films in as many processes as the scorer has (`dcmread` and
`pixel_array`); ONNX Runtime reads tensors that are ready, in the scorer's batches, by the best of the ways that the
processors can be used; `score` goes from the files to the table; and a loop decodes with pydicom and asks the same
network of PyTorch, film by film. Rates are films a second by the clock, medians of the rounds' ratios count. Beside
them stands the processor time that a film costs, which other programs on the machine disturb less: on so many
processors no scorer can be faster than their number over the sum of its decoding and its inference.

Starting (imports, sha256 of the bundle, warm-up, processes) is told apart: the scorer's rate is that of the rows after
the first four batches, before which films wait decoded. `--network densenet121` puts a DenseNet121 of 224 pixels with
random weights in the place of the shipped bundle.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, generate_uid

from medsd.bundle import layout
from medsd.inference.session import ModelSession, processors
from medsd.scoring.finished import FinishedRows
from tests.bench.bench_dicom import _compress, _decode, _enlarge

ROOT = Path(__file__).resolve().parents[2]
ENCODINGS = ("uncompressed", "JPEG 2000 lossless")
SMALL, DISTINCT = (
    500,
    24,
)  # a phantom is drawn at this side and enlarged; so many different films, in files of their own
LEAST_OF_LIMIT, LEAST_OF_LOOP, MOST_BYTES = 0.85, 1.5, 2 * 1024**3


@dataclass(frozen=True)
class Measured:
    """One measurement: films a second by the clock, and milliseconds of processor time a film."""

    rate: float
    cost_ms: float
    start_s: float = 0.0
    peak: int = 0


# ---- films and networks


def write_films(folder: Path, encoding: str, count: int, side: int) -> list[Path]:
    """`count` DX films of 12 bits, `DISTINCT` pictures with UIDs of their own."""
    from medsd.studies.phantom import generate_study, write_dicom

    rng, folder = np.random.default_rng(0), folder / encoding.replace(" ", "_")
    folder.mkdir()
    paths = [folder / f"{number:05d}.dcm" for number in range(count)]
    for number, path in enumerate(paths):
        if number < DISTINCT:
            write_dicom(generate_study(number, seed=0, size=SMALL), path, photometric="MONOCHROME2", bits=12)
            ds = dcmread(path)
            _enlarge(ds, side, rng)
            if encoding == ENCODINGS[1]:
                _compress(ds, JPEG2000Lossless)
        else:
            ds = dcmread(paths[number % DISTINCT])
            ds.StudyInstanceUID, ds.SOPInstanceUID = generate_uid(), generate_uid()
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(path)
    return paths


def densenet_bundle(folder: Path) -> Path:
    """A bundle of the size that hospitals deploy: DenseNet121, 224 pixels, fourteen findings, random weights."""
    from medsd.export.onnx import ServingModel, export_onnx
    from medsd.findings import finding_set
    from tests.bundles import tiny_bundle

    bundle = tiny_bundle(folder)
    findings = finding_set("nih14")
    network = {"image": {"backbone": "densenet121"}, "embedding": 256}
    serving = ServingModel(_torch_model(network, 224), findings, bundle.description.calibration)
    export_onnx(serving, folder / layout.MODEL, size=224, max_tokens=8, metadata={})
    config = {"network": network}
    description = bundle.description.model_copy(
        update={
            "pixels": bundle.description.pixels.model_copy(update={"size": 224}),
            "embedding_size": 256, "evidence_grid": (7, 7),
            "provenance": bundle.description.provenance.model_copy(update={"config": config}),
        }
    )  # fmt: skip
    layout.write_description(folder, description)
    return folder


def _torch_model(network: dict[str, object], size: int) -> object:
    from medsd.networks.fusion import StudyModel
    from medsd.settings import NetworkSettings

    settings = NetworkSettings.model_validate(network)
    if settings.image is not None:  # other weights cost the same
        settings = settings.model_copy(update={"image": settings.image.model_copy(update={"weights": "none"})})
    return StudyModel(settings, 14, size).eval()


# ---- the two limits, the loop and the scorer


def _decode_all(path: Path) -> int:
    return len(_decode(path).PixelData)


def _warm(path: Path) -> int:
    warnings.simplefilter("ignore")
    return _decode_all(path)


def decoding_limit(paths: list[Path], workers: int) -> Measured:
    """pydicom alone, in processes that are up."""
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_warm, initargs=(paths[0],)) as pool:
        pool.map(_decode_all, paths[:workers], chunksize=1)
        pids = [process.pid for process in pool._pool]  # type: ignore[attr-defined]
        cost, begun = sum(map(_cost_of, pids)), time.perf_counter()
        for _ in pool.imap_unordered(_decode_all, paths):
            pass
        seconds = time.perf_counter() - begun
        cost = sum(map(_cost_of, pids)) - cost
    return Measured(len(paths) / seconds, cost / len(paths) * 1e3)


def _cost_of(pid: int) -> float:
    """Processor seconds of a process."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime, stime
    return 0.0


def inference_limit(bundle: layout.Bundle, films: int, size: int) -> Measured:
    """ONNX Runtime alone on tensors that are ready: in batches on all processors, or in several at a time."""
    best = Measured(0.0, 0.0)
    for ways in {1, processors()}:
        session = ModelSession(bundle, provider="cpu", threads=processors() // ways)
        side = bundle.description.pixels.size
        feeds = {"pixels": np.random.default_rng(0).random((size, 1, side, side), np.float32)}
        session.run(feeds)
        runs = max(1, films // size)
        with ThreadPoolExecutor(ways) as threads:
            cost, begun = time.process_time(), time.perf_counter()
            list(threads.map(session.run, [feeds] * runs))
            seconds, cost = time.perf_counter() - begun, time.process_time() - cost
        found = Measured(runs * size / seconds, cost / (runs * size) * 1e3)
        best = max(best, found, key=lambda measured: measured.rate)
    return best


def plain_loop(paths: list[Path], bundle: layout.Bundle) -> Measured:
    """pydicom and PyTorch, one film after another."""
    import torch

    side = bundle.description.pixels.size
    model = _torch_model(bundle.description.provenance.config["network"], side)
    torch.set_num_threads(processors())

    def read(path: Path) -> object:
        stored = dcmread(path).pixel_array.astype(np.float32)
        film = torch.from_numpy(stored)[None, None] / 4095.0
        small = torch.nn.functional.interpolate(film, (side, side), mode="bilinear", antialias=True)
        with torch.inference_mode():
            from medsd.networks.fusion import StudyInputs

            return torch.sigmoid(model(StudyInputs(small)).logits)  # type: ignore[operator]

    read(paths[0])
    cost, begun = time.process_time(), time.perf_counter()
    for path in paths:
        read(path)
    seconds, cost = time.perf_counter() - begun, time.process_time() - cost
    return Measured(len(paths) / seconds, cost / len(paths) * 1e3)


def run_scorer(folder: Path, bundle: Path, workers: int, size: int) -> Measured:
    """The scorer in a process of its own, watched."""
    with tempfile.TemporaryDirectory() as place:
        words = ["--role", "scorer", str(folder), str(bundle), str(Path(place) / "out.csv"), str(workers), str(size)]
        command = [sys.executable, "-m", "tests.bench.bench_score", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
            peak: list[int] = []
            watch = threading.Thread(target=_watch, args=(run, peak))
            watch.start()
            said = run.communicate()[0]
            watch.join()
        assert run.returncode == 0, "the scorer failed"
        found = json.loads(said.splitlines()[-1])
    return Measured(found["rate"], found["cost_ms"], found["start_s"], max(peak))


def scorer(folder: Path, bundle: Path, out: Path, workers: int, size: int) -> None:
    """What `run_scorer` starts."""
    from medsd.dicom.gate import GatePolicy
    from medsd.scoring.batch import score
    from medsd.scoring.request import ScoringRequest

    rows: list[tuple[float, float]] = []  # moment of each, and what all processes had cost by then
    costs: dict[int, float] = {}  # of processes that have ended, too

    append = FinishedRows.append

    def noting(self: FinishedRows, made: list[object], *vectors: object) -> None:
        append(self, made, *vectors)  # type: ignore[arg-type]
        costs.update((pid, _cost_of(pid)) for pid in _tree(os.getpid()))
        rows.extend([(time.perf_counter(), sum(costs.values()))] * len(made))

    begun = time.perf_counter()
    request = ScoringRequest(bundle, [folder], out, workers=workers, batch_size=size, policy=GatePolicy(max_seconds=60))
    with patch.object(FinishedRows, "append", noting):
        score(request)
    whole = time.perf_counter() - begun
    skipped = min(4 * size, len(rows) // 2)  # decoded ahead before the first was read
    (first, before), (last, after) = rows[skipped], rows[-1]
    timed = sum(moment > first for moment, _ in rows)
    rate = timed / (last - first)
    start = whole - len(rows) / rate
    print(json.dumps({"rate": rate, "start_s": start, "cost_ms": (after - before) / timed * 1e3}))


def _watch(run: subprocess.Popen[str], peak: list[int]) -> None:
    """The most memory that a process and its children hold together; pages that they share count once."""
    while run.poll() is None:
        peak.append(sum(_pss(pid) for pid in _tree(run.pid)))
        time.sleep(0.2)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _tree(int(child))
        for task in Path(f"/proc/{pid}/task").iterdir():  # processes that other threads started
            if task.name != str(pid):
                for child in (task / "children").read_text().split():
                    yield from _tree(int(child))


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return 0


# ---- the table


def bench(encoding: str, paths: list[Path], bundle: layout.Bundle, options: argparse.Namespace) -> list[str]:
    """Measure in rounds, print, and return what was not kept."""
    some = paths[: options.loop]
    rounds: list[dict[str, Measured]] = []
    for _ in range(options.rounds):
        rounds.append(
            {
                "decoding": decoding_limit(paths, options.workers),
                "inference": inference_limit(bundle, len(paths), options.batch_size),
                "scorer": run_scorer(paths[0].parent, bundle.folder, options.workers, options.batch_size),
                "loop": plain_loop(some, bundle),
            }
        )
    print(f"\n{encoding}: {len(paths)} films, {options.rounds} rounds\n")
    print("| | films a second | CPU ms a film |\n|---|---:|---:|")
    for name in rounds[0]:
        rate, cost = (statistics.median(getattr(each[name], what) for each in rounds) for what in ("rate", "cost_ms"))
        print(f"| {name} | {rate:.1f} | {cost:.1f} |")
    of_limit = statistics.median(
        each["scorer"].rate / min(each["decoding"].rate, each["inference"].rate) for each in rounds
    )
    of_loop = statistics.median(each["scorer"].rate / each["loop"].rate for each in rounds)
    peak = max(each["scorer"].peak for each in rounds)
    costs = [statistics.median(each[name].cost_ms for each in rounds) for name in ("decoding", "inference")]
    print(f"\nscorer / slower limit {of_limit:.2f}, scorer / plain loop {of_loop:.2f}")
    print(f"peak {peak / 2**20:.0f} MB (PSS of all processes), start {rounds[-1]['scorer'].start_s:.1f} s")
    possible = min(1.0, max(costs) / sum(costs))
    print(f"decoding and inference on the same {processors()} processors cannot pass {possible:.2f}")
    missed = {
        f"{encoding}: {of_limit:.2f} of the slower limit ({possible:.2f} is possible)": of_limit < LEAST_OF_LIMIT,
        f"{encoding}: {of_loop:.2f} times the loop": of_loop < LEAST_OF_LOOP,
        f"{encoding}: {peak / 2**20:.0f} MB": peak > MOST_BYTES,
    }
    return [line for line, is_missed in missed.items() if is_missed]


def main() -> None:
    if sys.argv[1:3] == ["--role", "scorer"]:
        folder, bundle, out, workers, size = sys.argv[3:]
        return scorer(Path(folder), Path(bundle), Path(out), int(workers), int(size))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=400, help="films of each encoding")
    parser.add_argument("--side", type=int, default=2000, help="their rows and columns")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop", type=int, default=60, help="films of the plain loop")
    parser.add_argument("--workers", type=int, default=processors())
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--network", choices=("shipped", "densenet121"), default="shipped")
    parser.add_argument("--encoding", choices=ENCODINGS, action="append")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("MEDSD_KEY", "a key for benches alone")
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        shipped = options.network == "shipped"
        folder = ROOT / "models" / "nih14" if shipped else densenet_bundle(Path(place) / "densenet121")
        bundle = layout.Bundle.open(folder)
        for encoding in options.encoding or ENCODINGS:
            paths = write_films(Path(place), encoding, options.count, options.side)
            missed += bench(encoding, paths, bundle, options)
    for line in missed:
        print(f"MISSED {line}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
