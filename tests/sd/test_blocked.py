"""Blocks give what the plain computation gives, and less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medsd.sd import blocked
from medsd.sd.rivals import LOSSES, loss_by_name
from tests.sd.loops import build_loss
from tests.sd.test_losses import OPTIONS, batch, value_and_gradient

VARIANTS: list[tuple[str, dict[str, Any]]] = [("sd", options) for options in OPTIONS] + [
    (name, {}) for name in LOSSES if name != "sd"
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "CELLS_OF_A_BLOCK", 7 * 50)  # 50 samples: seven anchors a block, one in the last


@pytest.mark.parametrize("unknown", [0.0, 0.3])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_blocked_is_plain_in_value_and_gradient(name: str, options: dict[str, Any], unknown: float) -> None:
    embeddings, labels = batch(0, samples=50, unknown=unknown)
    embeddings = embeddings.detach().float().requires_grad_()
    plain, blocks = (
        value_and_gradient(build_loss(name, blocked=way, **options), embeddings, labels) for way in (False, True)
    )
    torch.testing.assert_close(blocks, plain, rtol=1e-6 if options.get("temperature") is None else 1e-5, atol=1e-6)


def test_blocked_is_plain_with_references_that_learn_and_a_learned_temperature() -> None:
    gradients = []
    for way in (False, True):
        embeddings, labels = batch(1, samples=20)
        refs, ref_labels = batch(2, samples=50)
        loss = loss_by_name("sd", blocked=way, learn_temperature=True).double()
        assert loss.log_temperature is not None
        loss(embeddings, labels, ref_emb=refs, ref_labels=ref_labels).backward()
        gradients.append((embeddings.grad, refs.grad, loss.log_temperature.grad))
    torch.testing.assert_close(*gradients)


def test_blocked_without_gradients_computes_none() -> None:
    embeddings, labels = batch(3, samples=50)
    value = loss_by_name("sd", blocked=True)(embeddings.detach(), labels)
    assert not value.requires_grad
    torch.testing.assert_close(value, loss_by_name("sd", blocked=False)(embeddings.detach(), labels))


def test_no_matrix_of_all_pairs_is_ever_allocated() -> None:
    embeddings, labels = batch(4, samples=400)
    seen: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            seen.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor))
            return out

    with Watch():
        loss_by_name("sd", blocked=True)(embeddings, labels).backward()
    assert max(seen) <= max(embeddings.numel(), labels.numel())


@pytest.mark.parametrize("name", ["sd", "jscl", "msc", "ws-mulsupcon"])
def test_a_gradient_of_the_gradient_through_blocks_is_the_plain_one(name: str) -> None:
    """As in a gradient penalty; autograd once gave another number without a word."""
    penalties = []
    for way in (False, True):
        embeddings, labels = batch(5, samples=20, unknown=0.2)
        refs, ref_labels = batch(6, samples=50)
        loss = build_loss(name, blocked=way, learn_temperature=True).double()
        value = loss(embeddings, labels) + loss(embeddings, labels, ref_emb=refs, ref_labels=ref_labels)
        (gradient,) = torch.autograd.grad(value, embeddings, create_graph=True)
        (gradient.norm() - 1).square().backward()
        assert loss.log_temperature is not None
        penalties.append((gradient.detach(), embeddings.grad, refs.grad, loss.log_temperature.grad))
    torch.testing.assert_close(penalties[1], penalties[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives_agree_with_differences_of_gradients(name: str, blocked: bool) -> None:
    embeddings, labels = batch(7, samples=5, unknown=0.2)
    loss = build_loss(name, blocked=blocked).double()
    assert torch.autograd.gradgradcheck(lambda z: loss(z, labels), embeddings)


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_a_backward_pass_inside_autocast_loses_nothing(name: str, blocked: bool, order: int) -> None:
    gradients = []
    for inside in (False, True):
        embeddings, labels = batch(8, samples=50)
        embeddings = embeddings.detach().float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            value = build_loss(name, blocked=blocked)(embeddings, labels)
            if order == 2:
                value = torch.autograd.grad(value, embeddings, create_graph=True)[0].square().sum()
            gradients.append(torch.autograd.grad(value, embeddings)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-6 * float(gradients[0].abs().max()))
