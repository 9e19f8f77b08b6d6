"""ARFF files of numbers, dense and sparse, as Mulan's multi-label sets are written.

scipy.io.arff reads no sparse rows («{3 1, 17 1}»), so these few lines read both kinds. Nominal attributes whose
values are numbers, such as {0,1}, are read as those numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.errors import DataError

_ATTRIBUTE = re.compile(r"""@attribute\s+('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S+)\s+(\S.*)""", re.IGNORECASE)


def read_arff(path: Path) -> pd.DataFrame:
    """Read an ARFF file whose values are all numbers.

    Returns:
        One float32 column for each attribute, in the file's order, NaN for «?».

    Raises:
        DataError: the file is missing, or a line is no ARFF of numbers; the message has the line's number.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}); is the data set complete?") from None
    names: list[str] = []
    for number, line in enumerate(lines):
        text = line.strip()
        if text.lower().startswith("@data"):
            values = _rows(path, lines, number + 1, len(names))
            return pd.DataFrame(values, columns=names)
        if text.lower().startswith("@attribute"):
            names.append(_attribute(path, number, text))
    raise DataError(f"{path}: no line @data; it is no ARFF file, or it was cut off")


def _attribute(path: Path, number: int, text: str) -> str:
    found = _ATTRIBUTE.fullmatch(text)
    if found is None:
        raise DataError(f"{path}:{number + 1}: cannot be read as «@attribute name type»")
    name, kind = found.groups()
    if kind.lower().split()[0] in ("string", "date", "relational"):
        raise DataError(f"{path}:{number + 1}: attribute of type {kind.split()[0]}; medsd reads numbers only")
    return name[1:-1] if name[0] in "'\"" else name


def _rows(path: Path, lines: Sequence[str], start: int, width: int) -> npt.NDArray[np.float32]:
    rows = []
    for number, line in enumerate(lines[start:], start=start):
        text = line.strip()
        if not text or text.startswith("%"):
            continue
        try:
            rows.append(_sparse(text, width) if text.startswith("{") else _dense(text, width))
        except (ValueError, IndexError):
            raise DataError(f"{path}:{number + 1}: not a row of {width} numbers") from None
    if not rows:
        raise DataError(f"{path}: no rows after @data")
    return np.stack(rows)


def _dense(text: str, width: int) -> npt.NDArray[np.float32]:
    row = np.array([_number(part) for part in text.split(",")], dtype=np.float32)
    if row.size != width:
        raise ValueError
    return row


def _sparse(text: str, width: int) -> npt.NDArray[np.float32]:
    """«{index value, index value}», what is not named is 0."""
    row = np.zeros(width, dtype=np.float32)
    inner = text.strip("{} ")
    for part in inner.split(",") if inner else ():
        index, value = part.split()
        if int(index) < 0:
            raise IndexError
        row[int(index)] = _number(value)
    return row


def _number(text: str) -> float:
    stripped = text.strip()
    return float("nan") if stripped == "?" else float(stripped)
