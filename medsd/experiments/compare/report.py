"""The report of a comparison of losses: Markdown with plots, and results.json."""

from __future__ import annotations

from pathlib import Path

from medsd.experiments import engine
from medsd.experiments.compare.plots import RELATION_TITLES, write_plots
from medsd.experiments.compare.settings import CompareSettings
from medsd.experiments.compare.summary import BY_FREQUENCY, MAIN, SetResult, summarise
from medsd.experiments.compare.words import verdicts


def write_report(results: list[SetResult], settings: CompareSettings, command: str) -> Path:
    """Write <name>.md, <name>.results.json and the plots into the comparison's folder; returns the Markdown file."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    summary = engine.rounded(engine.as_plain(summarise(results, settings, command)))
    return engine.write_report(
        "losses.md.j2",
        settings.folder / settings.name,
        summary,
        main=list(MAIN),
        by_frequency=list(BY_FREQUENCY),
        relations=RELATION_TITLES,
        chosen=("learning_rate", "temperature", "weight_decay", "probe_penalty", "threshold"),
        verdicts={of_set["name"]: verdicts(summary, of_set) for of_set in summary["sets"]},
        plots={of_set["name"]: write_plots(settings.folder, summary, of_set) for of_set in summary["sets"]},
    )
