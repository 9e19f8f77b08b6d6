"""What a loss of the family says of a block of pairs, and the contrastive sum that follows from it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Excluded:
    """Pairs of R anchors and M samples that are neither positive nor in the denominator."""

    mask: Tensor | None  # (R, M) bool, True where excluded
    diagonal: int | None  # offset of the diagonal on which the anchors are paired with themselves

    def fill_(self, matrix: Tensor, value: float) -> Tensor:
        """Write `value` into the excluded places of `matrix`, in place."""
        if self.mask is not None:
            matrix.masked_fill_(self.mask, value)
        if self.diagonal is not None:
            matrix.diagonal(self.diagonal).fill_(value)
        return matrix


@dataclass(frozen=True)
class Coefficients:
    """What a block of R anchors adds to the loss: −Σ_j matrix_ij · log p_ij + constant_i, to be divided by Σ terms."""

    matrix: Tensor  # (R, M) not negative, 0 for all pairs but the positive ones
    terms: Tensor  # (R,) by how many summands the anchor enters the mean; 0 without positives
    constant: Tensor | None = None  # (R,) a part of the value without gradient
    denominator: Tensor | None = None  # (R, M) not negative, the factor of each sample in the denominator of p; None: 1

    def log_denominator(self) -> Tensor | None:
        """log of `denominator` (R, M); 0 in the rows that add nothing, whose sum could be 0."""
        if self.denominator is None:
            return None
        return self.denominator.where(self.matrix.any(1, keepdim=True), 1).log()


def log_probabilities(logits: Tensor, excluded: Excluded, log_denominator: Tensor | None) -> Tensor:
    """log p (R, M) of each sample given its anchor; overwrites `logits` (R, M)."""
    # The lowest number rather than -inf: a row without any sample then has a finite softmax and zero gradient.
    excluded.fill_(logits, torch.finfo(logits.dtype).min)
    if log_denominator is None:
        return logits.log_softmax(dim=1)
    return logits - (logits + log_denominator).logsumexp(dim=1, keepdim=True)


def contrastive_sum(logits: Tensor, excluded: Excluded, found: Coefficients) -> Tensor:
    """Sum of the losses of R anchors, a scalar; overwrites `logits` (R, M)."""
    log_prob = log_probabilities(logits, excluded, found.log_denominator())
    total = 0 - (found.matrix * log_prob).sum()  # 0 − 0, for -0 would be printed
    return total if found.constant is None else total + found.constant.sum()


def weigh_positives(
    weight: Tensor, inside: bool = False, by_weight: bool = False, positive: Tensor | None = None
) -> Coefficients:
    """Coefficients of the pairs with positive `weight` (R, M), divided by their count or by their sum of weights.

    `positive` (R, M) bool gives the pairs that are counted where these are not those with a weight.
    """
    weighed = weight > 0
    count = (weighed if positive is None else positive).sum(1, dtype=weight.dtype)  # (R,)
    terms = weighed.sum(1, dtype=weight.dtype).clamp(max=1)
    scale = terms / (weight.sum(1) if by_weight else count).clamp(min=torch.finfo(weight.dtype).tiny)
    if not inside:
        return Coefficients(weight * scale[:, None], terms)
    log_weight = weight.masked_fill(~weighed, 1).log()
    return Coefficients(weighed * scale[:, None], terms, constant=-(log_weight.sum(1) * scale))


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left` @ `right` for matrices or batches of them, with gradients in the precision of the arguments.

    Autograd would take the gradients in half precision where the backward pass runs inside torch.autocast.
    """
    result: Tensor = _Product.apply(left, right)
    return result


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(left: Tensor, right: Tensor) -> Tensor:
        with torch.autocast(left.device.type, enabled=False):
            return left @ right

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        return (
            product(grad, right.mT) if ctx.needs_input_grad[0] else None,
            product(grad.mT, left).mT if ctx.needs_input_grad[1] else None,  # as autograd orders it, to the last digit
        )
