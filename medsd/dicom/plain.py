"""Radiographs that come as PNG or JPEG, 8 or 16 bits deep, read with Pillow."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from medsd.dicom.header import size_concerns
from medsd.dicom.pixels import DEFAULT_PERCENTILES, LUMA
from medsd.dicom.policy import Concern, GatePolicy, concern

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
_FOREIGN = {b"GIF8": "GIF", b"BM": "BMP", b"II*\x00": "TIFF", b"MM\x00*": "TIFF", b"RIFF": "WebP", b"%PDF": "PDF"}
BEGINNING = 8  # bytes that tell what a file is
_ORIENTATION = 0x0112  # of EXIF 2.32, 1 upright to 8


def is_plain_image(content: bytes) -> bool:
    """Whether `content` begins as a PNG or JPEG does."""
    return any(content.startswith(signature) for signature in _SIGNATURES)


def plain_format(content: bytes) -> str:
    """The name of a picture format that medsd does not read, or ""."""
    return next((name for signature, name in _FOREIGN.items() if content.startswith(signature)), "")


def read_plain(content: bytes, policy: GatePolicy, name: str) -> tuple[npt.NDArray[np.float32], list[Concern]]:
    """Decode a PNG or JPEG: grey values (H, W) in 0…1, and what speaks against it.

    8-bit values are taken as they are; 16-bit ones are shown between their percentiles 0.5 and 99.5, as a DICOM file
    without a window is. Colour images whose channels are equal are grey. What EXIF data say of the orientation is done,
    also in a PNG, and warned about. Raises ImageError: damaged, or larger than the policy allows.
    """
    try:
        # Sizes are judged below, before anything is decoded, so Pillow's own bomb check is only the last resort.
        with Image.open(io.BytesIO(content), formats=list(_SIGNATURES.values())) as image:
            found = size_concerns(image.height, image.width, 1, policy)
            if found:
                raise found[0].error(name)
            frames = getattr(image, "n_frames", 1) if image.format == "PNG" else 1  # more in a JPEG are previews
            image.load()
            turned = image.getexif().get(_ORIENTATION) in range(2, 9)
            pixels, coloured = _grey(ImageOps.exif_transpose(image) if turned else image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        detail = "it ends too early" if "truncated" in str(error) else type(error).__name__
        raise concern("cannot_decode", detail=detail).error(name) from None
    concerns = [concern("not_a_radiograph", detail="colour")] if coloured else []
    if frames > policy.max_frames:
        concerns.append(concern("frames", value=frames, accepted=policy.max_frames))
    if turned:
        concerns.append(concern("turned"))
    return pixels, concerns


def _grey(image: Image.Image) -> tuple[npt.NDArray[np.float32], bool]:
    """Grey values in 0…1 and whether the picture has colour."""
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255), False
    if image.mode.startswith("I"):
        return _between_percentiles(np.asarray(image, dtype=np.float32)), False
    if image.mode == "LA":
        return np.asarray(image, dtype=np.float32)[..., 0] / np.float32(255), False
    channels = np.asarray(image.convert("RGB"))  # (H, W, 3)
    # Equal but for the rounding of a JPEG's colour space.
    if int(np.ptp(channels, axis=-1).max()) <= 3:
        return channels[..., 0].astype(np.float32) / np.float32(255), False
    return channels.astype(np.float32) @ LUMA.astype(np.float32) / np.float32(255), True


def _between_percentiles(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    low, high = np.percentile(values, DEFAULT_PERCENTILES)
    if high <= low:
        return np.where(values > low, 1.0, 0.0).astype(np.float32)
    return np.clip((values - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
