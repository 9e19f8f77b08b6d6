"""Random changes of the training images, by MONAI transforms, each sample from its own seed.

The seed of a sample depends on the run's seed, the epoch, the study and the view alone, so the pictures are the same
whatever the number of loader workers, and a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandAffine,
    RandCoarseDropout,
    RandGaussianNoise,
    RandScaleIntensity,
)
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor

from medsd.settings import AugmentSettings


def augmentation(settings: AugmentSettings, size: int) -> Compose:
    """The chain of transforms for pictures of shape (1, S, S) in 0…1; never a flip: the heart stays on its side."""
    shift = settings.translation * size
    steps: list[object] = [
        RandAffine(
            prob=1.0,
            rotate_range=float(np.deg2rad(settings.rotation_degrees)),
            translate_range=(shift, shift),
            scale_range=(settings.zoom, settings.zoom),
            padding_mode="zeros",
            cache_grid=True,
            spatial_size=(size, size),
        ),
        RandAdjustContrast(prob=0.5, gamma=(1 - settings.contrast / 1.5, 1 + settings.contrast)),
        RandScaleIntensity(prob=0.5, factors=settings.contrast),
    ]
    if settings.noise:
        steps.append(RandGaussianNoise(prob=0.3, std=settings.noise))
    if settings.erase:
        side = size // 4
        steps.append(
            RandCoarseDropout(holes=1, spatial_size=side // 2, max_spatial_size=side, fill_value=0, prob=settings.erase)
        )
    return Compose(steps)


def augmented(chain: Compose, pixels: npt.NDArray[np.uint8], seed: int) -> Tensor:
    """One changed picture.

    Args:
        chain: from `augmentation`.
        pixels: uint8 (S, S).
        seed: of this sample.

    Returns:
        float32 (1, S, S) in 0…1.
    """
    chain.set_random_state(seed=seed)
    picture = torch.from_numpy(pixels.astype(np.float32) / 255.0).unsqueeze(0)
    changed = chain(picture)
    return convert_to_tensor(changed, track_meta=False).clamp(0, 1).contiguous()


def sample_seed(*parts: int) -> int:
    """A 32-bit seed from the numbers that name a sample, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
