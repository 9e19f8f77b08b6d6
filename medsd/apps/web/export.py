"""A reading as a file to keep: JSON or PDF, handed to the browser within the answer and stored nowhere."""

import base64
import json
import math
from dataclasses import replace
from secrets import token_hex
from typing import Any, Literal

from medsd.apps.web.html import fill
from medsd.apps.web.markup import evidence_words
from medsd.apps.web.reading import Reading
from medsd.bundle.layout import Bundle
from medsd.results.pdf import Figure, reading_pdf
from medsd.results.record import reading_record
from medsd.results.render import PREVIEW_SIDE, Window, evidence_layer, fit_side, image_jpeg

EVIDENCE = 0.4  # how much of the evidence is seen at first
Kind = Literal["PDF", "JSON"]
_TYPES: dict[str, str] = {"PDF": "application/pdf", "JSON": "application/json", "CSV": "text/csv"}


def link(content: bytes, kind: str, name: str, *, wait: bool = False) -> str:
    """A download, as HTML for a component that runs `medsd.apps.web.scripts.SAVE`; it starts at once, unless `wait`."""
    encoded = base64.b64encode(content).decode("ascii")
    made = token_hex(4)  # without it the page takes the same answer only once
    return fill("link", content=encoded, kind=_TYPES[kind], name=name, made=made, wait=wait)


def read_look(look: Any) -> tuple[Window, float]:
    """Window and opacity of the evidence from what the browser says of the image; as at first where it says nothing."""
    try:
        level, width, opacity = (float(look[part]) for part in ("level", "width", "opacity"))
        if not all(map(math.isfinite, (level, width, opacity))):
            raise ValueError
        return Window(level, width, bool(look["inverted"])), min(max(opacity, 0.0), 1.0)
    except (TypeError, KeyError, ValueError, OverflowError):
        return Window(), EVIDENCE


def export(
    reading: Reading, bundle: Bundle, kind: Kind, window: Window, shown: str | None, opacity: float
) -> tuple[bytes, str]:
    """The content of the file and its name, which tells nothing of the study.

    The image stands in it as on the page: by its window, with the evidence of the finding `shown` over it.
    """
    name = f"medsd-reading.{kind.lower()}"
    about = (reading.prediction, bundle, reading.cases, reading.votes)
    if kind == "JSON":
        record = reading_record(*about, when=reading.read)
        return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False).encode(), name
    figures = _figures(reading, window, shown, opacity)
    return reading_pdf(*about, figures=figures, pictures=reading.pictures, when=reading.read), name


def _figures(reading: Reading, window: Window, shown: str | None, opacity: float) -> list[Figure]:
    """The image, and the evidence over it where the page shows some: no caption names what a picture does not show."""
    image, prediction = reading.display, reading.prediction
    if image is None:
        return []
    bare = Figure(image_jpeg(image, window), "The image")
    if shown is None or prediction.evidence_maps is None or opacity <= 0:
        return [bare]
    words, evidence = evidence_words(prediction, shown), fit_side(prediction.evidence(shown), PREVIEW_SIDE)
    if evidence_layer(evidence) is None:
        return [replace(bare, caption=f"The image. {words}: no region stands out.")]
    return [bare, Figure(image_jpeg(image, window, evidence, opacity), words)]
