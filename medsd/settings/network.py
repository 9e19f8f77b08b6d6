"""The encoders, and the space in which they meet."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from medsd.strict import Strict


class ImageSettings(Strict):
    """The image encoder."""

    backbone: Literal["efficientnet-lite0", "densenet121", "densenet-small", "resnet18"] = "efficientnet-lite0"
    weights: Literal["imagenet", "none"] | Path = Field(
        "none", description="imagenet (efficientnet-lite0 only), none, or a safetensors file of the encoder"
    )
    dropout: float = Field(0.2, ge=0, lt=1)


class NoteSettings(Strict):
    """The note encoder: a small BERT whose WordPiece vocabulary is trained on the training notes, or a local folder."""

    model: Literal["small-bert"] | Path = Field(
        "small-bert", description="small-bert, or a folder that transformers wrote"
    )
    vocabulary_size: int = Field(2000, ge=100, le=60000)
    max_tokens: int = Field(96, ge=8, le=512, description="longer notes are cut")
    mask_findings: bool = Field(
        True, description="hide the words that name a finding of the set: a note that has them gives the answer away"
    )
    layers: int = Field(2, ge=1, le=24)
    hidden: int = Field(128, ge=16, le=1024, multiple_of=16)
    heads: int = Field(4, ge=1, le=16)
    dropout: float = Field(0.1, ge=0, lt=1)


class NetworkSettings(Strict):
    """Encoders, and the space in which they meet."""

    image: ImageSettings = ImageSettings()
    note: NoteSettings | None = Field(None, description="absent: images alone")
    embedding: int = Field(256, ge=8, le=4096, description="dimensions of the learned space")
    projection: int = Field(128, ge=8, le=4096, description="dimensions of the pretraining head, dropped afterwards")
    modality_dropout: float = Field(
        0.3, ge=0, lt=1, description="chance that a study loses its image or its note in training"
    )
