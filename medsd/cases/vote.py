"""What the nearest cases say of each finding, beside the model's own probability, and on which the two disagree."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medsd.calibration.types import Call
from medsd.cases.case import FloatArray, SimilarCase
from medsd.cases.described import VoteRule
from medsd.findings import FindingSet
from medsd.inference.prediction import Prediction, Said

NEAREST = 16  # cases that vote if the index has no rule


@dataclass(frozen=True)
class FindingVote:
    """One finding, as the nearest cases and the model see it."""

    finding: str
    share: float  # the vote, 0…1; NaN if no case knows the finding
    probability: float  # the model's; NaN if it was not trained for the finding
    share_call: Call  # what the vote amounts to; undecided without a threshold or a case that knows the finding
    call: Said  # the model's, or "not trained"
    disagrees: bool  # both decided, and differently


def weighted_shares(weights: npt.NDArray[np.float64], labels: FloatArray) -> npt.NDArray[np.float64]:
    """Σ_i w_i · t_i(f) / Σ_i w_i over the cases i that know f, (F,) in 0…1; NaN if no case does.

    `weights` (K,) are not negative, `labels` (K, F) 1, 0 or NaN. If every weight of a finding is 0, it is the plain
    share.
    """
    known = ~np.isnan(labels)
    weighed = weights[:, None] * known
    weighed = np.where(weighed.sum(0) > 0, weighed, known)
    total = weighed.sum(0)
    return np.divide((weighed * np.nan_to_num(labels)).sum(0), total, out=np.full(len(total), np.nan), where=total > 0)


def vote(similar: Sequence[SimilarCase], findings: FindingSet) -> dict[str, float]:
    """What the nearest cases say of each finding, as a share between 0 and 1.

        vote(f) = Σ_i w_i · t_i(f) / Σ_i w_i,   w_i = max(cos_i, 0) · K_s(i) · K_d(i)

    over the cases i that know f, with t_i(f) 1 if present and 0 if absent, and K_s and K_d over the
    probabilities: the weight that the SD loss gives a pair, times the similarity. A case that contradicts the
    probabilities says little, so the vote is not independent of them. For missing weights see `weighted_shares`.
    """
    if not similar:
        return dict.fromkeys(findings, float("nan"))
    weights = np.array([max(case.similarity, 0.0) * case.k_s * case.k_d for case in similar])
    labels = np.stack([case.case.labels for case in similar])  # (K, F)
    return dict(zip(findings, weighted_shares(weights, labels).tolist(), strict=True))


def ballot(
    prediction: Prediction, similar: Sequence[SimilarCase], rule: VoteRule | None = None
) -> tuple[FindingVote, ...]:
    """The vote beside the model's probability and call, finding by finding.

    The thresholds of `rule` hold for `rule.k` similar cases; without it nothing is flagged. A refused prediction has no
    votes.
    """
    if prediction.refused:
        return ()
    shares, probabilities = vote(similar, prediction.findings), prediction.probabilities
    thresholds = rule.thresholds if rule else {}
    votes = []
    for name, share in shares.items():
        threshold, call = thresholds.get(name), prediction.said(name)
        said: Call = "undecided"
        if threshold is not None and not np.isnan(share):
            said = "present" if share >= threshold else "absent"
        differs = {said, call} == {"present", "absent"}
        votes.append(FindingVote(name, share, probabilities.get(name, float("nan")), said, call, differs))
    return tuple(votes)


def share_words(share: float) -> str:
    """A share of the nearest cases as a person reads it; a dash for NaN, where no case knows the finding."""
    return "–" if np.isnan(share) else f"{share * 100:.0f} %"


def vote_records(votes: Sequence[FindingVote]) -> list[dict[str, Any]]:
    records = [asdict(each) for each in votes]
    for record in records:
        for key in ("share", "probability"):
            record[key] = None if np.isnan(record[key]) else round(record[key], 4)
    return records


def disagreement_text(votes: Sequence[FindingVote], findings: FindingSet) -> str:
    """One line for each finding on which cases and model disagree."""
    return "\n".join(
        f"disagreement: {findings.title(each.finding)} is {each.call} for the model ({each.probability:.2f}) "
        f"and {each.share_call} by the nearest cases (vote {each.share:.2f})"
        for each in votes
        if each.disagrees
    )
