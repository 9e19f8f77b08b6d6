"""The contrastive sum of a large batch, one block of anchors after the other, exact in value and gradient.

The plain computation keeps several (N, M) matrices for its backward pass. This one finishes the gradient of a block
while its similarities are at hand, so that only a block and the (N, D) and (M, D) gradients are ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from medsd.sd.coefficients import Coefficients, Excluded

    BlockOf = Callable[[slice], tuple[Excluded, Coefficients]]

CELLS_OF_A_BLOCK = 1 << 21  # 8 MiB in single precision: few enough steps, small enough matrices


def blocked_contrast(
    anchors: Tensor, refs: Tensor, inverse_temperature: Tensor, block_of: BlockOf
) -> tuple[Tensor, Tensor]:
    """Sum of the anchors' losses and the number of summands, like the plain computation.

    Args:
        anchors: (N, D) unit embeddings.
        refs: (M, D) unit embeddings that they are compared with.
        inverse_temperature: () 1/τ.
        block_of: left-out pairs and coefficients (R, M) of the anchors in a slice.

    Returns:
        Two scalars; the first has gradients for the three tensors, once (no second derivatives).
    """
    total, terms = _BlockedContrast.apply(anchors, refs, inverse_temperature, block_of)
    return total, terms


class _BlockedContrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, refs: Tensor, inverse_temperature: Tensor, block_of: BlockOf
    ) -> tuple[Tensor, Tensor]:
        scaled = anchors * inverse_temperature
        total, terms = anchors.new_zeros(()), anchors.new_zeros(())
        wants_anchors, wants_refs, wants_temperature, _ = ctx.needs_input_grad
        needs_gradient = wants_anchors or wants_refs or wants_temperature
        grad_anchors = torch.empty_like(anchors) if wants_anchors or wants_temperature else None
        grad_refs = torch.zeros_like(refs) if wants_refs else None
        rows_of_a_block = max(1, CELLS_OF_A_BLOCK // max(1, refs.shape[0]))
        for start in range(0, anchors.shape[0], rows_of_a_block):
            rows = slice(start, min(start + rows_of_a_block, anchors.shape[0]))
            excluded, found = block_of(rows)
            coefficient = found.matrix  # (R, M)
            logits = excluded.fill_(scaled[rows] @ refs.T, torch.finfo(anchors.dtype).min)
            log_prob = logits.log_softmax(dim=1)
            total -= torch.einsum("rm,rm->r", coefficient, log_prob).sum()
            terms += found.terms.sum()
            if found.constant is not None:
                total += found.constant.sum()
            if not needs_gradient:
                continue
            # dL/dlogits = softmax · Σ_j c_ij − c_ij; it overwrites the log probabilities
            slope = log_prob.exp_().mul_(coefficient.sum(1, keepdim=True)).sub_(coefficient)
            if grad_anchors is not None:
                torch.mm(slope, refs, out=grad_anchors[rows])
            if grad_refs is not None:
                grad_refs.addmm_(slope.T, scaled[rows])
        grad_temperature = None
        if grad_anchors is not None:
            grad_temperature = (grad_anchors * anchors).sum()
            grad_anchors.mul_(inverse_temperature)
        ctx.save_for_backward(grad_anchors, grad_refs, grad_temperature)
        ctx.mark_non_differentiable(terms)
        return total, terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = [grad * grad_total if grad is not None else None for grad in ctx.saved_tensors]
        return (*(grad if wanted else None for grad, wanted in zip(grads, ctx.needs_input_grad, strict=False)), None)
