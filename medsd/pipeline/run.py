"""A run: a folder, and the steps from a configuration to a bundle, each resumed where it stopped.

Each finished step leaves a marker with the fingerprint of what it was made from: the settings, and the files that
`medsd.pipeline.state` lists. A step whose fingerprint has changed is done again, and so are the steps after it; after
`prepare`, only if its result has changed. A lock keeps a second process out.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from medsd.errors import DataError
from medsd.files import write_json
from medsd.pipeline import state
from medsd.pipeline import steps as work
from medsd.pipeline.case_index import index_cases
from medsd.pipeline.folder import Run
from medsd.pipeline.prepare import prepare
from medsd.pipeline.tracking import tracked
from medsd.settings import Settings, save_settings
from medsd.training.distributed import as_the_first, is_first, joined, wait_for_all
from medsd.training.stages import ROUNDS

log = logging.getLogger(__name__)
PREPARE = "prepare"


@dataclass(frozen=True)
class Step:
    """A step of a run, by the verb of the command line."""

    name: str
    depends: tuple[str, ...]  # sections of the settings that decide its result
    work: Callable[[Run], None]  # must itself resume or start clean
    clean: tuple[str, ...] = ()  # removed before it is done again with other settings
    shared: bool = False  # all processes of a distributed run do it together; else the first does it alone
    reads: Callable[[Settings], str] = lambda _: ""  # fingerprint of its files that no step before it made


STEPS = (
    Step(
        PREPARE,
        ("data", "findings", "splits", "gate", "pixels", "reads"),
        prepare,
        ("studies.parquet",),  # the images' own journal tells whether they are still right
        reads=state.sources,
    ),
    Step(
        "pretrain",
        ("seed", "network", "loss", "training.augment", "training.pretrain", "training.precision"),
        work.pretrain,
        ("pretrain.safetensors",),
        shared=True,
        reads=state.weights,
    ),
    Step(
        "finetune",
        ("training.finetune", "training.pseudo_labels"),
        work.finetune,
        ("finetune.safetensors", ROUNDS),
        shared=True,
    ),
    Step(
        "calibrate",
        ("evaluation.minimum_positives", "evaluation.operating_points", "evaluation.calibration"),
        work.calibrate,
        reads=state.boxes,
    ),
    Step("evaluate", ("evaluation",), work.evaluate, reads=state.radiologists),
    Step("export", ("name", "bundle"), work.export),
    Step("index", (), index_cases),
)


def run_steps(settings: Settings, until: str = "index", *, again: bool = False) -> Run:
    """Run every step that is not done up to `until`; with `again`, do that one again even if it is done.

    Raises:
        DataError: another process works in the run's folder.
        MedsdError: a step failed.
    """
    run = Run(settings)
    with joined(settings.training.device):
        # The others do what the first says, and write nothing.
        if is_first():
            with tracked(run):
                _lead(run, until, again)
        else:
            _follow(run, until)
    return run


def _lead(run: Run, until: str, again: bool) -> None:
    with alone(run.folder):
        save_settings(run.settings, run.folder / "settings.yaml")
        (run.folder / "done").mkdir(exist_ok=True)
        fingerprint = made = ""
        for step in _steps(until):
            fingerprint = _fingerprint(step, run.settings, fingerprint)
            made = hashlib.sha256(f"{made}{step.reads(run.settings)}".encode()).hexdigest()
            marker, whole = run.folder / "done" / f"{step.name}.json", f"{fingerprint} {made}"
            done = read_marker(marker)
            wanted = done != whole or (again and step.name == until)
            if wanted:
                # Its marker, and those of all steps after it, except those whose fingerprints hold its result.
                for each in STEPS[STEPS.index(step) :] if step.name != PREPARE else [step]:
                    (run.folder / "done" / f"{each.name}.json").unlink(missing_ok=True)
                if done != whole:
                    _start_clean(run, step, whole)
                elif step.name == PREPARE:
                    run.pixels.unlink(missing_ok=True)  # asked for by name: decode the images again
            as_the_first({"wanted": wanted})
            if wanted:
                log.info("%s …", step.name)
                step.work(run)
                told = {"made": state.prepared(run.manifest, run.pixels)} if step.name == PREPARE else {}
                write_json(marker, {"fingerprint": whole, **told})
            else:
                log.info("%s: done before", step.name)
            if step.name == PREPARE:
                made = read_marker(marker, "made")  # the next steps depend on its result, not on what it read
        wait_for_all()


def _follow(run: Run, until: str) -> None:
    for step in _steps(until):
        if as_the_first({"wanted": 0.0})["wanted"] and step.shared:
            step.work(run)
    wait_for_all()


def _steps(until: str) -> tuple[Step, ...]:
    """The steps up to `until`."""
    return STEPS[: [step.name for step in STEPS].index(until) + 1]


def _start_clean(run: Run, step: Step, fingerprint: str) -> None:
    """Remove what the step left from other settings; unfinished work of these settings is kept, to resume."""
    begun = run.folder / "done" / f"{step.name}.begun.json"
    if read_marker(begun) != fingerprint:
        for name in step.clean:
            left = run.folder / name
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        shutil.rmtree(run.folder / "tensorboard" / step.name, ignore_errors=True)
    write_json(begun, {"fingerprint": fingerprint})


def fingerprint_of(settings: Settings, until: str) -> str:
    """sha256 of all settings that decide what the steps up to `until` make of the same data."""
    fingerprint = ""
    for step in _steps(until):
        fingerprint = _fingerprint(step, settings, fingerprint)
    return fingerprint


def _fingerprint(step: Step, settings: Settings, before: str) -> str:
    """sha256 over the sections of the settings that the step depends on and the fingerprint of the step before."""
    tree = settings.model_dump(mode="json")
    # A default of the gate that changes later is no reason to read images again; out_of_distribution is for serving.
    tree["gate"] = settings.gate.model_dump(mode="json", exclude_defaults=True, exclude={"out_of_distribution"})
    # Which images are decoded does not depend on the network, unless it reads none.
    tree["reads"] = {} if settings.network.image is not None else {"image": False}
    if settings.network.note is not None and settings.network.note.mask_findings:
        tree["reads"]["mask_findings"] = True  # the manifest holds masked notes
    sections = []
    for path in step.depends:
        section = tree
        for key in path.split("."):
            section = section[key]
        sections.append(section)
    text = json.dumps([step.name, sections, before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_marker(path: Path, key: str = "fingerprint") -> str:
    """What the marker of a finished step says; "" where there is none."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError):
        return ""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of work until the process ends.

    Raises DataError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock", blocking=False).acquire()
    except Timeout:
        raise DataError(f"{folder}: another medsd works on this run; wait for it, or set another output") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({os.strerror(error.errno or 0)}); set another output") from None
    with lock:
        yield
