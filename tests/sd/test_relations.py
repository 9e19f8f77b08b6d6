"""The five relations and the two factors, checked against Python's own sets."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medsd.errors import DataError
from medsd.sd import relations
from medsd.sd.relations import (
    LabelPairs,
    Relation,
    dissimilarity_factor,
    inverse_frequency_weights,
    relation_matrix,
    similarity_factor,
)

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7)
hard = hnp.arrays(np.float64, SHAPES, elements=st.sampled_from([0.0, 1.0]))
unknowns = hnp.arrays(np.float64, SHAPES, elements=st.sampled_from([0.0, 1.0, np.nan]))
soft = hnp.arrays(np.float64, SHAPES, elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, np.nan]))
quick = settings(max_examples=60, deadline=None)


def relation_of_sets(anchor: np.ndarray, sample: np.ndarray) -> Relation:
    """The definition, said with sets: over the findings known on both sides, or undetermined."""
    known = {f for f in range(len(anchor)) if not (np.isnan(anchor[f]) or np.isnan(sample[f]))}
    s_all, t_all = ({f for f, value in enumerate(row) if value == 1} for row in (anchor, sample))
    s, t = s_all & known, t_all & known
    if not known or (not s and not t and (s_all or t_all)):
        return Relation.UNDETERMINED
    if s == t:
        return Relation.EQUAL
    if not s & t:
        return Relation.DISJOINT
    if s < t:
        return Relation.SUPERSET
    return Relation.SUBSET if t < s else Relation.OVERLAP


def factors(labels: np.ndarray, **weights: Any) -> np.ndarray:
    return similarity_factor(labels, **weights) * dissimilarity_factor(labels, **weights)


@quick
@given(unknowns)
def test_every_pair_has_the_relation_that_sets_give_it(labels: np.ndarray) -> None:
    expected = [[relation_of_sets(anchor, sample) for sample in labels] for anchor in labels]
    np.testing.assert_array_equal(relation_matrix(labels), expected)


@quick
@given(soft)
def test_the_five_relations_partition_all_determined_pairs(labels: np.ndarray) -> None:
    counts = LabelPairs(labels).counts()
    meet, more, less = counts.shared > 0, counts.extra > 0, counts.missing > 0
    both_empty = counts.both_empty if counts.both_empty is not None else np.zeros_like(meet)
    determined = counts.determined if counts.determined is not None else np.ones_like(meet)
    masks = {
        Relation.DISJOINT: ~meet & ~both_empty,
        Relation.EQUAL: (meet & ~more & ~less) | both_empty,
        Relation.OVERLAP: meet & more & less,
        Relation.SUPERSET: meet & more & ~less,
        Relation.SUBSET: meet & ~more & less,
    }
    assert (sum((mask & determined).astype(int) for mask in masks.values()) == determined).all()
    relation = relation_matrix(labels)
    assert ((relation != Relation.UNDETERMINED) == determined).all()
    for value, mask in masks.items():
        np.testing.assert_array_equal(relation == value, mask & determined)


@quick
@given(soft)
def test_the_weight_lies_in_0_to_1_and_is_1_for_equal_sets_only(labels: np.ndarray) -> None:
    weight = factors(labels)
    assert (weight >= 0).all() and (weight <= 1).all()
    np.testing.assert_array_equal(weight == 1, relation_matrix(labels) == Relation.EQUAL)
    np.testing.assert_allclose(LabelPairs(labels).counts().weight(), weight, atol=1e-15)


@quick
@given(soft)
def test_superset_seen_from_the_other_side_is_subset(labels: np.ndarray) -> None:
    mirror = np.array([0, 1, 2, 3, 5, 4])
    np.testing.assert_array_equal(relation_matrix(labels).T, mirror[relation_matrix(labels)])


@quick
@given(unknowns)
def test_soft_labels_of_0_and_1_are_hard_labels(labels: np.ndarray) -> None:
    pairs = LabelPairs(labels)
    as_hard = pairs.counts()
    pairs.soft = True
    as_soft = pairs.counts()
    for name in ("shared", "missing", "extra"):
        np.testing.assert_array_equal(getattr(as_soft, name), getattr(as_hard, name))


@quick
@given(soft)
def test_weights_of_one_change_nothing_and_a_weight_of_two_counts_a_finding_twice(labels: np.ndarray) -> None:
    ones = np.ones(labels.shape[1])
    np.testing.assert_array_equal(factors(labels, finding_weights=ones), factors(labels))
    doubled = ones.copy()
    doubled[0] = 2
    np.testing.assert_allclose(
        factors(labels, finding_weights=doubled), factors(np.hstack([labels[:, :1], labels])), atol=1e-15
    )


@quick
@given(soft)
def test_a_finding_unknown_everywhere_changes_nothing(labels: np.ndarray) -> None:
    widened = np.hstack([labels, np.full((len(labels), 1), np.nan)])
    np.testing.assert_array_equal(relation_matrix(widened), relation_matrix(labels))
    np.testing.assert_array_equal(factors(widened), factors(labels))


@quick
@given(soft)
def test_tensors_and_arrays_agree(labels: np.ndarray) -> None:
    tensor = torch.from_numpy(labels)
    assert relation_matrix(tensor).dtype == torch.int8
    np.testing.assert_array_equal(relation_matrix(tensor).numpy(), relation_matrix(labels))
    np.testing.assert_allclose(similarity_factor(tensor).numpy(), similarity_factor(labels), atol=1e-15)
    np.testing.assert_allclose(dissimilarity_factor(tensor).numpy(), dissimilarity_factor(labels), atol=1e-15)


@quick
@given(unknowns, st.sampled_from(["soft", "hard"]))
def test_blocks_of_anchors_are_rows_of_the_whole(labels: np.ndarray, kind: str) -> None:
    pairs = LabelPairs(labels * (0.5 if kind == "soft" else 1))
    whole, half = pairs.counts().weight(), len(labels) // 2
    np.testing.assert_array_equal(
        np.vstack([pairs.counts(slice(0, half)).weight(), pairs.counts(slice(half, None)).weight()]), whole
    )


@quick
@given(soft)
def test_a_graph_that_cannot_look_at_values_computes_the_same(labels: np.ndarray) -> None:
    eager = LabelPairs(labels).counts().weight()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relations, "_is_compiling", lambda: True)
        np.testing.assert_allclose(LabelPairs(labels).counts().weight(), eager, atol=1e-15)


@pytest.mark.parametrize(
    ("sample", "relation", "k_s", "k_d"),
    [
        ([0, 0, 1, 0], Relation.DISJOINT, 0, 1 / 2),
        ([1, 1, 0, 0], Relation.EQUAL, 1, 1),
        ([1, 0, 1, 1], Relation.OVERLAP, 1 / 2, 1 / 3),
        ([1, 1, 1, 0], Relation.SUPERSET, 1, 1 / 2),
        ([0, 1, 0, 0], Relation.SUBSET, 1 / 2, 1),
    ],
)
def test_the_table_of_the_paper(sample: list[int], relation: Relation, k_s: float, k_d: float) -> None:
    anchor, samples = np.array([[1, 1, 0, 0]]), np.array([sample])
    assert relation_matrix(anchor, samples).item() == relation
    assert similarity_factor(anchor, samples).item() == pytest.approx(k_s)
    assert dissimilarity_factor(anchor, samples).item() == pytest.approx(k_d)


def test_soft_sets_use_minima_and_positive_differences() -> None:
    anchor, sample = np.array([[0.5, 1.0]]), np.array([[0.75, 0.5]])
    assert similarity_factor(anchor, sample).item() == pytest.approx((0.5 + 0.5) / 1.5)
    assert dissimilarity_factor(anchor, sample).item() == pytest.approx(1 / 1.25)


def test_rare_findings_weigh_more_with_a_mean_of_one() -> None:
    labels = np.array([[1, 0, 1], [1, 0, 0], [1, 0, np.nan], [1, 0, 0]])
    weights = inverse_frequency_weights(labels)
    np.testing.assert_allclose(weights / weights[0], [1, 4, 3])
    assert weights.mean() == pytest.approx(1)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.array([0, 1]), {}, r"shape \(2,\)"),
        (np.array([[-1.0, 1.0]]), {}, r"in \[0, 1\]"),
        (np.array([[0, 1]]), {"sample_labels": np.array([[0, 1, 1]])}, "2 findings and sample_labels 3"),
        (np.array([[0, 1]]), {"finding_weights": np.array([1.0])}, r"needs \(2,\)"),
        (np.array([[0, 1]]), {"finding_weights": np.array([1.0, 0.0])}, "positive"),
    ],
)
def test_labels_that_cannot_be_related_are_named(labels: np.ndarray, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        similarity_factor(labels, **options)


def test_relations_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import numpy as np; from medsd.sd import relation_matrix;"
        "from medsd.sd.relations import similarity_factor as k; print(relation_matrix(np.eye(2)), k(np.eye(2)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_losses_need_no_numpy() -> None:
    code = (
        "import sys; sys.modules['numpy'] = None; import torch, medsd.sd as sd;"
        "[getattr(sd, name) for name in sd.__all__]; print(sd.SDLoss()(torch.eye(2), torch.eye(2)))"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)
