"""What all experiments share: trainings in processes of their own, the command that repeats them, and the report."""

import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from medsd.files import replacing, write_json
from medsd.pipeline.folder import Run
from medsd.strict import AnySettings, as_yaml, load_as

Task = TypeVar("Task")
Result = TypeVar("Result")
DIGITS = 6  # significant ones, of the figures in a report


# The files of a step that trainings share, its marker last.
_SHARED = {
    "prepare": ("studies.parquet", "pixels.npy", "rejected.csv", "done/prepare.json"),
    "pretrain": ("tokenizer.json", "pretrain.safetensors", "history.json", "done/pretrain.json"),
}


def load_experiment(model: type[AnySettings], config: Path, overrides: Sequence[str]) -> tuple[AnySettings, list[str]]:
    """The settings of an experiment, and the overrides whose keys it does not know: they go to all its trainings."""
    own = [each for each in overrides if each.split("=")[0].split(".")[0] in model.model_fields]
    return load_as(model, config, own), [each for each in overrides if each not in own]


def train_all(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    start: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[tuple[Task, Result]]:
    """Each task with its result, as they finish, from `workers` processes; `start` is called first in each.

    An interruption lets the tasks that have begun finish and drops the others.
    """
    # Forking a process that holds threads of torch may hang; one that has but imported it, once for all, does not.
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload([work.__module__])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(start, arguments)) as pool:
        futures = {pool.submit(work, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted experiment keeps the trainings that have begun
    if start is not None:
        start(*arguments)


def lend(source: Run, target: Run, step: str) -> None:
    """Give a run what another made in a step that is the same for both; each file is replaced whole, never changed."""
    (target.folder / "done").mkdir(parents=True, exist_ok=True)
    for name in _SHARED[step]:
        made, wanted = source.folder / name, target.folder / name
        if made.exists() and not wanted.exists():
            with replacing(wanted, durable=False) as draft:
                try:
                    draft.hardlink_to(made)
                except OSError:  # a file system without links
                    shutil.copyfile(made, draft)


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


def write_report(template: str, path: Path, figures: Mapping[str, Any], **more: Any) -> Path:
    """Write figures as <path>.results.json, and as the page <path>.md that `template` makes; returns the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = as_plain(figures)
    write_json(path.with_name(f"{path.name}.results.json"), plain, indent=None)
    environment = Environment(
        loader=PackageLoader("medsd.experiments"), trim_blocks=True, undefined=StrictUndefined, autoescape=False
    )
    environment.filters |= {
        "number": lambda value, form=".3f": "–" if value is None else f"{value:{form}}",
        "interval": _interval,
        "test": _test,
        "p": _p,
        "yaml": as_yaml,
        "short": lambda value: f"{value:.4g}" if isinstance(value, float) else as_yaml(value),
    }
    page = path.with_name(f"{path.name}.md")
    page.write_text(environment.get_template(template).render(**plain, **more).rstrip() + "\n", encoding="utf-8")
    return page


def as_plain(tree: Any, digits: int | None = None) -> Any:
    """Plain data of a tree of mappings, lists and arrays, None for NaN; all significant digits, or so many."""
    if isinstance(tree, Mapping):
        return {key: as_plain(value, digits) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [as_plain(value, digits) for value in tree]
    if isinstance(tree, np.ndarray | np.generic):
        return as_plain(tree.tolist(), digits)
    if not isinstance(tree, float):
        return tree
    return None if np.isnan(tree) else float(f"{tree:.{digits}g}") if digits else tree


def _interval(found: Mapping[str, Any], sign: str = "") -> str:
    """A mean, or a value, with its interval."""
    value = found["mean"] if "mean" in found else found["value"]
    if value is None:
        return "too few"
    shown = f"{value:{sign}.3f}"
    return shown if found["low"] is None else f"{shown} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"


def _test(test: Mapping[str, Any]) -> str:
    if test["difference"]["mean"] is None:
        return "too few"
    text = f"{test['difference']['mean']:+.3f} ({_p(test)})"
    return text if test["verdict"] == "ties" else f"**{text}**"


def _p(test: Mapping[str, Any]) -> str:
    if test["p_holm"] is None:
        return "no test"
    return "p < 0.001" if test["p_holm"] < 0.001 else f"p = {test['p_holm']:.3f}"
