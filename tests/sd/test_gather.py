"""Two processes give the loss and the gradients of one with the joint batch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medsd.sd.crossmodal import CrossModalLoss
from medsd.sd.losses import ContrastiveLoss
from medsd.sd.memory import MemoryQueue
from medsd.sd.rivals import LOSSES, loss_by_name
from tests.sd.loops import build_loss

# Rows 0–2 are the first process's, 3–7 the second's. The first anchor has its positives on the other process only, the
# second process has more positives than the first, and row 2 has none anywhere.
FIRST = 3
LABELS = torch.tensor(
    [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]],
    dtype=torch.float64,
)
Outcome = dict[str, Tensor]


def inputs() -> Tensor:
    return torch.randn(len(LABELS), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def make_encoder() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(6, 5, bias=False).double()


def own_batch(loss: ContrastiveLoss, embeddings: Tensor, labels: Tensor) -> Tensor:
    return loss(embeddings, labels)


def images_and_notes(loss: ContrastiveLoss, embeddings: Tensor, labels: Tensor) -> Tensor:
    has_note = labels[:, 2] == 0
    return CrossModalLoss(loss)(embeddings, embeddings.flip(1), labels, has_note)


def class_numbers(loss: ContrastiveLoss, embeddings: Tensor, labels: Tensor) -> Tensor:
    return loss(embeddings, labels.argmax(1))


def third_batch_of_a_queue(loss: ContrastiveLoss, embeddings: Tensor, labels: Tensor) -> Tensor:
    queue = MemoryQueue(loss, size=64, embedding_size=5, findings=4).double()
    queue(embeddings + 1, labels)
    queue(embeddings - 1, labels)
    return queue(embeddings, labels)


CASES: dict[str, tuple[Callable[..., Tensor], str, dict[str, Any]]] = {
    "sd": (own_batch, "sd", {}),
    "learned temperature": (own_batch, "sd", {"learn_temperature": True, "direction": "both"}),
    "blocked": (own_batch, "sd", {"blocked": True, "normalise": "weight"}),
    "inside": (own_batch, "sd", {"weight": "inside", "empty": "ignore"}),
    **{name: (own_batch, name, {}) for name in LOSSES if name not in ("sd", "supcon")},
    "several parts in blocks": (own_batch, "ws-mulsupcon", {"blocked": True}),
    "images and notes": (images_and_notes, "sd", {}),
    "class numbers": (class_numbers, "supcon", {}),
    "queue": (third_batch_of_a_queue, "sd", {}),
}


def step(model: nn.Module, loss: ContrastiveLoss, call: Callable[..., Tensor], rows: slice) -> Outcome:
    value = call(loss, model(inputs()[rows]), LABELS[rows])
    value.backward()
    outcome = {"loss": value.detach()}
    for name, parameter in [*model.named_parameters(), *loss.named_parameters()]:
        assert parameter.grad is not None
        outcome[name.removeprefix("module.")] = parameter.grad
    return outcome


def run_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(0, FIRST) if rank == 0 else slice(FIRST, None)
    outcomes = {}
    for case, (call, name, options) in CASES.items():
        loss = build_loss(name, gather=True, **options).double()
        outcomes[case] = step(DistributedDataParallel(make_encoder()), loss, call, rows)
        for own in ("log_temperature", "prototypes"):
            if own in outcomes[case]:  # averaged, as the trainer averages the model's parameters
                dist.all_reduce(outcomes[case][own])
                outcomes[case][own] /= 2
    torch.save(outcomes, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Outcome]]:
    """What each of two processes finds in every case."""
    folder = tmp_path_factory.mktemp("gloo")
    multiprocessing.set_forkserver_preload([__name__])  # PyTorch is imported once for both
    mp.start_processes(run_process, (str(folder),), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_joint_batch(outcomes: list[dict[str, Outcome]], case: str) -> None:
    call, name, options = CASES[case]
    expected = step(make_encoder(), build_loss(name, **options).double(), call, slice(None))
    for found in outcomes:
        torch.testing.assert_close(found[case], expected, rtol=1e-6, atol=1e-6)


def test_without_processes_gathering_does_nothing() -> None:
    plain, gathering = (step(make_encoder(), loss_by_name("sd", gather=way), own_batch, slice(None)) for way in (0, 1))
    torch.testing.assert_close(gathering, plain)
