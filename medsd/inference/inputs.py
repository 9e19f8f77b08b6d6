"""What a batch is asked to read: folders, patterns, archives and lists made into names, in an order that never changes.

A name is what the table shows under ``path``: a file, or ``archive.zip!member``. Begin at `name_inputs`.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from medsd.errors import DataError, ImageError
from medsd.inference.archives import MARK, is_archive, names_in, split_member
from medsd.inference.note_files import read_rows
from medsd.inference.parts import is_parts

LIST_SUFFIXES = (".txt", ".lst")
LIST_MARK = "@"
STANDARD_INPUT = "-"
# What lies beside films in a folder and is none by its name; given by name, such a file is read like any other.
_TEXTS = {".txt", ".lst", ".md", ".xml", ".yaml", ".yml", ".html", ".pdf", ".log", ".sha256", ".md5", ".prom"}
_TABLES = {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx", ".npy"}
SIDE_SUFFIXES = frozenset(_TEXTS | _TABLES)
_SIDE_NAMES = frozenset({"DICOMDIR"})  # the index of a DICOM medium (PS3.10 section 8)
_TABLE_SUFFIXES = (".csv", ".tsv")
_MOST_NAME = 8192  # bytes of a path; Linux opens none beyond 4,096
_FILMS = (b"\x89PNG", b"\xff\xd8\xff", b"PK\x03\x04")


@dataclass(frozen=True)
class Inputs:
    """What is to be scored.

    Attributes:
        names: each once, in the order given.
        notes: by name, of lists that have a column for them.
    """

    names: list[str]
    notes: dict[str, str] = field(default_factory=dict)


def name_inputs(
    inputs: Sequence[Path],
    *,
    lists: Sequence[Path] = (),
    leave_out: Sequence[Path] = (),
    archives: bool = True,
    stdin: BinaryIO | None = None,
) -> Inputs:
    """What `inputs` and `lists` mean, each name once, in the order given.

    Args:
        inputs: files; folders, read recursively in sorted order, without hidden files, tables and texts
            (`SIDE_SUFFIXES`); patterns such as ``in/*.dcm`` (``**`` for any depth); ZIP archives, member by member;
            text lists (.txt, .lst) of one path a line, ``#`` for remarks; lists of any name as ``@list``; and ``-``,
            paths on standard input, a line or (as ``find -print0`` writes them) a zero byte after each. A path in a
            list is taken from where the command runs, else from where the list is; one that does not exist is kept,
            and becomes a row that says so.
        lists: further lists; one that ends in .csv or .tsv has a column ``path`` and perhaps one ``note``.
        leave_out: the output and the notes, which must not become inputs when they lie in a folder that is read.
        archives: read ZIP archives; else they are files like others.
        stdin: what ``-`` reads; the standard input by default.

    Raises:
        DataError: a path does not exist, a folder or a list is empty, a pattern matches nothing.
    """
    reader = _Reader(archives, stdin)
    others = {path.name: path.resolve() for path in leave_out}
    found = dict.fromkeys(name for given in inputs for name in reader.expand(given))
    found |= dict.fromkeys(name for path in lists for name in reader.in_list(path))
    kept = [name for name in found if not _left_out(name, others)]
    if not kept:
        raise DataError("there is nothing to score; give files, folders, patterns or a list")
    return Inputs(kept, reader.notes)


def expand_inputs(inputs: Sequence[Path], *, leave_out: Sequence[Path] = (), archives: bool = False) -> list[Path]:
    """`name_inputs` as paths."""
    return [Path(name) for name in name_inputs(inputs, leave_out=leave_out, archives=archives).names]


def _left_out(name: str, others: dict[str, Path]) -> bool:
    last = os.path.basename(name)  # noqa: PTH119  # two million times
    return last in others and Path(name).resolve() == others[last]


class _Reader:
    """Expands what is given; collects the notes of lists on its way."""

    def __init__(self, archives: bool, stdin: BinaryIO | None) -> None:
        self._archives, self._stdin = archives, stdin
        self.notes: dict[str, str] = {}

    def expand(self, given: Path) -> Iterator[str]:
        if given.is_dir():
            yield from self._in_folder(given)
        elif str(given) == STANDARD_INPUT:
            yield from self._of_lines(_lines((self._stdin or sys.stdin.buffer).read(), "standard input"), Path())
        elif given.suffix.lower() in LIST_SUFFIXES and given.is_file():
            yield from self.in_list(given)
        elif given.exists():
            yield from self._file(str(given))
        elif split_member(str(given)):
            yield str(given)
        elif str(given).startswith(LIST_MARK):
            yield from self.in_list(Path(str(given)[1:]))
        elif glob.has_magic(str(given)):
            yield from self._in_pattern(given)
        else:
            raise DataError(f"{given}: does not exist; give a file, a folder, a pattern or a list")

    def in_list(self, path: Path) -> Iterator[str]:
        if path.suffix.lower() in _TABLE_SUFFIXES:
            yield from self._in_table(path)
            return
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read as a list of paths ({error.strerror})") from None
        yield from self._of_lines(_lines(content, str(path)), path.parent)

    def _of_lines(self, names: Sequence[str], beside: Path) -> Iterator[str]:
        for name in names:
            yield from self._listed(name, beside)

    def _in_table(self, path: Path) -> Iterator[str]:
        count = 0
        for row, key, line in read_rows(path, needs_note=False):
            count += 1
            note = row.get("note") or ""
            for name in self._listed(row[key].strip(), path.parent):
                if note and self.notes.setdefault(name, note) != note:
                    raise DataError(f"{path}:{line}: a second, different note for the same film; keep one")
                yield name
        if not count:
            raise DataError(f"{path}: the list names no files")

    def _listed(self, name: str, folder: Path) -> Iterator[str]:
        here, beside = Path(name), folder / name
        chosen = beside if not _is_there(here) and _is_there(beside) else here
        if chosen.is_dir():
            yield from self._in_folder(chosen)
        else:
            yield from self._file(str(chosen))

    def _file(self, name: str) -> Iterator[str]:
        """A file, or the films in an archive; one that cannot be read stays, and becomes a row that says why."""
        members: list[str] = []
        if self._archives and is_archive(name):
            try:
                members = [member for member in names_in(name) if not hidden_member(member)]
            except ImageError:
                members = []
        yield from (f"{name}{MARK}{member}" for member in members) if members else (name,)

    def _in_folder(self, folder: Path) -> Iterator[str]:
        count = 0
        for parent, folders, files in os.walk(folder, onerror=_unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and not is_parts(parent, name))
            place = "" if parent == "." else os.path.join(parent, "")  # noqa: PTH118  # as in _left_out
            for name in sorted(files):
                if not _beside_films(name):
                    count += 1
                    yield from self._file(place + name)
        if not count:
            raise DataError(f"{folder}: the folder holds no films")

    def _in_pattern(self, pattern: Path) -> Iterator[str]:
        matches = sorted(glob.glob(str(pattern), recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
        if not matches:
            raise DataError(f"{pattern}: the pattern matches no file")
        for match in map(Path, matches):
            if match.is_dir():
                if "**" not in str(pattern):  # with ** the files inside match by themselves
                    yield from self._in_folder(match)
            else:
                yield from self._file(str(match))


def _beside_films(name: str) -> bool:
    return name.startswith(".") or name in _SIDE_NAMES or os.path.splitext(name)[1].lower() in SIDE_SUFFIXES  # noqa: PTH122


def hidden_member(member: str) -> bool:
    """What would not be read in a folder is not read in an archive; hidden folders such as macOS adds included."""
    *folders, name = member.split("/")
    return _beside_films(name) or any(folder.startswith(".") or folder == "__MACOSX" for folder in folders)


def _is_there(path: Path) -> bool:
    try:
        if path.exists():
            return True
        member = split_member(str(path))
        return member is not None and Path(member[0]).exists()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror})")


def _lines(content: bytes, what: str) -> list[str]:
    """The paths of a list, remarks and empty lines left out."""
    if content[128:132] == b"DICM" or content.startswith(_FILMS):
        raise DataError(f"{what}: holds a film, not a list of paths; give the path of the film")
    content = content.removeprefix(b"\xef\xbb\xbf")
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith(b"#")]
    if not names:
        raise DataError(f"{what}: the list names no files")
    if max(map(len, names)) > _MOST_NAME:
        raise DataError(f"{what}: cannot be read as a list of paths (a line of more than {_MOST_NAME} bytes)")
    return [os.fsdecode(name) for name in names]
