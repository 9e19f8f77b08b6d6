"""How a case resembles a prediction, in words and numbers: relation, shared, extra and missing findings, and a vote.

Relations are those of `medsd.sd.relations`: the loss that shaped the space and the words beside a neighbour share one
definition. S is what was predicted, T what the case has; a finding that either side does not know is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

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
            float(np.clip(hit.similarity, -1, 1)),
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
