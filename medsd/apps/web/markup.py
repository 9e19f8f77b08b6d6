"""The pieces of the page that Gradio has no component for: header, image, notice and findings, as HTML.

Pictures come as data URIs from `medsd.results.render`. Styles are in the CSS files beside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from medsd.apps.web.examples import Example
from medsd.apps.web.feedback import WITHDRAWN
from medsd.apps.web.html import fill
from medsd.apps.web.reading import Reading
from medsd.bundle.layout import Bundle, Description
from medsd.calibration.types import OperatingPoint
from medsd.cases.vote import share_words
from medsd.inference.prediction import NOT_TRAINED, Prediction
from medsd.inference.words import GROUPS, LEGEND, called_by, grouped, impression, notice_words, percent, reason
from medsd.results.render import PRESETS, GreyImage, evidence_uri, preset_window, thumbnail_uri
from medsd.results.result import DISCLAIMER, SYNTHETIC

_OPPOSITE = {"present": "absent", "absent": "present"}
_CALLED = {"absent": "called absent", "undecided": "undecided"}
KEYS = {
    "R": "rotate by a quarter",
    "I": "invert",
    "0": "as at first",
    "1–4": f"window: {', '.join(PRESETS)}",
    "E": "evidence on or off",
    "B": "draw a box, to find cases alike there; Esc takes it away",
    "F": "full screen",
    "C": "under every tab: to the first case, or the first row of a batch; Enter opens it",
    "N": "the next image of a batch",
    "W": "write a note; Esc leaves a box of words",
    "?": "this list",
    "Left button": "the tool that is chosen; Window: width across, level up and down",
    "Middle button, or Space": "pan",
    "Right button": "zoom",
    "Wheel, or two fingers": "zoom at the pointer; fully zoomed out, the page scrolls",
    "Double click": "fit",
}
WINDOW_SIDE = 400  # px of a side that are looked at for the windows; percentiles of all pixels take a tenth of a second
# Placeholder rows while a study is being read.
BUSY_FINDINGS = '<div class="skeleton" aria-hidden="true">' + "<span></span>" * 8 + "</div>"


def header(bundle: Bundle, provider: str, precision: str = "") -> str:
    """The bar at the top: program, model and processor, disclaimer, and the switch of light and dark."""
    return fill(
        "header",
        model=bundle.label,
        processor=[part for part in (provider.removesuffix("ExecutionProvider"), precision) if part],
        synthetic=SYNTHETIC if bundle.description.synthetic else "",
        disclaimer=DISCLAIMER,
    )


def first_screen(bundle: Bundle, examples: Sequence[Example]) -> str:
    """What the page does and what to do, in the place of the first image, with the examples that can be taken."""
    offers = [(example.title, thumbnail_uri(example.thumbnail())) for example in examples]
    return fill("first", findings=len(bundle.findings), examples=offers)


def image(reading: Reading, greys: str, *, boxes: bool = False) -> str:
    """The image for ``scripts/viewer.js``, or a sentence in its place.

    Args:
        reading: of the image.
        greys: the name of its grey values (`medsd.apps.web.greys`).
        boxes: whether cases can be compared in a box of the image.
    """
    pixels, prediction = reading.display, reading.prediction
    if pixels is None:
        why = "The file was not read." if prediction.refused else "This reading is of the note alone."
        return _empty("No image to show", why, of=reading.key)
    (height, width), sparse = pixels.shape, max(1, max(pixels.shape) // WINDOW_SIDE)
    windows = [preset_window(preset, pixels[::sparse, ::sparse]) for preset in PRESETS]
    whole = pixels if prediction.image is None else prediction.image
    return fill(
        "image",
        key=reading.key,
        width=width,
        height=height,
        across=whole.shape[1],
        windows=json.dumps([(round(window.level, 4), round(window.width, 4)) for window in windows]),
        spacing=" ".join(f"{part:g}" for part in prediction.spacing_mm or ()),
        spacing_from=prediction.spacing_from,
        ends=json.dumps(prediction.ends) if prediction.ends else "",
        detail="more" if reading.every_pixel is not None else "",
        boxes="yes" if boxes else "",
        greys=greys,
    )


def pixels_alone(key: str, pixels: GreyImage, greys: str) -> str:
    """The grey values `greys` of all pixels (H, W) of the image or case of that key."""
    height, width = pixels.shape
    return fill("pixels", key=key, width=width, height=height, greys=greys)


def evidence(reading: Reading | None, name: str | None) -> str:
    """The layer over the image for one finding, with its legend; "" for the bare image."""
    if reading is None or reading.display is None or reading.prediction.evidence_maps is None or name is None:
        return ""
    prediction = reading.prediction
    layer, words = evidence_uri(prediction.evidence(name)), evidence_words(prediction, name)
    return fill("evidence", layer=layer, words=words, of=reading.key)


def tools() -> str:
    """The buttons over the image, and the list of keys."""
    return fill("tools", presets=PRESETS, keys=KEYS)


def busy_image() -> str:
    """The reading area while a study is being read."""
    return _empty("Reading …", "The image is decoded, scored and compared with earlier cases.", busy=True)


def _empty(title: str, text: str, *, busy: bool = False, of: str = "") -> str:
    return fill("empty", title=title, text=text, busy=busy, of=of)


def shown_first(reading: Reading) -> str | None:
    """The finding whose evidence lies over an image that was just read: the most probable that is called present.

    Where nothing is called present none is shown: a hot spot would contradict the calls.
    """
    if reading.prediction.evidence_maps is None:
        return None
    return next((name for name in reading.ranked if reading.prediction.calls.get(name) == "present"), None)


def evidence_words(prediction: Prediction, name: str) -> str:
    """What a layer of evidence is, as plain text: the finding, its probability, and the call where it is not present.

    Evidence is drawn on its own scale, so there is a brightest place even where the model calls a finding absent.
    """
    call = prediction.said(name)
    words = f"Evidence for {prediction.findings.title(name)} {percent(prediction.probabilities[name])}"
    return words if call == "present" else f"{words}, which is {_CALLED[call]}: where most speaks for it, not a finding"


def notice(reading: Reading | None) -> str:
    """What must be read before the findings, or instead of them; empty when there is nothing to say."""
    title, message = ("", "") if reading is None else notice_words(reading.prediction)
    if reading is None or not message:
        return ""
    kind = "refused" if reading.prediction.refused else "warned"
    return fill("notice", kind=kind, title=title, message=message[:1].upper() + message[1:])


def findings(reading: Reading | None, about: Description | None, shown: str | None, *, feedback: bool = False) -> str:
    """The impression, then the findings under their headings: title, where it lies, number and bar, vote of the cases.

    Args:
        reading: None before the first study.
        about: the bundle, whose operating points and calibration the table names.
        shown: the finding whose evidence lies over the image.
        feedback: whether to ask what the person thinks of each.
    """
    if reading is None:
        return '<p class="quiet">The findings appear here.</p>'
    if not reading.ranked or about is None:
        return ""
    prediction = reading.prediction
    groups = {
        key: (GROUPS[key], [_row(reading, name, about, shown) for name in names])
        for key, names in grouped(prediction).items()
    }
    return fill(
        "findings",
        of=reading.key,
        impression=impression(prediction, sum(vote.disagrees for vote in reading.votes)),
        note=None if about.note is None else reading.note,
        groups=groups,
        hint="Choose a finding to see where its evidence lies." if prediction.evidence_maps is not None else "",
        calls=called_by(prediction.coverage),
        voted=bool(reading.votes),
        legend=LEGEND,
        calibration=about.calibration_words(),
        feedback=feedback,
        withdrawn=WITHDRAWN,
    )


def _row(reading: Reading, name: str, about: Description, shown: str | None) -> dict[str, Any]:
    prediction = reading.prediction
    probability, call = prediction.probabilities.get(name), prediction.said(name)
    point = about.operating_points.get(name)
    threshold = point.threshold if point and prediction.coverage is None and probability is not None else None
    vote = next((vote for vote in reading.votes if vote.finding == name), None)
    return {
        "name": name,
        "title": prediction.findings.title(name),
        "probability": probability,
        "threshold": threshold,
        "call": call,
        "reason": reason(prediction, name, threshold),
        "why": about.not_trained.get(name, "") if call == NOT_TRAINED else _rule(threshold, point),
        "has_evidence": prediction.evidence_maps is not None and probability is not None,
        "shown": name == shown,
        "vote": vote,
        "share": -1 if vote is None or vote.share != vote.share else round(vote.share, 4),  # NaN: no case knows it
        "cases": "–" if vote is None else share_words(vote.share),
        "said": reading.opinions.get(name),
        # Agree or disagree with a call; where there is none, say present or absent.
        "opinions": ((call, "agree", "✓"), (_OPPOSITE[call], "disagree", "✗"))
        if call in _OPPOSITE
        else (("present", "present", "+"), ("absent", "absent", "−")),
    }


def _rule(threshold: float | None, point: OperatingPoint | None) -> str:
    """Where a threshold comes from, for whoever relies on it."""
    if threshold is None or point is None:
        return ""
    words = f"called present from {percent(threshold)} on ({point.rule})"
    if point.sensitivity is None or point.specificity is None:
        return words
    return f"{words}: sensitivity {percent(point.sensitivity)}, specificity {percent(point.specificity)} in validation"
