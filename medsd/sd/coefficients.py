"""What a loss of the family says of a block of pairs: which are left out, and how much each of the others counts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Excluded:
    """Pairs of R anchors and M samples that stand neither among the positives nor in the denominator.

    Attributes:
        mask: (R, M) bool, True where excluded, or None.
        diagonal: offset of the diagonal on which the anchors meet themselves, or None.
    """

    mask: Tensor | None
    diagonal: int | None

    def fill_(self, matrix: Tensor, value: float) -> Tensor:
        """Write `value` into the excluded places of `matrix`, in place."""
        if self.mask is not None:
            matrix.masked_fill_(self.mask, value)
        if self.diagonal is not None:
            matrix.diagonal(self.diagonal).fill_(value)
        return matrix


@dataclass(frozen=True)
class Coefficients:
    """What a block of R anchors adds to the loss: −Σ_j matrix_ij · log p_ij + constant_i, to be divided by Σ terms.

    Attributes:
        matrix: (R, M) not negative, 0 for all pairs but the positive ones.
        terms: (R,) by how many summands the anchor enters the mean; 0 without positives.
        constant: (R,) a part of the value without gradient, or None.
    """

    matrix: Tensor
    terms: Tensor
    constant: Tensor | None = None
