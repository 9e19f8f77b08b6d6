"""Rows of all processes in one tensor, with gradients, for losses that compare each sample with every other.

With N processes of batch B each anchor then meets the N·B samples that one process with the whole batch would show it.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes train together; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows (B, D) of all processes as (ΣB, D), in order of rank, and the position at which those of this one start.

    Only B may differ between processes. The gradient of a row is the sum of what all processes send back to it.
    """
    sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([rows.shape[0]], device=rows.device))
    counts = [int(size) for size in sizes]
    return _GatherRows.apply(rows, counts), sum(counts[: dist.get_rank()])


def summed(value: Tensor) -> Tensor:
    """The sum of `value` over the processes, without gradient."""
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def shared_mean(total: Tensor, count: Tensor) -> Tensor:
    """The sum of `total` over the processes, divided by `count` (), which is of all of them.

    The value is the same on each process. The gradient is scaled for a trainer that averages gradients over the
    processes, as DistributedDataParallel does.
    """
    value, share = summed(total) / count, total * (world_size() / count)
    return share + (value - share).detach()


def largest(value: Tensor) -> Tensor:
    """The largest `value` among the processes, without gradient."""
    value = value.detach().clone()
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))  # collectives want equal shapes
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rank = dist.get_rank()
        start = sum(ctx.counts[:rank])
        return summed(grad.contiguous())[start : start + ctx.counts[rank]], None
