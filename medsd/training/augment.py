"""Random changes of the training images: a whole batch in a few tensor operations, each sample from its own seed.

The changes are those of MONAI's RandAffine, RandAdjustContrast, RandScaleIntensity, RandGaussianNoise and
RandCoarseDropout, which a test compares; image by image, these took about five times as long.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from medsd.settings import AugmentSettings

CONTRAST_CHANCE, BRIGHTNESS_CHANCE, NOISE_CHANCE = 0.5, 0.5, 0.3
_STREAM = 1  # the bare seed of a sample also decides which modality it keeps
_SMALLEST_RANGE = 1e-7  # of grey values, as in MONAI's AdjustContrast


@dataclass(frozen=True)
class Change:
    """The change of one image."""

    matrix: npt.NDArray[np.float32]  # (2, 3), from a pixel (x, y) of the result to its origin, in half sides
    gamma: float  # exponent of the grey values between the image's minimum and maximum
    brightness: float  # factor
    noise: float  # standard deviation
    erased: tuple[slice, slice] | None  # rows and columns that become 0
    mirrored: bool = False
    side: int | None = None  # pixels to which the image is reduced before it is enlarged again


class Augmentation:
    """Random changes, as large as `settings` allow, of images with `size` = S pixels a side."""

    def __init__(self, settings: AugmentSettings, size: int) -> None:
        self.settings, self.size = settings, size
        self._places = (2 * torch.arange(size, dtype=torch.float32) + 1) / size - 1  # centres of the pixels in −1…1

    def draw(self, rng: np.random.Generator) -> Change:
        """A random change of one image."""
        wanted = self.settings
        angle = np.deg2rad(wanted.rotation_degrees) * rng.uniform(-1, 1)
        shift = 2 * wanted.translation * rng.uniform(-1, 1, 2)  # half sides
        zoom = 1 + wanted.zoom * rng.uniform(-1, 1, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = np.concatenate([turn * zoom, (turn @ shift)[:, None]], axis=1).astype(np.float32)
        chances, amounts = rng.random(4), rng.random(3)
        low, high = 1 - wanted.contrast / 1.5, 1 + wanted.contrast
        gamma = low + (high - low) * amounts[0] if chances[0] < CONTRAST_CHANCE else 1.0
        factor = 1 + wanted.contrast * (2 * amounts[1] - 1) if chances[1] < BRIGHTNESS_CHANCE else 1.0
        noise = wanted.noise * amounts[2] if chances[2] < NOISE_CHANCE else 0.0
        erased = self._rectangle(rng) if chances[3] < wanted.erase else None
        mirrored = bool(rng.random() < wanted.mirror)
        return Change(matrix, gamma, factor, noise, erased, mirrored, self._side(rng))

    def _side(self, rng: np.random.Generator) -> int | None:
        """A reduced side, uniform in its logarithm: halving the resolution is as likely at every size."""
        if not 0 < self.settings.resolution < self.size:
            return None
        return round(float(np.exp(rng.uniform(np.log(self.settings.resolution), np.log(self.size)))))

    def _rectangle(self, rng: np.random.Generator) -> tuple[slice, slice]:
        """Rows and columns, an eighth to a quarter of the side each."""
        height, width = rng.integers(self.size // 8, self.size // 4 + 1, 2)
        top, left = rng.integers(0, self.size - height + 1), rng.integers(0, self.size - width + 1)
        return slice(top, top + height), slice(left, left + width)

    def __call__(self, pixels: npt.NDArray[np.uint8], seeds: Sequence[int]) -> Tensor:
        """uint8 (N, S, S) images and a seed each → changed images, float32 (N, 1, S, S) in [0, 1]."""
        sources = [np.random.default_rng([seed, _STREAM]) for seed in seeds]
        changes = [self.draw(source) for source in sources]
        images = torch.from_numpy(pixels.astype(np.float32)).unsqueeze(1).mul_(1 / 255)
        for image, change in zip(images, changes, strict=True):
            if change.mirrored:
                image.copy_(image.flip(-1))
            if change.side is not None:
                image.copy_(coarsened(image, change.side))
        images = moved(images, torch.from_numpy(np.stack([c.matrix for c in changes])), self._places)
        for image, change, source in zip(images, changes, sources, strict=True):
            recolour(image, change)
            if change.noise:
                noise = source.standard_normal(image.shape, dtype=np.float32)
                image.add_(torch.from_numpy(noise), alpha=change.noise)
            if change.erased:
                image[0][change.erased] = 0
        return images.clamp_(0, 1)


def moved(images: Tensor, matrices: Tensor, places: Tensor) -> Tensor:
    """Images float32 (N, 1, S, S) by `Change.matrix` (N, 2, 3), bilinear, black outside; places (S,) are −1…1."""
    count, size = len(images), len(places)
    grid = torch.empty(count, size, size, 2)  # as F.affine_grid, which takes longer than the resampling
    for axis in range(2):
        x, y, shift = (matrices[:, axis, column, None] for column in range(3))
        torch.add((x * places)[:, None, :], (y * places + shift)[:, :, None], out=grid[..., axis])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def coarsened(image: Tensor, side: int) -> Tensor:
    """An image (1, S, S) reduced to `side` pixels a side and enlarged again."""
    size = image.shape[-1]
    small = F.interpolate(image[None], (side, side), mode="bilinear", antialias=True)
    return F.interpolate(small, (size, size), mode="bilinear")[0]


def recolour(image: Tensor, change: Change) -> None:
    """Change contrast and brightness of one image, in place."""
    if change.gamma != 1:
        low, high = torch.aminmax(image)
        span = high - low
        image.sub_(low).div_(span + _SMALLEST_RANGE).pow_(change.gamma).mul_(span).add_(low)
    if change.brightness != 1:
        image.mul_(change.brightness)


def sample_seed(*parts: int) -> int:
    """A 32-bit seed from the numbers that name a sample, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
