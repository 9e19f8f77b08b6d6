"""The boxes that narrow a search for cases: findings, view, sex, age, source; one set for each tab that has one."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from medsd.apps.web.reading import Reader
from medsd.cases.case import FILTER_COLUMNS, CaseFilter

_TITLES = {"view": "View", "sex": "Sex", "age_band": "Age", "source": "Source"}
_SEXES = {"F": "female", "M": "male", "O": "other"}


class FilterBoxes:
    """Builds the boxes where it is made, with ids that begin with `key`, for the values that the reader's index has.

    `inputs` are their values, which `to_filter` understands.
    """

    def __init__(self, reader: Reader, *, findings: bool, key: str) -> None:
        known = reader.index.vocabulary if reader.index is not None else dict.fromkeys(FILTER_COLUMNS, ())
        self.inputs: list[Any] = []
        if findings:
            self.inputs += finding_boxes(reader, f"{key}-", "With", "Without")
        for column in FILTER_COLUMNS:
            values = [value for value in known[column] if value]
            self.inputs.append(
                gr.Dropdown(
                    [(_SEXES.get(value, value), value) if column == "sex" else value for value in values],
                    value=[],
                    multiselect=True,
                    label=_TITLES[column],
                    elem_id=f"{key}-{column}",
                    min_width=120,
                    visible=len(values) > 1,  # a box of one value narrows nothing
                )
            )


def finding_boxes(reader: Reader, key: str, present: str, absent: str) -> list[Any]:
    """Two boxes of findings: to be there, and not to be there."""
    names = [(finding.title, finding.name) for finding in reader.bundle.findings.findings]
    return [
        gr.Dropdown(names, value=[], multiselect=True, label=label, elem_id=f"{key}{kind}", min_width=180)
        for kind, label in (("present", present), ("absent", absent))
    ]


def to_filter(values: Sequence[list[str] | None]) -> CaseFilter:
    """The filter that the values of `FilterBoxes.inputs` mean, with boxes of findings or without; none: no filter."""
    if not values:
        return CaseFilter()
    columns = ("present", "absent", *FILTER_COLUMNS) if len(values) > len(FILTER_COLUMNS) else FILTER_COLUMNS
    return CaseFilter(**{column: tuple(value or ()) for column, value in zip(columns, values, strict=True)})
