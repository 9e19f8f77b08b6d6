"""A whole comparison: trials, the choice for each loss, cells, the report. Start at `compare`.

Trials and cells are independent of each other, so they run in a pool of processes with one thread each; what a figure
is does not depend on how many there are.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from medsd.experiments.compare.cells import Outcome, Task, Worker, read_piece, write_piece
from medsd.experiments.compare.datasets import read_set
from medsd.experiments.compare.labelled_set import LabelledSet
from medsd.experiments.compare.results import Choice, SetResult
from medsd.experiments.compare.settings import CompareSettings, Trial, trials
from medsd.strict import load_as

log = logging.getLogger(__name__)


def compare(config: Path, overrides: Sequence[str] = ()) -> Path:
    """Carry out the comparison of a configuration; finished pieces of an earlier run are kept.

    Args:
        config: a YAML file with the keys of `CompareSettings`.
        overrides: ``a.b=c`` each.

    Returns:
        The report, <output>/<name>/report.md; results.json and the plots stand beside it.

    Raises:
        SettingsError: the configuration does not fit.
        DataError: a data set is missing or damaged.
    """
    from medsd.experiments.compare.report import write_report

    settings = load_as(CompareSettings, config, overrides)
    start = time.perf_counter()
    results = [compare_on(read_set(name, settings), settings) for name in settings.sets]
    path = write_report(results, settings, exact_command(config, overrides))
    log.info("%s: done in %.0f s", settings.name, time.perf_counter() - start)
    return path


def compare_on(data: LabelledSet, settings: CompareSettings) -> SetResult:
    """All trials and cells of one set."""
    log.info("%s: %d training and %d test samples, %d findings", data.name, len(data.train), len(data.test),
             len(data.findings))  # fmt: skip
    with _pool(data, settings) as pool:
        tries = [
            Task("trial", loss, trial, seed)
            for loss in settings.losses
            for trial in trials(loss, settings)
            for seed in settings.grid.seeds
        ]
        tried = _done(tries, data, settings, pool)
        choices: dict[str, Choice] = {loss: choose(loss, tried, settings) for loss in settings.losses}
        wanted = [
            Task("cell", loss, choices[loss].trial, seed, choices[loss].penalty, choices[loss].threshold)
            for loss in settings.losses
            for seed in settings.seeds
        ]
        done = _done(wanted, data, settings, pool)
    cells: dict[str, list[Outcome]] = {
        loss: [done[task] for task in wanted if task.loss == loss] for loss in settings.losses
    }
    return SetResult(data, choices, cells)


def choose(loss: str, tried: dict[Task, Outcome], settings: CompareSettings) -> Choice:
    """The best trial of `loss` on the validation part; of equal ones the first."""

    def mean(trial: Trial, name: str) -> Any:
        return np.mean([tried[Task("trial", loss, trial, seed)][name] for seed in settings.grid.seeds], axis=0)

    grid = list(trials(loss, settings))
    ndcg = tuple(float(mean(trial, "ndcg")) for trial in grid)
    best = grid[int(np.argmax(ndcg))]
    which = int(np.argmax(mean(best, "map")))
    threshold = round(float(mean(best, "thresholds")[which]), 3)
    return Choice(best, ndcg, settings.grid.probe_penalty[which], threshold)


def exact_command(config: Path, overrides: Sequence[str], verb: str = "compare") -> str:
    """The command line that gives these figures, without folders of this machine (and without where they went)."""
    shown = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.strip() == "output":
            continue
        is_elsewhere = Path(value).is_absolute() or ".." in Path(value).parts
        shown.append(f"--set {key}={'FOLDER/' + Path(value).name if is_elsewhere else value}")
    name = config.name if config.is_absolute() or ".." in config.parts else config.as_posix()
    return " ".join([f"medsd {verb}", name, *shown])


def _done(
    tasks: Sequence[Task], data: LabelledSet, settings: CompareSettings, pool: ProcessPoolExecutor
) -> dict[Task, Outcome]:
    """The outcome of each task, kept or worked out now."""
    digest, found, missing = data.digest(), {}, []
    for task in tasks:
        outcome = read_piece(_path(task, data, settings), task.fingerprint(settings, digest))
        if outcome is None:
            missing.append(task)
        else:
            found[task] = outcome
    if found:
        log.info("%s: %d of %d %ss kept from an earlier run", data.name, len(found), len(tasks), tasks[0].kind)
    futures = {pool.submit(_work_here, task): task for task in missing}
    try:
        for number, future in enumerate(as_completed(futures), start=1):
            task, outcome = futures[future], future.result()
            write_piece(_path(task, data, settings), task.fingerprint(settings, digest), outcome)
            found[task] = outcome
            _report_progress(data.name, task, outcome, number, len(missing))
    finally:
        if [future for future in futures if future.cancel()]:
            log.info("%s: stopped; the same command goes on from here", data.name)
    return found


def _report_progress(name: str, task: Task, outcome: Outcome, number: int, of: int) -> None:
    ndcg = outcome["ndcg"] if task.kind == "trial" else outcome["metrics"]["ndcg"]
    part = "validation" if task.kind == "trial" else "test"
    log.info("%s: %s %d/%d  %s, seed %d: nDCG %.3f (%s), %.0f s", name, task.kind, number, of, task.loss, task.seed,
             ndcg, part, outcome["seconds"])  # fmt: skip


def _path(task: Task, data: LabelledSet, settings: CompareSettings) -> Path:
    folder = settings.folder / "pieces" / data.name / task.loss
    if task.kind == "cell":
        return folder / f"seed{task.seed}.json"
    shared = replace(task, seed=0)
    return folder / f"trial{_position(shared, settings)}-seed{task.seed}.json"


def _position(task: Task, settings: CompareSettings) -> int:
    return list(trials(task.loss, settings)).index(task.trial)


_here: list[Worker] = []  # of a worker process: the set and the settings are sent once


@contextmanager
def _pool(data: LabelledSet, settings: CompareSettings) -> Iterator[ProcessPoolExecutor]:
    # spawn: forking a process that holds threads of torch may hang
    pool = ProcessPoolExecutor(
        settings.workers, mp_context=get_context("spawn"), initializer=_start, initargs=(data, settings)
    )
    with pool:
        yield pool


def _start(data: LabelledSet, settings: CompareSettings) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted comparison keeps the pieces that are under way
    torch.set_num_threads(1)  # sums in another order would change the figures with the number of cores
    _here.append(Worker(data, settings))


def _work_here(task: Task) -> Outcome:
    return _here[0](task)
