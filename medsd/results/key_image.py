"""A result as key image: the radiograph with the evidence over it and the findings below, as secondary capture."""

import re
import textwrap
from functools import lru_cache
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.sr.codedict import codes

from medsd.results.render import DISPLAY_SIDE, Window, overlay
from medsd.results.result import Result
from medsd.results.source import BODY_PART, Source

_LEAST_WIDTH, _MARGIN = 720, 16  # px
_LETTER, _LINE = 18, 26  # px
# What makes an image lossy, or text burned in, holds for what is made of it. Other words than these may be anything.
_KEPT = {
    "LossyImageCompression": "00|01", "LossyImageCompressionRatio": r"[\d.]+",
    "LossyImageCompressionMethod": r"ISO_\d+_\d+(_\d+)?", "BurnedInAnnotation": "YES|NO",
}  # fmt: skip


def key_image(result: Result, source: Source) -> Dataset | None:
    """The secondary capture (PS3.3 A.8.1) of a result, RGB of 8 bits; None where no image was read."""
    pixels = drawn(result)
    if pixels is None:
        return None
    capture: Any = hd.sc.SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # replaced below
        study_instance_uid=source.bare.StudyInstanceUID,
        **source.arguments(result, "key-image"),
    )
    capture.PatientOrientation = source.header.get("PatientOrientation") or None
    capture.BodyPartExamined = BODY_PART
    capture.ConversionType = "WSD"
    capture.DerivationDescription = "Radiograph with evidence and findings of a model"
    reference = source.reference()
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    reference.PurposeOfReferenceCodeSequence = [hd.sr.CodedConcept.from_code(purpose)]
    capture.SourceImageSequence = [reference]
    for keyword, words in _KEPT.items():
        values = source.values(keyword)
        if values and all(re.fullmatch(words, value) for value in values):
            setattr(capture, keyword, values)
    return source.identify(capture)


def drawn(result: Result) -> npt.NDArray[np.uint8] | None:
    """The picture (H, W, 3): the image with the evidence of the most probable present finding, and the result's lines.

    Names nobody. None where no image was read.
    """
    prediction = result.prediction
    if result.refused or prediction.image is None:
        return None
    marked = next((finding for finding in result.present if finding.region is not None), None)
    evidence = None if marked is None else prediction.evidence(marked.name)
    picture = overlay(prediction.image, Window(), evidence, side=DISPLAY_SIDE)
    width = max(picture.width, _LEAST_WIDTH)
    told = [result.disclaimer, *result.lines(), *(f"The colours are evidence for {m.title}." for m in [marked] if m)]
    told += [f"Similar case: {case.sentence}" for case in result.cases]
    told += [f"{result.model} {result.version}, sha256 of model.onnx {result.model_sha256[:16]}"]
    per_line = int((width - 2 * _MARGIN) / _font().getlength("n"))
    lines = [line for words in told for line in textwrap.wrap(words, per_line, subsequent_indent="   ")]
    page = Image.new("RGB", (width, picture.height + _LINE * len(lines) + 2 * _MARGIN))
    page.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, picture.height + _MARGIN + number * _LINE), line, "white", _font())
    return np.asarray(page)


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _LETTER)
