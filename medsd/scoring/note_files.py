"""The clinical notes that belong to images: from the column of a table, or from a text beside each image."""

import csv
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from medsd.dicom.gate import GatePolicy
from medsd.dicom.policy import concern
from medsd.errors import DataError
from medsd.preprocessing.archives import MARK, holds, read_member, split_member

_PATH_COLUMNS = ("path", "file", "file_name", "filename")
_SIDE = ".txt"
_MOST_SIDE_BYTES = 2**20  # a note of 200 pages


class Notes:
    """Clinical notes `by_path`, or by the file name, that the table has, in its order.

    With `beside`, the note of an image without one is the text beside it: ``image.txt``, or ``image.dcm.txt``, of
    ``image.dcm``; in an archive too.
    """

    def __init__(self, by_path: Mapping[str, str] | None = None, *, beside: bool = False) -> None:
        self.by_path = dict(by_path or {})
        self._beside = beside

    def __bool__(self) -> bool:
        return bool(self.by_path) or self._beside

    def of(self, path: Path | str) -> str | None:
        """The note of `path`: by the path as it is, else by the file's name, else beside it; None where there is none.

        Raises ImageError: `file_error`, the text beside it cannot be read.
        """
        note = self.by_path.get(str(path))
        if note is None and self.by_path:
            note = self.by_path.get(Path(path).name)
        return _beside(str(path)) if note is None and self._beside else note

    def digest(self) -> str:
        """A hash that changes with any note; of texts beside images, only with their being read."""
        found = hashlib.sha256(b"beside" if self._beside else b"")
        for name in sorted(self.by_path):
            for text in (name, self.by_path[name]):
                content = text.encode("utf-8", "surrogateescape")
                found.update(len(content).to_bytes(8, "big") + content)
        return found.hexdigest()

    @classmethod
    def read(cls, path: Path, *, more: Mapping[str, str] | None = None) -> Self:
        """Read a CSV with the columns ``path`` (a path or a file name) and ``note``, which overrides `more` notes.

        Raises DataError: it cannot be read, a column is missing, or an image has two different notes.
        """
        found: dict[str, str] = {}
        for row, key, line in read_rows(path):
            name = str(Path(row[key].strip()))
            if found.setdefault(name, row["note"]) != row["note"]:
                raise DataError(f"{path}:{line}: a second, different note for the same image; keep one")
        return cls({**(more or {}), **found})


def read_rows(path: Path, *, needs_note: bool = True) -> Iterator[tuple[dict[str, str], str, int]]:
    """The rows of a table of paths and notes, each with the name of the column of paths and the number of its line.

    Raises DataError: it cannot be read, or a column is missing.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses fields above 128 kB
    dialect = "excel-tab" if path.suffix.lower() == ".tsv" else "excel"
    try:
        if path.is_char_device() or path.is_block_device():
            raise OSError(0, "it is a device")
        with path.open(newline="", encoding="utf-8-sig") as file:
            # Strict: a quote that is never closed would swallow the rest of the table without a word.
            reader = csv.DictReader(file, restval="", dialect=dialect, strict=True)
            names = reader.fieldnames or []
            keys = [name for name in names if name.strip().lower() in _PATH_COLUMNS]
            if not keys or (needs_note and "note" not in names):
                wanted = "the columns 'path' and 'note'" if needs_note else "a column 'path'"
                raise DataError(f"{path}: needs {wanted}; it has {', '.join(names) or 'none'}")
            for row in reader:
                if None in row:
                    raise DataError(
                        f"{path}:{reader.line_num}: has more cells than the heading; put a note with commas in quotes"
                    )
                yield row, keys[0], reader.line_num
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num + 1}: cannot be read as a CSV of notes ({error})") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a zero byte in the path
        detail = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"{path}: cannot be read as a CSV of notes ({detail})") from None


def _beside(path: str) -> str | None:
    """The text beside an image; None where there is none."""
    try:
        content = _side_content(path)
        return None if content is None else content.decode("utf-8-sig")
    except UnicodeDecodeError:
        detail = "the note beside it is no UTF-8 text"
    except OSError as error:
        detail = f"the note beside it: {error.strerror or type(error).__name__}"
    name = Path(path).name
    raise concern("file_error", detail=detail).error(name)


def _side_content(path: str) -> bytes | None:
    archive, member = split_member(path) or ("", path)
    for place in _side_names(member):
        if archive and holds(archive, place):
            return read_member(archive, place, GatePolicy(max_file_bytes=_MOST_SIDE_BYTES), Path(path).name)
        if archive or not os.path.isfile(place):  # noqa: PTH113  # Path raises for long names; a pipe would hold us
            continue
        with Path(place).open("rb") as file:
            content = file.read(_MOST_SIDE_BYTES + 1)
        if len(content) > _MOST_SIDE_BYTES:
            raise OSError(0, f"more than {_MOST_SIDE_BYTES} bytes")
        return content
    return None


def _side_names(path: str) -> Iterator[str]:
    """`image.dcm.txt` and `image.txt` of `image.dcm`; a UID ends in a number that is no suffix."""
    yield path + _SIDE
    suffix = Path(path.rpartition(MARK)[2]).suffix
    if suffix and not suffix[1:].isdigit():
        yield path[: -len(suffix)] + _SIDE
