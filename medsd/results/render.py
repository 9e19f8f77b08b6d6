"""Pictures for the page: an image under a window, the evidence of a finding as a coloured layer, thumbnails.

Everything here takes and returns arrays or encoded bytes and knows neither Gradio nor HTML. Pictures travel inside the
page as data URIs, so no image is ever a file that another user of the app could ask for.
"""

import base64
import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsd.cases.explain import region_shares
from medsd.inference.prediction import Prediction
from medsd.preprocessing.pixels import evidence_to_image

GreyImage = npt.NDArray[np.float32]
Preset = Literal["As stored", "Contrast", "Lungs", "Mediastinum"]

DISPLAY_SIDE = 1400  # longest side of the image on the page, px: one and a half times a wide reading area
DETAIL_SIDE = 3000  # the same when zoomed in, px: every pixel of most detectors
PREVIEW_SIDE = 720  # the image beside a case, px
EVIDENCE_SIDE = 320  # the evidence grid has a few cells a side; the browser smooths what this leaves
_MAP_COLOURS = "inferno"
# Percentiles of the image that become black and white. The lungs are the dark half of a radiograph, the mediastinum and
# the bones its bright half, so a percentile window does for every exposure what a fixed one would do for one detector.
_PRESET_PERCENTILES: dict[Preset, tuple[float, float]] = {
    "Contrast": (1.0, 99.0),
    "Lungs": (2.0, 72.0),
    "Mediastinum": (38.0, 99.7),
}
PRESETS: tuple[Preset, ...] = ("As stored", *_PRESET_PERCENTILES)
_PICTURE_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


@dataclass(frozen=True)
class Window:
    """A linear window over grey values in 0…1."""

    level: float = 0.5  # the grey value shown as mid-grey
    width: float = 1.0  # the range of grey values between black and white, above 0
    inverted: bool = False  # show bright as dark


def preset_window(preset: Preset, image: GreyImage, *, inverted: bool = False) -> Window:
    """The window that `preset` means for this image (H, W) in 0…1."""
    if preset not in _PRESET_PERCENTILES:
        return Window(inverted=inverted)
    black, white = np.percentile(image, _PRESET_PERCENTILES[preset])
    width = max(float(white - black), 0.01)
    return Window(float(black) + width / 2, width, inverted)


def apply_window(image: GreyImage, window: Window) -> npt.NDArray[np.uint8]:
    """Map grey values (H, W) in 0…1 to what is shown, uint8, by the LINEAR_EXACT function of PS3.3 C.11.2.1.3.2.

    Values below ``level - width / 2`` are black, above ``level + width / 2`` white.

    >>> apply_window(np.array([[0.2, 0.5, 0.8]], np.float32), Window(level=0.5, width=0.4)).tolist()
    [[0, 128, 255]]
    """
    width = max(window.width, 1e-3)
    shown = np.clip((image - np.float32(window.level - width / 2)) / np.float32(width), 0, 1)
    grey = np.rint(shown * 255).astype(np.uint8)
    return 255 - grey if window.inverted else grey


def fit_side(image: GreyImage, side: int) -> GreyImage:
    """The image (H, W), made smaller where its longest side exceeds `side` pixels; never enlarged."""
    height, width = image.shape
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)


def scale_evidence(evidence: GreyImage) -> GreyImage | None:
    """Evidence on its own scale: 0 at the map's median, 1 at its maximum; None where it is flat, no region stands out.

    The median stands for "nothing here": a class activation has no zero of its own, because the bias of the classifier
    lies outside the map. The scale belongs to one finding on one image; colours do not compare between findings.
    """
    middle, top = float(np.median(evidence)), float(np.max(evidence))
    if not np.isfinite(top - middle) or top - middle < 1e-4:
        return None
    return np.clip((evidence - np.float32(middle)) / np.float32(top - middle), 0, 1).astype(np.float32)


def evidence_layer(evidence: GreyImage) -> npt.NDArray[np.uint8] | None:
    """The coloured, transparent layer that lies over an image, of evidence (H, W) in logits.

    It is uint8 RGBA (h, w, 4), at most `EVIDENCE_SIDE` px; clear where nothing speaks for the finding. None when flat.
    """
    scaled = scale_evidence(fit_side(evidence, EVIDENCE_SIDE))
    if scaled is None:
        return None
    layer = _colours()[np.rint(scaled * 255).astype(np.uint8)]  # (h, w, 4)
    # Below a fifth of the range the image stays untouched; above, the layer closes quickly, so a focus has an edge.
    layer[..., 3] = np.rint(np.clip((scaled - 0.2) / 0.5, 0, 1) * 255).astype(np.uint8)
    return layer


def likeness_share(prediction: Prediction, embedding: GreyImage, shape: tuple[int, ...]) -> GreyImage:
    """What each place of an image adds to its likeness with another study, as `evidence_layer` takes it.

    `embedding` (D,) is the other study's, `shape` (H, W) that of the image as it is shown. Raises DataError: the bundle
    does not say what each place adds.
    """
    shares = region_shares(prediction, embedding)
    assert prediction.pixel_spec is not None
    scale = min(1.0, EVIDENCE_SIDE / max(shape))
    size = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
    return evidence_to_image(shares, size, prediction.pixel_spec)


def overlay(
    image: GreyImage, window: Window, evidence: GreyImage | None = None, opacity: float = 0.4, *, side: int
) -> Image.Image:
    """The windowed image (H, W) with evidence over it, as on the page, in colours and at most `side` px."""
    picture = Image.fromarray(apply_window(fit_side(image, side), window)).convert("RGB")
    layer = None if evidence is None else evidence_layer(evidence)
    if layer is not None:
        over = Image.fromarray(layer).resize(picture.size, Image.Resampling.BILINEAR)
        mask = over.getchannel("A").point(lambda alpha: round(alpha * opacity))
        picture.paste(over.convert("RGB"), (0, 0), mask)
    return picture


def image_jpeg(image: GreyImage, window: Window, evidence: GreyImage | None = None, opacity: float = 0.4) -> bytes:
    """`overlay` as a JPEG of at most `PREVIEW_SIDE`."""
    return _encode(overlay(image, window, evidence, opacity, side=PREVIEW_SIDE), "JPEG", quality=90)


def evidence_uri(evidence: GreyImage) -> str | None:
    """`evidence_layer` as a PNG data URI, or None where no region stands out."""
    layer = evidence_layer(evidence)
    return None if layer is None else _uri(_encode(Image.fromarray(layer), "PNG"), "image/png")


def thumbnail_uri(content: bytes | None) -> str | None:
    """A stored picture as a data URI; None without one, or if it is not PNG, JPEG or WebP."""
    kinds = [kind for magic, kind in _PICTURE_TYPES.items() if content and content.startswith(magic)]
    return _uri(content, kinds[0]) if content and kinds else None


def _encode(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


@lru_cache(maxsize=1)
def _colours() -> npt.NDArray[np.uint8]:
    """The 256 colours of the evidence, RGBA: perceptually even, and readable for the colour-blind."""
    from matplotlib import colormaps

    # The first colours of the map are black and the last white: over an image they would look like part of it.
    colours = colormaps[_MAP_COLOURS](np.linspace(0.25, 0.92, 256))
    return np.rint(colours * 255).astype(np.uint8)
