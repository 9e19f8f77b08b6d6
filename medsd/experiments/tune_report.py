"""The report of a search for hyper-parameters: its trials as Markdown and JSON, and the best settings as YAML."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from medsd.errors import MedsdError
from medsd.experiments.recipes_report import TITLES as FIGURES
from medsd.experiments.tuning import TuneSettings, Value
from medsd.files import write_json
from medsd.settings import Settings, save_settings
from medsd.strict import as_yaml

TITLES = {"auroc": FIGURES["auroc"], "ndcg": FIGURES["ndcg"], "loss": "loss"}
_STATES = {TrialState.COMPLETE: "", TrialState.PRUNED: "ended early", TrialState.FAIL: "failed"}
_ENOUGH = 10  # finished trials, before it is said which settings matter


def write_report(settings: TuneSettings, study: optuna.Study, best: Settings, command: str) -> Path:
    """Write <name>.md, <name>.results.json and best.yaml into the search's folder.

    Args:
        settings: of the search.
        study: with at least one finished trial.
        best: the settings of its best trial, under a name of their own.
        command: that gives these figures.

    Returns:
        The Markdown file.
    """
    trials = _sorted(study)
    path = settings.folder / f"{settings.name}.md"
    write_json(
        path.with_suffix(".results.json"),
        {
            "command": command,
            "settings": settings.model_dump(mode="json", exclude={"output"}),
            "best": study.best_params,
            "importances": _importances(study, settings.seed),
            "trials": [_record(trial) for trial in trials],
        },
    )
    save_settings(best, settings.folder / "best.yaml")
    path.write_text(_markdown(settings, study, trials, command), encoding="utf-8")
    return path


def best_of(study: optuna.Study) -> dict[str, Any]:
    """The settings that were best.

    Raises:
        MedsdError: no trial was trained to its end.
    """
    try:
        return dict(study.best_params)
    except ValueError:
        raise MedsdError("no trial was trained to its end; widen the space, or raise trials") from None


def _markdown(settings: TuneSettings, study: optuna.Study, trials: list[FrozenTrial], command: str) -> str:
    count = Counter(trial.state for trial in trials)
    order = ("auroc", "ndcg", "loss")
    shown = [settings.objective, *(name for name in order if name != settings.objective)]
    best = " ".join(f"--set {key}={as_yaml(value)}" for key, value in study.best_params.items())
    lines = [
        f"# Search: {settings.name}",
        "",
        f"{len(trials)} trials, {count[TrialState.PRUNED]} of them ended early and {count[TrialState.FAIL]} failed; "
        f"sought was the {'lowest' if settings.objective == 'loss' else 'highest'} {TITLES[settings.objective]} of the "
        "validation patients. The test patients were not looked at. The best of many is better on the patients that "
        "chose it than on others: measure it on the test patients once, with `medsd train`.",
        "",
        f"    {command}",
        "",
        f"Best: trial {study.best_trial.number + 1}. `best.yaml` holds the base with its settings, to be trained whole "
        f"by `medsd train {settings.folder / 'best.yaml'}`; beside another base they are",
        "",
        f"    {best}",
        "",
        *_first_and_best(settings, study),
        f"| trial | {' | '.join(TITLES[name] for name in shown)} | minutes | {' | '.join(settings.space)} |",
        "| --- |" + " --- |" * (len(shown) + 1 + len(settings.space)),
        *(_row(settings, trial, shown) for trial in trials),
        "",
    ]
    if importances := _importances(study, settings.seed):
        shares = ", ".join(f"{key} {share:.0%}" for key, share in importances.items())
        lines += [f"Share of the differences that each setting explains (fANOVA): {shares}.", ""]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    lines += [f"- trial {trial.number + 1} failed: {trial.user_attrs.get('error', 'interrupted')}" for trial in failed]
    lines += [f"- all: {', '.join(f'`{each}`' for each in settings.common) or 'the base'}", ""]
    return "\n".join(lines)


def _first_and_best(settings: TuneSettings, study: optuna.Study) -> list[str]:
    """How much was gained over the base, where the search began with it."""
    first = study.get_trials(deepcopy=False)[0]
    if first.value is None or first.state != TrialState.COMPLETE or "fixed_params" not in first.system_attrs:
        return []
    return [
        f"Trial 1 is the base itself: {TITLES[settings.objective]} {first.value:.4f}, the best {study.best_value:.4f}.",
        "",
    ]


def _row(settings: TuneSettings, trial: FrozenTrial, shown: list[str]) -> str:
    figures = trial.user_attrs.get("figures")
    values = [_short(trial.params[key]) if key in trial.params else "" for key in settings.space]
    told = [_STATES[trial.state], *[""] * (len(shown) - 1), ""]
    if figures:
        told = [*(f"{figures[name]:.4f}" for name in shown), f"{figures['seconds'] / 60:.1f}"]
    return f"| {trial.number + 1} | {' | '.join([*told, *values])} |"


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else as_yaml(value)


def _sorted(study: optuna.Study) -> list[FrozenTrial]:
    """The finished trials, the best first, then those that were ended early or failed."""
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def place(trial: FrozenTrial) -> tuple[bool, float, int]:
        done = trial.state == TrialState.COMPLETE and trial.value is not None
        return not done, sign * trial.value if done and trial.value is not None else 0.0, trial.number

    return sorted(trials, key=place)


def _record(trial: FrozenTrial) -> dict[str, Any]:
    figures = {name: None if value != value else value for name, value in trial.user_attrs.get("figures", {}).items()}
    told = {"trial": trial.number + 1, "state": trial.state.name.lower(), "settings": trial.params, "figures": figures}
    return told | ({"error": trial.user_attrs["error"]} if "error" in trial.user_attrs else {})


def _importances(study: optuna.Study, seed: int) -> dict[str, float]:
    """Which settings explain the differences (Hutter et al., ICML 2014); empty where there are too few trials."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < _ENOUGH or len({trial.value for trial in done}) < 2:
        return {}
    try:
        return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed)))
    except (ValueError, RuntimeError):  # no setting was varied
        return {}
