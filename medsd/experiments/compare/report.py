"""The report of a comparison of losses: Markdown with plots, and results.json."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medsd.experiments import engine
from medsd.experiments.compare.answers import answer, best_three, listed, whole_network
from medsd.experiments.compare.measured import BY_FREQUENCY, MAIN
from medsd.experiments.compare.plots import RELATION_TITLES, write_plots
from medsd.experiments.compare.settings import CompareSettings
from medsd.experiments.compare.summary import SetResult, Summary, summarise


def write_report(results: list[SetResult], settings: CompareSettings, command: str) -> Path:
    """Write <name>.md, <name>.results.json and the plots into the comparison's folder; returns the Markdown file."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    questions = [answer(question, results, settings) for question in settings.questions]
    figures = {**summarise(results, settings, command), "questions": questions}
    summary = engine.as_plain(figures, engine.DIGITS)
    by_name = {result.data.name: result for result in results}
    return engine.write_report(
        "losses.md.j2",
        settings.folder / settings.name,
        summary,
        main=list(MAIN),
        by_frequency=list(BY_FREQUENCY),
        relations=RELATION_TITLES,
        chosen=("learning_rate", "temperature", "weight_decay", "probe_penalty", "threshold"),
        verdicts={of_set["name"]: verdicts(summary, of_set) for of_set in summary["sets"]},
        best={name: [settings.title(loss) for loss in best_three(each, settings)] for name, each in by_name.items()},
        whole={name: whole_network(each, settings) for name, each in by_name.items() if name == "radiographs"},
        plots={
            of_set["name"]: write_plots(settings.folder, summary, of_set, by_name[of_set["name"]])
            for of_set in summary["sets"]
        },
    )


def verdicts(summary: Summary, of_set: Summary) -> list[str]:
    """Where the reference wins, ties and loses: a sentence for each main metric, one on frequency, two on intervals.

    "Wins" and "loses" need a paired test that stays below the level after correction.
    """
    titles, reference = summary["titles"], summary["settings"]["reference"]
    own, losses, tests = titles[reference], of_set["losses"], of_set["tests"]

    def those(rivals: Mapping[str, Any], holds: Callable[[Any], bool]) -> str:
        return listed([titles[rival] for rival, each in rivals.items() if holds(each)] or ["none"])

    def told(metric: str, verdict: str) -> str:
        return those(tests[metric], lambda test: test["verdict"] == verdict)

    def of_metric(metric: str) -> str:
        means = {loss: found["means"][metric]["mean"] for loss, found in losses.items()}
        if None in means.values():
            return f"{summary['metrics'][metric]}: too few test samples to tell."
        phrases = {"wins": "wins over", "ties": "is not told apart from", "loses": "loses to"}
        parts = [f"{words} {told(metric, verdict)}" for verdict, words in phrases.items()]
        parts = [part for part in parts if not part.endswith(" none")]
        best = max(means, key=lambda loss: means[loss])
        highest = f"{means[best]:.3f}" + ("" if best == reference else f"; {own} {means[reference]:.3f}")
        return (
            f"**{summary['metrics'][metric]}**: {own} {'; '.join(parts)}; the highest mean is that of {titles[best]} "
            f"({highest})."
        )

    groups = [
        f"{g}: wins over {told(f'map_{g}', 'wins')}, loses to {told(f'map_{g}', 'loses')}" for g in of_set["groups"]
    ]
    mine, ndcg = losses[reference]["means"]["ndcg"], {loss: losses[loss]["means"]["ndcg"] for loss in tests["ndcg"]}
    above, below = (lambda each: mine["low"] > each["high"]), (lambda each: mine["high"] < each["low"])
    neither = those(ndcg, lambda each: not above(each) and not below(each))
    leads = of_set["over_test_samples"]["lead"]
    ahead = those(leads, lambda lead: lead["low"] is not None and lead["low"] > 0)
    behind = those(leads, lambda lead: lead["high"] is not None and lead["high"] < 0)
    return [
        *map(of_metric, MAIN),
        f"**mAP by frequency of the finding**: {'; '.join(groups)}.",
        f"**Intervals over the seeds** (nDCG): {own}'s lies wholly above that of {those(ndcg, above)}, wholly below "
        f"that of {those(ndcg, below)}, and meets that of {neither}.",
        f"**Intervals over the test samples** (nDCG, bootstrap): the difference excludes 0 in favour of {own} against "
        f"{ahead}, and against it for {behind}.",
    ]
