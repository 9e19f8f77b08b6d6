"""What a batch is asked to read: folders, patterns and lists made into paths, and the notes that belong to them."""

from __future__ import annotations

import csv
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from medsd.errors import DataError

LIST_SUFFIXES = (".txt", ".lst")
# What lies beside films in a folder and is none by its name; given by name, such a file is read like any other.
_TEXTS = {".txt", ".lst", ".md", ".xml", ".yaml", ".yml", ".html", ".pdf", ".log", ".sha256", ".md5"}
_TABLES = {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx"}
SIDE_SUFFIXES = frozenset(_TEXTS | _TABLES)
_SIDE_NAMES = frozenset({"DICOMDIR"})  # the index of a DICOM medium (PS3.10 section 8)
_PATH_COLUMNS = ("path", "file", "file_name", "filename")


def expand_inputs(inputs: Sequence[Path], *, leave_out: Sequence[Path] = ()) -> list[Path]:
    """The files that `inputs` mean, each once, in the order given.

    Args:
        inputs: files; folders, read recursively in sorted order, without hidden files, tables and texts
            (`SIDE_SUFFIXES`); patterns such as ``in/*.dcm``
            (``**`` for any depth); or text lists (.txt, .lst) of one path a line, ``#`` for remarks. A path in a list
            is taken from where the command runs, else from where the list is; one that does not exist is kept, and
            becomes a row that says so.
        leave_out: the output and the notes, which must not become inputs when they lie in a folder that is read.

    Raises:
        DataError: a path does not exist, a folder or a list is empty, a pattern matches nothing.
    """
    others = {path.name: path.resolve() for path in leave_out}
    found = dict.fromkeys(path for given in inputs for path in _expand(given))
    kept = [path for path in found if path.name not in others or path.resolve() != others[path.name]]
    if not kept:
        raise DataError("there is nothing to score; give files, folders, patterns or a list")
    return kept


def _expand(given: Path) -> Iterator[Path]:
    if given.is_dir():
        yield from _in_folder(given)
    elif given.suffix.lower() in LIST_SUFFIXES and given.is_file():
        yield from _in_list(given)
    elif given.exists():
        yield given
    elif glob.has_magic(str(given)):
        yield from _in_pattern(given)
    else:
        raise DataError(f"{given}: does not exist; give a file, a folder, a pattern or a list")


def _in_folder(folder: Path) -> Iterator[Path]:
    count = 0
    for parent, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not _beside_films(name):
                count += 1
                yield Path(parent) / name
    if not count:
        raise DataError(f"{folder}: the folder holds no films")


def _beside_films(name: str) -> bool:
    return name.startswith(".") or name in _SIDE_NAMES or Path(name).suffix.lower() in SIDE_SUFFIXES


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror})")


def _in_pattern(pattern: Path) -> Iterator[Path]:
    matches = sorted(glob.glob(str(pattern), recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
    if not matches:
        raise DataError(f"{pattern}: the pattern matches no file")
    for match in map(Path, matches):
        if match.is_dir():
            if "**" not in str(pattern):  # with ** the files inside match by themselves
                yield from _in_folder(match)
        else:
            yield match


def _in_list(path: Path) -> Iterator[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of paths ({type(error).__name__})") from None
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise DataError(f"{path}: the list names no files")
    for name in names:
        here, beside = Path(name), path.parent / name
        chosen = beside if not here.exists() and beside.exists() else here
        if chosen.is_dir():
            yield from _in_folder(chosen)
        else:
            yield chosen


class Notes:
    """Clinical notes by film.

    Args:
        by_path: note by the path, or the file name, that the table has.
    """

    def __init__(self, by_path: dict[str, str] | None = None) -> None:
        self._by_path = by_path or {}

    def __len__(self) -> int:
        return len(self._by_path)

    @property
    def names(self) -> list[str]:
        """What the notes are of, in the order of the table."""
        return list(self._by_path)

    def of(self, path: Path) -> str | None:
        """The note of `path`: by the path as it is, else by the file's name; None where there is none."""
        return self._by_path.get(str(path), self._by_path.get(path.name))

    @classmethod
    def read(cls, path: Path) -> Notes:
        """Read a CSV with the columns ``path`` (a path or a file name) and ``note``.

        Raises:
            DataError: it cannot be read, a column is missing, or a film has two different notes.
        """
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses fields above 128 kB
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, restval="")
                key = _path_column(path, reader.fieldnames or [])
                return cls(_collect(path, key, reader))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: cannot be read as a CSV of notes ({type(error).__name__})") from None


def _path_column(path: Path, names: Sequence[str]) -> str:
    keys = [name for name in names if name.strip().lower() in _PATH_COLUMNS]
    if not keys or "note" not in names:
        raise DataError(f"{path}: needs the columns 'path' and 'note'; it has {', '.join(names) or 'none'}")
    return keys[0]


def _collect(path: Path, key: str, reader: csv.DictReader[str]) -> dict[str, str]:
    notes: dict[str, str] = {}
    for row in reader:
        name = str(Path(row[key].strip()))
        if notes.setdefault(name, row["note"]) != row["note"]:
            raise DataError(f"{path}:{reader.line_num}: a second, different note for the same film; keep one")
    return notes
