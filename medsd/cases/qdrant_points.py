"""Cases as Qdrant's points, and filters as its conditions."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from medsd.cases.case import FILTER_COLUMNS, Case, CaseFilter, FloatArray
from medsd.findings import FindingSet

TEXT = ("study_key", "patient_key", *FILTER_COLUMNS, "split")


def points_of(block: Sequence[tuple[Case, FloatArray]], names: Sequence[str]) -> list[Any]:
    """Points with random numbers; `names` are the findings in the order of the labels."""
    from qdrant_client import models

    return [
        models.PointStruct(id=str(uuid.uuid4()), vector=np.asarray(vector).tolist(), payload=payload_of(case, names))
        for case, vector in block
    ]


def payload_of(case: Case, names: Sequence[str]) -> dict[str, Any]:
    """A case without its embedding; an unknown finding stands neither under present nor under absent."""
    said: dict[str, Any] = {name: getattr(case, name) for name in TEXT}
    said["present"] = [name for name, value in zip(names, case.labels, strict=True) if value == 1]
    said["absent"] = [name for name, value in zip(names, case.labels, strict=True) if value == 0]
    said["thumbnail"] = None if case.thumbnail is None else base64.b64encode(case.thumbnail).decode()
    said["note_excerpt"] = case.note_excerpt
    return said


def case_of(payload: dict[str, Any], findings: FindingSet) -> Case:
    """`payload_of`, read back."""
    labels, picture = labels_of(payload, findings.names), payload.get("thumbnail")
    return Case(
        labels=labels,
        findings=findings.decode(labels),
        thumbnail=None if picture is None else base64.b64decode(picture),
        note_excerpt=payload.get("note_excerpt"),
        **{name: payload[name] for name in TEXT},
    )


def labels_of(payload: dict[str, Any], names: Sequence[str]) -> FloatArray:
    """The labels (F,) of a payload: 1, 0, NaN."""
    present, absent = set(payload["present"]), set(payload["absent"])
    return np.array([1.0 if n in present else 0.0 if n in absent else np.nan for n in names], np.float32)


def condition_of(filters: CaseFilter | None, patients: Sequence[str] = (), studies: Sequence[str] = ()) -> Any:
    """The filter as Qdrant takes it; None where all may be found."""
    from qdrant_client import models

    filters = filters or CaseFilter()
    must = [value_is("present", name) for name in filters.present]
    must += [value_is("absent", name) for name in filters.absent]
    for column in FILTER_COLUMNS:
        if values := getattr(filters, column):
            must.append(models.FieldCondition(key=column, match=models.MatchAny(any=list(values))))
    keys = (("patient_key", patients), ("study_key", studies))
    barred = [value_is(column, key) for column, given in keys for key in given if key]
    return models.Filter(must=must or None, must_not=barred or None) if must or barred else None


def value_is(key: str, value: str) -> Any:
    """The condition that `key` has this value, or has it among others."""
    from qdrant_client import models

    return models.FieldCondition(key=key, match=models.MatchValue(value=value))
