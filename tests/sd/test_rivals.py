"""The rivals against loops written from their papers, and what the frame gives to all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss as PeerSupConLoss
from torch import Tensor

from medsd.errors import SettingsError
from medsd.sd.rivals import LOSSES, MulSupConLoss, SupConLoss, loss_by_name
from tests.sd.loops import build_loss, cosines, mulsupcon_loop, softmax_loop
from tests.sd.test_losses import batch, value_and_gradient


def test_mulsupcon_takes_normal_for_a_label_unless_told_otherwise() -> None:
    embeddings, labels = batch(0, density=0.2)
    normal = (labels.sum(1, keepdim=True) == 0).double()
    assert normal.sum() > 1
    named = torch.cat([labels, normal], 1)
    torch.testing.assert_close(MulSupConLoss()(embeddings, labels), mulsupcon_loop(embeddings, named))
    kept = normal[:, 0] == 0
    torch.testing.assert_close(
        MulSupConLoss(empty="ignore")(embeddings, labels), mulsupcon_loop(embeddings[kept], labels[kept])
    )


NOT_SUPCON = {"msc", "slcl", "jscl", "jspcl"}  # prototypes, absent findings, all are positive


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in NOT_SUPCON])
def test_single_labels_give_supcon(name: str) -> None:
    embeddings, _ = batch(1, samples=16)
    classes = torch.arange(16) % 4
    expected = value_and_gradient(PeerSupConLoss(), embeddings, classes)
    ours = value_and_gradient(loss_by_name(name), embeddings, torch.nn.functional.one_hot(classes))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_supcon_takes_class_numbers() -> None:
    embeddings, _ = batch(2)
    classes = torch.arange(12) % 3
    expected = SupConLoss()(embeddings, torch.nn.functional.one_hot(classes))
    torch.testing.assert_close(SupConLoss()(embeddings, classes), expected)


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_every_loss_agree_with_differences(name: str, blocked: bool) -> None:
    embeddings, labels = batch(3, samples=6, unknown=0.2)
    loss = build_loss(name, blocked=blocked)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), embeddings)


def all_empty(labels: Tensor) -> Tensor:
    return labels * 0


def all_unknown(labels: Tensor) -> Tensor:
    return labels * torch.nan


@pytest.mark.parametrize("spoil", [all_empty, all_unknown, torch.ones_like])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_finite_on_degenerate_batches(name: str, spoil: Callable[[Tensor], Tensor]) -> None:
    embeddings, labels = batch(4, samples=5)
    for count in (1, 5):
        part = embeddings[:count].detach().requires_grad_()
        value, gradient = value_and_gradient(build_loss(name), part, spoil(labels[:count]))
        assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("scale", [0.001, 2.0])
def test_only_the_proportions_of_finding_weights_matter_to_mulsupcon(scale: float) -> None:
    embeddings, labels = batch(5)
    plain, scaled = MulSupConLoss(empty="ignore"), MulSupConLoss(empty="ignore", finding_weights=[scale] * 4)
    torch.testing.assert_close(scaled(embeddings, labels), plain(embeddings, labels), rtol=1e-6, atol=1e-6)


def test_half_a_finding_gives_mulsupcon_half_a_term() -> None:
    embeddings = torch.randn(3, 5, dtype=torch.float64)
    labels = torch.tensor([[0.5, 0.0], [1.0, 0.0], [0.0, 0.5]])  # one finding shared; the other has no second sample
    log_p = [softmax_loop(row, {0, 1, 2} - {i}) for i, row in enumerate(cosines(embeddings))]
    expected = -(0.5 * log_p[0][1] + 1.0 * log_p[1][0]) / 1.5
    torch.testing.assert_close(MulSupConLoss()(embeddings, labels), expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("triplet", {}, "no loss 'triplet'; medsd has sd, supcon"),
        ("any", {"threshold": 0.5}, "'any' does not take these options: threshold"),
        ("jaccard", {"threshold": 2.0}, "threshold is 2.0"),
    ],
)
def test_a_loss_that_does_not_exist_is_named(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        loss_by_name(name, **options)
