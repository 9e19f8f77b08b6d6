"""What a batch is asked to read: folders, patterns, archives and lists made into names, in an order that never changes.

A name is what the table shows under ``path``: a file, or ``archive.zip!member``. Begin at `name_inputs`.
"""

import glob
import os
import stat
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from medsd.errors import DataError, ImageError
from medsd.preprocessing.archives import MARK, is_archive, names_in, split_member
from medsd.scoring.lock import is_parts
from medsd.scoring.note_files import read_rows

LIST_SUFFIXES = (".txt", ".lst")
LIST_MARK = "@"
STANDARD_INPUT = "-"
# What lies beside images in a folder and is none by its name; given by name, such a file is read like any other.
_TEXTS = {".txt", ".lst", ".md", ".xml", ".yaml", ".yml", ".html", ".pdf", ".log", ".sha256", ".md5", ".prom"}
_TABLES = {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx", ".npy"}
SIDE_SUFFIXES = frozenset(_TEXTS | _TABLES)
_SIDE_NAMES = frozenset({"dicomdir"})  # the index of a DICOM medium (PS3.10 section 8), in whatever case
_MACOS = "__MACOSX"  # what the Finder adds to an archive: attributes of the files, under their names
_TABLE_SUFFIXES = (".csv", ".tsv")
_MOST_NAME = 8192  # bytes of a path; Linux opens none beyond 4,096
_MOST_LIST = 2**30  # bytes of a list
_PATIENCE_S = 2.0  # until somebody writes into a pipe that is read as a list
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"PK\x03\x04")


@dataclass(frozen=True)
class Inputs:
    names: list[str]  # each once, in the order given
    notes: dict[str, str] = field(default_factory=dict)  # by name, of lists that have a column for them


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
            (`SIDE_SUFFIXES`), links to folders last and each folder once; patterns such as ``in/*.dcm`` (``**`` for any
            depth); ZIP archives, member by member, hidden ones too; text lists (.txt, .lst) of one path a line, ``#``
            for remarks; lists of any name as ``@list``; and ``-``, paths on standard input, a line or (as
            ``find -print0`` writes them) a zero byte after each. A path in a list is taken from where the command runs,
            else from where the list is; one that does not exist is kept, and becomes a row that says so, as does a
            folder that cannot be listed.
        lists: further lists; one that ends in .csv or .tsv has a column ``path`` and perhaps one ``note``.
        leave_out: the output and the notes, which must not become inputs when they lie in a folder that is read.
        archives: read ZIP archives; else they are files like others.
        stdin: what ``-`` reads; the standard input by default.

    Raises DataError: a path does not exist, a folder or a list is empty, a pattern matches nothing.
    """
    reader = _Reader(archives, stdin)
    others = {path.name: os.path.realpath(path) for path in leave_out}
    found = dict.fromkeys(name for given in inputs for name in reader.expand(given))
    found |= dict.fromkeys(name for path in lists for name in reader.in_list(path))
    kept = [name for name in found if not _left_out(name, others)]
    if not kept:
        raise DataError("there is nothing to score; give files, folders, patterns or a list")
    return Inputs(kept, reader.notes)


def expand_inputs(inputs: Sequence[Path], *, leave_out: Sequence[Path] = ()) -> list[Path]:
    """`name_inputs` as paths; archives are not read."""
    return [Path(name) for name in name_inputs(inputs, leave_out=leave_out, archives=False).names]


def _left_out(name: str, others: dict[str, str]) -> bool:
    last = os.path.basename(name)  # noqa: PTH119  # two million times
    return last in others and _kind(name) == "file" and os.path.realpath(name) == others[last]


class _Reader:
    """Expands what is given; collects the notes of lists on its way."""

    def __init__(self, archives: bool, stdin: BinaryIO | None) -> None:
        self._archives, self._stdin = archives, stdin
        self.notes: dict[str, str] = {}

    def expand(self, given: Path) -> Iterator[str]:
        kind = _kind(given)
        if kind == "folder":
            yield from self._in_folder(given)
        elif str(given) == STANDARD_INPUT:
            content = _read_list(self._stdin or sys.stdin.buffer, "standard input")
            for name in _lines(content, "standard input"):
                yield from self._listed(name, Path())
        elif given.suffix.lower() in LIST_SUFFIXES and kind == "file":
            yield from self.in_list(given)
        elif kind:
            yield from self._file(str(given))
        elif split_member(str(given)):
            yield str(given)
        elif str(given).startswith(LIST_MARK):
            yield from self.in_list(Path(str(given)[1:]))
        elif glob.has_magic(str(given)):
            yield from self._in_pattern(given)
        else:
            raise DataError(f"{given}: {_why_not(given)}; give a file, a folder, a pattern or a list")

    def in_list(self, path: Path) -> Iterator[str]:
        if path.suffix.lower() in _TABLE_SUFFIXES:
            yield from self._in_table(path)
            return
        try:
            content = _list_content(path)
        except (OSError, ValueError) as error:
            what = getattr(error, "strerror", None) or error
            raise DataError(f"{path}: cannot be read as a list of paths ({what})") from None
        for name in _lines(content, str(path)):
            yield from self._listed(name, path.parent)

    def _in_table(self, path: Path) -> Iterator[str]:
        count = 0
        for row, key, line in read_rows(path, needs_note=False):
            count += 1
            note = row.get("note") or ""
            for name in self._listed(row[key].strip(), path.parent):
                if note and self.notes.setdefault(name, note) != note:
                    raise DataError(f"{path}:{line}: a second, different note for the same image; keep one")
                yield name
        if not count:
            raise DataError(f"{path}: the list names no files")

    def _listed(self, name: str, folder: Path) -> Iterator[str]:
        here, beside = Path(name), folder / name
        chosen = beside if not _is_there(here) and _is_there(beside) else here
        if _kind(chosen) == "folder":
            yield from self._in_folder(chosen)
        else:
            yield from self._file(str(chosen))

    def _file(self, name: str) -> Iterator[str]:
        """A file, or the images in an archive; one that cannot be read stays, and becomes a row that says why.

        Nothing is unpacked, so a member may have any name: hidden, absolute, or one that leads out of the archive.
        """
        members: list[str] = []
        if self._archives and is_archive(name) and _kind(name) == "file":
            try:
                members = [member for member in names_in(name) if not _beside_member(member)]
            except ImageError:
                members = []
        yield from (f"{name}{MARK}{member}" for member in members) if members else (name,)

    def _in_folder(self, folder: Path) -> Iterator[str]:
        count = 0
        for place, files, denied in _folders(str(folder)):
            images = [place + name for name in files if not name.startswith(".") and not _is_side(name)]
            for name in (*images, *denied):  # what cannot be listed becomes a row that says why
                count += 1
                yield from self._file(name)
        if not count:
            raise DataError(f"{folder}: the folder holds no images")

    def _in_pattern(self, pattern: Path) -> Iterator[str]:
        matches = sorted(_matches(pattern.as_posix()))
        if not matches:
            raise DataError(f"{pattern}: the pattern matches no file")
        for match in map(Path, matches):
            if _kind(match) == "folder":
                if "**" not in str(pattern):  # with ** the files inside match by themselves
                    yield from self._in_folder(match)
            else:
                yield from self._file(str(match))


def _folders(root: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """A folder and those below: its path, the names of its files, and paths of folders that cannot be listed.

    Links to folders are followed after everything else, and no folder is read twice: so a link into the tree, or one
    that leads in a circle, adds nothing.
    """
    waiting, seen = deque([root]), set[tuple[int, int]]()
    while waiting:
        denied: list[OSError] = []
        for parent, folders, files in os.walk(waiting.popleft(), onerror=denied.append):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and not is_parts(parent, name))
            place = "" if parent == "." else os.path.join(parent, "")  # noqa: PTH118  # as in _left_out
            number = _number(parent)
            if number in seen:
                folders.clear()
                continue
            seen.add(number)
            waiting += (place + name for name in folders if os.path.islink(place + name))  # noqa: PTH114
            yield place, sorted(files), [str(error.filename) for error in denied]
            denied.clear()
        if denied:
            yield "", [], [str(error.filename) for error in denied]


def _matches(pattern: str) -> set[str]:
    """What a pattern matches; `glob` would follow links in a circle below ``**`` for ever."""
    parts = pattern.split("/")
    if "**" not in parts:
        return set(glob.glob(pattern))  # noqa: PTH207  # Path.glob takes no absolute pattern
    at = parts.index("**")
    head, tail = "/".join(parts[:at]), "/".join(parts[at + 1 :]) or "*"
    roots = glob.glob(f"{head}/") if at else ["."]  # noqa: PTH207
    places = (place.removeprefix("./") for root in roots for place, _, _ in _folders(root))
    return {match for place in places for match in _matches(glob.escape(place) + tail)}


def _number(folder: str) -> tuple[int, int]:
    """What makes a folder the same under two names."""
    try:
        status = os.stat(folder)  # noqa: PTH116
    except OSError:
        return -1, hash(folder)
    return status.st_dev, status.st_ino


def _is_side(name: str) -> bool:
    return name.lower() in _SIDE_NAMES or os.path.splitext(name)[1].lower() in SIDE_SUFFIXES  # noqa: PTH122


def _beside_member(member: str) -> bool:
    """What lies beside images in an archive."""
    *folders, name = member.split("/")
    return _is_side(name) or _MACOS in folders


def hidden_member(member: str) -> bool:
    """Whether a path within a folder would not be read there."""
    return _beside_member(member) or any(part.startswith(".") for part in member.split("/"))


def _kind(path: Path | str) -> str:
    """ "folder", "file" or "other" (a pipe, a socket, a device); "" where there is nothing, or the path is none."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return ""
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def _why_not(path: Path) -> str:
    try:
        path.stat()
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return "cannot be read"


def _is_there(path: Path) -> bool:
    if _kind(path):
        return True
    member = split_member(str(path))
    return member is not None and bool(_kind(member[0]))


def _list_content(path: Path) -> bytes:
    """The content of a file, or of a pipe, as a shell hands over ``<(find …)``; OSError where nobody writes into it."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer would hold us
    with os.fdopen(handle, "rb") as file:
        begun = _await_writer(handle) if stat.S_ISFIFO(os.fstat(handle).st_mode) else b""
        return begun + _read_list(file, str(path))


def _await_writer(pipe: int) -> bytes:
    """What a pipe holds when its writer is first seen; from then on, reading waits for the writer."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if begun := os.read(pipe, 1):
                break
        except BlockingIOError:  # a writer that has not written yet
            begun = b""
            break
        time.sleep(0.02)
    else:
        raise OSError(0, "nobody writes into this pipe")
    os.set_blocking(pipe, True)
    return begun


def _read_list(file: BinaryIO, what: str) -> bytes:
    """The content of a list, of a size that one can have."""
    try:
        mode = os.fstat(file.fileno()).st_mode
    except (OSError, ValueError):  # a stream of a test, or of another program
        mode = 0
    if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not file.isatty()):
        raise DataError(f"{what}: cannot be read as a list of paths (it is a device)")
    content = file.read(_MOST_LIST + 1)
    if len(content) > _MOST_LIST:
        raise DataError(f"{what}: cannot be read as a list of paths (more than {_MOST_LIST} bytes)")
    return content


def _lines(content: bytes, what: str) -> list[str]:
    """The paths of a list, remarks and empty lines left out."""
    if content[128:132] == b"DICM" or content.startswith(_IMAGES):
        raise DataError(f"{what}: holds an image, not a list of paths; give the path of the image")
    content = content.removeprefix(b"\xef\xbb\xbf")
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith(b"#")]
    if not names:
        raise DataError(f"{what}: the list names no files")
    if max(map(len, names)) > _MOST_NAME:
        raise DataError(f"{what}: cannot be read as a list of paths (a line of more than {_MOST_NAME} bytes)")
    return [os.fsdecode(name) for name in names]
