"""Whether the embedding tells which source an image comes from, among images with the same labels and view.

Sources differ in sharpness, noise and how their images were picked. A network that recognises the source can guess the
findings that are more common there. Start at `measure_sources`; the report is `evaluation_sources.json` of a bundle.
"""

from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.evaluation.saved import Measured
from medsd.metrics.intervals import Interval, IntervalOptions, bootstrap
from medsd.metrics.metrics import FloatArray, ratio, weighted_auroc
from medsd.metrics.two_samples import cross_validated_scores
from medsd.strict import Described

SOURCES = "evaluation_sources.json"
LIMIT = 0.6  # AUROC above which a source can be told
ENOUGH = 50  # patients of each source among held-out images; with fewer, training images are taken too
MOST_IMAGES = 4000  # of a source in a pair
_MOST_SOURCES = 8  # the largest; a merge of more would make too many pairs
_FEW = 10  # patients of each source in a group of equal labels and view; and over all groups, for a figure at all

Over = Literal["held-out images", "all images"]


class SourcePair(Described):
    """Two sources, in the `groups` of equal labels and view that have enough images of both.

    `told` is the AUROC of telling the second from the first by the embedding, within groups; 0.5 where they look alike.
    `told_coarsely` is the same by 8 × 8 mean greys, which no sharpness changes: as far as this goes, the images
    themselves differ, by how they were picked, exposed or cropped.
    """

    sources: tuple[str, str]
    over: Over  # all images where the held-out ones are too few of either source; the network has learned from most
    images: tuple[int, int]  # of each
    patients: tuple[int, int]
    groups: int
    told: Interval
    told_coarsely: Interval

    @property
    def above(self) -> bool:
        """Whether the sources can be told apart."""
        return self.told.value is not None and self.told.value > LIMIT

    @property
    def sentence(self) -> str:
        """What the figures say."""
        names = f"images of {self.sources[0]} from those of {self.sources[1]}"
        if not self.above:
            return f"The embedding does not tell {names}: AUROC {self.told}, limit {LIMIT:g}."
        coarse = self.told_coarsely.value is not None and self.told_coarsely.value > LIMIT
        return (
            f"The embedding tells {names} that have the same labels and view: AUROC {self.told}, limit {LIMIT:g}. A "
            "finding that is commoner in one of them may be read off the source. Mean greys of 8 × 8 blocks, in which "
            f"no sharpness is left, tell them with {self.told_coarsely}: "
            + (
                "the images differ in more than sharpness."
                if coarse
                else "sharpness tells them; see training.hide_sources."
            )
        )


class SourcesReport(Measured):
    """The whole of evaluation_sources.json: every pair of sources that has enough images to tell."""

    limit: float
    seed: int
    pairs: tuple[SourcePair, ...]


def measure_sources(
    table: pd.DataFrame,
    labels: npt.NDArray[np.floating],
    embeddings: npt.NDArray[np.floating],
    pixels: npt.NDArray[np.uint8],
    options: IntervalOptions,
) -> SourcesReport | None:
    """How well sources are told apart, pair by pair; None where no two have enough images of the same labels and view.

    A logistic regression on standardised embeddings, in five parts that divide no patient; each image is scored by the
    fit on the other four. Images are compared within groups of equal labels (unknown is a value, too) and view, and in
    the fit both sources weigh the same in every group.

    `table` has N rows of a manifest; what is not in training is held out. `labels` (N, F) are 1, 0 or NaN, `embeddings`
    (N, D), and `pixels` uint8 (N, S, S) as the network sees them, read where they are needed.
    """
    known = np.where(np.isnan(labels), -1, labels).astype(np.int8)
    views = table["view"].fillna("")
    images = pd.DataFrame(
        {
            "source": table["source"],
            "group": [f"{view} {row.tobytes().hex()}" for view, row in zip(views, known, strict=True)],
            "patient": table["patient"],
            "held": table["split"] != "train",
        }
    ).reset_index(drop=True)
    images = images[table["path"].notna().to_numpy()]
    largest = sorted(images["source"].value_counts().index[:_MOST_SOURCES])
    pairs = []
    for first, second in combinations(largest, 2):
        over: Over = "held-out images"
        pair = _pair(images[images["held"]], first, second)
        if min(_count(pair, "patient")) < ENOUGH:
            over, pair = "all images", _pair(images, first, second)
        if min(_count(pair, "patient")) >= _FEW:
            rows = pair.index.to_numpy()
            pairs.append(
                SourcePair(
                    sources=(first, second),
                    over=over,
                    images=_count(pair, "row"),
                    patients=_count(pair, "patient"),
                    groups=pair["group"].nunique(),
                    told=_tell(pair, embeddings[rows], options),
                    told_coarsely=_tell(pair, _blocks(pixels[rows]), options),
                )
            )
    return SourcesReport.of(options, limit=LIMIT, pairs=tuple(pairs)) if pairs else None


def _pair(images: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Images of two sources, `second` where it is the second, in groups that have `_FEW` patients of both."""
    parts = [images[images["source"] == name].iloc[_spread(images["source"] == name)] for name in (first, second)]
    both = pd.concat(parts).assign(second=lambda part: part["source"] == second)
    patients = both.groupby(["group", "second"])["patient"].nunique().unstack(fill_value=0)
    fewer = patients.reindex(columns=[False, True], fill_value=0).min(axis=1)
    return both[both["group"].isin(fewer.index[fewer >= _FEW])]


def _count(pair: pd.DataFrame, what: Literal["row", "patient"]) -> tuple[int, int]:
    """Images or patients of each source."""
    parts = [pair[pair["second"] == one] for one in (False, True)]
    first, second = (len(part) if what == "row" else part["patient"].nunique() for part in parts)
    return first, second


def _tell(pair: pd.DataFrame, features: npt.NDArray[np.floating], options: IntervalOptions) -> Interval:
    """AUROC within groups of telling the second source by features (n, D)."""
    second, (_, group) = pair["second"].to_numpy(), np.unique(pair["group"], return_inverse=True)
    cells = np.bincount(2 * group + second, minlength=2 * (group.max() + 1)).reshape(-1, 2)
    smaller = cells.min(axis=1)  # what a group weighs
    truth, patients = second.astype(np.float64), pair["patient"].to_numpy(dtype=str)
    weights = (smaller[:, None] / cells)[group, second.astype(int)]
    scores = cross_validated_scores(features, truth, patients=patients, weights=weights)
    members = [np.flatnonzero(group == one) for one in range(len(cells))]

    def within(weights: FloatArray) -> FloatArray:
        areas = np.stack([weighted_auroc(truth[m], scores[m], weights[:, m]) for m in members], axis=1)
        drawn_at_all = ~np.isnan(areas)
        return ratio(np.where(drawn_at_all, areas, 0) @ smaller, drawn_at_all @ smaller)[:, None]

    drawn, cases = options.draw(patients), min(_count(pair, "patient"))
    (area,) = bootstrap(within, drawn, options.confidence, (0, 1), cases)
    return area


def _spread(chosen: pd.Series) -> npt.NDArray[np.int64]:
    """At most `MOST_IMAGES` of the rows that are chosen, at even distances."""
    count = int(chosen.sum())
    return np.unique(np.linspace(0, count - 1, min(count, MOST_IMAGES)).astype(np.int64)) if count else np.arange(0)


def _blocks(pixels: npt.NDArray[np.uint8], side: int = 8) -> FloatArray:
    """Mean greys of images (N, S, S) in side × side blocks, (N, side²); S is a multiple of 32 (`PixelSpec.size`)."""
    step = pixels.shape[1] // side
    return pixels.reshape(len(pixels), side, step, side, step).mean(axis=(2, 4)).reshape(len(pixels), -1)
