"""The model that joins image and note: one space, one linear classifier, either modality allowed to be missing.

Both encoders end in a linear map into the space of `network.embedding` dimensions; a study's features are the mean over
the modalities it has. As everything after the last feature map is linear, the logit of a finding is the mean of its
evidence map plus what the note adds: the map is an exact class activation map (Zhou et al., CVPR 2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from medsd.networks.image import image_encoder
from medsd.networks.note import NoteEncoder, note_encoder
from medsd.settings import NetworkSettings


@dataclass(frozen=True)
class Inputs:
    """A batch as the model takes it.

    Attributes:
        pixels: float32 (B, 1, S, S) in 0…1; any values where `has_image` is 0.
        has_image, has_note: float32 (B,), 1 given, 0 missing. Image-only models take pixels alone.
        note_ids, note_mask: int64 (B, L).
    """

    pixels: Tensor
    has_image: Tensor | None = None
    note_ids: Tensor | None = None
    note_mask: Tensor | None = None
    has_note: Tensor | None = None

    def to(self, device: torch.device | str) -> Inputs:
        """The same batch on another device."""
        rest = (self.has_image, self.note_ids, self.note_mask, self.has_note)
        moved = [None if value is None else value.to(device, non_blocking=True) for value in rest]
        return Inputs(self.pixels.to(device, non_blocking=True), *moved)


@dataclass(frozen=True)
class Outputs:
    """What the model says.

    Attributes:
        logits: (B, F).
        features: (B, D), before normalisation; the learned space is their direction.
        evidence: (B, F, h, w), in logits.
    """

    logits: Tensor
    features: Tensor
    evidence: Tensor

    @property
    def embedding(self) -> Tensor:
        """(B, D) of unit length."""
        return F.normalize(self.features, dim=1)


class StudyModel(nn.Module):
    """Image encoder, optional note encoder, the common space and the classifier.

    Args:
        settings: of both encoders and the space.
        findings: F, how many findings there are.
        size: side of the input in pixels.
        tokenizer: of the notes; needed where `settings.note` is given.
    """

    def __init__(self, settings: NetworkSettings, findings: int, size: int, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.image = image_encoder(settings.image, size)
        self.image_to_space = nn.Conv2d(self.image.width, settings.embedding, kernel_size=1)
        self.note: NoteEncoder | None = None
        if settings.note is not None:
            assert tokenizer is not None, "a model with notes needs their tokenizer"
            self.note = note_encoder(settings.note, tokenizer)
            self.note_to_space = nn.Linear(self.note.width, settings.embedding)
        self.dropout = nn.Dropout(settings.image.dropout)
        self.classifier = nn.Linear(settings.embedding, findings)
        # The pretraining head: contrast bends the space behind it, and leaves more in front (Chen et al., ICML 2020).
        self.projection = nn.Sequential(
            nn.Linear(settings.embedding, settings.embedding),
            nn.ReLU(),
            nn.Linear(settings.embedding, settings.projection),
        )

    def forward(self, inputs: Inputs) -> Outputs:
        """Read a batch; see `Inputs` and `Outputs` for the shapes."""
        space = self.image_to_space(self.image(inputs.pixels))  # (B, D, h, w)
        if self.note is None:
            share = torch.ones_like(inputs.pixels[:, 0, 0, :1])  # (B, 1)
            features = space.mean(dim=(2, 3))
        else:
            has_image, has_note = inputs.has_image, inputs.has_note
            assert has_image is not None and has_note is not None
            total = (has_image + has_note).clamp_min(1)
            share = (has_image / total).unsqueeze(1)  # (B, 1)
            note = self.note_to_space(self.note(inputs.note_ids, inputs.note_mask))  # (B, D)
            features = share * space.mean(dim=(2, 3)) + (has_note / total).unsqueeze(1) * note
        evidence = F.conv2d(space, self.classifier.weight[:, :, None, None]) * share[:, :, None, None]
        return Outputs(self.classifier(self.dropout(features)), features, evidence)

    def project(self, features: Tensor) -> Tensor:
        """(B, D) → (B, projection), where the SD loss is taken; unit length is the loss's business."""
        return self.projection(features)
