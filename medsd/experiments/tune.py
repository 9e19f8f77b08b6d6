"""A search for hyper-parameters: trainings of one base configuration, measured on the validation patients alone.

Optuna proposes settings (TPE; Bergstra et al., NeurIPS 2011; Akiba et al., KDD 2019) and each trial is trained in a
folder of its own. A journal of JSON lines keeps the trials, so that the same command resumes. Steps that no searched
setting affects, decoding and perhaps pretraining, are done once for all trials.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from medsd.errors import DataError, MedsdError, SettingsError
from medsd.experiments.engine import exact_command, lend, load_experiment
from medsd.experiments.recipes import read_trained
from medsd.experiments.settings import TuneSettings, Value
from medsd.experiments.tune_report import best_of, write_report
from medsd.metrics.metrics import enough
from medsd.pipeline.folder import Run
from medsd.pipeline.run import alone, fingerprint_of, read_marker, run_steps
from medsd.pipeline.tracking import local_store
from medsd.settings import Settings, load_settings
from medsd.strict import as_yaml
from medsd.studies.manifest import Manifest
from medsd.training.engine import EndedEarly, Stage, Watch, watched
from medsd.training.objectives import masked_cross_entropy

log = logging.getLogger(__name__)

Found = Mapping[str, Value]

_FEW_TRIALS = 5  # if so many fail and none succeeds, the proposed values are not the cause
_AFTER_PRETRAINING = ("training.finetune", "training.pseudo_labels", "pixels")
_KEPT = ("settings.yaml", "history.json", "tensorboard", "mlflow.json", "mlruns.db")  # of a finished trial


def tune(config: Path, overrides: Sequence[str] = ()) -> Path:
    """Search until all trials are done, resuming where an earlier call stopped, and write the report.

    Overrides (``a.b=c``) whose keys the search does not have, as data.root, are laid over all trials.

    Returns:
        The report, <output>/<name>/<name>.md; the best settings stand beside it in best.yaml.

    Raises:
        SettingsError: the configuration, the base, or a setting of the space does not fit.
        DataError: the folder holds another search, or the validation patients cannot tell good from bad.
        MedsdError: the preparation failed; a trial that fails is counted and reported.
    """
    settings, everyone = load_experiment(TuneSettings, config, overrides)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError("medsd tune trains in one process; start it without torchrun")
    search = Search(config, settings, everyone)
    with alone(settings.folder):
        study = open_study(settings, search.fingerprint(search.check_data()), search.epochs)
        if not study.get_trials(deepcopy=False) and (start := search.base_values()):
            study.enqueue_trial(dict(start))  # the result is then no worse than the base
        run_trials(study, settings, search)
        best = search.settings_of(best_of(study), f"{search.base.name}-tuned", search.base.output)
        return write_report(settings, study, best, exact_command(config, overrides, "tune"))


class Search:
    """The trainings of a search; `everyone` (``a.b=c`` each) is laid over the base for all trials.

    Raises SettingsError: the base, or a setting of the space whatever its value, does not fit.
    """

    def __init__(self, config: Path, settings: TuneSettings, everyone: Sequence[str]) -> None:
        self.config, self.settings, self.everyone = config, settings, everyone
        self._made: dict[str, Run] = {}  # the shared runs of this session
        self.base = self.settings_of({})
        self._whole = {key: self._is_whole(key) for key in settings.space}
        self.epochs = self.base.training.finetune.epochs

    def fingerprint(self, made: str) -> str:
        """Of everything that makes trials comparable; `made` is that of the prepared studies."""
        asked = self.settings.model_dump(mode="json", include={"space", "objective", "seed", "startup"})
        tree = {
            **asked,
            "base": fingerprint_of(self.base, "finetune"),
            "minimum_positives": self.base.evaluation.minimum_positives,
            "made": made,
        }
        return json.dumps(tree, sort_keys=True)

    def settings_of(self, found: Found, name: str | None = None, output: Path | None = None) -> Settings:
        """The settings of a training with what was found laid over the base."""
        laid = [*self.settings.common, *self.everyone, *(f"{key}={as_yaml(value)}" for key, value in found.items())]
        if name is not None:
            laid += [f"name={name}", f"output={as_yaml(str(output or self.settings.folder))}"]
        try:
            return load_settings(self.config.parent / self.settings.base, laid)
        except SettingsError as error:
            raise SettingsError(f"{self.config}: {str(error).splitlines()[0]}") from None

    def suggest(self, trial: Trial) -> dict[str, Value]:
        """A value for each setting of the space."""
        found: dict[str, Value] = {}
        for key, each in self.settings.space.items():
            if each.choices is not None:
                found[key] = trial.suggest_categorical(key, each.choices)
                continue
            assert each.low is not None and each.high is not None
            if self._whole[key]:
                step = int(each.step or 1)
                found[key] = trial.suggest_int(key, int(each.low), int(each.high), step=step, log=each.log)
            else:
                found[key] = trial.suggest_float(key, each.low, each.high, step=each.step, log=each.log)
        return found

    def base_values(self) -> dict[str, Value]:
        """The base's value of each setting of the space; empty if one lies outside the space."""
        values = {key: _value_of(self.base, key) for key in self.settings.space}
        return values if all(each.contains(values[key]) for key, each in self.settings.space.items()) else {}

    def check_data(self) -> str:
        """Prepare the base's studies, check that the objective can be measured, and return their fingerprint.

        Raises:
            DataError: the validation patients are too few.
            MedsdError: the preparation failed.
        """
        run, minimum_positives = self._shared({}, "prepare"), self.base.evaluation.minimum_positives
        manifest = Manifest.read(run.manifest)
        told = enough(manifest.labels[manifest.rows("validation")], minimum_positives)
        if self.settings.objective == "auroc" and not told.any():
            raise DataError(
                f"{self.settings.name}: no finding has {minimum_positives} positives and negatives among the "
                "validation patients; take more data, lower evaluation.minimum_positives, or set objective=loss"
            )
        return read_marker(run.folder / "done" / "prepare.json", "made")

    def train(self, trial: Trial, found: Found) -> dict[str, float]:
        """Train one trial and measure it.

        Raises:
            EndedEarly: it is worse than the others so far.
            MedsdError: the training failed.
        """
        run = Run(self._placed(found, _folder_of(trial)))
        lend(self._shared(found, "prepare"), run, "prepare")
        if all(key.startswith(_AFTER_PRETRAINING) for key in self.settings.space):
            lend(self._shared(found, "pretrain"), run, "pretrain")
        with watched(_reports(trial, run.folder, self.settings.objective)):
            run_steps(run.settings, until="finetune")
        return measure(run)

    def tidy(self, trial: Trial) -> None:
        """Remove large files; training the best settings again gives the same numbers."""
        folder = self.settings.folder / _folder_of(trial)
        for path in folder.iterdir() if folder.exists() else ():
            if path.name not in _KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _placed(self, found: Found, name: str) -> Settings:
        settings = self.settings_of(found, name)
        if settings.training.mlflow is not True:
            return settings
        store = local_store(self.settings.folder)  # one for all trials
        return settings.model_copy(update={"training": settings.training.model_copy(update={"mlflow": store})})

    def _shared(self, found: Found, step: str) -> Run:
        """A run up to `step`, made once for all trials for which it is the same."""
        name = f"{step}-{fingerprint_of(self.settings_of(found), step)[:12]}"
        if name not in self._made:
            run = Run(self._placed(found, name))
            if step == "pretrain":
                lend(self._shared(found, "prepare"), run, "prepare")
            self._made[name] = run_steps(run.settings, until=step)
        return self._made[name]

    def _is_whole(self, key: str) -> bool:
        """Whether a setting takes whole numbers only, judged by its value once it is loaded, or refused."""
        each = self.settings.space[key]
        loaded = [self._loaded(key, value) for value in each.choices or each.ends]
        return isinstance(_value_of(loaded[0], key), int)

    def _loaded(self, key: str, value: Value) -> Settings:
        """The base with one value, alone or with the first or the last values of the other settings."""
        others = self.settings.space.items()
        firsts, lasts = ({name: each.ends[end] for name, each in others} for end in (0, 1))
        for beside in (firsts, lasts):
            with suppress(SettingsError):
                return self.settings_of({**beside, key: value})
        return self.settings_of({key: value})


def run_trials(study: optuna.Study, settings: TuneSettings, search: Search) -> None:
    """Run until `settings.trials` are done, an interrupted one first; MedsdError if the first trials all failed."""
    while (trial := _next_trial(study, settings)) is not None:
        found = search.suggest(trial)
        name = f"trial {trial.number + 1} of {settings.trials}"
        log.info("%s: %s", name, ", ".join(f"{key}={as_yaml(value)}" for key, value in found.items()))
        try:
            figures = _known(study, found) or search.train(trial, found)
            value = figures[settings.objective]
            if math.isnan(value):
                raise DataError(f"{settings.objective} of the validation patients cannot be measured")
        except EndedEarly as told:
            study.tell(trial, state=TrialState.PRUNED)
            log.info("%s: ended early, %s", name, told)
        except MedsdError as error:
            trial.set_user_attr("error", str(error))
            study.tell(trial, state=TrialState.FAIL)
            log.warning("%s: failed: %s", name, error)
            ended = [each.state for each in study.get_trials(deepcopy=False) if each.state.is_finished()]
            if len(ended) >= _FEW_TRIALS and set(ended) == {TrialState.FAIL}:
                raise MedsdError(f"all of the first {len(ended)} trials failed; the last: {error}") from None
        else:
            trial.set_user_attr("figures", figures)
            study.tell(trial, value)
            log.info("%s: %s %.4f, best %.4f", name, settings.objective, value, study.best_value)
        search.tidy(trial)


def open_study(settings: TuneSettings, fingerprint: str, epochs: int) -> optuna.Study:
    """The study of the search, new or as an earlier call left it.

    No trial is ended in the first third of the `epochs` of fine-tuning. A DataError is raised for another search in the
    folder (by the fingerprint), or a damaged journal.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = settings.folder / "journal.log"
    _mend(path)
    pruner: BasePruner = NopPruner()
    if settings.pruning == "median":
        pruner = MedianPruner(n_startup_trials=settings.startup, n_warmup_steps=epochs // 3)
    try:
        # A file of JSON lines: no server, and, unlike Optuna's Redis backend, no snapshots that are unpickled.
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name="medsd",
            direction="minimize" if settings.objective == "loss" else "maximize",
            pruner=pruner,
            load_if_exists=True,
        )
    except (ValueError, KeyError):
        raise DataError(f"{path}: damaged journal; move it away to begin a new search") from None
    known = study.user_attrs.get("fingerprint")
    if known is None:
        study.set_user_attr("fingerprint", fingerprint)
    elif known != fingerprint:
        raise DataError(
            f"{settings.folder}: holds a search over another base or space, whose figures do not compare; "
            "set another name, or remove the folder"
        )
    return study


def measure(run: Run) -> dict[str, float]:
    """The objectives by name on the validation patients of a trained run, and the seconds that it took."""
    trained = read_trained(run, "validation")
    figures = trained.figures(run.settings.evaluation.minimum_positives)
    loss = float(masked_cross_entropy(torch.from_numpy(trained.logits), torch.from_numpy(trained.labels)))
    return {"auroc": figures["auroc"], "ndcg": figures["ndcg"], "loss": loss, "seconds": trained.seconds}


def _folder_of(trial: Trial) -> str:
    return f"trial-{trial.number + 1:04}"


def _next_trial(study: optuna.Study, settings: TuneSettings) -> Trial | None:
    trials = study.get_trials(deepcopy=False)
    if sum(trial.state.is_finished() for trial in trials) >= settings.trials:
        return None
    begun = [trial for trial in trials if trial.state == TrialState.RUNNING]
    trial = Trial(study, begun[0]._trial_id) if begun else study.ask()
    # Seeded by the trial, so that an interrupted search proposes what an uninterrupted one would.
    seed = int(np.random.SeedSequence((settings.seed, trial.number)).generate_state(1)[0])
    study.sampler = TPESampler(n_startup_trials=settings.startup, seed=seed)
    return trial


def _known(study: optuna.Study, found: Found) -> dict[str, float] | None:
    """The figures of an earlier trial with the same settings: training is deterministic."""
    done: list[FrozenTrial] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return next((trial.user_attrs["figures"] for trial in done if trial.params == found), None)


def _reports(trial: Trial, folder: Path, objective: str) -> Watch:
    """Reports each epoch of the fine-tuning in `folder` to the trial."""
    figure, sign = ("validation_loss", "loss") if objective == "loss" else ("validation_auroc", "AUROC")

    def watch(stage: Stage) -> None:
        if stage.name != "finetune" or stage.folder != folder:
            return
        epoch, value = len(stage.history) - 1, stage.history[-1][figure]
        if math.isnan(value):
            return
        trial.report(value, epoch)
        if epoch + 1 < stage.settings.epochs and trial.should_prune():
            raise EndedEarly(f"{sign} {value:.4f} after epoch {epoch + 1}")

    return watch


def _mend(path: Path) -> None:
    """Remove what a kill or a full disk left of a journal: an incomplete last line, a lock without an owner."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _value_of(settings: Settings, key: str) -> Value:
    """The value of a dotted key; None also if a section above it is absent."""
    value: object = settings
    for part in key.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)
