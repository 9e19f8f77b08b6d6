"""The Similarity-Dissimilarity loss: its value, its gradients, and the batches that break a careless one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import SupConLoss as PeerSupConLoss
from torch import Tensor, nn

from medsd.errors import DataError, SettingsError
from medsd.sd.losses import SDLoss
from medsd.sd.rivals import AnyLoss
from tests.sd.loops import sd_weight, weighted_loop

NAN = float("nan")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight": "inside"},
    {"positives": 0.5},
    {"normalise": "weight"},
    {"weight": "inside", "normalise": "weight"},
    {"direction": "both"},
    {"empty": "ignore"},
    {"learn_temperature": True},
    {"finding_weights": [0.5, 1.0, 2.0, 0.25]},
    {"temperature": 0.01},
]
quick = settings(max_examples=25, deadline=None)


def batch(seed: int, samples: int = 12, density: float = 0.35, unknown: float = 0.0) -> tuple[Tensor, Tensor]:
    """Double embeddings (N, 5) that need gradients, and labels (N, 4)."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(samples, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = (torch.rand(samples, 4, generator=generator) < density).double()
    return embeddings, labels.masked_fill(torch.rand(samples, 4, generator=generator) < unknown, NAN)


def value_and_gradient(
    loss: Callable[..., Tensor], embeddings: Tensor, labels: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    value = loss(embeddings, labels, **options)
    return value.detach(), torch.autograd.grad(value, embeddings)[0]


@quick
@given(st.integers(0, 10_000))
def test_the_loss_is_the_loop_of_the_paper(seed: int) -> None:
    embeddings, labels = batch(seed)
    torch.testing.assert_close(SDLoss()(embeddings, labels), weighted_loop(embeddings, labels, sd_weight))


@quick
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.1, 0.5]))
def test_single_labels_give_the_supcon_of_pytorch_metric_learning(seed: int, temperature: float) -> None:
    embeddings, _ = batch(seed, samples=16)
    classes = torch.arange(16) % 4
    ours = value_and_gradient(SDLoss(temperature=temperature), embeddings, nn.functional.one_hot(classes))
    peer = value_and_gradient(PeerSupConLoss(temperature=temperature), embeddings, classes)
    torch.testing.assert_close(ours, peer, rtol=1e-6, atol=1e-6)


@quick
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3]))
def test_a_weight_inside_the_logarithm_has_the_gradient_of_any(seed: int, unknown: float) -> None:
    embeddings, labels = batch(seed, unknown=unknown)
    inside, any_positive = (
        value_and_gradient(loss, embeddings, labels) for loss in (SDLoss(weight="inside"), AnyLoss())
    )
    torch.testing.assert_close(inside[1], any_positive[1])
    assert inside[0] >= any_positive[0]


@quick
@given(st.integers(0, 10_000))
def test_permuting_the_batch_permutes_the_gradients(seed: int) -> None:
    embeddings, labels = batch(seed, unknown=0.2)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    value, gradient = value_and_gradient(SDLoss(), embeddings, labels)
    permuted = embeddings.detach()[order].requires_grad_()
    torch.testing.assert_close(value_and_gradient(SDLoss(), permuted, labels[order]), (value, gradient[order]))


@pytest.mark.parametrize("options", OPTIONS[:-2], ids=str)
def test_a_finding_unknown_everywhere_changes_nothing(options: dict[str, Any]) -> None:
    embeddings, labels = batch(3, unknown=0.2)
    widened = torch.cat([labels, torch.full((len(labels), 1), NAN)], 1)
    loss = SDLoss(**options)
    plain, wide = (value_and_gradient(loss, embeddings, values) for values in (labels, widened))
    torch.testing.assert_close(wide, plain)


@pytest.mark.parametrize("blocked", [False, True], ids=["plain", "blocked"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["hard", "unknown", "soft"])
def test_gradients_agree_with_differences_of_values(options: dict[str, Any], kind: str, blocked: bool) -> None:
    embeddings, labels = batch(5, samples=6, unknown=0.3 if kind == "unknown" else 0)
    if kind == "soft":
        labels = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = SDLoss(blocked=blocked, **options).double()
    temperature = [] if loss.log_temperature is None else [loss.log_temperature]
    assert torch.autograd.gradcheck(lambda z, *_: loss(z, labels), (embeddings, *temperature))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("samples", [1, 2, 9])
@pytest.mark.parametrize("fill", [0.0, 1.0, NAN, "distinct", "one known"])
def test_a_degenerate_batch_has_a_finite_loss_and_finite_gradients(
    options: dict[str, Any], samples: int, fill: float | str
) -> None:
    embeddings = torch.randn(samples, 5, requires_grad=True)
    labels = torch.eye(9, 4)[:samples] if isinstance(fill, str) else torch.full((samples, 4), fill)
    if fill == "one known":
        labels[1:] = NAN
    value, gradient = value_and_gradient(SDLoss(**options), embeddings, labels)
    assert value.isfinite() and gradient.isfinite().all()


def test_anchors_without_positives_add_nothing() -> None:
    embeddings, labels = batch(1, samples=4)
    labels = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    expected = PeerSupConLoss()(embeddings, torch.tensor([0, 0, 1, 2]))
    torch.testing.assert_close(SDLoss()(embeddings, labels), expected, rtol=1e-6, atol=1e-6)
    value, gradient = value_and_gradient(SDLoss(), embeddings, torch.eye(4))
    assert value == 0 and (gradient == 0).all()


def test_undetermined_pairs_leave_the_denominator() -> None:
    embeddings, labels = batch(2, samples=8, density=0.6)
    with_a_stranger = labels.clone()
    with_a_stranger[-1] = NAN
    value, gradient = value_and_gradient(SDLoss(), embeddings, with_a_stranger)
    torch.testing.assert_close(value, SDLoss()(embeddings[:-1], labels[:-1]))
    assert (gradient[-1] == 0).all()


def test_ignoring_the_empty_drops_them_from_the_batch() -> None:
    embeddings, labels = batch(8, density=0.25)
    present = labels.sum(1) > 0
    assert not present.all()
    torch.testing.assert_close(
        SDLoss(empty="ignore")(embeddings, labels), SDLoss()(embeddings[present], labels[present])
    )


def test_two_views_are_the_concatenation_with_repeated_labels() -> None:
    embeddings, labels = batch(4)
    views = torch.stack([embeddings, embeddings.roll(1, 1)], 1)  # (B, 2, D)
    expected = SDLoss()(torch.cat([views[:, 0], views[:, 1]]), torch.cat([labels, labels]))
    torch.testing.assert_close(SDLoss()(views, labels), expected)


def test_a_reference_set_that_holds_the_batch_gives_the_batch_loss() -> None:
    embeddings, labels = batch(6, unknown=0.2)
    alone = value_and_gradient(SDLoss(), embeddings, labels)
    same = {"ref_emb": embeddings, "ref_labels": labels.clone(), "own": 0}
    torch.testing.assert_close(value_and_gradient(SDLoss(), embeddings, labels, **same), alone)


def test_without_own_every_reference_is_another_sample() -> None:
    embeddings, labels = batch(7, samples=5)
    refs, ref_labels = batch(9, samples=7)
    loss, (anchors, samples) = SDLoss(), (nn.functional.normalize(each) for each in (embeddings, refs))
    block = partial(loss.block, own=None, weigh=loss.coefficients)
    total, terms = loss._compare(anchors, labels, samples, ref_labels, block)
    torch.testing.assert_close(loss(embeddings, labels, ref_emb=refs, ref_labels=ref_labels), total / terms)


def test_the_threshold_keeps_the_pairs_that_reach_it() -> None:
    embeddings, labels = batch(11)
    expected = weighted_loop(embeddings, labels, lambda s, t: sd_weight(s, t) if sd_weight(s, t) >= 0.5 else 0.0)
    torch.testing.assert_close(SDLoss(positives=0.5)(embeddings, labels), expected)


def test_the_symmetric_weight_is_the_mean_of_both_directions() -> None:
    embeddings, labels = batch(12)
    expected = weighted_loop(embeddings, labels, lambda s, t: (sd_weight(s, t) + sd_weight(t, s)) / 2)
    torch.testing.assert_close(SDLoss(direction="both")(embeddings, labels), expected)


def test_normalising_by_weight_makes_the_weights_of_an_anchor_sum_to_one() -> None:
    embeddings = torch.zeros(4, 3)  # all similarities equal: each anchor's loss is log 3 times its sum of weights
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 1]])
    assert SDLoss(normalise="weight")(embeddings, labels).item() == pytest.approx(torch.tensor(3.0).log().item())
    assert SDLoss()(embeddings, labels) < 0.9


def test_length_does_not_matter_and_a_zero_vector_is_no_accident() -> None:
    embeddings, labels = batch(13)
    torch.testing.assert_close(SDLoss()(embeddings * 1000, labels), SDLoss()(embeddings, labels))
    with_zero = embeddings.detach().clone()
    with_zero[0] = 0
    value, gradient = value_and_gradient(SDLoss(), with_zero.requires_grad_(), labels)
    assert value.isfinite() and gradient.abs().max() < 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("blocked", [False, True])
def test_half_precision_is_as_close_as_its_embeddings(dtype: torch.dtype, temperature: float, blocked: bool) -> None:
    embeddings, labels = batch(14, samples=64)
    rounded = embeddings.detach().to(dtype).requires_grad_()
    exact = value_and_gradient(SDLoss(temperature=temperature), rounded.detach().double().requires_grad_(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16 if dtype is torch.float32 else dtype):
        value = SDLoss(temperature=temperature, blocked=blocked)(rounded, labels)
    (gradient,) = torch.autograd.grad(value, rounded)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact[0], rtol=1e-5, atol=1e-5)
    scale = exact[1].abs().max()
    tolerance = 1e-4 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(gradient.double() / scale, exact[1] / scale, rtol=0, atol=tolerance)


def test_a_learned_temperature_moves_and_stays_above_its_bound() -> None:
    embeddings, labels = batch(15)
    loss = SDLoss(temperature=0.02, learn_temperature=True)
    optimiser = torch.optim.SGD(loss.parameters(), lr=100)
    loss(embeddings, labels).backward()
    optimiser.step()
    assert loss.temperature != pytest.approx(0.02)
    assert loss.log_temperature is not None
    loss.log_temperature.data.fill_(-50)
    assert loss(embeddings, labels).isfinite() and loss.temperature == pytest.approx(0.01)


def test_large_batches_go_in_blocks_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsd.sd.losses.LARGEST_PLAIN", 100)
    embeddings, labels = batch(16)
    assert "Blocked" in str(SDLoss()(embeddings, labels).grad_fn.next_functions[0][0])
    assert "Blocked" not in str(SDLoss()(embeddings[:10], labels[:10]).grad_fn.next_functions[0][0])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_compiled_loss_is_the_eager_one_in_one_graph() -> None:
    embeddings, labels = batch(17, samples=16, unknown=0.2)
    compiled = torch.compile(SDLoss(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        value_and_gradient(compiled, embeddings, labels), value_and_gradient(SDLoss(), embeddings, labels)
    )
    blocked = torch.compile(SDLoss(blocked=True), backend="aot_eager")
    torch.testing.assert_close(blocked(embeddings, labels), SDLoss()(embeddings, labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"weight": "between"}, "weight is 'between'"),
        ({"normalise": "sum"}, "normalise is 'sum'"),
        ({"positives": 1.5}, "positives is 1.5"),
        ({"empty": "drop"}, "empty is 'drop'"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SDLoss(**options)


def test_shapes_that_do_not_fit_are_named() -> None:
    embeddings, labels = batch(18)
    with pytest.raises(DataError, match=r"embeddings has shape \(11, 5\) and labels \(12, 4\)"):
        SDLoss()(embeddings[1:], labels)
    with pytest.raises(DataError, match="belong together"):
        SDLoss()(embeddings, labels, ref_emb=embeddings)
    with pytest.raises(DataError, match="indices_tuple"):
        SDLoss()(embeddings, labels, (1, 2, 3))


def test_trainers_of_monai_and_pytorch_metric_learning_take_it() -> None:
    from monai.engines import SupervisedTrainer
    from pytorch_metric_learning.trainers import MetricLossOnly

    studies = [(torch.rand(6), torch.tensor([float(i % 2), 1.0])) for i in range(8)]
    encoder = nn.Linear(6, 4)
    optimiser, before = torch.optim.AdamW(encoder.parameters()), encoder.weight.detach().clone()
    batches = torch.utils.data.DataLoader([{"image": x, "label": y} for x, y in studies], batch_size=4)
    SupervisedTrainer(
        device="cpu", max_epochs=1, train_data_loader=batches, network=encoder, optimizer=optimiser,
        loss_function=SDLoss(),
    ).run()  # fmt: skip
    between = encoder.weight.detach().clone()
    MetricLossOnly(
        models={"trunk": encoder}, optimizers={"trunk_optimizer": optimiser}, batch_size=4, dataset=studies,
        loss_funcs={"metric_loss": SDLoss()}, data_device="cpu", label_hierarchy_level="all", dataloader_num_workers=0,
    ).train()  # fmt: skip
    assert not torch.equal(before, between) and not torch.equal(between, encoder.weight)
