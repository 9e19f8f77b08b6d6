"""From a presentation-ready radiograph to the pixels that the network sees, and from its evidence map back.

This is the only preprocessing in medsd: `medsd prepare` caches what `to_pixels` returns and serving calls the same
function, so that a study is trained on and scored from the same bytes. NumPy and Pillow only.

Images of four times the model's side and more are reduced by a whole factor first (means of blocks), which costs a
tenth of an antialiased resize from the full size; see `to_pixels`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsd.dicom.greys import Box as PixelBox
from medsd.dicom.greys import StoredGreys, block_means
from medsd.dicom.read import Radiograph
from medsd.settings import PixelSpec

GreyImage = npt.NDArray[np.float32]
ModelPixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom in 0…1 of an image's width and height

_GAP = 2.0  # block means leave this many times the pixels that the resize makes of them, Pillow's `reducing_gap`
# Means of 8-bit values often lie half-way between two grey levels. This is taken off before rounding, so that rounding
# does not depend on the last bit of a float32, and the two ways to a reduced image agree.
_TIE = np.float32(1e-4)


def _placement(shape: tuple[int, int], spec: PixelSpec) -> tuple[PixelBox, PixelBox]:
    """Which box of the image (left, top, right, bottom; image pixels) fills which box of the model square."""
    height, width = shape
    whole_image, whole_square = (0, 0, width, height), (0, 0, spec.size, spec.size)
    if spec.fit == "crop":
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        return (left, top, left + side, top + side), whole_square
    if spec.fit == "pad":
        scale = spec.size / max(height, width)
        inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (spec.size - inner_width) // 2, (spec.size - inner_height) // 2
        return whole_image, (left, top, left + inner_width, top + inner_height)
    return whole_image, whole_square


def _grey(radiograph: Radiograph | npt.ArrayLike) -> GreyImage:
    pixels = getattr(radiograph, "pixels", radiograph)
    image = np.ascontiguousarray(pixels, dtype=np.float32)
    if image.ndim != 2 or 0 in image.shape:
        raise ValueError(f"a radiograph is an array (H, W) of grey values in 0…1, not of shape {image.shape}")
    return image


def _resize(image: GreyImage, size: tuple[int, int], box: tuple[float, float, float, float] | None = None) -> GreyImage:
    """Antialiased (triangle filter) resize of `image` (H, W), or of its `box`, to `size` = (width, height)."""
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized, dtype=np.float32)


def _shrink(image: GreyImage | StoredGreys, box: PixelBox, size: tuple[int, int]) -> tuple[GreyImage, bool]:
    """The `box` of `image`, antialiased, in `size` = (width, height), and whether blocks were averaged first."""
    left, top, right, bottom = box
    across = max(1, int((right - left) / size[0] / _GAP))  # columns and rows of the blocks that become one pixel each
    down = max(1, int((bottom - top) / size[1] / _GAP))
    factors = (across, down)
    if factors == (1, 1):
        picture = image.picture() if isinstance(image, StoredGreys) else image
        return _resize(picture[top:bottom, left:right], size), False
    means = image.means(box, factors) if isinstance(image, StoredGreys) else block_means(image, box, factors)
    return _resize(means, size, (0.0, 0.0, (right - left) / across, (bottom - top) / down)), True


def _stretch_contrast(image: GreyImage, low: float, high: float) -> GreyImage:
    black, white = np.percentile(image, [low, high])
    if white <= black:  # a flat image has no contrast to stretch
        return image
    return ((image - np.float32(black)) / np.float32(white - black)).astype(np.float32)


def to_pixels(radiograph: Radiograph | npt.ArrayLike, spec: PixelSpec) -> ModelPixels:
    """The square of grey levels that the network of `spec` sees.

    The resize works on float32 and the result is quantised once, so a cached square and one made while serving are
    the same bytes. Where a side is four times that of the square or more, whole blocks of pixels are averaged first,
    to no fewer than twice the square (what Pillow calls a reducing gap of 2), and then resized.

    On 1,000 to 2,000 px images that differs from one antialiased resize by 0.06 to 0.5 of 255 grey levels in the mean.

    A `Radiograph` of a DICOM file is reduced from its stored values (`medsd.dicom.greys.StoredGreys.means`); training
    and serving both come this way. From its `pixels` instead, images that are reduced and shown by a window may differ
    by one level in single pixels, fewer than one of ten thousand, where float32 rounds the other way; all other images
    are the same bytes.

    A `spec` with ``fit="stretch"`` ignores the aspect ratio (NIH published ChestX-ray14 stretched to 1024 × 1024),
    ``"pad"`` adds black borders, ``"crop"`` keeps the central square. ``contrast="percentile"`` maps the low percentile
    of the visible pixels to 0 and the high one to 1.

    Of a `Radiograph`, or of its pixels (H, W), float in 0…1 with dark air and bright bone, the result is uint8 (S, S).
    Raises ValueError: the array is not two-dimensional, or empty.

    >>> to_pixels(np.full((40, 30), 0.5), PixelSpec(size=32)).tolist()[0][:3]
    [128, 128, 128]
    """
    image = getattr(radiograph, "greys", None) or _grey(radiograph)
    box, (left, top, right, bottom) = _placement((image.shape[0], image.shape[1]), spec)
    inner, reduced = _shrink(image, box, (right - left, bottom - top))
    if spec.contrast == "percentile":
        inner = _stretch_contrast(inner, spec.low_percentile, spec.high_percentile)
    square = np.zeros((spec.size, spec.size), dtype=np.uint8)
    levels = np.clip(np.nan_to_num(inner), 0.0, 1.0) * 255.0
    square[top:bottom, left:right] = np.rint(levels - _TIE if reduced else levels).astype(np.uint8)
    return square


def to_batch(pixels: Sequence[ModelPixels]) -> npt.NDArray[np.float32]:
    """Stack B squares of uint8 (S, S) into the network's input, float32 (B, 1, S, S) in 0…1."""
    return np.stack(pixels)[:, np.newaxis].astype(np.float32) / np.float32(255.0)


def evidence_to_image(evidence: npt.ArrayLike, shape: tuple[int, int], spec: PixelSpec) -> GreyImage:
    """Put a map (h, w) over the model square, of any size and range, back over the radiograph that it came from (H, W).

    What a crop cut away had no say and is 0; padding is dropped.
    """
    grid = _grey(evidence)
    height, width = grid.shape
    across, down = width / spec.size, height / spec.size
    (seen_left, seen_top, seen_right, seen_bottom), (left, top, right, bottom) = _placement(shape, spec)
    seen = _resize(
        grid,
        (seen_right - seen_left, seen_bottom - seen_top),
        (left * across, top * down, right * across, bottom * down),
    )
    image = np.zeros(shape, dtype=np.float32)
    image[seen_top:seen_bottom, seen_left:seen_right] = seen
    return image


def box_weights(box: Box, shape: tuple[int, ...], grid: tuple[int, int], spec: PixelSpec) -> GreyImage:
    """How much of each cell of a map (h, w) over the model square lies in a box of the radiograph (H, W), 0…1.

    `box` is left, top, right and bottom in 0…1 of the radiograph's width and height. What a crop cut away, and padding,
    lie in no box.
    """
    seen, filled = _placement((shape[0], shape[1]), spec)
    covers = []
    for axis, cells in enumerate(grid):  # rows, then columns
        near, far = 1 - axis, 3 - axis  # of left, top, right, bottom
        scale = (filled[far] - filled[near]) / (seen[far] - seen[near])
        ends = [filled[near] + (box[end] * shape[axis] - seen[near]) * scale for end in (near, far)]
        low, high = (min(max(end, filled[near]), filled[far]) * cells / spec.size for end in ends)
        places = np.arange(cells)
        covers.append(np.clip(np.minimum(high, places + 1) - np.maximum(low, places), 0, 1))
    return np.outer(*covers).astype(np.float32)
