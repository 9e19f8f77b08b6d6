"""The form of a CSV table, found out from its content: encoding, delimiter, names of the columns."""

import codecs
import csv
import difflib
import gzip
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

from medsd.errors import DataError

log = logging.getLogger(__name__)

DELIMITERS = ",;\t|"
_BLOCK = 1 << 20  # bytes
_SHOWN = 30  # names of columns in a message
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # Excel's, new and old
_NO_TEXT = "no text, so no table; save it as CSV (UTF-8) or Parquet"
# Cells that no column is called: numbers, dates, file names, names as DICOM writes them.
_DATA = re.compile(r"[\d.,/:+-]+|.*\^.*|.*\.(dcm|dicom|png|jpe?g|tiff?)", re.IGNORECASE)


def form_of(path: Path, delimiter: str | None = None) -> tuple[str, str, list[str]]:
    """How a CSV table, plain or gzipped, is written: encoding, delimiter, and the columns of its first filled line.

    An unknown delimiter is the one that makes most columns. Raises DataError if the table is empty, a workbook, or no
    text; OSError if it cannot be read.
    """
    encoding = encoding_of(path)
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rt", encoding=encoding, newline="") as lines:
        first = next((line for line in lines if line.strip()), "")
        while first.count('"') % 2 and (more := lines.readline()):  # a name with a line break in it
            first += more
    if not first:
        raise DataError(f"{path}: the table is empty; its first line must have the names of the columns")
    if "\0" in first:
        raise DataError(f"{path}: {_NO_TEXT}")
    split = {each: next(csv.reader([first], delimiter=each), []) for each in delimiter or DELIMITERS}
    chosen = max(split, key=lambda each: len(split[each]))
    return encoding, chosen, split[chosen]


def encoding_of(path: Path) -> str:
    """UTF-8 or UTF-16 by its mark or its content; else Windows-1252, or Latin-1 where that has no such character.

    Raises DataError for a workbook, or no text; OSError if it cannot be read.
    """
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        head = file.read(4096)
        if head.startswith(_WORKBOOKS):
            raise DataError(f"{path}: a workbook of a spreadsheet program; save it as CSV (UTF-8) or Parquet")
        if marked := next((name for mark, name in _BOMS.items() if head.startswith(mark)), None):
            return marked
        # Of UTF-16 without a mark every other byte of a table is zero.
        zeros = [head[start::2].count(0) * 4 > len(head) for start in (1, 0)]
        if any(zeros):
            return "utf-16-le" if zeros[0] else "utf-16-be"
        if b"\0" in head:
            raise DataError(f"{path}: {_NO_TEXT}")
        for encoding in ("utf-8", "cp1252"):
            file.seek(0)
            if _decodes(cast(BinaryIO, file), encoding):
                break
        else:
            encoding = "latin-1"
    if encoding != "utf-8":
        log.info("%s: is no UTF-8 and is read as %s", path, encoding)
    return encoding


def missing_columns(missing: dict[str, str], present: Sequence[str]) -> str:
    """What to do about `missing` columns, by key of the settings; names in the first line that look like data are not
    told.
    """
    names = [name.strip() for name in present]
    if any(not name or _DATA.fullmatch(name) for name in names):
        return "its first line does not look like names of columns; write them there"
    if len(names) == 1 and re.search(f"[{DELIMITERS}]", names[0]):
        return "its first line is one column only; leave data.delimiter out to have it found, or set the right one"
    lowered = {name.lower(): name for name in reversed(names)}
    keys = []
    for key, column in missing.items():
        near = difflib.get_close_matches(column.lower(), lowered, n=1, cutoff=0.5)
        near = near or [name for name in lowered if column.lower() in name][:1]
        keys.append(f"{key} (did you mean '{lowered[near[0]]}'?)" if near else key)
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"set {', '.join(keys)}; the table has {shown or 'no columns'}"


def _decodes(file: BinaryIO, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while block := file.read(_BLOCK):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
