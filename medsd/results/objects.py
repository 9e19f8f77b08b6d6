"""The forms of one result: DICOM objects by `objects`, messages of HL7 and FHIR by `messages`. Begin here."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, cast, get_args

import highdicom as hd
from highdicom.base import SOPClass
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from medsd.bundle.layout import Bundle
from medsd.cases.case import SimilarCase
from medsd.dicom.quiet import quiet
from medsd.errors import DataError
from medsd.results import sr
from medsd.results.codes import CODES, plain
from medsd.results.key_image import key_image
from medsd.results.pdf import Figure, reading_pdf
from medsd.results.presentation import presentation_state
from medsd.results.render import Window, image_jpeg
from medsd.results.result import Result
from medsd.results.source import Source

Kind = Literal["sr", "sr3d", "text", "key-image", "gsps", "pdf", "kos"]
Message = Literal["hl7", "fhir"]
Form = Kind | Message
KINDS: tuple[Kind, ...] = get_args(Kind)
QUALITY = CODES["quality"]
FORMS: tuple[Form, ...] = (*KINDS, *get_args(Message))


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
