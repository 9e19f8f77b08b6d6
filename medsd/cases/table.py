"""The table that `medsd cases add` reads: a row an image, with its findings and what is known of the patient."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medsd.cases.case import Case, age_band
from medsd.errors import DataError
from medsd.findings import FindingSet, resolve_uncertain
from medsd.studies.sources.cells import label_value
from medsd.studies.sources.tables import read_table

TEXTS = ("study", "patient", "view", "sex", "source", "note")


@dataclass(frozen=True)
class ImageRow:
    """One image of the table; texts are empty if unknown."""

    path: Path
    case: Case  # without keys, pictures and notes
    study: str = field(repr=False)  # an identifier, which leaves as a keyed hash alone; by default the file's stem
    patient: str = field(repr=False)  # likewise
    note: str = field(repr=False)


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
        texts = {name: str(frame[name][row]).strip() if name in frame else "" for name in TEXTS}
        texts |= {"view": texts["view"].upper(), "sex": texts["sex"].upper()[:1]}
        about: dict[str, Any] = {name: texts[name] for name in ("view", "sex", "source")}
        case = Case("", labels=labels[row], age_band=age_band(float(age)), split="added", **about)
        rows.append(ImageRow(images / path, case, texts["study"], texts["patient"], texts["note"]))
    return rows
