"""The losses of other papers against loops written from their authors' definitions, and the table of the family."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from medsd.errors import DataError, SettingsError
from medsd.sd.by_finding import IntraLabelLoss, PrototypeLoss, WsMulSupConLoss, complement_frequency_weights
from medsd.sd.losses import SDLoss
from medsd.sd.rivals import LOSSES, family_table, loss_by_name
from tests.sd import loops
from tests.sd.loops import build_loss
from tests.sd.test_losses import batch, quick

Loop = Callable[[Tensor, Tensor], Tensor]
NAN = float("nan")


def exactly(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def batches() -> dict[str, tuple[Tensor, Tensor]]:
    """Random, mostly empty, one label each, all labels, no label; some, nearly all or all labels unknown."""
    embeddings, labels = batch(0, samples=14)
    return {
        "random": (embeddings, labels),
        "dense": batch(1, samples=14, density=0.7),
        "mostly empty": batch(2, samples=14, density=0.12),
        "one label each": (embeddings, torch.eye(4, dtype=torch.float64)[torch.arange(14) % 4]),
        "all labels": (embeddings, torch.ones_like(labels)),
        "no labels": (embeddings, torch.zeros_like(labels)),
        "some unknown": batch(10, samples=14, unknown=0.3),
        "nearly all unknown": batch(11, samples=14, density=0.6, unknown=0.8),
        "nothing known": (embeddings, torch.full_like(labels, NAN)),
    }


def weighed(weigh: loops.Weigh) -> Loop:
    return lambda embeddings, labels: loops.weighted_loop(embeddings, labels, weigh)


def reaching(threshold: float) -> Loop:
    return lambda embeddings, labels: loops.multisupcon_loop(embeddings, labels, threshold)


LOOPS: dict[str, tuple[str, dict[str, Any], Loop]] = {
    "sd": ("sd", {}, weighed(loops.sd_weight)),
    "any": ("any", {}, weighed(loops.any_weight)),
    "all": ("all", {}, weighed(loops.all_weight)),
    "supcon": ("supcon", {}, weighed(loops.all_weight)),
    "jaccard": ("jaccard", {}, weighed(loops.jaccard_weight)),
    "probmcl": ("probmcl", {}, weighed(loops.overlap_weight)),
    "mulsupcon": ("mulsupcon", {}, loops.mulsupcon_loop),
    "mulsupcon by anchor": ("mulsupcon", {"normalise": "anchor"}, partial(loops.mulsupcon_loop, by_anchor=True)),
    "multisupcon": ("multisupcon", {}, reaching(0.5)),
    "multisupcon from 0": ("multisupcon", {"threshold": 0.0}, reaching(0.0)),
    "multisupcon at a third": ("multisupcon", {"threshold": 1 / 3}, reaching(1 / 3)),
    "slcl": ("slcl", {}, loops.slcl_loop),
    "jscl": ("jscl", {}, lambda embeddings, labels: loops.jscl_loop(loops.cosines(embeddings), labels)),
    "jspcl": ("jspcl", {}, lambda embeddings, labels: loops.jscl_loop(embeddings @ embeddings.T / 0.1, labels)),
}


@pytest.mark.parametrize("kind", batches())
@pytest.mark.parametrize("case", LOOPS)
def test_a_loss_is_the_loop_of_its_authors(case: str, kind: str) -> None:
    (name, options, loop), (embeddings, labels) = LOOPS[case], batches()[kind]
    exactly(loss_by_name(name, **options)(embeddings, labels), loop(embeddings, labels))


@quick
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.7]))
@example(6603, 0.0)  # no anchor has a positive
@pytest.mark.parametrize("case", LOOPS)
def test_a_loss_is_the_loop_of_its_authors_whatever_the_batch(case: str, seed: int, unknown: float) -> None:
    (name, options, loop), (embeddings, labels) = LOOPS[case], batch(seed, unknown=unknown)
    exactly(loss_by_name(name, **options)(embeddings, labels), loop(embeddings, labels))


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("kind", batches())
def test_ws_mulsupcon_is_the_loop_of_its_authors(kind: str, blocked: bool) -> None:
    embeddings, labels = batches()[kind]
    keys, key_labels = torch.cat([embeddings.roll(1, 1), batch(3)[0]]), torch.cat([labels, batch(3)[1]])
    single, multi = complement_frequency_weights(torch.cat([labels, key_labels]))
    loss = WsMulSupConLoss(single_weights=single, multi_weights=multi, healthy_weight=0.7, blocked=blocked)
    expected = loops.ws_mulsupcon_loop(embeddings, labels, keys, key_labels, single.tolist(), multi.tolist(), 0.7)
    exactly(loss(embeddings, labels, ref_emb=keys, ref_labels=key_labels), expected)


def test_the_weights_of_ws_mulsupcon_fall_with_frequency() -> None:
    labels = torch.tensor([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, NAN]])
    single, multi = complement_frequency_weights(labels)
    assert single.tolist() == [0.25, 0.75, 1.0] and multi.tolist() == [0.5, 0.5, 1.0]


def test_the_strata_need_whole_findings() -> None:
    with pytest.raises(DataError, match="must be 0, 1 or NaN"):
        WsMulSupConLoss()(torch.randn(4, 3), torch.full((4, 2), 0.5))


@pytest.mark.parametrize("kind", batches())
def test_msc_is_the_loop_of_its_authors(kind: str) -> None:
    embeddings, labels = batches()[kind]
    loss = PrototypeLoss(findings=4, embedding_size=5, sample_weight=0.8, repulsion=0.3).double()
    exactly(loss(embeddings, labels), loops.msc_loop(embeddings, labels, loss.prototypes, 0.8, 0.3))


def test_the_prototypes_learn_and_must_fit() -> None:
    embeddings, labels = batches()["random"]
    loss = PrototypeLoss(findings=4, embedding_size=5)
    loss(embeddings.float(), labels.float()).backward()
    assert loss.prototypes.grad is not None and loss.prototypes.grad.abs().sum() > 0
    with pytest.raises(DataError, match="prototypes are for 4 findings and embeddings of length 5; the batch has 3"):
        loss(embeddings, labels[:, :3])


def test_icl_is_the_loop_of_its_authors() -> None:
    embeddings = torch.randn(5, 4, 6, dtype=torch.float64)
    labels = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, NAN, 0], [1, 0, NAN, NAN]])
    exactly(IntraLabelLoss()(embeddings, labels), loops.icl_loop(embeddings, labels))
    with pytest.raises(DataError, match="no form for soft labels"):
        IntraLabelLoss()(embeddings, labels / 2)


FACTORS: dict[str, Callable[[set[int], set[int]], float]] = {
    "both": loops.sd_weight,
    "similarity": lambda s, t: len(s & t) / len(s) if s & t else float(s == t),
    "dissimilarity": lambda s, t: 1 / (1 + len(t - s)) if s & t or s == t else 0.0,
}


@pytest.mark.parametrize("kind", batches())
@pytest.mark.parametrize("direction", ["anchor", "sample", "both"])
@pytest.mark.parametrize("factors", FACTORS)
def test_factors_and_directions_of_sd(factors: Any, direction: Any, kind: str) -> None:
    embeddings, labels = batches()[kind]
    weigh = FACTORS[factors]
    turned: dict[str, Callable[[set[int], set[int]], float]] = {
        "anchor": weigh,
        "sample": lambda s, t: weigh(t, s),
        "both": lambda s, t: (weigh(s, t) + weigh(t, s)) / 2,
    }
    found = SDLoss(factors=factors, direction=direction)(embeddings, labels)
    exactly(found, loops.weighted_loop(embeddings, labels, turned[direction]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sd", {"factors": "none"}, "factors is 'none'; it must be 'both' or 'similarity' or 'dissimilarity'"),
        ("sd", {"direction": "back"}, "direction is 'back'"),
        ("mulsupcon", {"normalise": "label"}, "normalise is 'label'"),
        ("jaccard", {"normalise": "sum"}, "normalise is 'sum'"),
        ("ws-mulsupcon", {"healthy_weight": 2}, "healthy_weight is 2"),
        ("msc", {"findings": 4, "embedding_size": 5, "repulsion": -1}, "repulsion -1"),
        ("msc", {}, "loss 'msc' does not take these options"),
    ],
)
def test_an_option_out_of_range_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        loss_by_name(name, **options)


def test_the_table_has_a_line_for_each_loss() -> None:
    assert [line.split(" | ")[0] for line in family_table().splitlines()[2:]] == [f"| {name}" for name in LOSSES]


@pytest.mark.parametrize("name", LOSSES)
def test_the_table_is_true_of_unknown_labels(name: str) -> None:
    embeddings, labels = batch(6)
    labels[:, 0] = 1  # so that every pair is determined
    loss, stranger = build_loss(name), labels.clone()
    stranger[-1] = NAN
    exactly(loss(embeddings, stranger), loss(embeddings[:-1], labels[:-1]))
    partly = labels.clone()
    partly[:5, 1:] = NAN
    absent = loss(embeddings, partly.nan_to_num())
    same = bool(torch.isclose(loss(embeddings, partly), absent, rtol=1e-10))
    assert same == (LOSSES[name].unknown == "count as absent" or name == "any")  # any: all share the first finding


@pytest.mark.parametrize("name", LOSSES)
def test_the_table_is_true_of_soft_labels(name: str) -> None:
    embeddings, labels = batch(7)
    loss, soft = build_loss(name), labels * torch.linspace(0.2, 1, 12, dtype=torch.float64)[:, None]
    if LOSSES[name].soft == "an error":
        with pytest.raises(DataError):
            loss(embeddings, soft)
    else:
        same = bool(loss(embeddings, soft) == loss(embeddings, labels))
        assert same == (LOSSES[name].soft == "present if above 0")


@pytest.mark.parametrize("name", LOSSES)
def test_the_table_is_true_of_empty_sets(name: str) -> None:
    """Whether two samples without findings attract each other."""
    rows = torch.eye(5, dtype=torch.float64)
    labels = torch.cat([torch.zeros(2, 4), torch.ones(4, 4)]).double()
    loss = build_loss(name)
    near, far = (
        loss(torch.cat([rows[:1], sign * rows[:1], rows[1:]]), labels).item() for sign in (1, -1)
    )  # the other four are at a right angle to both
    attracted = near < far - 1e-9
    assert attracted == (LOSSES[name].empty_sets != "negatives only" and name not in ("jscl", "jspcl"))


def test_the_losses_import_torch_and_nothing_else_of_the_training() -> None:
    heavy = ["monai", "transformers", "pydantic", "pytorch_metric_learning", "sklearn", "pandas", "pydicom"]
    code = (
        "import sys, medsd.sd; [getattr(medsd.sd, name) for name in medsd.sd.__all__];"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
