"""What the sources share: tables read as text and checked for their columns, films that exist, the finished manifest.

Data sets publish their labels as CSV, plain or gzipped. Everything is read as text first, so that an identifier keeps
its leading zeros and an empty cell stays empty.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.errors import DataError
from medsd.findings import FindingSet
from medsd.settings import SplitSettings
from medsd.studies.manifest import Manifest, complete
from medsd.studies.splits import split_patients

log = logging.getLogger(__name__)

OLDEST = 120  # years; ages beyond are typing errors
SEXES = {"f": "F", "female": "F", "w": "F", "m": "M", "male": "M"}
VIEWS = {"pa": "PA", "ap": "AP", "ap supine": "AP", "ap_horizontal": "AP", "ap erect": "AP"}


def find_table(root: Path, patterns: Iterable[str], owner: str) -> Path:
    """The first file below `root` that fits a pattern.

    Raises:
        DataError: the folder or the file is missing; `owner` is whose layout the message speaks of.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set data.root to the folder of {owner}")
    patterns = tuple(patterns)
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            return path
    raise DataError(f"{root}: no {' or '.join(patterns)} here; set data.root to the folder of {owner}")


def read_table(path: Path, needed: Sequence[str], owner: str, delimiter: str = ",") -> pd.DataFrame:
    """A CSV table, every cell as text.

    Raises:
        DataError: it cannot be read, or a column of `needed` is missing.
    """
    try:
        table = pd.read_csv(
            path, dtype=str, encoding="utf-8-sig", keep_default_na=False, index_col=False, sep=delimiter
        )
    except FileNotFoundError:
        raise DataError(f"{path}: no such table; {owner} has it") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:  # ValueError: pandas' parser errors
        raise DataError(f"{path}: cannot be read as a CSV table ({type(error).__name__})") from None
    missing = [column for column in needed if column not in table]
    if missing:
        raise DataError(f"{path}: the columns {', '.join(missing)} are missing; {owner} has them")
    return table


def numbers(table: pd.DataFrame, columns: Sequence[str], path: Path) -> npt.NDArray[np.float32]:
    """Label columns as float32 (N, F); an empty cell is NaN.

    Raises:
        DataError: a cell is neither empty nor 1, 0 or −1; the message names the column and the line.
    """
    values = np.full((len(table), len(columns)), np.nan, dtype=np.float32)
    for position, column in enumerate(columns):
        text = table[column].str.strip()
        value = pd.to_numeric(text.where(text != ""), errors="coerce").to_numpy(dtype=np.float32)
        wrong = (text != "").to_numpy() & ~np.isin(value, (1.0, 0.0, -1.0))
        if wrong.any():
            line = int(np.flatnonzero(wrong)[0]) + 2  # line 1 is the header
            raise DataError(f"{path}: line {line}, column '{column}': labels are 1, 0, -1 or empty")
        values[:, position] = value
    return values


def years(column: pd.Series) -> pd.Series:
    """Ages in years; what is no number, or beyond any age, is unknown."""
    ages = pd.to_numeric(column, errors="coerce")
    return ages.where((ages >= 0) & (ages <= OLDEST))


def words(column: pd.Series, known: Mapping[str, str]) -> pd.Series:
    """Cells translated by `known`, whatever their case; "" where a cell is none of them."""
    return column.str.strip().str.lower().map(known).fillna("")


def texts(column: pd.Series) -> pd.Series:
    """Cells without spaces around them; None where nothing is left."""
    text = column.str.strip()
    return text.astype(object).where(text != "", None)


def present_files(root: Path, paths: pd.Series) -> npt.NDArray[np.bool_]:
    """(N,) True where the film is there; how many are not is logged.

    Raises:
        DataError: none is there.
    """
    there = np.fromiter(((root / path).is_file() for path in paths), dtype=bool, count=len(paths))
    if not there.any():
        raise DataError(f"{root}: none of the {len(paths)} listed films is here; check data.root")
    if not there.all():
        log.warning("%s: %d of %d listed films are not here and are left out", root, int((~there).sum()), len(there))
    return there


def limited(table: pd.DataFrame, limit: int | None) -> pd.DataFrame:
    """The rows of the first `limit` patients, in the order of their identifiers."""
    if limit is not None:
        table = table[table["patient"].isin(sorted(table["patient"].unique())[:limit])]
    return table.reset_index(drop=True)


def manifest_of(
    table: pd.DataFrame,
    findings: FindingSet,
    root: Path,
    splits: SplitSettings,
    fixed_test: npt.NDArray[np.bool_] | None = None,
) -> Manifest:
    """Split a table of studies and labels by patient, unless it has a split, and make it a manifest."""
    if table.empty:
        raise DataError(f"{root}: no study is left; check data.root and what the settings under data leave out")
    table = complete(table, findings)
    if table["split"].isna().all():
        labels = table[list(findings)].to_numpy(dtype=np.float32)
        patients = table["patient"].to_numpy(dtype=str)
        table["split"] = split_patients(labels, patients, splits, fixed_test=fixed_test)
    return Manifest(table, findings, root)
