"""Pictures of a space by relation, on embeddings whose cosines and relations are known."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba

from medsd.errors import DataError
from medsd.evaluation.plots import BLUE, GREEN, ORANGE
from medsd.evaluation.space import BINS, draw_anchor_map, draw_cosines, draw_panels, draw_space, survey
from medsd.sd.relations import Relation

# {0, 1}, the same, {1, 2}, {3}, {0, 1, 2}: the cosine of two rows is |S∩T| / √(|S||T|)
LABELS = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 0]], dtype=float)
PLACES = np.arange(10.0).reshape(5, 2)


def test_pairs_are_counted_by_relation_with_their_cosines() -> None:
    space = survey(LABELS * 7, LABELS, coordinates=PLACES)
    assert space.counts.tolist() == [4, 1, 2, 3]  # disjoint, equal, overlap, superset or subset
    np.testing.assert_allclose(space.means, [0, 1, 0.5, 2 / np.sqrt(6)])
    np.testing.assert_allclose(space.shares.sum(1), 1)
    middles = (np.arange(BINS) + 0.5) * 2 / BINS - 1
    np.testing.assert_allclose(space.shares @ middles, space.means, atol=1 / BINS)


def test_the_anchor_is_the_sample_with_the_most_various_neighbours_or_the_chosen_one() -> None:
    found, chosen = survey(LABELS, LABELS, coordinates=PLACES), survey(LABELS, LABELS, anchor=4, coordinates=PLACES)
    assert found.anchor == 0 and [Relation(r).name for r in found.relations[1:]] == [
        "EQUAL", "OVERLAP", "DISJOINT", "SUPERSET"
    ]  # fmt: skip
    assert chosen.anchor == 4 and [Relation(r).name for r in chosen.relations[:4]] == [
        "SUBSET", "SUBSET", "SUBSET", "DISJOINT"
    ]  # fmt: skip


def test_pairs_of_which_too_little_is_known_are_in_no_distribution() -> None:
    labels = LABELS.copy()
    labels[3] = np.nan
    space = survey(LABELS, labels, coordinates=PLACES)
    assert space.counts.tolist() == [0, 1, 2, 3] and np.isnan(space.means[0]) and not space.shares[0].any()
    assert space.relations[3] == Relation.UNDETERMINED
    assert "too little known" in draw_space(LABELS, labels, coordinates=PLACES).axes[1].get_legend_handles_labels()[1]


def test_the_picture_shows_each_sample_at_its_place_in_the_colour_of_its_relation() -> None:
    figure = draw_space(LABELS, LABELS, coordinates=PLACES, title="Mine")
    cosines, map_ = figure.axes
    assert figure.get_suptitle() == "Mine"
    assert "R3 overlap, mean +0.50" in cosines.get_legend_handles_labels()[1]
    clouds = {str(cloud.get_label()): cloud for cloud in map_.collections if isinstance(cloud, PathCollection)}
    assert set(clouds) == {"R1 disjoint", "R2 equal", "R3 overlap", "R4 superset", "anchor"}
    for label, row, colour in (("R3 overlap", 2, ORANGE), ("R4 superset", 4, BLUE), ("anchor", 0, "black")):
        np.testing.assert_array_equal(clouds[label].get_offsets(), PLACES[[row]])
        assert tuple(clouds[label].get_facecolor()[0]) == to_rgba(colour)
    subsets = draw_space(LABELS, LABELS, anchor=4, coordinates=PLACES).axes[1].collections[1]
    assert subsets.get_label() == "R5 subset" and tuple(subsets.get_facecolor()[0]) == to_rgba(GREEN)


def test_a_large_space_is_drawn_in_part_the_same_part_each_time_and_always_with_the_anchor() -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(300, 6)), rng.random((300, 4)) < 0.4
    first, second = (survey(vectors, labels, anchor=77, method="pca", most=40) for _ in range(2))
    np.testing.assert_array_equal(first.points, second.points)
    assert len(first.points) == 40 and first.counts.sum() == 40 * 39 / 2
    assert first.relations[first.anchor] == Relation.EQUAL


def test_the_map_is_laid_out_where_there_is_none() -> None:
    """Two clusters stay apart in both projections."""
    vectors = np.repeat(np.eye(2, 5), 20, axis=0) + np.random.default_rng(0).normal(0, 0.05, (40, 5))
    labels = np.repeat(np.eye(2), 20, axis=0)
    for points in (survey(vectors, labels, method="pca").points, survey(vectors, labels).points):
        centres = points[:20].mean(0), points[20:].mean(0)
        assert np.linalg.norm(points[:20] - centres[0], axis=1).max() < np.linalg.norm(centres[0] - centres[1])


@pytest.mark.parametrize("panel", [draw_cosines, draw_anchor_map])
def test_spaces_stand_side_by_side_with_one_legend(panel) -> None:
    space = survey(LABELS, LABELS, coordinates=PLACES)
    figure = draw_panels(dict.fromkeys("abcdefg", space), panel, "Seven")
    assert [axes.get_title() for axes in figure.axes[:7]] == list("abcdefg") and not figure.axes[7].axison
    (legend,) = figure.legends
    assert "R2 equal" in [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[1:]}, r"embeddings \(5, 4\) and labels \(4, 4\)"),
        ({"embeddings": LABELS * np.nan}, "finite"),
        ({"labels": LABELS + 1}, r"in \[0, 1\]"),
        ({"coordinates": PLACES[1:]}, r"coordinates have shape \(4, 2\)"),
        ({"anchor": 5}, "anchor is 5"),
    ],
)
def test_what_does_not_fit_is_named(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw_space(**{"embeddings": LABELS, "labels": LABELS, "coordinates": PLACES, **change})
