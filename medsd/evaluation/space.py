"""Pictures of a learned space by relation: how similar two samples are, and where those of one anchor lie.

Start at `draw_space`. It takes any embeddings with their labels; nothing needs to come from medsd.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medsd.errors import DataError
from medsd.evaluation.plots import BLUE, GREEN, GREY, ORANGE, STYLE, VERMILION, project
from medsd.metrics.metrics import FloatArray
from medsd.metrics.retrieval import unit
from medsd.sd.relations import Relation, relation_matrix

SPACE = "space.png"  # among the plots of a bundle
BINS = 40  # of the cosine, from −1 to 1
_EDGES = np.linspace(-1, 1, BINS + 1)
# A superset seen from the other sample is a subset, so that both have the same cosines.
PAIRS: Mapping[str, tuple[Relation, ...]] = {
    "R1 disjoint": (Relation.DISJOINT,),
    "R2 equal": (Relation.EQUAL,),
    "R3 overlap": (Relation.OVERLAP,),
    "R4 superset or R5 subset": (Relation.SUPERSET, Relation.SUBSET),
}
_COLOURS: Mapping[Relation, str] = {
    Relation.UNDETERMINED: "#EEEEEE",
    Relation.DISJOINT: GREY,
    Relation.EQUAL: VERMILION,
    Relation.OVERLAP: ORANGE,
    Relation.SUPERSET: BLUE,
    Relation.SUBSET: GREEN,
}


@dataclass(frozen=True)
class Space:
    """What is drawn of a space, for P of its samples."""

    counts: npt.NDArray[np.int64]  # (4,) pairs of two samples in each of `PAIRS`
    shares: FloatArray  # (4, BINS) of these pairs by their cosine; 0 where there is no pair
    means: FloatArray  # (4,) mean cosine, NaN where there is no pair
    points: FloatArray  # (P, 2) the map
    relations: npt.NDArray[np.int8]  # (P,) `Relation` of each sample to the anchor
    anchor: int  # row of the anchor among the points


def draw_space(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    anchor: int | None = None,
    method: Literal["tsne", "pca"] = "tsne",
    coordinates: npt.ArrayLike | None = None,
    title: str = "The learned space by relation",
) -> Figure:
    """The cosines of pairs by their relation, beside a map coloured by the relation to one anchor.

    Of more than 2,000 samples so many are drawn at random, the same each time.

    Args:
        embeddings: (N, D) of any length.
        labels: (N, F) in [0, 1], or NaN where unknown.
        anchor: its row; by default the sample to which the others are related most variously.
        method: how the map is laid out; distances on it are not those of the space.
        coordinates: (N, 2) a map that is there already.
        title: above the picture.

    Raises:
        DataError: fewer than three samples, shapes that do not fit, or values out of range.

    Example:
        >>> embeddings = np.random.default_rng(0).normal(size=(40, 8))
        >>> draw_space(embeddings, embeddings[:, :3] > 0, method="pca").savefig("space.png")  # doctest: +SKIP
    """
    space = survey(embeddings, labels, anchor=anchor, method=method, coordinates=coordinates)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_cosines(left, space)
        left.set(xlabel="cosine of two samples", ylabel="share of the pairs")
        left.legend(frameon=False)
        draw_anchor_map(right, space)
        right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        figure.suptitle(title)
    return figure


def survey(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    anchor: int | None = None,
    method: Literal["tsne", "pca"] = "tsne",
    coordinates: npt.ArrayLike | None = None,
    most: int = 2000,
) -> Space:
    """The figures behind `draw_space`, of at most `most` samples, which are drawn at random but always the same."""
    vectors, sets = np.asarray(embeddings, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    given = None if coordinates is None else np.asarray(coordinates, dtype=np.float64)
    if vectors.ndim != 2 or sets.ndim != 2 or len(vectors) != len(sets) or not np.isfinite(vectors).all():
        raise DataError(
            f"embeddings {vectors.shape} and labels {sets.shape} need a row of finite numbers each, a sample"
        )
    if given is not None and given.shape != (len(vectors), 2):
        raise DataError(f"coordinates have shape {given.shape}; the map needs ({len(vectors)}, 2)")
    if anchor is not None and not 0 <= anchor < len(vectors):
        raise DataError(f"anchor is {anchor}; it is the row of one of {len(vectors)} samples")
    rows = np.sort(np.random.default_rng(0).permutation(len(vectors))[:most])
    if anchor is not None and anchor not in rows:
        rows[0] = anchor
    points = project(vectors[rows], method) if given is None else given[rows]
    relation = relation_matrix(sets[rows])
    at = most_various(relation) if anchor is None else int(np.flatnonzero(rows == anchor)[0])
    return Space(*_cosines(vectors[rows], relation), points, relation[at], at)


def most_various(relation: npt.NDArray[np.int8]) -> int:
    """The row of relations (N, N) with many samples in each of the five; of equal ones the first."""
    counts = np.array([(relation == each).sum(1) for each in Relation if each is not Relation.UNDETERMINED])
    return int(np.log1p(counts).sum(0).argmax())


def _cosines(
    vectors: FloatArray, relation: npt.NDArray[np.int8]
) -> tuple[npt.NDArray[np.int64], FloatArray, FloatArray]:
    """Number, distribution and mean of the cosines of two different samples, for each of `PAIRS`."""
    first, second = np.triu_indices(len(vectors), 1)
    placed = unit(vectors)
    cosine, related = (placed @ placed.T)[first, second].clip(-1, 1), relation[first, second]
    counts, shares, means = np.zeros(len(PAIRS), np.int64), np.zeros((len(PAIRS), BINS)), np.full(len(PAIRS), np.nan)
    for row, relations in enumerate(PAIRS.values()):
        found = cosine[np.isin(related, relations)]
        if found.size:
            counts[row], means[row] = found.size, found.mean()
            shares[row] = np.histogram(found, _EDGES)[0] / found.size
    return counts, shares, means


Panel = Callable[[Axes, Space], None]


def draw_cosines(axes: Axes, space: Space) -> None:
    """The distribution of the cosines of each kind of pair, with its mean in the legend."""
    for row, (title, relations) in enumerate(PAIRS.items()):
        if space.counts[row]:
            axes.stairs(space.shares[row], _EDGES, color=_COLOURS[relations[0]], linewidth=1.5,
                        label=f"{title}, mean {space.means[row]:+.2f}")  # fmt: skip


def draw_anchor_map(axes: Axes, space: Space) -> None:
    """The map, each sample in the colour of its relation to the anchor, which is a star."""
    for relation, colour in _COLOURS.items():
        members = space.relations == relation
        members[space.anchor] = False
        if members.any():
            across, up = space.points[members].T
            known = f"R{relation.value} {relation.name.lower()}" if relation else "too little known"
            axes.scatter(across, up, s=8, color=colour, linewidths=0, label=known)
    x, y = space.points[space.anchor]
    axes.scatter(x, y, s=90, color="black", marker="*", label="anchor")
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", "datalim")
    axes.set_frame_on(False)


def draw_panels(spaces: Mapping[str, Space], panel: Panel, title: str) -> Figure:
    """The same panel for several spaces, each with its name; one legend for all."""
    columns = min(5, len(spaces))
    rows = -(-len(spaces) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.2 * columns, 2.2 * rows + 0.9), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=panel is draw_cosines, sharey=panel is draw_cosines, squeeze=False)
        handles: dict[str, Any] = {}
        for axes in grid.flat[len(spaces) :]:
            axes.set_axis_off()
        for axes, (name, space) in zip(grid.flat, spaces.items(), strict=False):
            panel(axes, space)
            axes.set_title(name)
            handles |= {
                label.partition(",")[0]: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
            }
        figure.legend(list(handles.values()), list(handles), frameon=False, loc="outside lower center", ncols=6)
        figure.suptitle(title)
    return figure
