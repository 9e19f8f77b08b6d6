"""One training of `medsd compare`: an encoder by one loss, then probabilities from a linear head.

The seed alone decides initial weights, order, corruption and dropout, so every loss starts from the same encoder and
sees the same views in the same order.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from medsd.experiments.compare.settings import BudgetSettings, LossVariant, Trial
from medsd.sd.rivals import loss_by_name
from medsd.training.schedule import warm_cosine

FloatArray = npt.NDArray[np.float32]
_GRADIENT_CLIP = 1.0
_PROBE_STEPS = 200


class Network(nn.Module):
    """Inputs (N, D) → embedding (the learned space) → projection for the contrast, or logits (N, F)."""

    def __init__(self, inputs: int, findings: int, budget: BudgetSettings) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(inputs, budget.hidden),
            nn.LayerNorm(budget.hidden),
            nn.GELU(),
            nn.Dropout(budget.dropout),
            nn.Linear(budget.hidden, budget.embedding),
        )
        self.projection = nn.Sequential(nn.GELU(), nn.Linear(budget.embedding, budget.projection))
        self.head = nn.Linear(budget.embedding, findings)


Objective = Callable[[Network, Tensor, Tensor], Tensor]


def objective(variant: LossVariant, trial: Trial) -> Objective:
    """The loss of a batch of views (B·V, D) with labels (B·V, F)."""
    if variant.loss == "bce":
        return lambda network, views, labels: _cross_entropy(network.head(network.encoder(views)), labels)
    contrast = loss_by_name(variant.loss, temperature=trial.temperature, **variant.options)
    return lambda network, views, labels: contrast(network.projection(network.encoder(views)), labels)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the known labels (B, F)."""
    known = ~labels.isnan()
    if known.all():
        return functional.binary_cross_entropy_with_logits(logits, labels)
    each = functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return (each * known).sum() / known.sum().clamp_min(1)


def train(
    variant: LossVariant,
    trial: Trial,
    inputs: FloatArray,
    labels: FloatArray,
    budget: BudgetSettings,
    seed: int,
    start: Network | None = None,
) -> Network:
    """Train an encoder, from the weights of `start` if given; the caller's random state is left as it was.

    Args:
        inputs: (N, V, D); each view of a batch is drawn from the V, then corrupted.
        labels: (N, F) 1 or 0, NaN where unknown.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(inputs.shape[2], labels.shape[1], budget).train()
        if start is not None:
            network.load_state_dict(start.state_dict())
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=trial.learning_rate, weight_decay=trial.weight_decay, foreach=True
        )
        compute = objective(variant, trial)
        steps = budget.epochs * math.ceil(len(inputs) / budget.batch_size)
        batches = _batches(torch.from_numpy(inputs), torch.from_numpy(labels), budget, seed)
        for step, (views, targets) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = trial.learning_rate * warm_cosine(step, steps, budget.warmup)
            optimizer.zero_grad()
            compute(network, views, targets).backward()
            nn.utils.clip_grad_norm_(network.parameters(), _GRADIENT_CLIP)
            optimizer.step()
    return network.eval()


def _batches(inputs: Tensor, labels: Tensor, budget: BudgetSettings, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Corrupted views, view after view, and their labels, from a random stream of their own."""
    source = torch.Generator().manual_seed(seed)
    for _ in range(budget.epochs):
        for rows in torch.randperm(len(inputs), generator=source).split(budget.batch_size):
            rows = rows.repeat(budget.views)
            which = torch.randint(inputs.shape[1], rows.shape, generator=source)
            views = inputs[rows, which]  # (B·V, D)
            kept = torch.rand(views.shape, generator=source) >= budget.corruption
            yield views * kept, labels[rows]


@torch.no_grad()
def embed(network: Network, inputs: FloatArray) -> FloatArray:
    """The embeddings (N, E) of the unchanged view of each sample."""
    return network.encoder(torch.from_numpy(np.ascontiguousarray(inputs[:, 0]))).numpy()


@torch.no_grad()
def project(network: Network, inputs: FloatArray) -> FloatArray:
    """The projections (N, P), in which the contrastive losses compare, of the unchanged view of each sample."""
    return network.projection(torch.from_numpy(embed(network, inputs))).numpy()


@torch.no_grad()
def head_probabilities(network: Network, embeddings: FloatArray) -> FloatArray:
    """What the head trained by cross-entropy says of embeddings (N, E): (N, F) in 0…1."""
    return network.head(torch.from_numpy(embeddings)).sigmoid().numpy()


def probe(embeddings: FloatArray, labels: FloatArray, penalty: float) -> Callable[[FloatArray], FloatArray]:
    """Fit a logistic head by cross-entropy on frozen embeddings (N, E), scaled to unit length, and labels (N, F).

    The penalty is on half the squared weights. Returns a function from embeddings (M, E) to probabilities (M, F).
    """
    inputs, targets = functional.normalize(torch.from_numpy(embeddings)), torch.from_numpy(labels)
    prevalence = targets.mean(0).clamp(1e-4, 1 - 1e-4)
    weight = torch.zeros(inputs.shape[1], targets.shape[1], requires_grad=True)
    bias = torch.logit(prevalence).requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        fit = functional.binary_cross_entropy_with_logits(inputs @ weight + bias, targets, reduction="none").mean(0)
        value = fit.sum() + penalty * weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(closure)

    def probabilities(others: FloatArray) -> FloatArray:
        with torch.no_grad():
            return (functional.normalize(torch.from_numpy(others)) @ weight + bias).sigmoid().numpy()

    return probabilities
