"""Whole recipes side by side: the same data, splits, seeds and amount of training, another way of using it.

Every arm, a few settings laid over a base configuration, is trained with every seed. Recipes are chosen on the
validation patients; the test patients are for the one comparison at the end.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from medsd.errors import SettingsError
from medsd.experiments.engine import exact_command, load_experiment, train_all
from medsd.experiments.recipes_report import read_trained, write_report
from medsd.experiments.settings import RecipesSettings
from medsd.pipeline.folder import Run
from medsd.pipeline.run import run_steps
from medsd.settings import Settings, load_settings

log = logging.getLogger(__name__)


def compare_recipes(config: Path, overrides: Sequence[str] = ()) -> Path:
    """Train every arm with every seed, resuming where an earlier call stopped, and write the report.

    Overrides (``a.b=c``) whose keys the comparison does not have, as data.root, are laid over all arms.

    Returns:
        The report, <output>/<name>/<name>.md; the figures stand beside it in <name>.results.json.

    Raises:
        SettingsError: the configuration, or an arm laid over the base, does not fit.
        MedsdError: a training failed.
    """
    settings, everyone = load_experiment(RecipesSettings, config, overrides)
    runs = {
        (arm, seed): settings_of(config, settings, everyone, arm, seed)
        for arm in settings.arms
        for seed in settings.seeds
    }
    keys = {each.name: key for key, each in runs.items()}
    for number, (run, _) in enumerate(train_all(_train, list(runs.values()), settings.workers), start=1):
        arm, seed = keys[run.name]
        log.info("%s: %d of %d trained (%s, seed %d)", settings.name, number, len(runs), arm, seed)
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


def _train(settings: Settings) -> None:
    run = run_steps(settings, until="finetune")
    shutil.rmtree(run.folder / "tensorboard", ignore_errors=True)  # large, and no figure needs it
