"""Whole recipes side by side: the same data, splits, seeds and amount of training, another way of using it.

A comparison of recipes is a configuration with `arms`, each a few settings laid over a base configuration. Every arm is
trained with every seed, by the steps that `medsd train` takes, so what wins here is what a user gets. Recipes are
chosen on the validation patients (`measured_on: validation`); the test patients are for the one comparison at the end.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from medsd.errors import SettingsError
from medsd.experiments.compare.run import exact_command
from medsd.experiments.recipes_report import Trained, best_threshold, write_report
from medsd.experiments.recipes_settings import RecipesSettings
from medsd.metrics.metrics import enough
from medsd.metrics.retrieval import Cases, score_queries
from medsd.pipeline.folder import Run
from medsd.pipeline.run import run_steps
from medsd.settings import Settings, load_settings
from medsd.strict import load_as
from medsd.studies.manifest import Manifest

log = logging.getLogger(__name__)


def compare_recipes(config: Path, overrides: Sequence[str] = ()) -> Path:
    """Train every arm with every seed, resuming where an earlier call stopped, and write the report.

    Args:
        config: a YAML file with the keys of `RecipesSettings`.
        overrides: ``a.b=c`` each; ``data.root=FOLDER`` and every other key that the comparison does not know goes to
            all arms.

    Returns:
        The report, <output>/<name>/<name>.md; the figures stand beside it in <name>.results.json.

    Raises:
        SettingsError: the configuration, or an arm laid over the base, does not fit.
        MedsdError: whatever a training has to say.
    """
    own = [each for each in overrides if each.split("=")[0].split(".")[0] in RecipesSettings.model_fields]
    settings = load_as(RecipesSettings, config, own)
    everyone = [each for each in overrides if each not in own]
    runs = {
        (arm, seed): settings_of(config, settings, everyone, arm, seed)
        for arm in settings.arms
        for seed in settings.seeds
    }
    _train_all(runs, settings)
    trained = {key: read_trained(Run(each), settings.measured_on, settings.reading) for key, each in runs.items()}
    minimum_positives = next(iter(runs.values())).evaluation.minimum_positives
    return write_report(settings, trained, minimum_positives, exact_command(config, overrides))


def settings_of(config: Path, settings: RecipesSettings, everyone: Sequence[str], arm: str, seed: int) -> Settings:
    """The settings of one arm with one seed; `everyone` is laid over the base for all arms."""
    place = [f"name={arm}-seed{seed}", f"output={json.dumps(str(settings.folder))}", f"seed={seed}"]
    laid = [*settings.common, *everyone, *settings.arms[arm], *place, "training.threads=1", "training.workers=0"]
    try:
        return load_settings(config.parent / settings.base, laid)
    except SettingsError as error:
        raise SettingsError(f"{config}: arm '{arm}': {error}") from None


def _train_all(runs: dict[tuple[str, int], Settings], settings: RecipesSettings) -> None:
    """Train what is not trained yet; an interrupted call keeps what was finished."""
    with ProcessPoolExecutor(
        settings.workers, mp_context=get_context("spawn"), initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as pool:  # fmt: skip
        futures = {pool.submit(_train, each): key for key, each in runs.items()}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                future.result()
                arm, seed = futures[future]
                log.info("%s: %d of %d trained (%s, seed %d)", settings.name, number, len(runs), arm, seed)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _train(settings: Settings) -> None:
    run = run_steps(settings, until="finetune")
    # The moving parts of a finished training are large; figures need its outputs only.
    shutil.rmtree(run.folder / "tensorboard", ignore_errors=True)


def read_trained(run: Run, part: str, reading: str = "all") -> Trained:
    """What a run that is fine-tuned says of the patients of `part`, train, validation or test."""
    manifest, outputs = Manifest.read(run.manifest), load_file(run.outputs)
    # A model of one modality has no outputs of a part.
    logits = outputs.get(f"logits_{reading}", outputs["logits"])
    embeddings = outputs.get(f"embeddings_{reading}", outputs["embeddings"])
    train, rows, chosen = manifest.rows("train"), manifest.rows(part), manifest.rows("validation")

    def cases(which: npt.NDArray[np.int64]) -> Cases:
        return Cases(embeddings[which], manifest.labels[which], manifest.patients[which])

    history = json.loads((run.folder / "history.json").read_text(encoding="utf-8"))
    # A finding that was not taught would add chance to every mean.
    labels = np.where(enough(manifest.labels[train], 1), manifest.labels, np.float32(np.nan))
    return Trained(
        logits[rows],
        score_queries(cases(rows), cases(train)).ndcg,
        labels[rows],
        manifest.patients[rows],
        sum(stage["seconds"] for stage in history.values()),
        best_threshold(labels[chosen], logits[chosen]),
    )
