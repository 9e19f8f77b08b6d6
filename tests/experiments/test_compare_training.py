"""One training: equal starts, repeatable, and a probe that is logistic regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from medsd.experiments.compare.settings import BudgetSettings, LossVariant, Trial
from medsd.experiments.compare.training import embed, head_probabilities, probe, project, train
from medsd.sd.relations import Relation, relation_matrix

BUDGET = BudgetSettings(hidden=16, embedding=8, projection=4, epochs=3, batch_size=16)
TRIAL = Trial(learning_rate=0.003, weight_decay=0.01, temperature=0.2)


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, np.ndarray]:
    """Inputs (48, 1, 6) from which the labels (48, 3) follow."""
    inputs = np.random.default_rng(0).normal(size=(48, 1, 6)).astype(np.float32)
    return inputs, (inputs[:, 0, :3] > 0).astype(np.float32)


def loss(name: str, **options: str) -> LossVariant:
    return LossVariant(loss=name, options=options)


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def test_every_loss_starts_from_the_same_weights(made: tuple[np.ndarray, np.ndarray]) -> None:
    still = Trial(learning_rate=1e-12, weight_decay=0.0, temperature=0.2)
    starts = [weights(train(loss(name), still, *made, BUDGET, seed=5)) for name in ("sd", "all", "bce")]
    assert all(torch.allclose(start, starts[0], atol=1e-6) for start in starts)
    assert not torch.allclose(weights(train(loss("sd"), still, *made, BUDGET, seed=6)), starts[0], atol=1e-3)


def test_a_seed_gives_the_same_network_and_leaves_the_random_state_alone(made: tuple[np.ndarray, np.ndarray]) -> None:
    state = torch.get_rng_state()
    first, second = (train(loss("sd"), TRIAL, *made, BUDGET, seed=1) for _ in range(2))
    assert torch.equal(weights(first), weights(second))
    assert torch.equal(torch.get_rng_state(), state)


def test_sd_with_the_weight_inside_learns_what_any_learns(made: tuple[np.ndarray, np.ndarray]) -> None:
    inside, any_, outside = (
        project(train(each, TRIAL, *made, BUDGET, seed=1), made[0])
        for each in (loss("sd", weight="inside"), loss("any"), loss("sd"))
    )
    np.testing.assert_allclose(inside, any_, atol=1e-4)
    assert np.abs(outside - any_).max() > 1e-2


def test_sd_brings_equal_label_sets_together(made: tuple[np.ndarray, np.ndarray]) -> None:
    budget = BUDGET.model_copy(update={"epochs": 80})
    space = project(train(loss("sd"), TRIAL, *made, budget, seed=0), made[0])
    space /= np.linalg.norm(space, axis=1, keepdims=True)
    cosine, relation = space @ space.T, relation_matrix(made[1])
    equal = (relation == Relation.EQUAL) & ~np.eye(48, dtype=bool)
    assert cosine[equal].mean() > cosine[relation == Relation.DISJOINT].mean() + 0.3


def test_cross_entropy_learns_with_its_own_head(made: tuple[np.ndarray, np.ndarray]) -> None:
    budget = BUDGET.model_copy(update={"epochs": 60})
    network = train(loss("bce"), Trial(0.01, 0.01, None), *made, budget, seed=0)
    probs = head_probabilities(network, embed(network, made[0]))
    assert ((probs > 0.5) == (made[1] == 1)).mean() > 0.9


def test_the_probe_is_logistic_regression_on_unit_embeddings() -> None:
    rng = np.random.default_rng(2)
    embeddings = rng.normal(size=(80, 5)).astype(np.float32)
    labels = (embeddings[:, :2] + rng.normal(size=(80, 2)) > 0).astype(np.float32)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    penalty = 0.01
    ours = probe(embeddings, labels, penalty)(embeddings)
    for column in range(2):
        theirs = LogisticRegression(C=1 / (penalty * 80), tol=1e-8, max_iter=1000).fit(unit, labels[:, column])
        np.testing.assert_allclose(ours[:, column], theirs.predict_proba(unit)[:, 1], atol=2e-3)
