"""A result as structured report: the measurement report of PS3.16 TID 1500, or its words as basic text.

Each finding is a measurement group (TID 1410 with an outlined region, else TID 1501): the finding's code, the
probability, the call, the operating point or the conformal set, and the algorithm (TID 4019) with the hash of the
model. Similar cases stand in a container of their own. Start at `report`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import highdicom as hd
from highdicom.sr import sop
from highdicom.sr.templates import _MeasurementsAndQualitativeEvaluations as Group
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import BasicTextSRStorage, generate_uid

from medsd.results import coded
from medsd.results.codes import CODES, REPORT, plain
from medsd.results.result import CaseResult, FindingResult, Result
from medsd.results.source import MAKER, Source, device_uid, own_scheme

Kind = Literal["sr", "sr3d", "text"]
CASES = CODES["cases"]
_CONTAINS, _MODIFIES = hd.sr.RelationshipTypeValues.CONTAINS, hd.sr.RelationshipTypeValues.HAS_CONCEPT_MOD
_TITLE = codes.LN.DiagnosticImagingReport  # CID 7000
_TEXT = 1024  # characters of an UT value that every viewer shows


def report(result: Result, source: Source, kind: Kind = "sr", previous: Sequence[Dataset] = ()) -> Dataset:
    """The structured report of a result, unverified, in the study of its image.

    It is a Comprehensive SR ("sr"), which nearly all archives take, a Comprehensive 3D SR or a Basic Text SR. Earlier
    reports on the same image (`previous`) become predecessor documents.
    """
    content = _text_content(result, source) if kind == "text" else _measurements(result, source)
    document = unverified(kind, content, [source.bare], result, source, previous)
    if kind == "text":  # highdicom has no class for it; it is a Comprehensive SR with fewer kinds of items
        document.SOPClassUID = document.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    return document


def unverified(
    kind: str,
    content: Any,
    evidence: Sequence[Dataset],
    result: Result,
    source: Source,
    previous: Sequence[Dataset] = (),
) -> Dataset:
    """A complete document that nobody has verified, in the study of the image."""
    document = (sop.Comprehensive3DSR if kind == "sr3d" else sop.ComprehensiveSR)(
        evidence=evidence,
        content=content,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=list(previous) or None,
        coding_schemes=own_scheme(),
        **source.arguments(result, kind),
    )
    return source.identify(document)


def _measurements(result: Result, source: Source) -> Dataset:
    groups = [_group(finding, result, source) for finding in result.findings] or [_no_findings(result, source)]
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer(result)),
        procedure_reported=REPORT["procedure"],
        imaging_measurements=groups,
    )
    root: Dataset = content[0]
    if result.cases:
        root.ContentSequence.append(_similar(result.cases))
    for notice in coded.notices(result):
        root.ContentSequence.append(text_item(REPORT["comment"], notice))
    return root


def observer(result: Result) -> hd.sr.ObserverContext:
    """The bundle as the device that observed (TID 1004)."""
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=device_uid(result), name=plain(result.model), manufacturer_name=MAKER, model_name=plain(result.version)
    )
    return hd.sr.ObserverContext(codes.DCM.Device, device)


def algorithm(result: Result) -> hd.sr.AlgorithmIdentification:
    """Name, version and hash of the model (TID 4019)."""
    return hd.sr.AlgorithmIdentification(
        plain(result.model),
        plain(result.version),
        parameters=[f"sha256 of model.onnx {result.model_sha256}"],
        manufacturer=MAKER,
    )


def _group(finding: FindingResult, result: Result, source: Source) -> Group:
    image = (source.bare.SOPClassUID, source.bare.SOPInstanceUID)
    told: dict[str, Any] = {
        "tracking_identifier": tracking(finding.name, result, source),
        "finding_type": finding.code,
        "algorithm_id": algorithm(result),
        "measurements": [hd.sr.Measurement(*item) for item in coded.measurements(finding, result)] or None,
        "qualitative_evaluations": list(map(_evaluation, [coded.call_of(finding), *coded.conformal_set(finding)])),
    }
    rows, columns = source.bare.get("Rows"), source.bare.get("Columns")
    shown = result.prediction.image
    if finding.region is None or shown is None or shown.shape != (rows, columns):
        return hd.sr.MeasurementsAndQualitativeEvaluations(
            source_images=[hd.sr.SourceImageForMeasurementGroup(*image)], **told
        )
    region = hd.sr.ImageRegion(
        hd.sr.GraphicTypeValues.POLYLINE, finding.region, source_image=hd.sr.SourceImageForRegion(*image)
    )
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=region, **told)


def _evaluation(item: coded.Item) -> hd.sr.QualitativeEvaluation:
    return hd.sr.QualitativeEvaluation(item.name, item.value)


def _no_findings(result: Result, source: Source) -> Group:
    """A refused image has a group with the reason, as a report has at least one."""
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking("refused", result, source),
        algorithm_id=algorithm(result),
        qualitative_evaluations=[_evaluation(coded.refusal(result))],
        source_images=[hd.sr.SourceImageForMeasurementGroup(source.bare.SOPClassUID, source.bare.SOPInstanceUID)],
    )


def tracking(name: str, result: Result, source: Source) -> hd.sr.TrackingIdentifier:
    """The same finding of the same image is tracked by one identifier, whenever it is read."""
    uid = hd.UID(generate_uid(entropy_srcs=[source.bare.SOPInstanceUID, result.model_sha256, name]))
    return hd.sr.TrackingIdentifier(uid, plain(name))


def _similar(cases: Sequence[CaseResult]) -> Dataset:
    container = hd.sr.ContainerContentItem(CASES["similar cases"], relationship_type=_CONTAINS)
    container.ContentSequence = hd.sr.ContentSequence([_case(case) for case in cases])
    return container


def _case(case: CaseResult) -> Dataset:
    item = hd.sr.ContainerContentItem(CASES["case"], relationship_type=_CONTAINS)
    item.ContentSequence = hd.sr.ContentSequence(
        hd.sr.CodeContentItem(name, value, relationship_type=_CONTAINS)
        if isinstance(value, Code)
        else hd.sr.NumContentItem(name, value, unit, relationship_type=_CONTAINS)
        for name, value, unit in coded.case_items(case)
    )
    return item


def text_item(name: Code, words: str) -> hd.sr.TextContentItem:
    return hd.sr.TextContentItem(name, plain(words)[:_TEXT], relationship_type=_CONTAINS)


def _text_content(result: Result, source: Source) -> Dataset:
    """The lines of the result, and its image, for viewers that show text alone."""
    root = hd.sr.ContainerContentItem(_TITLE)
    image = hd.sr.ImageContentItem(
        codes.DCM.SourceOfMeasurement, source.bare.SOPClassUID, source.bare.SOPInstanceUID, relationship_type=_CONTAINS
    )
    findings = hd.sr.ContainerContentItem(codes.DCM.Findings, relationship_type=_CONTAINS)
    findings.ContentSequence = hd.sr.ContentSequence(
        [text_item(codes.DCM.Finding, line) for line in result.lines()] + [image]
    )
    parts: list[Dataset] = [*observer(result), findings]
    if result.cases:
        similar = hd.sr.ContainerContentItem(CASES["similar cases"], relationship_type=_CONTAINS)
        lines = [f"Similarity {case.similarity:.2f}; {case.sentence}" for case in result.cases]
        similar.ContentSequence = hd.sr.ContentSequence([text_item(CASES["case"], line) for line in lines])
        parts.append(similar)
    of_model = f"{result.model} {result.version}, sha256 of model.onnx {result.model_sha256}"
    parts += [text_item(codes.DCM.AlgorithmName, of_model), text_item(REPORT["comment"], result.disclaimer)]
    root.ContentSequence = hd.sr.ContentSequence(parts)
    return root
