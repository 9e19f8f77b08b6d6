"""The table that `medsd cases add` reads: a row an image, with its findings and what is known of the patient."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medsd.cases.case import Case, FloatArray, age_band
from medsd.errors import DataError
from medsd.findings import FindingSet, resolve_uncertain
from medsd.studies.sources.cells import label_value
from medsd.studies.sources.tables import read_table

TEXTS = ("study", "patient", "view", "sex", "source", "note")


@dataclass(frozen=True)
class ImageRow:
    """One image of the table; texts are empty if unknown."""

    path: Path
    labels: FloatArray  # (F,): 1 present, 0 absent, NaN unknown or uncertain
    study: str = ""  # an identifier, which leaves as a keyed hash alone; the file's stem stands for a missing one
    patient: str = ""  # likewise
    view: str = ""
    sex: str = ""
    source: str = ""
    note: str = ""
    age: float = float("nan")  # in years

    def __repr__(self) -> str:  # identifiers stay out of messages
        return f"ImageRow({self.path.name})"

    def case(self, study_key: str, patient_key: str, **media: Any) -> Case:
        """The row as a case, under keys in the place of identifiers."""
        about = {name: getattr(self, name) for name in ("view", "sex", "source")}
        return Case(study_key, patient_key, self.labels, age_band=age_band(self.age), split="added", **about, **media)


def read_image_table(table: Path, images: Path, findings: FindingSet) -> list[ImageRow]:
    """Read a CSV with the column ``path``, relative to `images`, and a column for each finding, by its name.

    Findings are 1 or 0, empty or −1 for unknown, and unknown without a column. Optional: study, patient, view, sex,
    age, source, note. Raises DataError if the table cannot be read, lacks a column, or has a value or an image that is
    not there.
    """
    if not table.is_file():
        raise DataError(f"{table}: no such table of images")
    frame = read_table(table, (), "a table of images")
    known = [name for name in findings if name in frame]
    if "path" not in frame or not known:
        raise DataError(f"{table}: needs the column path and at least one of {', '.join(findings)}")
    labels = np.full((len(frame), len(findings)), np.nan, np.float32)
    for name in known:
        values = [label_value(text) for text in frame[name]]
        if None in values:
            raise DataError(f"{table}, row {values.index(None) + 1}: column '{name}' is neither 1, 0 nor empty")
        labels[:, findings.names.index(name)] = resolve_uncertain(np.array(values, float))
    ages = pd.to_numeric(frame["age"], errors="coerce") if "age" in frame else [float("nan")] * len(frame)
    rows = []
    for row, (path, age) in enumerate(zip(frame["path"], ages, strict=True)):
        if not path or not (images / path).is_file():
            raise DataError(f"{table}, row {row + 1}: there is no image of this path in {images}")
        texts = {name: str(frame[name][row]).strip() for name in TEXTS if name in frame}
        texts["sex"] = texts.get("sex", "").upper()[:1]
        texts["view"] = texts.get("view", "").upper()
        rows.append(ImageRow(images / path, labels[row], age=float(age), **texts))
    return rows
