"""What an image looks like in a few hundred numbers, without a network: where it is light, and which way its edges run.

Both descriptions ignore brightness and contrast. They take the model's squares, so that an image is described from the
same bytes in training and serving. NumPy and Pillow only.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsd.dicom.appearance import inside_borders
from medsd.errors import DataError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

THUMBNAIL = 32
CELLS, DIRECTIONS = 6, 8
_SIDE = 96  # pixels that edges are looked for in: ribs and heart border, but not the noise
_FAINT = 1e-3  # mean grey levels of edge below which an image counts as one without edges
_PORTION = 256  # images described at a time, which bounds the memory


def without_borders(pixels: Pixels) -> Pixels:
    """Images (N, S, S) without shutters and flat borders, each enlarged to S × S again.

    Otherwise a small field, as of a child, looks stranger than a lateral chest that fills the image.
    """
    return np.stack([_enlarged(image) for image in pixels]) if len(pixels) else pixels


def _enlarged(image: Pixels) -> Pixels:
    inside = inside_borders(image.astype(np.float32))
    if inside.shape == image.shape:
        return image
    whole = Image.fromarray(np.ascontiguousarray(inside)).resize(image.shape[::-1], Image.Resampling.BILINEAR)
    return np.rint(np.asarray(whole)).astype(np.uint8)


def thumbnails(pixels: Pixels) -> Floats:
    """Images (N, S, S) as standardised thumbnails (N, 1024): block means, then zero mean and unit length each.

    A flat image has no direction and becomes zeros: it correlates with nothing. Raises DataError: S is no multiple of
    32.
    """
    if pixels.ndim != 3 or pixels.shape[1] % THUMBNAIL or pixels.shape[2] % THUMBNAIL:
        raise DataError(f"images are (N, S, S) with S a multiple of {THUMBNAIL}, not {pixels.shape}")
    count, height, width = pixels.shape
    blocks = pixels.reshape(count, THUMBNAIL, height // THUMBNAIL, THUMBNAIL, width // THUMBNAIL)
    small = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(count, -1)
    centred = small - small.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    flat = length < np.sqrt(centred.shape[1])  # less than one grey level of standard deviation
    return np.where(flat, np.float32(0), centred / np.where(flat, np.float32(1), length)).astype(np.float32)


def orientation_histograms(pixels: Pixels) -> Floats:
    """Histograms of oriented gradients of images (N, S, S): (N, 288), square roots of shares that add up to 1.

    For each of 6 × 6 cells, how much edge runs in each of 8 directions, from dark to bright (so a negative differs from
    its image), as a share of all edges of the image (Dalal and Triggs, CVPR 2005; the square root is that of RootSIFT,
    Arandjelović and Zisserman, CVPR 2012). An image without edges becomes zeros.
    """
    portions = [_histograms(pixels[start : start + _PORTION]) for start in range(0, len(pixels), _PORTION)]
    return np.concatenate(portions) if portions else np.zeros((0, CELLS**2 * DIRECTIONS), np.float32)


def _histograms(pixels: Pixels) -> Floats:
    filtering = Image.Resampling.BOX if pixels.shape[1] >= _SIDE else Image.Resampling.BILINEAR
    floats = (Image.fromarray(image.astype(np.float32)) for image in pixels)
    images = np.stack([np.asarray(image.resize((_SIDE, _SIDE), filtering)) for image in floats])  # (N, 96, 96)
    count, cell = len(images), _SIDE // CELLS
    down, across = np.zeros_like(images), np.zeros_like(images)
    down[:, 1:-1] = images[:, 2:] - images[:, :-2]
    across[:, :, 1:-1] = images[:, :, 2:] - images[:, :, :-2]
    strength = np.hypot(across, down)
    direction = np.arctan2(down, across) * np.float32(DIRECTIONS / (2 * np.pi)) % DIRECTIONS
    lower = np.floor(direction)
    share = direction - lower  # of the next direction; the rest is the lower one's
    lower = lower.astype(np.int8) % DIRECTIONS
    found = np.empty((count, CELLS, CELLS, DIRECTIONS), np.float32)
    for number in range(DIRECTIONS):
        weight = np.where(lower == number, 1 - share, 0) + np.where((lower + 1) % DIRECTIONS == number, share, 0)
        found[..., number] = (strength * weight).reshape(count, CELLS, cell, CELLS, cell).sum(axis=(2, 4))
    flat = found.reshape(count, -1)
    return np.sqrt(flat / (flat.sum(axis=1, keepdims=True) + np.float32(_FAINT * _SIDE**2)))
