"""Which layers learn, and how fast: frozen encoders or blocks, and learning rates that fall from block to block."""

from collections.abc import Iterator
from typing import Any

from medsd.errors import SettingsError
from medsd.networks.freezing import FreezableEncoder
from medsd.networks.fusion import StudyModel
from medsd.settings import StageSettings


def encoders(model: StudyModel) -> list[FreezableEncoder]:
    """The encoders that the model has."""
    return [part for part in (model.image, model.note) if part is not None]


def freeze(model: StudyModel, settings: StageSettings, stage: str) -> None:
    """Freeze what the stage holds fixed, with its batch statistics; SettingsError for more blocks than there are."""
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
    it d², and so on (Clark et al., ICLR 2020; Bao et al., ICLR 2022). Frozen parameters are in no group.
    """
    depths: dict[int, int] = {}  # by the id of an encoder's parameter, the power of d
    for encoder in encoders(model):
        found = encoder.depths()
        depths |= found if settings.layer_decay < 1 else dict.fromkeys(found, 0)
    learning = [p for p in model.parameters() if p.requires_grad]
    for depth in [*sorted(set(depths.values()), reverse=True), None]:  # None: the new layers
        scale = 1.0 if depth is None else settings.encoder_learning_rate_scale * settings.layer_decay**depth
        rate = settings.learning_rate * scale
        for decay in ({}, {"weight_decay": 0.0}):
            chosen = [p for p in learning if depths.get(id(p)) == depth and (p.ndim > 1) == (not decay)]
            yield {"params": chosen, "lr": rate, "base_lr": rate, **decay}
