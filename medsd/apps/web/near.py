"""Other cases beside a study than the nearest ones: those like one of them, and those alike in a box of the image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from medsd.cases.case import CaseFilter, SimilarCase
from medsd.cases.explain import Box, box_embedding, explain, explain_query
from medsd.errors import DataError
from medsd.inference.prediction import Prediction

if TYPE_CHECKING:
    from medsd.cases.index import CaseIndex


Numbered = tuple[SimilarCase, int]
Wanted = Box | Numbered


@dataclass(frozen=True)
class Near:
    """Cases that stand in the place of the nearest ones."""

    title: str  # what they are
    against: str  # what they are compared with
    here: str  # in which words the compared findings are spoken of
    cases: tuple[SimilarCase, ...]
    pictures: tuple[bytes | None, ...]  # of each
    of: Wanted  # the box, or the case and its number, that they are near
    shares: tuple[float, ...] = ()  # of each, the part of its similarity that comes from the box; empty without a box


def like_case(index: "CaseIndex", of: Numbered, filters: CaseFilter, k: int) -> Near:
    """The cases most like a case, of other patients; their relations are to its findings."""
    case, number = of
    if case.embedding is None:
        raise DataError("this case was found without its embedding; search again")
    about, names = case.case, index.findings
    hits = index.nearest(
        case.embedding, k, filters=filters or None, exclude_patient=about.patient_key, exclude_study=about.study_key
    )
    found = tuple(explain_query(about.labels, hits, names))
    has = ", ".join(map(names.title, about.findings)) or "no finding"
    return Near(f"Like case {number}", f"compared with what that case has: {has}", "of that case", found, (), of)


def in_box(index: "CaseIndex", prediction: Prediction, box: Box, filters: CaseFilter, k: int) -> Near:
    """The cases that owe most of their similarity to a box of the image, most first; DataError if none can be told."""
    inside, whole = box_embedding(prediction, box), prediction.embedding
    assert whole is not None
    hits = index.nearest(
        inside,
        k,
        filters=filters or None,
        exclude_patient=prediction.patient_keys or prediction.patient_key,
        exclude_study=prediction.study_keys or prediction.study_key,
    )
    shares = tuple(float(hit.embedding @ inside) for hit in hits)
    hits = [replace(hit, similarity=float(hit.embedding @ whole)) for hit in hits]
    found = tuple(explain(prediction, hits, index.description.scale))
    against = "by the part of the similarity that comes from the box"
    return Near("Alike in the box", against, "called present here", found, (), box, shares)


def read_box(given: object) -> Box:
    """A box as the browser says it, its corners in any order; DataError for none."""
    numbers = given if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if len(numbers) != 4 or not all(isinstance(each, (int, float)) and np.isfinite(each) for each in numbers):
        raise DataError("Draw a box over the part of the image that other cases should resemble.")
    left, top, right, bottom = (min(max(float(each), 0.0), 1.0) for each in numbers)
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)
