"""The contrastive sum of a large batch, one block of anchors after the other, exact in value and gradient.

The plain computation keeps several (N, M) matrices for its backward pass. This one computes the gradient of a block
together with its value, so that only a block and the (N, D) and (M, D) gradients are ever in memory. A gradient of the
gradient is exact too, but takes the memory of the plain computation.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medsd.sd.coefficients import Coefficients, Excluded, contrastive_sum, log_probabilities, product

BlockOf = Callable[[slice], tuple[Excluded, Coefficients]]

CELLS_OF_A_BLOCK = 1 << 21  # 8 MiB in single precision: few enough steps, small enough matrices


def blocked_contrast(
    anchors: Tensor, refs: Tensor, inverse_temperature: Tensor, block_of: BlockOf
) -> tuple[Tensor, Tensor]:
    """Sum of the anchors' losses and the number of summands; the first has gradients of any order for the tensors.

    The unit embeddings `anchors` (N, D) are compared with `refs` (M, D). `block_of` gives the left-out pairs and the
    coefficients (R, M) of the anchors in a slice.
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
        for rows in _blocks(anchors, refs):
            excluded, found = block_of(rows)
            coefficient, log_denominator = found.matrix, found.log_denominator()  # (R, M)
            log_prob = log_probabilities(scaled[rows] @ refs.T, excluded, log_denominator)
            total -= torch.einsum("rm,rm->r", coefficient, log_prob).sum()
            terms += found.terms.sum()
            if found.constant is not None:
                total += found.constant.sum()
            if not needs_gradient:
                continue
            if log_denominator is not None:
                log_prob += log_denominator
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
        ctx.block_of = block_of
        ctx.save_for_backward(anchors, refs, inverse_temperature, grad_anchors, grad_refs, grad_temperature)
        ctx.mark_non_differentiable(terms)
        return total, terms

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:3]
        inputs, grads = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted, so that it must depend on the inputs
            found = iter(_differentiable_gradients(inputs, wanted, grad_total, ctx.block_of))
            return (*(next(found) if is_wanted else None for is_wanted in wanted), None)
        return (
            *(grad * grad_total if is_wanted else None for grad, is_wanted in zip(grads, wanted, strict=True)),
            None,
        )


def _differentiable_gradients(
    inputs: tuple[Tensor, ...], wanted: tuple[bool, ...], grad_total: Tensor, block_of: BlockOf
) -> tuple[Tensor, ...]:
    # Views, for anchors and samples may be the same tensor, and each has a gradient of its own.
    anchors, refs, inverse_temperature = (tensor.view_as(tensor) for tensor in inputs)
    of = [t for t, is_wanted in zip((anchors, refs, inverse_temperature), wanted, strict=True) if is_wanted]
    with torch.autocast(anchors.device.type, enabled=False):
        sums = [
            contrastive_sum(product(anchors[rows] * inverse_temperature, refs.T), *block_of(rows))
            for rows in _blocks(anchors, refs)
        ]
        return torch.autograd.grad(torch.stack(sums).sum(), of, grad_total, create_graph=True)


def _blocks(anchors: Tensor, refs: Tensor) -> list[slice]:
    step = max(1, CELLS_OF_A_BLOCK // max(1, refs.shape[0]))
    return [slice(start, min(start + step, len(anchors))) for start in range(0, len(anchors), step)]
