"""The report of a comparison: Markdown with plots, and results.json. Start at `write_report`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsd.experiments.compare.cells import GROUPS
from medsd.experiments.compare.plots import write_plots
from medsd.experiments.compare.results import SetResult
from medsd.experiments.compare.settings import CompareSettings
from medsd.experiments.compare.summary import BEFORE_PROJECTION, MAIN, Summary, summarise
from medsd.experiments.compare.words import verdicts

_RELATIONS = ("R1 disjoint", "R2 equal", "R3 overlap", "R4 superset", "R5 subset")


def write_report(results: list[SetResult], settings: CompareSettings, command: str) -> Path:
    """Write <name>.md, <name>.results.json and the plots into the comparison's folder.

    Returns:
        The Markdown file. The same pieces give the same bytes.
    """
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(results, settings, command)
    results_file = folder / f"{settings.name}.results.json"
    results_file.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    parts = [_head(summary)]
    for of_set in summary["sets"]:
        parts.append(_section(summary, of_set, write_plots(folder, summary, of_set)))
    parts.append(_method(summary))
    path = folder / f"{settings.name}.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _head(summary: Summary) -> str:
    losses = ", ".join(summary["titles"].values())
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return (
        f"# Losses side by side: {summary['name']}\n\n"
        f"{len(summary['titles'])} losses ({losses}), {len(summary['settings']['seeds'])} seeds, the same splits, "
        "initial weights, budget and number of trials for each. Values are means over the seeds with "
        f"{_percent(summary)} intervals. How it was done stands at the end.\n\n"
        f"    {summary['command']}\n\n{versions}. All figures: [{summary['name']}.results.json]"
        f"({summary['name']}.results.json)."
    )


def _section(summary: Summary, of_set: Summary, plots: dict[str, str]) -> str:
    sentences = "\n".join(f"- {sentence}" for sentence in verdicts(summary, of_set))
    reference = summary["titles"][summary["settings"]["reference"]]
    return "\n\n".join(
        [
            f"## {of_set['title']}",
            f"{of_set['origin']}. {of_set['train']} training and {of_set['test']} test samples, "
            f"{of_set['findings_per_sample']:.2f} findings a sample, {of_set['without_finding']:.0%} without any.",
            f"### Where {reference} wins, ties and loses\n\n{sentences}",
            f"### All losses\n\n{_metrics_table(summary, of_set)}\n\n"
            f"A random order gives nDCG {of_set['random']['ndcg']:.3f} and recall {of_set['random']['recall']:.3f}.\n\n"
            f"![metrics]({plots['metrics']})",
            f"### Paired tests: {reference} minus rival\n\n{_tests_table(summary, of_set)}",
            f"### Frequent and rare findings\n\n{_groups(of_set)}\n\n{_frequency_table(summary, of_set)}\n\n"
            f"![frequency]({plots['frequency']})",
            f"### Which relation's neighbours each loss gets right\n\n{_relations(summary, of_set)}\n\n"
            f"![relations]({plots['relations']})\n\n{_relations_by_k(summary, of_set)}",
            f"### What the validation part chose\n\n{_choices(summary, of_set)}",
        ]
    )


def _metrics_table(summary: Summary, of_set: Summary) -> str:
    names = [*MAIN, *BEFORE_PROJECTION]
    rows = [
        [summary["titles"][loss], *(_interval(found["means"][name]) for name in names)]
        for loss, found in of_set["losses"].items()
    ]
    return table(["loss", *(summary["metrics"][name] for name in names)], rows)


def _tests_table(summary: Summary, of_set: Summary) -> str:
    rows = []
    for rival, lead in of_set["over_test_samples"]["lead"].items():
        tests = [of_set["tests"][name][rival] for name in MAIN]
        rows.append([summary["titles"][rival], *map(_test, tests), _interval(lead, sign=True)])
    titles = [summary["metrics"][name] for name in MAIN]
    return (
        table(["rival", *titles, f"{titles[0]}, interval over test samples"], rows)
        + "\n\nDifference of the means and, in brackets, Holm's p. **Bold**: below the level."
    )


def _groups(of_set: Summary) -> str:
    return " ".join(f"{group.capitalize()}: {', '.join(of_set['groups'][group])}." for group in GROUPS)


def _frequency_table(summary: Summary, of_set: Summary) -> str:
    names = [f"{metric}_{group}" for metric in ("map", "macro_f1", "auroc") for group in GROUPS]
    rows = [
        [summary["titles"][loss], *(_number(found["means"][name]["mean"]) for name in names)]
        for loss, found in of_set["losses"].items()
    ]
    return table(["loss", *(summary["metrics"][name] for name in names)], rows)


def _relations(summary: Summary, of_set: Summary) -> str:
    relations, k = of_set["relations"], len(of_set["relations"]["ideal"][0])
    losses = list(relations["found"])
    titles = [summary["titles"][loss] for loss in losses]
    found = [
        [name, *(_number(relations["found"][loss][row][-1]) for loss in losses),
         _number(relations["random"][row]), _number(relations["ideal"][row][-1])]
        for row, name in enumerate(_RELATIONS)
    ]  # fmt: skip
    right = [
        [name, *(_number(relations["right"][loss][row][-1]) for loss in losses)] for row, name in enumerate(_RELATIONS)
    ]
    return (
        f"Share of the first {k} neighbours in each relation (the neighbour's label set to the query's), next to a "
        "random order and to the ideal order, that of falling Jaccard overlap:\n\n"
        + table(["relation", *titles, "random", "ideal"], found)
        + f"\n\nOf the places among the first {k} that the ideal order gives to a relation, the share that the "
        "neighbours give to it as well (many neighbours of a relation fill its places easily: read it beside the "
        "shares above):\n\n" + table(["relation", *titles], right)
    )


def _relations_by_k(summary: Summary, of_set: Summary) -> str:
    relations = of_set["relations"]
    columns = ["relation", *(f"k = {place}" for place in range(1, len(relations["ideal"][0]) + 1))]
    shares = {summary["titles"][loss]: found for loss, found in relations["found"].items()}
    parts = [f"<details><summary>Shares for each k from 1 to {len(columns) - 1}</summary>"]
    for title, found in {**shares, "ideal order": relations["ideal"]}.items():
        rows = [[name, *map(_number, found[row])] for row, name in enumerate(_RELATIONS)]
        parts.append(f"{title}\n\n{table(columns, rows)}")
    return "\n\n".join([*parts, "</details>"])


def _choices(summary: Summary, of_set: Summary) -> str:
    rows = []
    for loss, found in of_set["losses"].items():
        chosen = found["chosen"]
        values = (
            chosen[name] for name in ("learning_rate", "temperature", "weight_decay", "probe_penalty", "threshold")
        )
        rows.append([summary["titles"][loss], *("–" if value is None else f"{value:g}" for value in values),
                     _number(max(found["validation_ndcg"])), str(len(found["validation_ndcg"]))])  # fmt: skip
    columns = ["loss", "learning rate", "temperature", "weight decay", "probe penalty", "threshold"]
    return table([*columns, "validation nDCG", "trials"], rows)


def _method(summary: Summary) -> str:
    settings = summary["settings"]
    budget, grid = settings["budget"], settings["grid"]
    tests = "; ".join(
        f"{of_set['name']}: {of_set['fitted_in_trials']} of {of_set['train']} training samples to fit"
        for of_set in summary["sets"]
    )
    lines = [
        f"Encoder: {budget['hidden']} hidden units (layer norm, GELU, dropout {budget['dropout']}), an embedding of "
        f"{budget['embedding']}; the contrastive losses compare in a projection of {budget['projection']}. "
        f"{budget['epochs']} epochs of batches of {budget['batch_size']}, {budget['views']} views of each sample that "
        f"each lose {budget['corruption']:.0%} of their inputs, AdamW with a warm-up and a cosine.",
        "A seed decides initial weights, order, views and dropout, the same for each loss.",
        f"Tuning: {len(grid['learning_rate']) * len(grid['temperature'])} trials for each loss, "
        f"each with {_counted(len(grid['seeds']), 'seed')}: learning rate {_values(grid['learning_rate'])} with "
        f"temperature {_values(grid['temperature'])}; cross-entropy, which has no temperature, tries weight decay "
        f"{_values(grid['weight_decay'])}. The highest nDCG on a validation part of the training samples decides "
        f"({tests}); the probe's penalty is chosen there by mAP and the one calling threshold by micro-F1. Then the "
        "encoder is trained on all training samples and the test part is measured once.",
        "Retrieval: test samples are queries, training samples the index, a neighbour's gain is the Jaccard overlap "
        "of the label sets, in the space in which the loss compares. Cross-entropy has no such space; its penultimate "
        "features stand in. «nDCG, embedding» is measured before the projection for every loss.",
        "Classification: a logistic head fitted by cross-entropy on the frozen embedding; cross-entropy keeps the head "
        "that it was trained with. Findings without a positive or a negative test sample are left out.",
        "Head, middle and tail: the findings in three parts by their number of training positives.",
        "Tests: Student's paired t over the seeds, because two losses share all that is random in a seed; Wilcoxon's "
        "signed ranks cannot fall below p = 0.0625 with five seeds. Holm's correction is over the rivals, for each "
        f"metric; the level is {1 - settings['confidence']:.2g}. Seeds tell of training only; the last column of the "
        f"tests has a bootstrap of {settings['bootstrap']} resamples of the test patients instead.",
        "SD and its rivals are those of medsd.sd; two empty label sets count as equal for all. SupCon, with each label "
        "set as a class, is ALL, so the two have the same figures; SD with its weight inside the logarithm has the "
        "gradient of ANY.",
    ]
    return "## How it was done\n\n" + "\n".join(f"- {line}" for line in lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others stand right."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    ruler = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join([line(columns), line(ruler), *map(line, rows)])


def _interval(found: dict[str, Any], sign: bool = False) -> str:
    if found["mean"] is None:
        return "too few"
    mean = f"{found['mean']:+.3f}" if sign else f"{found['mean']:.3f}"
    return mean if found["low"] is None else f"{mean} ({found['low']:.3f} to {found['high']:.3f})"


def _test(test: dict[str, Any]) -> str:
    if test["difference"]["mean"] is None:
        return "too few"
    p = "p < 0.001" if test["p_holm"] < 0.001 else f"p = {test['p_holm']:.3f}"
    text = f"{test['difference']['mean']:+.3f} ({p})"
    return text if test["verdict"] == "ties" else f"**{text}**"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _values(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _percent(summary: Summary) -> str:
    return f"{100 * summary['settings']['confidence']:g} %"
