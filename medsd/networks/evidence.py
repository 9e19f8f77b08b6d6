"""The head that draws evidence maps: what each place of a film adds to each logit.

The class activation map of `medsd.networks.fusion` is exact and a poor guide: it carries what all films have in common,
and its peaks lie where a network that saw labels alone found company of the finding. This head changes where the logit
is drawn, never what is drawn: a map's sum stays the logit, less what is the same for every film.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medsd.networks.fusion import Outputs


class EvidenceHead(nn.Module):
    """Draws maps.

    Args:
        average: (F, h, w), the activation map of an average film, which is taken off; 0 for a finding with a pointer.
        pointer: (F, D), linear in the regions; what it says of a place beyond its mean over the film moves the logit's
            parts there. Learned from boxes (`medsd.pipeline.evidence_head`); 0 for a finding without them.
    """

    average: Tensor
    pointer: Tensor

    def __init__(self, average: Tensor, pointer: Tensor) -> None:
        super().__init__()
        self.register_buffer("average", average)
        self.register_buffer("pointer", pointer)

    def forward(self, outputs: Outputs, share: Tensor) -> Tensor:
        """The maps.

        Args:
            outputs: of a model of images.
            share: (B or 1, 1, 1, 1), the film's share of the features; 1 without a note.

        Returns:
            (B, F, h, w), which adds up over h and w to the film's part of the logit, less the bias and the average's.
        """
        assert outputs.evidence is not None and outputs.regions is not None
        drawn = F.conv2d(outputs.regions, self.pointer[:, :, None, None])
        drawn = drawn - drawn.mean(dim=(2, 3), keepdim=True)
        return logit_parts(outputs.evidence - self.average * share + drawn)


def logit_parts(maps: Tensor) -> Tensor:
    """Maps (B, F, h, w) that add up to what `maps` has as its mean: parts of a sum, where the network takes a mean."""
    return maps / (maps.shape[2] * maps.shape[3])
