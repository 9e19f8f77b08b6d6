"""The forms of one result: DICOM objects by `objects`, messages of HL7 and FHIR by `messages`. Begin here."""

import logging
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import highdicom as hd
import numpy as np
import numpy.typing as npt
from highdicom.base import SOPClass
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from medsd.bundle.layout import Bundle
from medsd.cases.case import SimilarCase
from medsd.dicom.quiet import quiet
from medsd.errors import DataError
from medsd.results import sr
from medsd.results.codes import CODES, plain
from medsd.results.pdf import Figure, reading_pdf
from medsd.results.render import DISPLAY_SIDE, Window, image_jpeg, overlay
from medsd.results.result import FindingResult, Result
from medsd.results.source import BODY_PART, Source

log = logging.getLogger(__name__)

Kind = Literal["sr", "sr3d", "text", "key-image", "gsps", "pdf", "kos"]
Message = Literal["hl7", "fhir"]
Form = Kind | Message
KINDS: tuple[Kind, ...] = get_args(Kind)
QUALITY = CODES["quality"]
FORMS: tuple[Form, ...] = (*KINDS, *get_args(Message))
_LEAST_WIDTH, _MARGIN = 720, 16  # px
_LETTER, _LINE = 18, 26  # px
# What makes an image lossy, or text burned in, holds for what is made of it. Other words than these may be anything.
_KEPT = {
    "LossyImageCompression": "00|01", "LossyImageCompressionRatio": r"[\d.]+",
    "LossyImageCompressionMethod": r"ISO_\d+_\d+(_\d+)?", "BurnedInAnnotation": "YES|NO",
}  # fmt: skip
# How the image is shown, which a presentation state takes over. No explanation of a window: it is free text.
_GREYS = ("SamplesPerPixel", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "RescaleType",
          "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")  # fmt: skip
_NOTICE = (0.0, 0.95, 1.0, 1.0)  # of the displayed area: a line at its lower edge


def forms_of(text: str, known: Sequence[Form] = FORMS) -> tuple[Form, ...]:
    """The forms in a list such as ``sr,hl7``, each once; raises DataError: one is none of `known`, or none is named."""
    named = list(dict.fromkeys(word for word in (part.strip().lower() for part in text.split(",")) if word))
    unknown = [word for word in named if word not in known]
    if any(word in FORMS for word in unknown):
        raise DataError(f"{', '.join(unknown)} does not go by C-STORE; there are {', '.join(known)}")
    if unknown or not named:
        raise DataError(f"'{', '.join(unknown) or text}' is no kind of result; there are {', '.join(known)}")
    return cast(tuple[Form, ...], tuple(named))


def objects(
    result: Result,
    bundle: Bundle,
    source: Source,
    kinds: Sequence[Kind] = ("sr",),
    cases: Sequence[SimilarCase] = (),
    previous: Sequence[Dataset] = (),
) -> dict[Kind, Dataset]:
    """The result of an image as objects of its own study.

    The prediction was made of the content of a file: a message that names a file would be told. `bundle`, which made
    it, and `cases` are for the PDF; nothing that names a case is told. `previous` are earlier structured reports on the
    image. An image that was refused has no key image and no presentation state, and only such a one has a key object
    selection; a presentation state needs a region.
    """
    makers: dict[str, Callable[[Result, Source], Dataset | None]] = {
        "key-image": key_image,
        "gsps": presentation_state,
        "kos": key_object,
        "pdf": lambda result, source: encapsulated_pdf(result, source, _pdf(result, bundle, cases)),
        **{kind: partial(sr.report, kind=kind, previous=previous) for kind in get_args(sr.Kind)},
    }
    with quiet():
        made = {kind: makers[kind](result, source) for kind in kinds}
    return {kind: one for kind, one in made.items() if one is not None}


def messages(result: Result, source: Source, forms: Sequence[Form]) -> dict[Message, bytes]:
    """The result of an image for systems that take no DICOM, in the codes and numbers of its structured report.

    An image that names no patient has no HL7 message.
    """
    made: dict[Message, bytes] = {}
    with quiet():
        if "hl7" in forms:
            from medsd.results import hl7

            if (told := hl7.message(result, source)) is not None:
                made["hl7"] = told
        if "fhir" in forms:
            from medsd.results import fhir

            made["fhir"] = fhir.document(result, source)
    return made


def key_object(result: Result, source: Source) -> Dataset | None:
    """The key object selection (PS3.16 TID 2010) of an image that was refused, with the reason; None of one that was
    read. The reason is coded, too, where CID 7011 has it.
    """
    if not result.refused:
        return None
    content = hd.ko.KeyObjectSelection(
        codes.DCM.QualityIssue,
        [source.bare],
        observer_device_context=sr.observer(result),
        description=plain(f"{result.lines()[0]} {result.disclaimer}"),
    )
    if (why := QUALITY.get(result.prediction.reason)) is not None:
        kind = hd.sr.RelationshipTypeValues.HAS_CONCEPT_MOD
        modifier = hd.sr.CodeContentItem(codes.DCM.DocumentTitleModifier, why, relationship_type=kind)
        content[0].ContentSequence.insert(0, modifier)
    return source.identify(hd.ko.KeyObjectSelectionDocument([source.bare], content, **source.arguments(result, "kos")))


def encapsulated_pdf(result: Result, source: Source, document: bytes) -> Dataset:
    """A PDF in the study of its image (PS3.3 A.45.1)."""
    wrapped = SOPClass(
        study_instance_uid=source.bare.StudyInstanceUID,
        sop_class_uid=EncapsulatedPDFStorage,
        modality="DOC",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **source.arguments(result, "pdf"),
    )
    wrapped.ConversionType = "WSD"
    wrapped.AcquisitionDateTime = None
    wrapped.BurnedInAnnotation = "YES" if source.text("BurnedInAnnotation") == "YES" else "NO"
    wrapped.VerificationFlag = "UNVERIFIED"
    wrapped.DocumentTitle = "Reading of a chest radiograph by a model: not for diagnosis"
    wrapped.ConceptNameCodeSequence = [hd.sr.CodedConcept.from_code(codes.LN.DiagnosticImagingReport)]
    wrapped.SourceInstanceSequence = [source.reference()]
    wrapped.MIMETypeOfEncapsulatedDocument = "application/pdf"
    wrapped.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    wrapped.EncapsulatedDocumentLength = len(document)
    return source.identify(wrapped)


def _pdf(result: Result, bundle: Bundle, cases: Sequence[SimilarCase]) -> bytes:
    """The PDF of the app, without the keys of cases."""
    figures, prediction = [], result.prediction
    if prediction.image is not None and not result.refused:
        figures.append(Figure(image_jpeg(prediction.image, Window()), "The image"))
        for finding in [each for each in result.present if each.region is not None][:1]:
            evidence = prediction.evidence(finding.name)
            figures.append(Figure(image_jpeg(prediction.image, Window(), evidence), f"Evidence for {finding.title}"))
    nameless = [replace(case, case=replace(case.case, study_key="", patient_key="")) for case in cases]
    when = result.when.isoformat(timespec="seconds")
    return reading_pdf(prediction, bundle, nameless, figures=figures, when=when)


# ---- the key image


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


# ---- the presentation state


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
