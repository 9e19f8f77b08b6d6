"""The plots of a comparison: metrics with intervals, frequency groups, relations of the neighbours, spaces."""

from itertools import cycle, product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from medsd.evaluation.plots import BLUE, GREEN, GREY, ORANGE, STYLE, VERMILION, save_png
from medsd.evaluation.space import Space, draw_anchor_map, draw_cosines, draw_panels
from medsd.experiments.compare.measured import GROUPS, MAIN
from medsd.experiments.compare.summary import SetResult, Summary

# Okabe and Ito first
_COLOURS = (BLUE, VERMILION, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#000000", "#888800", "#7F7F7F")
RELATION_TITLES = ("R1 disjoint", "R2 equal", "R3 overlap", "R4 superset", "R5 subset")


def write_plots(folder: Path, summary: Summary, of_set: Summary, result: SetResult) -> dict[str, str]:
    """Draw the plots of a set; returns their file names by kind."""
    comparison, of = summary["name"], of_set["name"]
    stem = of if comparison == of else f"{comparison}-{of}"  # reports of several comparisons may share a folder
    spaces = {}
    for loss, cells in result.cells.items():
        found = cells[0]["space"]  # whose arrays are lists
        arrays: Any = {name: each if name == "anchor" else np.array(each, np.float64) for name, each in found.items()}
        spaces[summary["titles"][loss]] = Space(**arrays)
    with mpl.rc_context(STYLE):
        drawn = {
            "metrics": draw_metrics(summary, of_set),
            "frequency": draw_frequency(summary, of_set),
            "relations": draw_relations(summary, of_set),
            "cosines": draw_panels(
                spaces, draw_cosines, f"{of_set['title']}\ncosines of two test samples, by relation"
            ),
            "spaces": draw_panels(
                spaces, draw_anchor_map, f"{of_set['title']}\ntest samples by relation to one anchor"
            ),
        }
        names = {kind: f"{stem}-{kind}.png" for kind in drawn}
        for kind, figure in drawn.items():
            save_png(figure, folder / names[kind])
    return names


def draw_metrics(summary: Summary, of_set: Summary) -> Figure:
    """Each main metric as a panel, each loss as a dot with its interval over the seeds."""
    figure = Figure(figsize=(11.0, 2.2 + 0.3 * len(of_set["losses"])), layout="constrained")
    for axes, metric in zip(figure.subplots(2, 4, sharey=True).flat, MAIN, strict=True):
        _dots(axes, summary, of_set, metric)
        axes.set_title(summary["metrics"][metric])
        if metric in of_set["random"]:
            axes.axvline(of_set["random"][metric], color=GREY, linewidth=1, linestyle="--")
    percent = f"{100 * summary['settings']['confidence']:g} %"
    figure.suptitle(f"{of_set['title']}\nmean and {percent} interval over the seeds (dashed: random order)")
    return figure


def draw_frequency(summary: Summary, of_set: Summary) -> Figure:
    """Mean average precision of head, middle and tail findings."""
    figure = Figure(figsize=(9.0, 1.2 + 0.2 * len(of_set["losses"])), layout="constrained")
    for axes, group in zip(figure.subplots(1, 3, sharey=True), GROUPS, strict=True):
        _dots(axes, summary, of_set, f"map_{group}")
        axes.set_title(f"mAP, {group} ({len(of_set['groups'][group])} findings)")
    figure.suptitle(f"{of_set['title']}\nfindings by their frequency in the training part")
    return figure


def draw_relations(summary: Summary, of_set: Summary) -> Figure:
    """The share of the first k neighbours in each relation, for k from 1."""
    relations = of_set["relations"]
    figure = Figure(figsize=(9.0, 2.8 + 0.05 * len(relations["found"])), layout="constrained")
    panels = figure.subplots(1, 5, sharex=True)
    for row, (axes, title) in enumerate(zip(panels, RELATION_TITLES, strict=True)):
        lines = product(("-", "--", "-."), _COLOURS)
        for (line, colour), (loss, found) in zip(cycle(lines), relations["found"].items(), strict=False):
            shares = found[row]
            is_reference = loss == summary["settings"]["reference"]
            axes.plot(range(1, len(shares) + 1), shares, line, color=colour, linewidth=2.2 if is_reference else 1.0,
                      label=summary["titles"][loss] if row == 0 else None)  # fmt: skip
        ideal = relations["ideal"][row]
        axes.plot(range(1, len(ideal) + 1), ideal, color=GREY, linestyle=":", label="ideal" if row == 0 else None)
        axes.axhline(relations["random"][row], color=GREY, linestyle="--", linewidth=1,
                     label="random" if row == 0 else None)  # fmt: skip
        axes.set_title(title)
        axes.set_xlabel("first k")
    panels[0].set_ylabel("share of the neighbours")
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    figure.suptitle(f"{of_set['title']}\nrelations of the neighbours' label sets to the query's")
    return figure


def _dots(axes: Any, summary: Summary, of_set: Summary, metric: str) -> None:
    """A row for each loss, the reference in a colour of its own."""
    losses = list(of_set["losses"])
    rows = np.arange(len(losses))[::-1]
    for row, loss in zip(rows, losses, strict=True):
        found = of_set["losses"][loss]["means"][metric]
        if found["mean"] is None:
            continue
        colour = VERMILION if loss == summary["settings"]["reference"] else BLUE
        if found["low"] is not None:
            axes.plot([found["low"], found["high"]], [row, row], color=colour, linewidth=1.5)
        axes.plot([found["mean"]], [row], "o", color=colour, markersize=4)
    axes.set_yticks(rows, [summary["titles"][loss] for loss in losses])
