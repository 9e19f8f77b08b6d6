"""The table that `medsd cases add` reads: a row an image, with its findings and what is known of the patient."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medsd.cases.case import Case, FloatArray, age_band
from medsd.errors import DataError
from medsd.findings import FindingSet

TEXTS = ("study", "patient", "view", "sex", "source", "note")
_VALUES: Mapping[str, float] = {
    "1": 1.0, "1.0": 1.0, "yes": 1.0, "true": 1.0, "present": 1.0,
    "0": 0.0, "0.0": 0.0, "no": 0.0, "false": 0.0, "absent": 0.0,
    "": np.nan, "-1": np.nan, "-1.0": np.nan, "uncertain": np.nan, "unknown": np.nan,
}  # fmt: skip


@dataclass(frozen=True)
class ImageRow:
    """One image of the table.

    Attributes:
        path: of the image.
        labels: float32 (F,): 1 present, 0 absent, NaN unknown or uncertain.
        study, patient: identifiers, which leave as keyed hashes alone; the file's stem stands for a missing study.
        view, sex, source, note: empty if unknown.
        age: in years, NaN if unknown.
    """

    path: Path
    labels: FloatArray
    study: str = ""
    patient: str = ""
    view: str = ""
    sex: str = ""
    source: str = ""
    note: str = ""
    age: float = float("nan")

    def __repr__(self) -> str:  # identifiers stay out of messages
        return f"ImageRow({self.path.name})"

    def case(self, study_key: str, patient_key: str, **media: Any) -> Case:
        """The row as a case, under keys in the place of identifiers."""
        about = {name: getattr(self, name) for name in ("view", "sex", "source")}
        return Case(study_key, patient_key, self.labels, age_band=age_band(self.age), split="added", **about, **media)


def read_image_table(table: Path, images: Path, findings: FindingSet) -> list[ImageRow]:
    """Read the table.

    Args:
        table: CSV with the column ``path``, relative to `images`, and one column a finding (1, 0; empty or −1:
            unknown), by the vocabulary's names. Findings without a column are unknown. Optional: study, patient, view,
            sex, age, source, note.
        images: the folder of the images.
        findings: the index's vocabulary.

    Raises:
        DataError: the table cannot be read, lacks a column, or has a value or an image that is not there.
    """
    frame = _read(table)
    known = [name for name in findings if name in frame]
    if "path" not in frame or not known:
        raise DataError(f"{table}: needs the column path and at least one of {', '.join(findings)}")
    labels = np.full((len(frame), len(findings)), np.nan, np.float32)
    for name in known:
        labels[:, findings.names.index(name)] = [_value(table, name, row, text) for row, text in enumerate(frame[name])]
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


def _read(table: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(table, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{table}: no such table of images") from None
    except (OSError, ValueError) as error:  # what pandas cannot parse is a ValueError
        raise DataError(f"{table}: cannot be read as CSV ({type(error).__name__})") from None


def _value(table: Path, name: str, row: int, text: str) -> float:
    value = _VALUES.get(text.strip().lower())
    if value is None:
        raise DataError(f"{table}, row {row + 1}: column '{name}' is neither 1, 0 nor empty")
    return value
