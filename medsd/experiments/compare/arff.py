"""ARFF files of numbers, dense and sparse, as Mulan's multi-label sets are written, read by liac-arff."""

from __future__ import annotations

from pathlib import Path

import arff
import pandas as pd

from medsd.errors import DataError


def read_arff(path: Path) -> pd.DataFrame:
    """One float32 column for each attribute, in the file's order, NaN for "?".

    Raises:
        DataError: the file is missing, or is no ARFF of numbers; the message has the line's number.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            found = arff.load(lines)
        names = [name for name, _ in found["attributes"]]
        table = pd.DataFrame(found["data"], columns=names).astype("float32")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}); is the data set complete?") from None
    except (arff.ArffException, ValueError, IndexError) as error:
        line = getattr(error, "line", -1)
        raise DataError(
            f"{path}{f', line {line}' if line > 0 else ''}: no ARFF file of numbers; is it complete?"
        ) from None
    if table.empty:
        raise DataError(f"{path}: no rows after @data")
    return table
