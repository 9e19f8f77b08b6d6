"""The seal of an index in LanceDB: the version that is read, a checksum of every file, and who was removed.

LanceDB does not check what it reads: a changed bit in a data file gives other cases without an error. It never changes
a file once it is written, though. So one small file beside the table, `seal.json`, holds the SHA-256 of each file and
the number of the version that they make. It is replaced in one step after each write: until then readers stay with the
version before, and what a killed writer leaves is never read. Begin at `SealedFiles`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medsd.cases.removals import Removals
from medsd.errors import BundleError

SEAL = "seal.json"
CHECKED_AT_OPENING = 64 << 20  # bytes of an index up to which all of it is checked when it is opened
_HINT = "_versions/latest_version_hint.json"  # the one file that LanceDB changes; it does without
_SMALL = ("_versions/", "_transactions/")  # checked at the opening however large the index is
_CHUNK = 1 << 20
_THREADS = 4  # hashlib lets others run meanwhile
_AGAIN = "copy the whole index again from where it came, or make it anew with `medsd index`"


@dataclass(frozen=True)
class Seal:
    """What one version of an index consists of.

    Attributes:
        version: LanceDB's number of it.
        files: size in bytes and SHA-256 in hex of each file, by its path in the folder of the table.
        removals: patients who were removed from the index.
    """

    version: int
    files: Mapping[str, tuple[int, str]]
    removals: Removals

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())

    def to_bytes(self) -> bytes:
        """The content of `seal.json`, with a checksum of itself."""
        tree = {"version": self.version, "files": self.files, "removals": self.removals.as_dict()}
        sha256 = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
        return json.dumps({"sha256": sha256, **tree}, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def of_bytes(cls, content: bytes, where: str) -> Seal:
        """Read `to_bytes`.

        Raises:
            BundleError: it was changed.
        """
        try:
            tree = json.loads(content)
            files = {name: (int(size), str(sha256)) for name, (size, sha256) in tree["files"].items()}
            seal = cls(int(tree["version"]), files, Removals.of(tree["removals"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _damaged(where, SEAL) from None
        if seal.to_bytes() != content:
            raise _damaged(where, SEAL)
        return seal


class SealedFiles:
    """The files of one index, in a folder or an object store (through `pyarrow.fs`); threads may share it.

    Args:
        uri: of the index: an absolute path, or a URI.
        table: the folder of the table in it.
    """

    def __init__(self, uri: str, table: str) -> None:
        self.uri, self._table = uri, table
        self._checked: set[tuple[str, str]] = set()

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system, and the path of the index in it."""
        from pyarrow import ArrowInvalid, fs

        if "://" not in self.uri:
            return fs.LocalFileSystem(), Path(self.uri).as_posix()
        try:
            return fs.FileSystem.from_uri(self.uri.rstrip("/"))
        except ArrowInvalid:  # a scheme that pyarrow leaves to fsspec
            from fsspec.core import url_to_fs

            files, path = url_to_fs(self.uri.rstrip("/"))
            return fs.PyFileSystem(fs.FSSpecHandler(files)), path

    def seal(self, version: int, removals: Removals, before: Seal | None) -> None:
        """Make `version` the one that is read, by the checksums of the files as they are now.

        Args:
            version: LanceDB's number.
            removals: who was removed.
            before: the seal that this one replaces; the checksums in it stay, so what was damaged stays known as such.
        """
        listed = {name: size for name, size in self._listing().items() if name != _HINT}
        known = before.files if before else {}
        files = {name: known.get(name) or (size, self._sha256(name) or "") for name, size in listed.items()}
        self._delete(f"{self._table}/{_HINT}")
        self._write(SEAL, Seal(version, files, removals).to_bytes())

    def content(self) -> bytes:
        """The bytes of `seal.json`, which change with every version.

        Raises:
            FileNotFoundError: there is none.
        """
        files, root = self._place
        with files.open_input_stream(f"{root}/{SEAL}") as stream:
            return bytes(stream.read())

    def read(self) -> tuple[bytes, Seal]:
        """The seal, and its bytes.

        Raises:
            BundleError: there is none, or it was changed.
        """
        try:
            content = self.content()
        except FileNotFoundError:
            raise BundleError(
                f"{self.uri}: the case index cannot be read: {SEAL} with its checksums is missing, so this is no case "
                f"index of medsd, or not all of one; {_AGAIN}"
            ) from None
        return content, Seal.of_bytes(content, self.uri)

    def read_if_there(self) -> Seal | None:
        """The seal; None where there is none. A damaged one is an error: it may name patients who were removed."""
        try:
            return Seal.of_bytes(self.content(), self.uri)
        except FileNotFoundError:
            return None

    def check(self, seal: Seal, content: bytes, *, everything: bool) -> None:
        """Compare the files with their checksums; each is read once in the life of this object.

        Args:
            seal: whose files.
            content: the bytes of the seal.
            everything: data and indexes, too, and not only what LanceDB reads at the opening.

        Raises:
            BundleError: a file was changed; the message names it.
            OSError: a writer replaced the files meanwhile; ask again.
        """
        sizes = self._listing()
        # A file that is gone is none of these: a writer may have removed it, and LanceDB misses what it needs.
        there = {name: said for name, said in seal.files.items() if name in sizes}
        waiting = [
            (name, size, sha256)
            for name, (size, sha256) in there.items()
            if (name, sha256) not in self._checked and (everything or name.startswith(_SMALL) or sizes[name] != size)
        ]
        for (name, size, sha256), found in zip(waiting, _each(self._sha256, [n for n, _, _ in waiting]), strict=True):
            if found == sha256 and sizes[name] == size:
                self._checked.add((name, sha256))
            elif found is not None:
                self._complain(name, content)

    def _complain(self, name: str, content: bytes) -> None:
        if self.content() != content:
            raise OSError("the index was replaced while its files were checked")
        raise _damaged(self.uri, f"{self._table}/{name}")

    def _listing(self) -> dict[str, int]:
        """The size of each file of the table, by its path in the table's folder."""
        from pyarrow import fs

        files, root = self._place
        folder = f"{root}/{self._table}"
        found = files.get_file_info(fs.FileSelector(folder, recursive=True))
        return {info.path.removeprefix(f"{folder}/"): info.size for info in found if info.type == fs.FileType.File}

    def _sha256(self, name: str) -> str | None:
        """The checksum of a file; None where it is gone."""
        files, root = self._place
        digest = hashlib.sha256()
        try:
            with files.open_input_stream(f"{root}/{self._table}/{name}") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def _write(self, name: str, content: bytes) -> None:
        """Write a file that is there as a whole or not at all; an object store's are by themselves."""
        from pyarrow import fs

        files, root = self._place
        local = isinstance(files, fs.LocalFileSystem)
        path = f"{root}/{name}"
        draft = f"{root}/.{name}.draft" if local else path
        with files.open_output_stream(draft) as stream:
            stream.write(content)
        if local:
            with open(draft, "rb") as file:  # noqa: PTH123  # a path of pyarrow's
                os.fsync(file.fileno())
            files.move(draft, path)

    def _delete(self, name: str) -> None:
        files, root = self._place
        try:
            files.delete_file(f"{root}/{name}")
        except FileNotFoundError:
            return


def _damaged(where: str, name: str) -> BundleError:
    return BundleError(
        f"{where}: the case index cannot be read: {name} was changed after it was written (its checksum differs); "
        f"{_AGAIN}"
    )


def _each(work: Callable[[str], str | None], names: Iterable[str]) -> Iterable[str | None]:
    names = list(names)
    if len(names) < 2 * _THREADS:
        return map(work, names)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="check") as threads:
        return list(threads.map(work, names))
