"""The model that joins image and note: one space, one linear classifier, either modality allowed to be missing.

Each encoder ends in a linear map into the space of `network.embedding` dimensions; a study's features are the mean over
the modalities it has. As everything after the last feature map is linear, the logit of a finding is the mean of its
evidence map plus what the note adds: the map is an exact class activation map (Zhou et al., CVPR 2016), and the logit
of a study with both is the mean of the logits of its image alone and of its note alone. A model may have one encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from medsd.networks.image import ImageEncoder, image_encoder
from medsd.networks.note import NoteEncoder, note_encoder
from medsd.settings import NetworkSettings


@dataclass(frozen=True)
class Inputs:
    """A batch as the model takes it; an image-only model takes pixels alone, a note-only one ids and mask alone.

    Attributes:
        pixels: float32 (B, 1, S, S) in 0…1; any values where `has_image` is 0.
        has_image, has_note: float32 (B,), 1 given, 0 missing.
        note_ids, note_mask: int64 (B, L).
    """

    pixels: Tensor | None
    has_image: Tensor | None = None
    note_ids: Tensor | None = None
    note_mask: Tensor | None = None
    has_note: Tensor | None = None

    def to(self, device: torch.device | str) -> Inputs:
        """The same batch on another device."""
        values = (getattr(self, field.name) for field in fields(self))
        return Inputs(*(None if value is None else value.to(device, non_blocking=True) for value in values))


@dataclass(frozen=True)
class Outputs:
    """What the model says.

    Attributes:
        logits: (B, F).
        features: (B, D), before normalisation; the learned space is their direction.
        evidence: (B, F, h, w), in logits; None of a model of notes alone.
        image_features, note_features: (B, D), what each modality says by itself; None where the model does not read it,
            of no meaning where a study lacks it.
        regions: (B, D, h, w), what each place of the film adds to the features: `features` is its mean over the places,
            plus the note's part; None of a model of notes alone.
    """

    logits: Tensor
    features: Tensor
    evidence: Tensor | None = None
    image_features: Tensor | None = None
    note_features: Tensor | None = None
    regions: Tensor | None = None

    @property
    def embedding(self) -> Tensor:
        """(B, D) of unit length."""
        return F.normalize(self.features, dim=1)


class StudyModel(nn.Module):
    """Image encoder, note encoder, or both; the common space and the classifier.

    Args:
        settings: of the encoders and the space.
        findings: F, how many findings there are.
        size: side of the input in pixels.
        tokenizer: of the notes; needed where `settings.note` is given.
    """

    def __init__(self, settings: NetworkSettings, findings: int, size: int, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.image: ImageEncoder | None = None
        if settings.image is not None:
            self.image = image_encoder(settings.image, size)
            self.image_to_space = nn.Conv2d(self.image.width, settings.embedding, kernel_size=1)
        self.note: NoteEncoder | None = None
        if settings.note is not None:
            assert tokenizer is not None, "a model with notes needs their tokenizer"
            self.note = note_encoder(settings.note, tokenizer)
            self.note_to_space = nn.Linear(self.note.width, settings.embedding)
        either = settings.image or settings.note
        assert either is not None, "the settings see to it that a model reads something"
        self.dropout = nn.Dropout(either.dropout)
        self.classifier = nn.Linear(settings.embedding, findings)
        # The pretraining head: contrast bends the space behind it, and leaves more in front (Chen et al., ICML 2020).
        self.projection = nn.Sequential(
            nn.Linear(settings.embedding, settings.embedding),
            nn.ReLU(),
            nn.Linear(settings.embedding, settings.projection),
        )

    def forward(self, inputs: Inputs) -> Outputs:
        """Read a batch; see `Inputs` and `Outputs` for the shapes."""
        note = None if self.note is None else self.note_to_space(self.note(inputs.note_ids, inputs.note_mask))  # (B, D)
        if self.image is None:
            assert note is not None
            return Outputs(self.classifier(self.dropout(note)), note, note_features=note)
        assert inputs.pixels is not None
        space = self.image_to_space(self.image(inputs.pixels))  # (B, D, h, w)
        image = space.mean(dim=(2, 3))  # (B, D)
        if note is None:
            share, features = torch.ones_like(image[:, :1]), image
        else:
            has_image, has_note = inputs.has_image, inputs.has_note
            assert has_image is not None and has_note is not None
            total = (has_image + has_note).clamp_min(1)
            share = (has_image / total).unsqueeze(1)  # (B, 1)
            features = share * image + (has_note / total).unsqueeze(1) * note
        evidence = F.conv2d(space, self.classifier.weight[:, :, None, None]) * share[:, :, None, None]
        regions = space * share[:, :, None, None]
        return Outputs(self.classifier(self.dropout(features)), features, evidence, image, note, regions)

    def project(self, features: Tensor) -> Tensor:
        """(B, D) → (B, projection), where the SD loss is taken; unit length is the loss's business."""
        return self.projection(features)
