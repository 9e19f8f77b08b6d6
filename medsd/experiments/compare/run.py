"""A whole comparison of losses: trials, the choice for each loss, cells, the report. Start at `compare`.

Trials and cells run in processes with one thread each; the figures do not depend on how many there are.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsd.experiments.compare.cells import Outcome, Task, Worker, read_piece
from medsd.experiments.compare.datasets import read_set
from medsd.experiments.compare.labelled_set import LabelledSet
from medsd.experiments.compare.settings import CompareSettings, Trial, trials
from medsd.experiments.compare.summary import Choice, SetResult
from medsd.experiments.engine import exact_command, train_all
from medsd.files import write_json
from medsd.strict import load_as

log = logging.getLogger(__name__)


def compare(config: Path, overrides: Sequence[str] = ()) -> Path:
    """Carry out the comparison of a configuration (`CompareSettings`); finished pieces of an earlier run are kept.

    Returns:
        The report, <output>/<name>/<name>.md; the figures and the plots stand beside it.

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
    tries = [
        Task("trial", loss, trial, seed)
        for loss in settings.losses
        for trial in trials(loss, settings)
        for seed in settings.grid.seeds
    ]
    tried = _done(tries, data, settings)
    choices = {loss: choose(loss, tried, settings) for loss in settings.losses}
    wanted = [
        Task("cell", loss, choice.trial, seed, choice.penalty, choice.threshold)
        for loss, choice in choices.items()
        for seed in settings.seeds
    ]
    done = _done(wanted, data, settings)
    cells = {loss: [done[task] for task in wanted if task.loss == loss] for loss in settings.losses}
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


def _done(tasks: Sequence[Task], data: LabelledSet, settings: CompareSettings) -> dict[Task, Outcome]:
    """The outcome of each task, kept from an earlier run or computed now."""
    digest, found, missing = data.digest(), {}, []
    for task in tasks:
        outcome = read_piece(_path(task, data, settings), task.fingerprint(settings, digest))
        if outcome is None:
            missing.append(task)
        else:
            found[task] = outcome
    if found:
        log.info("%s: %d of %d %ss kept from an earlier run", data.name, len(found), len(tasks), tasks[0].kind)
    finished = train_all(_work_here, missing, settings.workers, _start, (data, settings)) if missing else ()
    for number, (task, outcome) in enumerate(finished, start=1):
        path = _path(task, data, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"fingerprint": task.fingerprint(settings, digest), "outcome": outcome}, indent=None)
        found[task] = outcome
        is_trial = task.kind == "trial"
        ndcg, part = (outcome["ndcg"], "validation") if is_trial else (outcome["metrics"]["ndcg"], "test")
        log.info("%s: %s %d/%d  %s, seed %d: nDCG %.3f (%s), %.0f s", data.name, task.kind, number, len(missing),
                 task.loss, task.seed, ndcg, part, outcome["seconds"])  # fmt: skip
    return found


def _path(task: Task, data: LabelledSet, settings: CompareSettings) -> Path:
    folder = settings.folder / "pieces" / data.name / task.loss
    if task.kind == "cell":
        return folder / f"seed{task.seed}.json"
    position = list(trials(task.loss, settings)).index(task.trial)
    return folder / f"trial{position}-seed{task.seed}.json"


_here: list[Worker] = []  # of a worker process: the set and the settings are sent once


def _start(data: LabelledSet, settings: CompareSettings) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)  # sums in another order would change the figures with the number of cores
    threadpool_limits(1)  # the same of NumPy and scikit-learn
    _here.append(Worker(data, settings))


def _work_here(task: Task) -> Outcome:
    return _here[0](task)
