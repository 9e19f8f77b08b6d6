"""Which layers learn, and how fast: frozen encoders or blocks, and learning rates that fall from block to block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from medsd.errors import SettingsError
from medsd.networks.freezing import FreezableEncoder
from medsd.networks.fusion import StudyModel
from medsd.settings import StageSettings


def encoders(model: StudyModel) -> list[FreezableEncoder]:
    """The encoders that the model has."""
    return [part for part in (model.image, model.note) if part is not None]


def freeze(model: StudyModel, settings: StageSettings, stage: str) -> None:
    """Hold fixed what the stage holds fixed; its batch normalisation keeps its statistics, its dropout is off.

    Args:
        model: changed in place.
        settings: of the stage.
        stage: its name, for the message.

    Raises:
        SettingsError: more blocks than the backbone has.
    """
    if settings.freeze == "encoders":
        for encoder in encoders(model):
            encoder.freeze()
        return
    blocks = 0 if model.image is None else len(model.image.blocks)
    if settings.freeze_blocks > blocks:
        raise SettingsError(
            f"training.{stage}.freeze_blocks: {settings.freeze_blocks}, but the image backbone has {blocks} blocks"
        )
    if model.image is not None and settings.freeze_blocks:
        model.image.freeze(settings.freeze_blocks)


def parameter_groups(model: StudyModel, settings: StageSettings) -> Iterator[dict[str, Any]]:
    """Encoders and new layers apart, each with its own learning rate; no decay on biases and normalisation.

    With `layer_decay` d, the rate of an encoder's last block is d times that of the encoders, that of the block before
    it d², and so on (Clark et al., ICLR 2020; Bao et al., ICLR 2022). What is frozen is in no group.
    """
    depths = _depths(model, settings.layer_decay)
    order: list[int | None] = [*sorted(set(depths.values()), reverse=True), None]  # None: the new layers
    learning = [p for p in model.parameters() if p.requires_grad]
    for depth in order:
        scale = 1.0 if depth is None else settings.encoder_learning_rate_scale * settings.layer_decay**depth
        for decayed in (True, False):
            chosen = [p for p in learning if depths.get(id(p)) == depth and (p.ndim > 1) == decayed]
            rate = settings.learning_rate * scale
            group: dict[str, Any] = {"params": chosen, "lr": rate, "base_lr": rate}
            if not decayed:
                group["weight_decay"] = 0.0
            yield group


def _depths(model: nn.Module, decay: float) -> dict[int, int]:
    """By the id of each parameter of an encoder, the power of `decay` in its rate; 0 for all where nothing decays."""
    assert isinstance(model, StudyModel)
    found: dict[int, int] = {}
    for encoder in encoders(model):
        depths = encoder.depths()
        found |= depths if decay < 1 else dict.fromkeys(depths, 0)
    return found
