"""The report of a search for hyper-parameters: its trials as Markdown and JSON, and the best settings as YAML."""

from pathlib import Path
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from medsd.errors import MedsdError
from medsd.experiments import engine
from medsd.experiments.recipes import TITLES as FIGURES
from medsd.experiments.settings import TuneSettings
from medsd.settings import Settings, save_settings

TITLES = {"auroc": FIGURES["auroc"], "ndcg": FIGURES["ndcg"], "loss": "loss"}
_STATES = {"complete": "", "pruned": "ended early", "fail": "failed"}
_ENOUGH = 10  # finished trials, before it is said which settings matter


def write_report(settings: TuneSettings, study: optuna.Study, best: Settings, command: str) -> Path:
    """Write <name>.md, <name>.results.json and best.yaml, the settings `best`; returns the Markdown file."""
    first = study.get_trials(deepcopy=False)[0]
    is_base = first.state == TrialState.COMPLETE and "fixed_params" in first.system_attrs
    save_settings(best, settings.folder / "best.yaml")
    tree = {
        "command": command,
        "settings": settings.model_dump(mode="json", exclude={"output"}),
        "best": study.best_params,
        "importances": _importances(study, settings.seed),
        "trials": [_record(trial) for trial in _sorted(study)],
    }
    return engine.write_report(
        "search.md.j2",
        settings.folder / settings.name,
        tree,
        titles=TITLES,
        shown=[settings.objective, *(name for name in TITLES if name != settings.objective)],
        states=_STATES,
        base=first.value if is_base else None,
        best_trial=study.best_trial.number + 1,
        best_yaml=settings.folder / "best.yaml",
    )


def best_of(study: optuna.Study) -> dict[str, Any]:
    """The settings that were best; MedsdError where no trial was trained to its end."""
    try:
        return dict(study.best_params)
    except ValueError:
        raise MedsdError("no trial was trained to its end; widen the space, or raise trials") from None


def _sorted(study: optuna.Study) -> list[FrozenTrial]:
    """The finished trials, the best first, then those that were ended early or failed."""
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]  # by number
    done = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: sign * (t.value or 0.0))
    return done + [trial for trial in trials if trial.state != TrialState.COMPLETE]


def _record(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "trial": trial.number + 1,
        "state": trial.state.name.lower(),
        "settings": trial.params,
        "figures": trial.user_attrs.get("figures", {}),
        "error": trial.user_attrs.get("error"),
    }


def _importances(study: optuna.Study, seed: int) -> dict[str, float]:
    """Which settings explain the differences (Hutter et al., ICML 2014); empty where there are too few trials."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < _ENOUGH or len({trial.value for trial in done}) < 2:
        return {}
    try:
        return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed)))
    except (ValueError, RuntimeError):  # no setting was varied
        return {}
