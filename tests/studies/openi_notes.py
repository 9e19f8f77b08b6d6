"""Open-i's reports as notes, and the halves on which the labeller was written and is measured."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsd.studies.notes.labeller import ReportLabels, Status
from medsd.studies.notes.sections import Note, normalise_placeholders
from medsd.studies.published_reports import read_reports


def read_openi_reports(source: Path) -> Iterator[tuple[str, Note]]:
    """The reports of an archive or a folder in its order, as (``"CXR12"``, note).

    Raises:
        DataError: no such archive, or a report that is no plain XML of this layout.
    """
    for report in read_reports(source):
        told = {name: normalise_placeholders(text) for name, text in report.sections.items()}
        # Open-i has no section of history: its indications hold it.
        yield (
            report.name,
            Note(
                indication=told.get("indication", ""),
                comparison=told.get("comparison", ""),
                findings=told.get("findings", ""),
                impression=told.get("impression", ""),
            ),
        )


def is_held_back(report: str) -> bool:
    """Whether a report belongs to the half that rules were not written on: by a hash of its name, fixed for good."""
    return bool(hashlib.sha256(report.encode()).digest()[0] % 2)


def called(labels: ReportLabels, *, alternatives: bool = True) -> npt.NDArray[np.bool_]:
    """(F,) the findings that a data set without "uncertain" would call present.

    With `alternatives`, "A versus B" counts for both, as annotators of Open-i mostly did.
    """
    counted = {Status.PRESENT, Status.ALTERNATIVE} if alternatives else {Status.PRESENT}
    return np.array([status in counted for status in labels.status])
