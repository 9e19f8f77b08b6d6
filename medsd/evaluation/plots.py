"""The plots of the card: ROC, precision-recall, calibration, a map of the learned space, prevalences.

Start at `write_plots`. Everything is drawn without a display, to PNG files of a limited palette that stay small.
"""

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from medsd.calibration.fit import Reliability, reliability
from medsd.errors import DataError
from medsd.findings import FindingSet
from medsd.metrics import metrics
from medsd.metrics.metrics import FloatArray

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#BBBBBB"  # Okabe and Ito 2008
_COLOURS = 48  # of the PNG's palette
_DPI = 100
STYLE: Any = {"font.size": 9.0, "axes.titlesize": 9.0, "figure.titlesize": 11.0}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
_MAP_POINTS = 2000  # more of them hide each other


def write_plots(
    folder: Path,
    findings: FindingSet,
    target: npt.ArrayLike,
    probs: npt.ArrayLike,
    *,
    before: npt.ArrayLike | None = None,
    coordinates: npt.ArrayLike | None = None,
    splits: Mapping[str, npt.ArrayLike] | None = None,
    minimum_positives: int = 10,
) -> tuple[Path, ...]:
    """Draw every plot for which there is something to draw, and return their files.

    Args:
        target, probs: (N, F) 1, 0 or NaN; (N, F) calibrated, NaN for a finding that was not trained.
        before: (N, F) probabilities before calibration, for comparison.
        coordinates: (N, 2) of the same images, from `project`; without them there is no map.
        splits: (n, F) targets by name of split, for the prevalences; only this split when None.
        minimum_positives: findings with fewer positives or negatives have no curve.
    """
    labels, said = np.asarray(target, dtype=np.float64), np.asarray(probs, dtype=np.float64)
    silent = np.isnan(said).all(axis=0)
    trained, kept = findings.without(np.array(findings.names)[silent]), ~silent
    truth, said = metrics.checked(labels[:, kept], said[:, kept])
    before = None if before is None else np.asarray(before)[:, kept]
    folder.mkdir(parents=True, exist_ok=True)
    plots = {
        "roc.png": draw_roc(trained, truth, said, minimum_positives=minimum_positives),
        "precision_recall.png": draw_precision_recall(trained, truth, said, minimum_positives=minimum_positives),
        "calibration.png": draw_calibration(trained, truth, said, before),
        "prevalence.png": draw_prevalence(findings, splits or {"this split": labels}),
    }
    if coordinates is not None:
        plots["map.png"] = draw_map(findings, labels, coordinates)
    for name, figure in plots.items():
        save_png(figure, folder / name)
    return tuple(folder / name for name in plots)


def project(embeddings: npt.ArrayLike, method: Literal["tsne", "pca"] = "tsne", *, seed: int = 0) -> FloatArray:
    """Coordinates (N, 2) of embeddings (N, D) for the map, by t-SNE of cosines (van der Maaten and Hinton 2008) or PCA.

    Raises DataError: fewer than three embeddings, or one that is not finite.
    """
    vectors = np.asarray(embeddings, dtype=np.float64)
    if vectors.ndim != 2 or min(vectors.shape) < 2 or len(vectors) < 3 or not np.isfinite(vectors).all():
        raise DataError(
            f"embeddings {vectors.shape}: a map needs three or more finite vectors of two or more dimensions"
        )
    if method == "pca":
        return PCA(2, random_state=seed).fit_transform(vectors)
    tsne = TSNE(2, perplexity=min(30, (len(vectors) - 1) / 3), metric="cosine", init="pca", random_state=seed)
    return np.asarray(tsne.fit_transform(vectors), dtype=np.float64)


def draw_roc(findings: FindingSet, target: FloatArray, probs: FloatArray, *, minimum_positives: int = 10) -> Figure:
    """One ROC curve a panel, AUROC in its corner."""

    def curve(axes: Axes, truth: FloatArray, probability: FloatArray) -> None:
        false_rate, true_rate, _ = roc_curve(truth, probability)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        axes.plot(false_rate, true_rate, color=BLUE)
        _note(axes, f"AUROC {roc_auc_score(truth, probability):.2f}", 0.97, 0.05, "right", "bottom")

    return _panels(findings, target, probs, minimum_positives, curve, "ROC", "1 − specificity", "sensitivity")


def draw_precision_recall(
    findings: FindingSet, target: FloatArray, probs: FloatArray, *, minimum_positives: int = 10
) -> Figure:
    """One precision-recall curve a panel, with the prevalence (what guessing gives) as a dashed line."""

    def curve(axes: Axes, truth: FloatArray, probability: FloatArray) -> None:
        precision, recall, _ = precision_recall_curve(truth, probability)
        axes.axhline(float(truth.mean()), color=GREY, linewidth=1, linestyle="--")
        axes.plot(recall, precision, color=BLUE, drawstyle="steps-post")
        _note(axes, f"AP {average_precision_score(truth, probability):.2f}", 0.97, 0.93, "right", "top")

    names = ("Precision and recall", "recall (sensitivity)", "precision (PPV)")
    return _panels(findings, target, probs, minimum_positives, curve, *names)


def draw_calibration(
    findings: FindingSet, target: FloatArray, probs: FloatArray, before: npt.ArrayLike | None = None
) -> Figure:
    """Reliability over all findings together, before and after calibration, above how often each probability occurs."""
    known = int((~np.isnan(target)).sum())
    curves = {"calibrated": (reliability(target, probs), BLUE, "o-")}
    if before is not None:
        curves["before"] = (reliability(target, before), ORANGE, "s--")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.5, 6.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="perfect")
        for label, (curve, colour, line) in curves.items():
            upper.plot(curve.predicted, curve.observed, line, color=colour, label=label, markersize=5)
            _bars(upper, curve, colour)
        edges = np.linspace(0, 1, metrics.BINS + 1)
        lower.hist(probs[~np.isnan(target)], bins=edges.tolist(), color=BLUE, rwidth=0.9)
        lower.set(xlabel="probability", ylabel="labels", yscale="log", xlim=(0, 1))
        upper.set(ylabel="share that has the finding", ylim=(0, 1))
        upper.legend(loc="upper left", frameon=False)
        figure.suptitle(f"Calibration, {len(findings)} findings together\n{len(target)} images, {known} known labels")
    return figure


def draw_map(findings: FindingSet, target: FloatArray, coordinates: npt.ArrayLike) -> Figure:
    """The learned space in two dimensions, once for each finding: its cases over all others."""
    points = np.asarray(coordinates, dtype=np.float64)
    if points.shape != (len(target), 2):
        raise DataError(f"coordinates have shape {points.shape}; the map needs ({len(target)}, 2)")
    shown = np.random.default_rng(0).permutation(len(points))[:_MAP_POINTS]

    def cloud(axes: Axes, truth: FloatArray, column: FloatArray) -> None:
        del column
        there = truth[shown] == 1
        for members, size, colour in ((~there, 3, GREY), (there, 7, VERMILION)):
            across, up = points[shown][members].T
            axes.scatter(across, up, s=size, color=colour, linewidths=0)
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.set_frame_on(False)

    normal = np.where(np.isnan(target).any(1) & ~(target == 1).any(1), np.nan, (target == 1).sum(1) == 0)
    extended = np.column_stack([target, normal])
    titles = [*(finding.title for finding in findings.findings), "None of these"]
    figure = _grid(titles, extended, extended, cloud, np.ones(len(titles), dtype=bool))
    more = f", {len(shown)} of them drawn" if len(shown) < len(points) else ""
    figure.suptitle(f"The learned space: cases with a finding (orange) among all {len(points)} images{more}")
    return figure


def draw_prevalence(findings: FindingSet, splits: Mapping[str, npt.ArrayLike]) -> Figure:
    """Share of the known labels that are positive, for each finding and split, with the positives in figures."""
    colours = (BLUE, ORANGE, GREEN, VERMILION)
    height = 0.8 / len(splits)
    with mpl.rc_context(STYLE):
        height_inches = 1.3 + len(findings) * max(0.3, 0.17 * len(splits))
        figure = Figure(figsize=(7.5, height_inches), layout="constrained")
        axes = figure.subplots()
        for s, (name, labels) in enumerate(splits.items()):
            truth = np.asarray(labels, dtype=np.float64)
            positives, negatives = metrics.class_counts(truth)
            share = positives / np.maximum(positives + negatives, 1)
            places = np.arange(len(findings)) + (s - (len(splits) - 1) / 2) * height
            bars = axes.barh(places, share, height * 0.9, color=colours[s % 4], label=f"{name} (n = {len(truth)})")
            axes.bar_label(bars, [str(p) for p in positives], padding=2, fontsize=7)
        axes.set_yticks(np.arange(len(findings)), [finding.title for finding in findings.findings])
        axes.invert_yaxis()
        axes.set_xlabel("share of the images with a known label; figures: positive images")
        axes.margins(y=0.01)
        figure.legend(frameon=False, loc="outside lower center", ncols=len(splits))
        figure.suptitle("How often each finding occurs")
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write `figure` as a PNG with a palette; the bytes depend on nothing but the picture."""
    drawn = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(drawn, format="png", dpi=_DPI)
    with Image.open(drawn) as picture:
        flat = picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    flat.save(path, format="PNG", optimize=True)


Panel = Callable[[Axes, FloatArray, FloatArray], None]


def _panels(
    findings: FindingSet, target: FloatArray, probs: FloatArray, minimum: int, draw: Panel, title: str, x: str, y: str
) -> Figure:
    """A panel for each finding, of its known cases."""

    def known_only(axes: Axes, truth: FloatArray, probability: FloatArray) -> None:
        known = ~np.isnan(truth)
        draw(axes, truth[known], probability[known])

    titles, told = [finding.title for finding in findings.findings], metrics.enough(target, minimum)
    figure = _grid(titles, target, probs, known_only, told, x, y, unit=(-0.02, 1.02))
    figure.suptitle(f"{title}, n = {len(target)} images (above each panel: positive of known labels)")
    return figure


def _grid(
    titles: list[str],
    target: FloatArray,
    values: FloatArray,
    draw: Panel,
    told: metrics.BoolArray,
    x: str = "",
    y: str = "",
    unit: tuple[float, float] | None = None,
) -> Figure:
    columns = 5 if len(titles) > 8 else 4
    rows = math.ceil(len(titles) / columns)
    positives, negatives = metrics.class_counts(target)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.05 * columns, 2.15 * rows + 0.6), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(titles) :]:
            axes.set_axis_off()
        for f, (axes, title) in enumerate(zip(grid.flat, titles, strict=False)):
            axes.set_title(f"{title}\n{positives[f]} of {positives[f] + negatives[f]}")
            if unit is not None:
                axes.set(xlim=unit, ylim=unit, xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            if told[f]:
                draw(axes, target[:, f], values[:, f])
            else:
                _note(axes, "too few to tell", 0.5, 0.5, "center", "center")
        figure.supxlabel(x, fontsize=9)
        figure.supylabel(y, fontsize=9)
    return figure


def _bars(axes: Axes, curve: Reliability, colour: str) -> None:
    """95 % intervals of the observed shares (Wilson 1927), which labels of one patient make too narrow."""
    n, p, z = np.array(curve.counts), np.array(curve.observed), 1.96
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    axes.vlines(curve.predicted, middle - half, middle + half, color=colour, linewidth=1)


def _note(axes: Axes, text: str, x: float, y: float, across: str, up: str) -> None:
    axes.text(x, y, text, transform=axes.transAxes, ha=across, va=up)
