"""The table of results: its columns, one row a study, and the three formats in which it is written.

Nothing else lists these columns. A row holds the caller's own path, keyed hashes and numbers; never what a header says
of the patient.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from medsd.errors import DataError, explained
from medsd.files import replacing
from medsd.findings import FindingSet

if TYPE_CHECKING:
    from medsd.inference.prediction import Prediction

Row = dict[str, Any]

SUFFIXES = (".csv", ".parquet", ".jsonl")
_BEFORE = ("path", "status", "reason", "message", "study_key", "patient_key", "instance_key", "view")
COUNTS = ("images", "images_used", "images_not_frontal", "images_refused", "duplicates")
_PATHS = ("paths_used", "paths_not_frontal", "paths_refused")  # as JSON: a list, a list, and the reason of each
_OF_STUDY = ("study_key", "patient_key", "status", "reason", "message", *COUNTS, *_PATHS)
_AFTER = ("out_of_distribution", "model", "model_sha256")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
_DECIMALS = 6  # a float32 probability has no more to say
_CHUNK = 2000  # rows held at once while a table is written


def columns(findings: FindingSet | Sequence[str]) -> list[str]:
    """The columns for a vocabulary, in order.

    >>> columns(["Mass"])[8:10]
    ['probability_Mass', 'call_Mass']
    """
    pairs = chain.from_iterable((f"probability_{name}", f"call_{name}") for name in findings)
    return [*_BEFORE, *pairs, *_AFTER]


def study_columns(findings: FindingSet | Sequence[str]) -> list[str]:
    """The columns of a table of studies (`medsd.scoring.by_study`), in order."""
    return [*_OF_STUDY, *columns(findings)[len(_BEFORE) :]]


def is_number(column: str) -> bool:
    """Whether a column holds a number; the others hold text."""
    return column.startswith("probability_") or column == "out_of_distribution" or column in COUNTS


def row(path: Path | str, prediction: "Prediction") -> Row:
    """The row of one study; numbers of a refused one are None, its calls are empty.

    The name of a file may be a patient's: it stands under ``path`` alone, so that a table without this column has none.
    """
    probabilities = prediction.probabilities
    found: Row = {
        "path": printable(path),
        "status": prediction.status,
        "reason": prediction.reason,
        "message": printable(prediction.message.removeprefix(f"{Path(path).name}: ")),
        "study_key": prediction.study_key,
        "patient_key": prediction.patient_key,
        "instance_key": prediction.instance_key,
        "view": prediction.view,
    }
    for name in prediction.findings:
        found[f"probability_{name}"] = rounded(probabilities.get(name))
        found[f"call_{name}"] = "" if prediction.refused else prediction.said(name)
    found["out_of_distribution"] = rounded(prediction.out_of_distribution)
    return found | {"model": prediction.model, "model_sha256": prediction.model_sha256}


def printable(text: Path | str) -> str:
    """Text that every format can hold: zero bytes, and bytes of a file name that are no UTF-8, are shown as escapes."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def rounded(value: float | None) -> float | None:
    """A number as the table has it; NaN is none."""
    return None if value is None or math.isnan(value) else round(float(value), _DECIMALS)


def check_format(path: Path, suffixes: Sequence[str] = SUFFIXES, what: str = "the results are") -> None:
    """Refuse an output whose suffix names no format; raises DataError."""
    if path.suffix.lower() not in suffixes:
        raise DataError(f"{path}: {what} written as {', '.join(suffixes)}; give the output one of these endings")


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], names: Sequence[str], defuse: bool = False) -> None:
    """Write `rows`, taken in small portions, so that a reader sees the old file or the whole new one.

    The suffix chooses CSV, Parquet or JSON lines. With `defuse`, texts in CSV that begin with ``=``, ``+``, ``-``,
    ``@``, a tab, a return or an apostrophe get an apostrophe before them: a spreadsheet would run the former as
    formulas, and `read_table` takes it away again. Raises DataError: another suffix, or the file cannot be written.
    """
    check_format(path)
    suffix = path.suffix.lower()
    with explained(f"{path}: cannot be written", OSError), replacing(path) as draft:
        if suffix == ".parquet":
            _write_parquet(draft, rows, names)
            return
        with draft.open("w", newline="", encoding="utf-8") as file:
            if suffix == ".csv":
                write_csv(file, rows, names, defuse=defuse)
            else:
                file.writelines(json_line({name: row[name] for name in names}) for row in rows)


def write_csv(file: TextIO, rows: Iterable[Mapping[str, Any]], names: Sequence[str], *, defuse: bool = False) -> None:
    """CSV by RFC 4180: lines end in CR LF, and a text with a quote, a comma, CR or LF in it stands in quotes."""
    writer = csv.DictWriter(file, names, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: _defused(row[name]) for name in names} if defuse else row for row in rows)


def _defused(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # A schema of our own: where every image of a portion was refused, nothing could be inferred.
    schema = pa.schema(
        [(n, pa.int64() if n in COUNTS else pa.float64() if is_number(n) else pa.string()) for n in names]
    )
    remaining = iter(rows)
    with pq.ParquetWriter(path, schema) as writer:
        while portion := list(islice(remaining, _CHUNK)):
            writer.write_table(pa.Table.from_pylist([dict(row) for row in portion], schema=schema))


def json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def read_table(path: Path, *, defused: bool = False) -> Iterator[Row]:
    """The rows of a table that `write_table` wrote, one after another; `defused` as it was written.

    Raises DataError: another suffix, or no such table.
    """
    check_format(path)
    suffix = path.suffix.lower()
    with explained(f"{path}: is no table of results", OSError, ValueError, KeyError, then="; choose another output"):
        if suffix == ".parquet":
            yield from _read_parquet(path)
            return
        with path.open(newline="", encoding="utf-8") as file:
            if suffix == ".jsonl":
                yield from map(json.loads, file)
            else:
                for row in csv.DictReader(file):
                    yield {name: _read_value(name, text, defused) for name, text in row.items()}


def _read_value(name: str, text: str, defused: bool) -> Any:
    if is_number(name):
        return int(text) if name in COUNTS else float(text) if text else None
    return text.removeprefix("'") if defused else text


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for portion in file.iter_batches(batch_size=_CHUNK):
            yield from portion.to_pylist()
