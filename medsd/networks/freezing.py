"""Encoders as blocks in order, which can be frozen or learn at rates of their own."""

from collections.abc import Iterator, Sequence
from typing import Self

from torch import nn

Blocks = Sequence[Sequence[nn.Module]]


class FreezableEncoder(nn.Module):
    """An encoder of `blocks`, from the input on, the first of which can be frozen."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self.blocks = [list(block) for block in blocks]  # a list of lists: no second name in the state dict
        self.frozen = 0

    def freeze(self, count: int | None = None) -> None:
        """Freeze the first `count` blocks, or the whole encoder: no gradients, fixed batch statistics, no dropout."""
        whole = count is None or count >= len(self.blocks)
        self.frozen = len(self.blocks) if whole else count or 0
        for module in self._held():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, except that frozen blocks stay in evaluation mode."""
        super().train(mode)
        for module in self._held():
            module.eval()
        return self

    def _held(self) -> Iterator[nn.Module]:
        if self.frozen == len(self.blocks):
            yield from self.children()
        else:
            yield from (module for block in self.blocks[: self.frozen] for module in block)

    def depths(self) -> dict[int, int]:
        """By the id of each parameter, the position of its block counted from the encoder's end, from 1."""
        last = len(self.blocks)
        found = {id(p): 1 for p in self.parameters()}
        for position, block in enumerate(self.blocks):
            found |= {id(p): last - position for module in block for p in module.parameters()}
        return found
