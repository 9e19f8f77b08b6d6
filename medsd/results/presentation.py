"""A result as presentation state: the outline of each finding over the image, which a viewer switches on and off."""

import logging
from typing import Any

import highdicom as hd
from pydicom import Dataset

from medsd.results.codes import plain
from medsd.results.result import FindingResult, Result
from medsd.results.source import BODY_PART, Source

log = logging.getLogger(__name__)
# How the image is shown, which a presentation state takes over. No explanation of a window: it is free text.
_GREYS = ("SamplesPerPixel", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "RescaleType",
          "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")  # fmt: skip
_NOTICE = (0.0, 0.95, 1.0, 1.0)  # of the displayed area: a line at its lower edge


def presentation_state(result: Result, source: Source) -> Dataset | None:
    """The grayscale softcopy presentation state (PS3.3 A.33.1), a layer for each finding called present.

    None where no finding has a region, or the header does not say how the image is shown.
    """
    image, marked = result.prediction.image, [each for each in result.present if each.region is not None]
    if not marked or image is None or image.shape != (source.bare.get("Rows"), source.bare.get("Columns")):
        return None
    try:
        return source.identify(_state(result, source, marked))
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a window without a width, a private class
        log.warning("no presentation state: the header does not say how the image is shown (%s)", type(error).__name__)
        return None


def _state(result: Result, source: Source, marked: list[FindingResult]) -> hd.pr.GrayscaleSoftcopyPresentationState:
    shown = _shown(source)
    layers, annotations = [], []
    for number, finding in enumerate(marked, 1):
        layers.append(hd.pr.GraphicLayer(f"FINDING {number}", number, plain(finding.title)[:64]))
        annotations.append(_outline(finding, layers[-1], shown))
    layers.append(hd.pr.GraphicLayer("NOTICE", len(marked) + 1, "Not for diagnosis"))
    notice = hd.pr.TextObject(plain(result.disclaimer), "DISPLAY", bounding_box=_NOTICE)
    annotations.append(hd.pr.GraphicAnnotation([shown], layers[-1], text_objects=[notice]))
    shape = "INVERSE" if shown.PhotometricInterpretation == "MONOCHROME1" else "IDENTITY"
    state: Any = hd.pr.GrayscaleSoftcopyPresentationState(
        [shown],
        content_label="MEDSD EVIDENCE",
        content_description="Evidence of a model: not for diagnosis",
        graphic_annotations=annotations,
        graphic_layers=layers,
        presentation_lut_transformation=hd.PresentationLUTTransformation(shape),
        **source.arguments(result, "gsps"),
    )
    state.BodyPartExamined = BODY_PART
    return state


def _outline(finding: FindingResult, layer: hd.pr.GraphicLayer, shown: Dataset) -> hd.pr.GraphicAnnotation:
    assert finding.region is not None
    top = finding.region[finding.region[:, 1].argmin()]
    words = hd.pr.TextObject(plain(finding.sentence()), "PIXEL", anchor_point=tuple(map(float, top)))
    return hd.pr.GraphicAnnotation(
        [shown], layer, graphic_objects=[hd.pr.GraphicObject("POLYLINE", finding.region, "PIXEL")], text_objects=[words]
    )


def _shown(source: Source) -> Any:
    """The image without a patient, with what says how it is shown."""
    if "ModalityLUTSequence" in source.header:
        raise ValueError  # highdicom would leave it out
    shown = Dataset()
    shown.update(source.bare)
    for keyword in _GREYS:
        if source.header.get(keyword) not in (None, ""):
            shown[keyword] = source.header[keyword]
    if "WindowCenter" in shown:
        shown.pop("VOILUTSequence", None)
    return shown
