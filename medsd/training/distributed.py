"""Training in several processes that act as one: `torchrun … -m medsd.cli train CONFIG`.

Each process takes its share of every batch (`loaders.Share`). Losses, batch statistics and gradients are joined, so
that the numbers are those of one process. Only the first process prepares, writes and exports; the others wait.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from medsd.errors import SettingsError
from medsd.sd.gather import shared_mean, summed, world_size
from medsd.training.loaders import Share

# While the first process decodes images the others wait; torchrun ends them all when one of them fails.
_PATIENCE = timedelta(days=7)


@contextmanager
def joined(device: str) -> Iterator[Share]:
    """Join the processes that torchrun started, through NCCL (a GPU each) or gloo; without torchrun, be the only one.

    Raises SettingsError: fewer GPUs on this machine than processes.
    """
    if world_size() > 1 or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield this_share()
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise SettingsError(
                f"torchrun started more processes than this machine has GPUs ({torch.cuda.device_count()}); "
                "lower --nproc-per-node, or set training.device=cpu"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    if not is_first():
        logging.getLogger("medsd").setLevel(logging.WARNING)  # each line once
    try:
        yield this_share()
    finally:
        dist.destroy_process_group()


def this_share() -> Share:
    """Which of the processes this one is."""
    return Share(dist.get_rank(), world_size()) if world_size() > 1 else Share()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return this_share().rank == 0


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if world_size() > 1:
        dist.barrier()


def as_the_first(values: Mapping[str, float]) -> dict[str, float]:
    """The values of the first process, on all; the names are the same everywhere."""
    told = torch.tensor(list(values.values()), dtype=torch.float64)
    if world_size() > 1:
        dist.broadcast(told, 0)
    return dict(zip(values, told.tolist(), strict=True))


def joint_mean(total: Tensor, count: Tensor, least: float = 1) -> Tensor:
    """total () / count () over all processes, which know different numbers of labels; count is `least` at least."""
    if world_size() == 1:
        return total / count.clamp_min(least)
    return shared_mean(total, summed(count).clamp_min(least))


def average_gradients(module: nn.Module) -> None:
    """The mean over the processes in each gradient, in one exchange, after passes without DistributedDataParallel."""
    world = world_size()
    if world == 1:
        return
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    joint = summed(torch.cat([g.reshape(-1) for g in gradients])) / world
    used = summed(torch.tensor([float(p.grad is not None) for p in parameters], device=joint.device))
    pieces = joint.split([g.numel() for g in gradients])
    for parameter, piece, anybody in zip(parameters, pieces, used.tolist(), strict=True):
        if anybody:
            parameter.grad = piece.reshape(parameter.shape).clone(memory_format=torch.preserve_format)


class JointBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation by the statistics of all processes; PyTorch's faster SyncBatchNorm needs a GPU."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, …) → the same shape."""
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        others = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1] + [1] * (input.ndim - 2)
        count = summed(values.new_tensor([values.numel() / values.shape[1]]))
        mean = _Summed.apply(values.sum(others)) / count  # (C,)
        centred = values - mean.reshape(shape)
        variance = _Summed.apply(centred.square().sum(others)) / count  # (C,)
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() if self.weight is None else self.weight * (variance + self.eps).rsqrt()
        shift = 0.0 if self.bias is None else self.bias.reshape(shape)
        return (centred * scale.reshape(shape) + shift).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


class _Summed(torch.autograd.Function):
    """The sum over the processes, whose gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return summed(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return summed(grad)


def join_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Make every batch normalisation of `module` one over all processes. The modules stay the same objects, because
    the blocks of an encoder refer to them."""
    if world_size() == 1:
        return
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.__class__ = nn.SyncBatchNorm if device.type == "cuda" else JointBatchNorm
            norm.process_group = None  # type: ignore[assignment]  # SyncBatchNorm's: all processes
