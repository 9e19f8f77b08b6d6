"""How a case resembles a prediction, in words and numbers: relation, shared, extra and missing findings, and a vote.

Relations are those of `medsd.sd.relations`: the loss that shaped the space and the words beside a neighbour share one
definition. S is what was predicted, T what the case has; a finding that either side does not know is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medsd.cases.case import FloatArray, Hit, RelationWord, SimilarCase
from medsd.findings import FindingSet
from medsd.inference.prediction import Prediction
from medsd.sd.relations import Relation, dissimilarity_factor, relation_matrix, similarity_factor

_CALLED = {"present": 1.0, "absent": 0.0}
RELATION_WORDS: dict[int, RelationWord] = {
    Relation.EQUAL: "equal",
    Relation.OVERLAP: "overlap",
    Relation.SUPERSET: "superset",
    Relation.SUBSET: "subset",
    Relation.DISJOINT: "disjoint",
    Relation.UNDETERMINED: "undetermined",
}
_NO_PARTS = {"equal": "no finding in either", "undetermined": "too little is known to tell"}


def called_labels(prediction: Prediction) -> FloatArray:
    """The calls as labels (F,): 1 present, 0 absent, NaN where the model is undecided."""
    calls = prediction.calls
    return np.array([_CALLED.get(calls.get(name, ""), np.nan) for name in prediction.findings], np.float32)


def explain(prediction: Prediction, hits: Sequence[Hit]) -> list[SimilarCase]:
    """Say of each hit how its findings relate to the predicted ones."""
    if not hits:
        return []
    case_labels = np.stack([hit.case.labels for hit in hits])  # (K, F)
    called = called_labels(prediction)
    soft = (called if prediction.values is None else prediction.values)[None]
    relations = relation_matrix(called[None], case_labels)[0]
    k_s = similarity_factor(soft, case_labels)[0]
    k_d = dissimilarity_factor(soft, case_labels)[0]
    return [
        SimilarCase(
            hit.case,
            hit.similarity,
            RELATION_WORDS[int(relation)],
            *_differences(called, hit.case.labels, prediction.findings),
            k_s=float(s),
            k_d=float(d),
        )
        for hit, relation, s, d in zip(hits, relations, k_s, k_d, strict=True)
    ]


def _differences(
    predicted: FloatArray, labels: FloatArray, findings: FindingSet
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Shared, extra (case only) and missing (predicted only) findings; NaN equals neither 0 nor 1."""
    masks = (
        (predicted == 1) & (labels == 1),
        (predicted == 0) & (labels == 1),
        (predicted == 1) & (labels == 0),
    )
    shared, extra, missing = (tuple(n for n, on in zip(findings, mask, strict=True) if on) for mask in masks)
    return shared, extra, missing


def vote(similar: Sequence[SimilarCase], findings: FindingSet) -> dict[str, float]:
    """What the nearest cases say of each finding, as a share between 0 and 1.

        vote(f) = Σ_i w_i · t_i(f) / Σ_i w_i,   w_i = max(cos_i, 0) · K_s(i) · K_d(i)

    over the cases i that know f, with t_i(f) 1 where present and 0 where absent, and K_s and K_d over the
    probabilities: the weight that the SD loss gives a pair, times the likeness. A case that contradicts the
    probabilities says little, so the vote is not independent of them. Where every weight of a finding is 0, the vote
    is the plain share; where no case knows the finding, NaN.
    """
    if not similar:
        return dict.fromkeys(findings, float("nan"))
    labels = np.stack([case.case.labels for case in similar]).astype(np.float64)  # (K, F)
    known = ~np.isnan(labels)
    weights = np.array([max(case.similarity, 0.0) * case.k_s * case.k_d for case in similar])[:, None] * known
    weights = np.where(weights.sum(0) > 0, weights, known)
    total = weights.sum(0)
    votes = np.divide(
        (weights * np.nan_to_num(labels)).sum(0), total, out=np.full(len(findings), np.nan), where=total > 0
    )
    return dict(zip(findings, votes.tolist(), strict=True))


def sentence(case: SimilarCase, findings: FindingSet | None = None) -> str:
    """One line: ``superset: shares Pleural effusion; also Pulmonary oedema; without Mass``.

    Args:
        case: the case with its relation.
        findings: gives the titles; without it the names stand.
    """
    parts = [
        f"{words} {', '.join(names if findings is None else map(findings.title, names))}"
        for words, names in (("shares", case.shared), ("also", case.extra), ("without", case.missing))
        if names
    ]
    return f"{case.relation}: {'; '.join(parts) or _NO_PARTS.get(case.relation, 'nothing in common')}"


def as_records(similar: Sequence[SimilarCase]) -> list[dict[str, Any]]:
    """The cases as JSON takes them: plain values, without pictures."""
    return [
        {
            "rank": rank,
            "study_key": case.case.study_key,
            "similarity": round(case.similarity, 4),
            "relation": case.relation,
            "findings": list(case.case.findings),
            "shared": list(case.shared),
            "extra": list(case.extra),
            "missing": list(case.missing),
            "k_s": round(case.k_s, 4),
            "k_d": round(case.k_d, 4),
            "view": case.case.view,
            "sex": case.case.sex,
            "age_band": case.case.age_band,
            "source": case.case.source,
            "split": case.case.split,
            "note_excerpt": case.case.note_excerpt,
        }
        for rank, case in enumerate(similar, 1)
    ]


def as_text(similar: Sequence[SimilarCase], findings: FindingSet | None = None) -> str:
    """The cases as a table for a terminal, one line each under a header; a sentence where there is none."""
    if not similar:
        return "no similar case"
    header = ("#", "case", "cosine", "view", "sex", "age", "relation to what was predicted")
    rows = [
        (
            str(rank),
            case.case.study_key,
            f"{case.similarity:.3f}",
            case.case.view or "-",
            case.case.sex or "-",
            case.case.age_band or "-",
            sentence(case, findings),
        )
        for rank, case in enumerate(similar, 1)
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines)
