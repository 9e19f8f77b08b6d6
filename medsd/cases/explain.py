"""How a case resembles a prediction, in words, numbers and regions: relation, shared, extra and missing findings.

Relations are those of `medsd.sd.relations`, so the loss and the words beside a case share one definition. S is what was
predicted, T what the case has; a finding that either side does not know is left out.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medsd.cases.case import FILTER_COLUMNS, FloatArray, Hit, SimilarCase
from medsd.cases.described import RELATION_WORDS, RelationWord, SimilarityScale
from medsd.errors import DataError
from medsd.findings import FindingSet
from medsd.inference.prediction import Prediction
from medsd.preprocessing.pixels import Box, box_weights
from medsd.sd.relations import dissimilarity_factor, relation_matrix, similarity_factor

_CALLED = {"present": 1.0, "absent": 0.0}
# The relation of a case to the findings called present, in words.
RELATION_TITLES: dict[RelationWord, str] = {
    "equal": "Same findings",
    "superset": "Same and more",
    "subset": "Part of these",
    "overlap": "Partly shared",
    "disjoint": "Nothing shared",
    "undetermined": "Cannot tell",
}
# From which percentile of the training pairs with its relation a case is said to be how alike.
_LIKENESS = ((99, "very alike"), (90, "alike"), (50, "somewhat alike"), (0, "hardly alike"))
_VIEWS = {"LATERAL": "lateral", "LL": "lateral"}
_SEXES = {"F": "female", "M": "male"}
_SAME_IMAGE = 0.9999  # a cosine that only the image itself, or a copy of it, has


def explain(prediction: Prediction, hits: Sequence[Hit], scale: SimilarityScale | None = None) -> list[SimilarCase]:
    """Say of each hit how its findings relate to the predicted ones; `scale` gives the percentiles.

    S are the calls for the relation and the differences, the probabilities for K_s, K_d and `chances`.
    """
    calls = [_CALLED.get(prediction.calls.get(name, ""), np.nan) for name in prediction.findings]
    called = np.array(calls, np.float32)  # (F,), NaN where the model is undecided
    soft = called if prediction.values is None else prediction.values
    similar = explain_query(called, hits, prediction.findings, soft)
    return [
        replace(
            case,
            percentile=scale.percentile(case.relation, case.similarity) if scale else None,
            chances=relation_chances(prediction.values, hit.case.labels) if prediction.values is not None else {},
        )
        for case, hit in zip(similar, hits, strict=True)
    ]


def explain_query(
    wanted: FloatArray, hits: Sequence[Hit], findings: FindingSet, soft: FloatArray | None = None
) -> list[SimilarCase]:
    """Say of each hit how its findings relate to a wanted set (F,); K_s and K_d are over `soft` (F,), else that set."""
    soft = wanted if soft is None else soft
    if not hits:
        return []
    case_labels = np.stack([hit.case.labels for hit in hits])  # (K, F)
    relations = relation_matrix(wanted[None], case_labels)[0]
    k_s = similarity_factor(soft[None], case_labels)[0]
    k_d = dissimilarity_factor(soft[None], case_labels)[0]
    return [
        SimilarCase(
            hit.case,
            hit.similarity,
            RELATION_WORDS[int(relation)],
            *_differences(wanted, hit.case.labels, findings),
            k_s=float(s),
            k_d=float(d),
            embedding=hit.embedding,
        )
        for hit, relation, s, d in zip(hits, relations, k_s, k_d, strict=True)
    ]


def relation_chances(probabilities: FloatArray, labels: FloatArray) -> dict[RelationWord, float]:
    """How likely each relation of a case to the true findings is, if the probabilities are right and independent.

    The relation of the calls hides how close a call was. With A = P(S ⊆ T), B = P(T ⊆ S) and C = P(S∩T = ∅), each a
    product over findings, the relations of a case that has a finding are: equal A·B, superset A·(1−B−C), subset
    (1−A)·B, overlap (1−A)·(1−B−C), disjoint C.

    `probabilities` (F,) are in 0…1, those of NaN left out; `labels` (F,) 1, 0 or NaN. The six chances sum to 1.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    p, labels = p[~np.isnan(p)], labels[~np.isnan(p)]
    none_extra = float(np.prod(1 - p[labels == 0]))  # A
    chances: dict[RelationWord, float] = dict.fromkeys(RELATION_WORDS.values(), 0.0)
    if (labels == 1).any():
        contains, apart = float(np.prod(p[labels == 1])), float(np.prod(1 - p[labels == 1]))  # B, C
        between = max(1 - contains - apart, 0.0)
        return chances | {
            "equal": none_extra * contains,
            "superset": none_extra * between,
            "subset": (1 - none_extra) * contains,
            "overlap": (1 - none_extra) * between,
            "disjoint": apart,
        }
    if np.isnan(labels).all():
        return chances | {"undetermined": 1.0}
    hidden = 1 - float(np.prod(1 - p[np.isnan(labels)]))  # a finding where the case's label is unknown
    return chances | {
        "equal": none_extra * (1 - hidden),
        "disjoint": 1 - none_extra,
        "undetermined": none_extra * hidden,
    }


def _differences(
    predicted: FloatArray, labels: FloatArray, findings: FindingSet
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Shared, extra (case only) and missing (predicted only) findings; NaN equals neither 0 nor 1."""
    pairs = ((1, 1), (0, 1), (1, 0))
    masks = [(predicted == ours) & (labels == theirs) for ours, theirs in pairs]
    shared, extra, missing = (tuple(n for n, on in zip(findings, mask, strict=True) if on) for mask in masks)
    return shared, extra, missing


def sentence(case: SimilarCase, findings: FindingSet | None = None) -> str:
    """What a case shares: ``Shares pleural effusion and mass; has also atelectasis; lacks nodule``."""
    # A finding of the case that the model left undecided, or was not trained for, is in none of the three.
    untold = [name for name in case.case.findings if name not in {*case.shared, *case.extra}]
    also = "has also" if case.shared else "has"
    told = (("shares", case.shared), (also, case.extra), ("lacks", case.missing), ("has, without a call here,", untold))
    parts = [f"{words} {_listed(names, findings)}" for words, names in told if names]
    if not parts or case.relation == "undetermined":
        parts.insert(0, "no finding in either" if case.relation == "equal" else "too little is known to compare them")
    said = "; ".join(parts)
    return said[0].upper() + said[1:]


def relation_line(case: SimilarCase, findings: FindingSet | None = None) -> str:
    """Relation and `sentence`: ``Same and more: shares mass; has also nodule``."""
    said = sentence(case, findings)
    return f"{RELATION_TITLES[case.relation]}: {said[0].lower()}{said[1:]}"


def who(case: SimilarCase) -> str:
    """View, sex, decade and source of a case, as far as they are known: ``PA · female · 40-49 years · phantom``."""
    about = case.case
    view, sex = _VIEWS.get(about.view, about.view), _SEXES.get(about.sex, "")
    return " · ".join(filter(None, (view, sex, about.age_band and f"{about.age_band} years", about.source)))


def who_briefly(case: SimilarCase) -> str:
    """View, sex and decade of a case in the room of a card: ``PA · F · 40s``."""
    about = case.case
    decade = re.sub(r"^(\d0)-\d\d$", r"\1s", about.age_band)  # "0-9" and "90+" stay
    return " · ".join(filter(None, (_VIEWS.get(about.view, about.view), about.sex, decade)))


def likeness(case: SimilarCase) -> str:
    """How alike image and case are, in a word: by the percentile among pairs with this relation where it is known."""
    if case.similarity >= _SAME_IMAGE:
        return "the same image"
    if case.percentile is None:
        return similarity_words(case)
    return next(word for least, word in _LIKENESS if case.percentile >= least)


def signed(value: float) -> str:
    """A cosine, or a part of one, with two decimals and a true minus sign; never a negative zero.

    >>> signed(-0.034), signed(-0.001)
    ('−0.03', '0.00')
    """
    return f"{value:z.2f}".replace("-", "−")


def similarity_words(case: SimilarCase) -> str:
    """The cosine of image and case."""
    return f"similarity {signed(case.similarity)}"


def percentile_words(case: SimilarCase) -> str:
    """The numbers behind `likeness`."""
    said = similarity_words(case)
    if case.percentile is None:
        return said
    return f"{said}, more alike than {case.percentile:.0f} % of training pairs with this relation"


def _listed(names: Sequence[str], findings: FindingSet | None) -> str:
    words = list(names) if findings is None else [findings.in_text(name) for name in names]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def as_records(similar: Sequence[SimilarCase], findings: FindingSet | None = None) -> list[dict[str, Any]]:
    """The cases for JSON, without pictures; `findings` gives the titles."""
    return [
        {
            "rank": rank,
            "study_key": case.case.study_key,
            "similarity": round(case.similarity, 4),
            "likeness": likeness(case),
            "relation": case.relation,
            "sentence": relation_line(case, findings),
            "findings": list(case.case.findings),
            **{part: list(getattr(case, part)) for part in ("shared", "extra", "missing")},
            "k_s": round(case.k_s, 4),
            "k_d": round(case.k_d, 4),
            "percentile": None if case.percentile is None else round(case.percentile, 1),
            "chances": {word: round(value, 4) for word, value in case.chances.items()},
            **{name: getattr(case.case, name) for name in (*FILTER_COLUMNS, "split", "note_excerpt")},
        }
        for rank, case in enumerate(similar, 1)
    ]


def as_text(
    similar: Sequence[SimilarCase], findings: FindingSet | None = None, asked: str = "what was predicted"
) -> str:
    """The cases as a table for a terminal; a sentence if there are none."""
    if not similar:
        return "no similar case"
    header = ("#", "case", "cosine", "pct", "view", "sex", "age", f"relation to {asked}")
    rows = [
        (
            str(rank),
            case.case.study_key,
            f"{case.similarity:.3f}",
            "-" if case.percentile is None else f"{case.percentile:.0f}",
            *(getattr(case.case, name) or "-" for name in ("view", "sex", "age_band")),
            relation_line(case, findings),
        )
        for rank, case in enumerate(similar, 1)
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def region_shares(prediction: Prediction, embedding: FloatArray) -> FloatArray:
    """What each place of an image adds to its cosine with `embedding` (D,): float32 (h, w) in the model's grid.

    Everything after the last feature map is linear. With regions r(x, y) whose mean is the image's embedding, the
    cosine with e' is the mean over (x, y) of r(x, y)·e', and what the note adds (Stylianou et al., Visualizing deep
    similarity networks, WACV 2019). So the mean of the map is the cosine, less the note's part. Raises DataError where
    there are no regions, or the sizes do not fit.
    """
    if prediction.regions is None:
        why = "the study was refused" if prediction.refused else "there is no image"
        raise DataError(f"no map of the similarity: {why}")
    other, size = np.asarray(embedding, dtype=np.float32), prediction.regions.shape[:1]
    if other.shape != size:
        raise DataError(f"no map of the similarity: embeddings of {other.shape} and {size} numbers")
    return np.tensordot(other, prediction.regions, axes=1)


def box_embedding(prediction: Prediction, box: Box) -> FloatArray:
    """What a box of an image adds to its embedding (D,); its product with a case's is the box's part of their cosine.

    The cosine is a mean over places (`region_shares`), so that the parts of boxes that tile the image, of what lies
    outside it in the model's grid, and of the note add up to it. A place that a box cuts counts by the share inside.
    The cases of the largest parts are those nearest to this vector. Raises DataError as `region_shares` does, and for a
    box without an area.
    """
    if prediction.regions is None or prediction.image is None or prediction.pixel_spec is None:
        why = "the study was refused" if prediction.refused else "there is no image"
        raise DataError(f"cases cannot be compared in a box: {why}")
    height, width = prediction.regions.shape[1:]
    weights = box_weights(box, prediction.image.shape, (height, width), prediction.pixel_spec)
    if not weights.any():
        raise DataError("the box has no area in the part of the image that the model sees; draw a larger one")
    inside = np.einsum("dhw,hw->d", prediction.regions, weights, dtype=np.float64) / weights.size
    return inside.astype(np.float32)
