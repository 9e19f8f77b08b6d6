"""The vote's rule, chosen on validation studies."""

from __future__ import annotations

import numpy as np
import pytest

from medsd.cases.case import Case
from medsd.cases.index import create_index
from medsd.findings import finding_set
from medsd.pipeline.case_index import VOTERS, choose_vote_rule, neighbour_shares
from tests.cases.conftest import MODEL, predict

FINDINGS = finding_set("phantom8")
N, Q, D = 200, 60, 16


@pytest.fixture(scope="module")
def space():
    """Cases around one direction a finding, and studies that the model half understands."""
    rng = np.random.default_rng(0)
    labels = (rng.random((N + Q, len(FINDINGS))) < 0.3).astype(np.float32)
    vectors = labels @ rng.normal(size=(len(FINDINGS), D)) + rng.normal(0, 0.8, (N + Q, D))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    probs = np.clip(0.7 * labels[:Q] + 0.3 * rng.random((Q, len(FINDINGS))), 0, 1).astype(np.float64)
    return probs, vectors, labels


def choose(space, thresholds, **options):
    probs, vectors, labels = space
    studies = [f"s{row}" for row in range(N)]
    return choose_vote_rule(
        FINDINGS, probs, vectors[:Q], labels[:Q], thresholds, vectors[Q:], labels[Q:], studies, **options
    )


def test_the_shares_are_those_that_the_index_gives(space, tmp_path):
    probs, vectors, labels = space
    cases = [Case(f"s{row}", f"p{row}", label) for row, label in enumerate(labels[Q:])]
    cases[5] = cases[4]  # a duplicate votes once in both
    index = create_index(tmp_path / "c", cases, vectors[Q:], model_sha256=MODEL, findings=FINDINGS)
    shares = neighbour_shares(probs, vectors[:Q], vectors[Q:], labels[Q:], [case.study_key for case in cases], (16,))
    for row in range(10):
        prediction = predict(FINDINGS, vectors[row], values=probs[row].astype(np.float32))
        np.testing.assert_allclose([each.share for each in index.vote(prediction)], shares[16][row], atol=1e-5)


def test_the_vote_calls_as_often_as_the_model_does(space):
    probs, vectors, labels = space
    rule = choose(space, dict.fromkeys(FINDINGS, 0.5))
    assert rule.k in VOTERS
    studies = [f"s{row}" for row in range(N)]
    shares = neighbour_shares(probs, vectors[:Q], vectors[Q:], labels[Q:], studies, (rule.k,))[rule.k]
    for column, name in enumerate(FINDINGS):
        assert (shares[:, column] >= rule.thresholds[name]).sum() == (probs[:, column] >= 0.5).sum()


def test_where_the_model_makes_no_call_the_vote_makes_none(space):
    rule = choose(space, dict.fromkeys(FINDINGS, 0.5) | {"Mass": None, "Edema": 2.0})
    assert (rule.thresholds["Mass"], rule.thresholds["Edema"]) == (None, None)


def test_too_few_studies_choose_nothing(space):
    assert choose(space, dict.fromkeys(FINDINGS, 0.5), minimum_positives=1000) is None
    probs, vectors, labels = space
    nothing = choose_vote_rule(
        FINDINGS, probs[:0], vectors[:0], labels[:0], {}, vectors[Q:], labels[Q:], [f"s{row}" for row in range(N)]
    )
    assert nothing is None
