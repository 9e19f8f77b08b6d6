"""Images and notes in one space: each modality contrasted with the other, by the same relations of their findings."""

import torch
from torch import Tensor, nn

from medsd.errors import DataError
from medsd.sd.losses import ContrastiveLoss


class CrossModalLoss(nn.Module):
    """Mean of image-to-note and note-to-image contrast, with any loss of the family to weigh the pairs.

    As in CLIP (Radford et al. 2021), an image's own note is among its positives; so are, with their weights, the notes
    of the studies that share its findings.

    Example:
        >>> import torch
        >>> from medsd.sd.losses import SDLoss
        >>> images, notes = torch.randn(4, 8), torch.randn(4, 8)
        >>> has_note = torch.tensor([True, True, False, True])
        >>> loss = CrossModalLoss(SDLoss())(images, notes, torch.eye(4), has_note)
    """

    def __init__(self, loss: ContrastiveLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self,
        images: Tensor,
        notes: Tensor,
        labels: Tensor,
        has_note: Tensor | None = None,
        has_image: Tensor | None = None,
        note_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch of studies, a scalar.

        Args:
            images: (B, D) embeddings of any length, or (B, V, D) for V views.
            notes: (B, D) embeddings in the same space; rows without a note may hold anything finite.
            labels: (B, F) values in [0, 1] or NaN.
            has_note: (B,) bool; None when every study has one.
            has_image: (B,) bool, likewise of the images.
            note_labels: (M, F) labels of the notes, where they are not those of the images: `notes` is then (M, D) of
                other texts, and `has_note` (M,).

        Raises:
            DataError: shapes that do not fit.
        """
        note_labels = _of_present("has_note", has_note, labels if note_labels is None else note_labels)
        labels = _of_present("has_image", has_image, labels)
        to_note = self.loss(images, labels, ref_emb=notes, ref_labels=note_labels)
        to_image = self.loss(notes, note_labels, ref_emb=images, ref_labels=labels)
        found: Tensor = (to_note + to_image) / 2
        return found


def _of_present(name: str, present: Tensor | None, labels: Tensor) -> Tensor:
    """The labels, all unknown where a modality is missing: every pair with it is left out."""
    if present is None:
        return labels
    if present.shape != labels.shape[:1]:
        raise DataError(f"{name} has shape {tuple(present.shape)}; it needs one value for each of the labels")
    missing = ~present.bool().to(labels.device)[:, None]
    return labels.to(torch.promote_types(labels.dtype, torch.float16)).masked_fill(missing, torch.nan)
