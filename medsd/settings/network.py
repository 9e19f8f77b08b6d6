"""The encoders and the learned space; docs/guides/encoders.md shows what their names mean."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from medsd.strict import Strict

Backbone = Literal[
    "efficientnet-lite0",
    "efficientnet-b0",
    "efficientnet-b1",
    "efficientnet-b2",
    "efficientnet-b3",
    "densenet121",
    "densenet169",
    "densenet-small",
    "resnet18",
    "resnet50",
    "vit-tiny",
    "vit-small",
    "vit-base",
]


class ImageSettings(Strict):
    """The image encoder."""

    backbone: Backbone = Field("efficientnet-lite0", description="Architecture of the encoder.")
    weights: Literal["imagenet", "none"] | Path = Field(
        "none",
        description="First weights: imagenet, none, a safetensors or state-dict file (.pt, .pth), hub:owner/name, or "
        "xrv:FILE for the state dict of a DenseNet121 of torchxrayvision.",
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout in the encoder and before the classifier.")


class NoteSettings(Strict):
    """The note encoder: a small BERT with a vocabulary of the training notes, or an existing model."""

    model: Literal["small-bert", "minilm"] | Path = Field(
        "small-bert",
        description="small-bert, minilm (a package: medsd[notes]), hub:owner/name, or a folder of transformers.",
    )
    vocabulary_size: int = Field(2000, ge=100, le=60000, description="Number of tokens of small-bert.")
    max_tokens: int = Field(96, ge=8, le=8192, description="Longer notes are cut; not used if window is given.")
    window: int | None = Field(None, ge=8, le=8192, description="Read notes in overlapping windows of so many tokens.")
    stride: int | None = Field(None, ge=1, description="Tokens from window to window. Absent: half of a window's text.")
    max_windows: int = Field(4, ge=1, le=64, description="Text after this many windows is cut.")
    mask_findings: bool = Field(True, description="Hide the words that name a finding: they give it away.")
    layers: int = Field(2, ge=1, le=24, description="Layers of small-bert.")
    hidden: int = Field(128, ge=16, le=1024, multiple_of=16, description="Width of small-bert.")
    heads: int = Field(4, ge=1, le=16, description="Attention heads of small-bert.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of small-bert.")

    @model_validator(mode="after")
    def _stride_of_windows(self) -> Self:
        if self.stride is not None and self.window is None:
            raise ValueError("stride: needs window")
        if self.stride is not None and self.window is not None and self.stride > self.window - 2:
            raise ValueError(f"stride: {self.stride} would leave out text between windows of {self.window} tokens")
        return self

    @property
    def span(self) -> int:
        """Tokens that the transformer reads at once."""
        return self.window or self.max_tokens

    @property
    def length(self) -> int:
        """Tokens of a note in the network's input: all windows side by side."""
        return self.max_tokens if self.window is None else self.window * self.max_windows


class NetworkSettings(Strict):
    """The encoders and the learned space that they share."""

    image: ImageSettings | None = Field(ImageSettings(), description="The image encoder. null: notes alone.")
    note: NoteSettings | None = Field(None, description="The note encoder. Absent: images alone.")
    embedding: int = Field(256, ge=8, le=4096, description="Dimensions of the learned space.")
    projection: int = Field(128, ge=8, le=4096, description="Dimensions of the pretraining head, dropped afterwards.")
    modality_dropout: float = Field(
        0.3, ge=0, lt=1, description="Probability that a study loses its image or its note in training."
    )

    @model_validator(mode="after")
    def _reads_something(self) -> Self:
        if self.image is None and self.note is None:
            raise ValueError("image: null leaves nothing to read; give note, for instance note: {model: small-bert}")
        return self
