"""A reading as JSON: what the model said, what it is, and the cases and their vote; nothing of who was examined.

The note, the name of the file and the patient's key are left out; the study's key is a keyed hash, under
this site's secret.
"""

from collections.abc import Sequence
from typing import cast

from typing_extensions import TypedDict  # pydantic describes no other before Python 3.12

from medsd.bundle.layout import Bundle
from medsd.calibration.conformal import ConformalSet
from medsd.calibration.types import Call
from medsd.cases.case import SimilarCase
from medsd.cases.described import RelationWord
from medsd.cases.explain import as_records
from medsd.cases.vote import FindingVote, vote_records
from medsd.inference.prediction import Prediction, Said, Status
from medsd.inference.words import Group, group, impression, reason
from medsd.results.result import DISCLAIMER, SYNTHETIC, Result
from medsd.scoring.table import rounded


class FindingRecord(TypedDict):
    """What the model says of one finding."""

    name: str
    title: str
    probability: float | None
    call: Said
    group: Group
    reason: str
    conformal_set: ConformalSet | None
    operating_point: float | None
    calibration: str | None


class VoteRecord(TypedDict):
    """One finding, as the nearest cases and the model see it."""

    finding: str
    share: float | None
    probability: float | None
    share_call: Call
    call: Said
    disagrees: bool


class CaseRecord(TypedDict):
    """One similar case, and how it relates to the reading."""

    rank: int
    study_key: str
    similarity: float
    likeness: str
    relation: RelationWord
    sentence: str
    findings: list[str]
    shared: list[str]
    extra: list[str]
    missing: list[str]
    k_s: float
    k_d: float
    percentile: float | None
    chances: dict[RelationWord, float]
    view: str
    sex: str
    age_band: str
    source: str
    split: str


class ReadingRecord(TypedDict):
    """One reading."""

    disclaimer: str
    read: str
    model: str
    model_sha256: str
    provider: str
    study_key: str
    status: Status
    reason: str
    message: str
    out_of_distribution: float | None
    coverage: float | None
    impression: str
    findings: list[FindingRecord]
    votes: list[VoteRecord]
    cases: list[CaseRecord]


def reading_record(
    prediction: Prediction,
    bundle: Bundle,
    cases: Sequence[SimilarCase] = (),
    votes: Sequence[FindingVote] = (),
    *,
    when: str = "",
) -> ReadingRecord:
    """One reading as plain values; arguments as for `medsd.results.pdf.reading_pdf`.

    ``findings`` stand in the order of falling probability, those that were not trained last, without a probability;
    none for a refused study. ``group`` is the heading under which page and PDF have them, ``reason`` what they say
    beside the number. ``calibration`` is the method that made the probability, ``operating_point`` the one that made
    the call; None where the call is conformal.
    """
    return {
        "disclaimer": f"{SYNTHETIC} {DISCLAIMER}" if bundle.description.synthetic else DISCLAIMER,
        "read": when,
        "model": prediction.model or bundle.label,
        "model_sha256": prediction.model_sha256 or bundle.model_sha256,
        "provider": prediction.provider,
        "study_key": prediction.study_key,
        "status": prediction.status,
        "reason": prediction.reason,
        "message": prediction.message,
        "out_of_distribution": rounded(prediction.out_of_distribution),
        "coverage": prediction.coverage,
        "impression": impression(prediction, sum(vote.disagrees for vote in votes)),
        "findings": _findings(prediction, bundle),
        "votes": cast(list[VoteRecord], vote_records(votes)),
        "cases": [
            cast(CaseRecord, {k: v for k, v in case.items() if k != "note_excerpt"})
            for case in as_records(cases, prediction.findings)
        ],
    }


def _findings(prediction: Prediction, bundle: Bundle) -> list[FindingRecord]:
    points, choices = bundle.description.operating_points, bundle.description.calibration_choices
    return [
        {
            "name": finding.name,
            "title": finding.title,
            "probability": finding.probability,
            "call": finding.call,
            "group": group(finding.call),
            "reason": reason(
                prediction, finding.name, points[finding.name].threshold if finding.name in points else None
            ),
            "conformal_set": finding.conformal_set,
            "operating_point": finding.operating_point,
            "calibration": choices[finding.name].method if finding.name in choices else None,
        }
        for finding in Result.of(prediction, bundle).findings
    ]
