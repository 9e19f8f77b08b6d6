"""What readers say of the calls of a result, as a structured report on that result: accepted, rejected or amended.

IHE Radiology's supplement *AI Result Assessment* (AIRA, for trial implementation since 2025) describes such records.
What is taken from it: a person accepts, rejects or amends single findings of a result, and the record is a DICOM SR
that refers to the result. Its template and codes were not at hand. So this is a measurement report (PS3.16 TID 1500)
like the result itself, in which each finding has the tracking identifier that it has there, with codes of ``99MEDSD``;
no conformance is claimed. Readers are keyed hashes. Start at `assessment`, and at `read_assessment` to read one back.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast, get_args

import highdicom as hd
from highdicom.sr import sop
from pydicom import Dataset
from pydicom.sr.coding import Code

from medsd.dicom.quiet import quiet
from medsd.errors import DataError, explained
from medsd.findings import FindingSet
from medsd.inference.prediction import Said
from medsd.results import sr
from medsd.results.codes import CALLS, CODES, REPORT, finding_code
from medsd.results.result import Result
from medsd.results.source import Source

Answer = Literal["present", "absent"]
Verdict = Literal["accepted", "rejected", "amended"]
_CODES = CODES["assessment"]
_CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS


class Opinion(NamedTuple):
    """What one reader says of one finding."""

    finding: str  # its name
    call: Said  # what the model said
    answer: Answer
    reader: str = ""  # a keyed hash; empty where nobody was logged in

    @property
    def verdict(self) -> Verdict:
        """Accepted: the reader says the same. Rejected: what was called present is absent. Else amended."""
        if self.call == self.answer:
            return "accepted"
        return "rejected" if self.call == "present" else "amended"


def assessment(result: Result, source: Source, opinions: Sequence[Opinion], of: Dataset) -> Dataset:
    """The record of `opinions`, one at least, on a result, in the study of its image; `of` is its structured report.

    The time of the result is that of the record.
    """
    with quiet():
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=sr.observer(result)),
            procedure_reported=REPORT["procedure"],
            imaging_measurements=[_group(opinion, result, source) for opinion in opinions],
        )
        root = content[0]
        root.ContentSequence.append(
            hd.sr.CompositeContentItem(_CODES["result"], of.SOPClassUID, of.SOPInstanceUID, _CONTAINS)
        )
        root.ContentSequence.append(sr.text_item(REPORT["comment"], result.disclaimer))
        return sr.unverified("assessment", content, [source.bare, of], result, source)


def _group(opinion: Opinion, result: Result, source: Source) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    code = next(finding.code for finding in result.findings if finding.name == opinion.finding)
    told = ((REPORT["call"], CALLS[opinion.call]), (_CODES["verdict"], _CODES[opinion.verdict]),
            (_CODES["answer"], CALLS[opinion.answer]))  # fmt: skip
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.tracking(opinion.finding, result, source),
        finding_type=code,
        algorithm_id=sr.algorithm(result),
        qualitative_evaluations=[hd.sr.QualitativeEvaluation(name, value) for name, value in told],
        source_images=[hd.sr.SourceImageForMeasurementGroup(source.bare.SOPClassUID, source.bare.SOPInstanceUID)],
    )
    if opinion.reader:
        group[0].ContentSequence.append(sr.text_item(_CODES["reader"], opinion.reader))
    return group


def read_assessment(document: Dataset, findings: FindingSet) -> tuple[str, list[Opinion]]:
    """Read a record back: the SOP Instance UID of the image, and the opinions.

    A finding that is none of `findings` is passed over. Raises DataError: the document is no such record.
    """
    names = {_key(finding_code(finding)): finding.name for finding in findings.findings}
    calls = {_key(code): call for call, code in CALLS.items()}
    images, opinions = set(), []
    with explained("a structured report cannot be read as an assessment", Exception), quiet():  # foreign bytes
        content = sop.ComprehensiveSR.from_dataset(document).content
        for group in content.get_image_measurement_groups():
            call, answer = (_value(group, name) for name in (REPORT["call"], _CODES["answer"]))
            finding = names.get(_key(group.finding_type))
            if finding is None or calls.get(answer) not in get_args(Answer):
                continue
            items = group[0].ContentSequence
            reader = [item.TextValue for item in items if item.name == _CODES["reader"]]
            images |= {str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
                       for item in items if item.ValueType == "IMAGE"}  # fmt: skip
            opinions.append(
                Opinion(finding, cast(Said, calls[call]), cast(Answer, calls[answer]), str((reader or [""])[0]))
            )
    if len(images) != 1:
        raise DataError("a structured report holds no assessment of one image by these findings")
    return images.pop(), opinions


def _value(group: hd.sr.MeasurementsAndQualitativeEvaluations, name: object) -> tuple[str, str]:
    found = group.get_qualitative_evaluations(name=name)
    return _key(found[0].value) if found else ("", "")


def _key(code: Code) -> tuple[str, str]:
    return code.scheme_designator, code.value
