"""The table of relations against a plain loop, and at its two ends."""

from __future__ import annotations

import numpy as np
import pytest

from medsd.experiments.compare.neighbours import relation_table
from medsd.metrics.retrieval import Cases
from medsd.sd.relations import relation_matrix


def cases(rng: np.random.Generator, count: int, prefix: str) -> Cases:
    labels = (rng.random((count, 5)) < 0.4).astype(np.float64)
    return Cases(rng.normal(size=(count, 3)), labels, np.array([f"{prefix}{row % 9}" for row in range(count)]))


@pytest.fixture
def pair() -> tuple[Cases, Cases]:
    rng = np.random.default_rng(4)
    return cases(rng, 12, "a"), cases(rng, 40, "a")  # patients on both sides


def plain_shares(queries: Cases, index: Cases, k: int) -> np.ndarray:
    shares = np.zeros((5, k))
    relation = relation_matrix(queries.target, index.target)
    for q in range(len(queries.target)):
        cosine = index.embeddings @ queries.embeddings[q] / np.linalg.norm(index.embeddings, axis=1)
        others = [i for i in np.argsort(-cosine) if index.patients[i] != queries.patients[q]]
        for place in range(1, k + 1):
            for row in range(5):
                shares[row, place - 1] += np.mean(relation[q, others[:place]] == row + 1) / len(queries.target)
    return shares


def test_the_shares_are_those_of_a_plain_loop(pair: tuple[Cases, Cases]) -> None:
    table = relation_table(*pair, k=6)
    np.testing.assert_allclose(table.found, plain_shares(*pair, 6))


def test_the_shares_of_each_k_add_up_to_one(pair: tuple[Cases, Cases]) -> None:
    table = relation_table(*pair, k=6)
    for shares in (table.found.sum(0), table.ideal.sum(0), table.random.sum()):
        np.testing.assert_allclose(shares, 1)


def test_a_space_of_label_sets_gets_the_equal_ones_right() -> None:
    labels = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0]] * 10, dtype=np.float64)
    index = Cases(labels + 0.01, labels, np.arange(30).astype(str))
    queries = Cases(labels[:3], labels[:3], np.array(["x", "y", "z"]))
    table = relation_table(queries, index, k=10)
    np.testing.assert_allclose(table.right[1], 1)
    np.testing.assert_allclose(table.found, table.ideal)
    assert np.isnan(table.right[2]).all()  # ten equal cases are there for each query: no place for an overlap


def test_cases_of_equal_gain_share_the_ideal_places() -> None:
    query = Cases(np.ones((1, 1)), np.array([[1.0, 1.0, 0.0, 0.0]]), np.array(["q"]))
    # {a} is a subset with gain 1/2, {a, b, c, d} a superset with gain 1/2
    index = Cases(np.ones((2, 1)), np.array([[1.0, 0, 0, 0], [1, 1, 1, 1]]), np.array(["1", "2"]))
    table = relation_table(query, index, k=1)
    np.testing.assert_allclose(table.ideal[:, 0], [0, 0, 0, 0.5, 0.5])


def test_a_query_without_a_relevant_case_is_left_out() -> None:
    index = Cases(np.ones((2, 1)), np.array([[1.0, 0, 0], [0, 1, 0]]), np.array(["1", "2"]))
    queries = Cases(np.ones((2, 1)), np.array([[1.0, 0, 0], [0, 0, 1]]), np.array(["p", "q"]))
    assert relation_table(queries, index, k=2).random.tolist() == [0.5, 0.5, 0, 0, 0]
