"""The seal of an index in LanceDB: the version that is read, a checksum of every file, and who was removed.

LanceDB does not check what it reads, but it never changes a file once it is written. So `seal.json` beside the table
holds the SHA-256 of each file and the number of the version that they make. It is replaced in one step after each
write: until then readers stay with the version before, and what a killed writer leaves is never read.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pyarrow import ArrowInvalid, fs

from medsd.cases.removals import Removals
from medsd.errors import BundleError
from medsd.files import write_whole
from medsd.strict import Described

SEAL = "seal.json"
CHECKED_AT_OPENING = 64 << 20  # bytes of an index up to which all of it is checked when it is opened
_HINT = "_versions/latest_version_hint.json"  # the one file that LanceDB changes, and does not need
_SMALL = ("_versions/", "_transactions/")  # checked at the opening however large the index is
_CHUNK = 1 << 20
_THREADS = 4
_AGAIN = "copy the whole index again from where it came, or make it anew with `medsd index`"


class Seal(Described):
    version: int  # LanceDB's number of it
    files: dict[str, tuple[int, str]]  # bytes and SHA-256 in hex of each, by its path in the folder of the table
    removals: Removals

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.files.values())

    def to_bytes(self) -> bytes:
        """The content of `seal.json`, with a checksum of itself."""
        tree = self.model_dump(mode="json")
        sha256 = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
        return json.dumps({"sha256": sha256, **tree}, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def of_bytes(cls, content: bytes, where: str) -> Self:
        """Read `to_bytes`; raises BundleError if it was changed."""
        try:
            tree = json.loads(content)
            seal = cls.model_validate({name: tree[name] for name in cls.model_fields})
        except (ValueError, KeyError, TypeError):
            raise _damaged(where, SEAL) from None
        if seal.to_bytes() != content:
            raise _damaged(where, SEAL)
        return seal


class SealedFiles:
    """The files of one index, in a folder or an object store (through `pyarrow.fs`); threads may share it.

    `uri` is the index's, an absolute path or a URI, `table` the folder of the table in it.
    """

    def __init__(self, uri: str, table: str) -> None:
        self.uri, self._table = uri, table
        self._checked: set[tuple[str, str]] = set()

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system, and the path of the index in it."""
        if "://" not in self.uri:
            return fs.LocalFileSystem(), Path(self.uri).as_posix()
        try:
            return fs.FileSystem.from_uri(self.uri.rstrip("/"))
        except ArrowInvalid:  # a scheme that pyarrow leaves to fsspec
            from fsspec.core import url_to_fs

            files, path = url_to_fs(self.uri.rstrip("/"))
            return fs.PyFileSystem(fs.FSSpecHandler(files)), path

    def seal(self, version: int, removals: Removals, before: Seal | None) -> None:
        """Make `version`, which is LanceDB's number, the one that is read.

        The checksums of `before`, the seal that is replaced, stay, so a file damaged since stays known as such.
        """
        listed = {name: size for name, size in self._listing().items() if name != _HINT}
        known = before.files if before else {}
        files = {name: known.get(name) or (size, self._sha256(name) or "") for name, size in listed.items()}
        store, root = self._place
        with suppress(FileNotFoundError):
            store.delete_file(f"{root}/{self._table}/{_HINT}")
        self._write(Seal(version=version, files=files, removals=removals).to_bytes())

    def content(self) -> bytes:
        """The bytes of `seal.json`, which change with every version; raises FileNotFoundError if there is none."""
        files, root = self._place
        with files.open_input_stream(f"{root}/{SEAL}") as stream:
            return bytes(stream.read())

    def read(self) -> tuple[bytes, Seal]:
        """The bytes of the seal, and the seal; raises BundleError if there is none, or it was changed."""
        try:
            content = self.content()
        except FileNotFoundError:
            raise BundleError(
                f"{self.uri}: the case index cannot be read: {SEAL} with its checksums is missing, so this is no case "
                f"index of medsd, or not all of one; {_AGAIN}"
            ) from None
        return content, Seal.of_bytes(content, self.uri)

    def check(self, seal: Seal, content: bytes, *, everything: bool) -> None:
        """Compare the files of `seal`, whose bytes are `content`, with their checksums; each is read once.

        `everything`: data and indexes too, not only what LanceDB reads at the opening. Raises BundleError: a file was
        changed; the message names it; OSError: a writer replaced the files meanwhile; ask again.
        """
        sizes = self._listing()
        # A file that is gone was perhaps removed by a writer; LanceDB complains if it needs it.
        waiting = [
            (name, size, sha256)
            for name, (size, sha256) in seal.files.items()
            if name in sizes
            and (name, sha256) not in self._checked
            and (everything or name.startswith(_SMALL) or sizes[name] != size)
        ]
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="check") as threads:
            found = list(threads.map(self._sha256, [name for name, _, _ in waiting]))
        for (name, size, sha256), now in zip(waiting, found, strict=True):
            if now == sha256 and sizes[name] == size:
                self._checked.add((name, sha256))
            elif now is not None:
                if self.content() != content:
                    raise OSError("the index was replaced while its files were checked")
                raise _damaged(self.uri, f"{self._table}/{name}")

    def _listing(self) -> dict[str, int]:
        """The size of each file of the table, by its path in the table's folder."""
        files, root = self._place
        folder = f"{root}/{self._table}"
        found = files.get_file_info(fs.FileSelector(folder, recursive=True))
        return {info.path.removeprefix(f"{folder}/"): info.size for info in found if info.type == fs.FileType.File}

    def _sha256(self, name: str) -> str | None:
        """The checksum of a file; None if it is gone."""
        files, root = self._place
        digest = hashlib.sha256()
        try:
            with files.open_input_stream(f"{root}/{self._table}/{name}") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def _write(self, content: bytes) -> None:
        """Write the seal as a whole or not at all; an object store does so by itself."""
        files, root = self._place
        if isinstance(files, fs.LocalFileSystem):
            write_whole(Path(root) / SEAL, content)
            return
        with files.open_output_stream(f"{root}/{SEAL}") as stream:
            stream.write(content)


def _damaged(where: str, name: str) -> BundleError:
    return BundleError(
        f"{where}: the case index cannot be read: {name} was changed after it was written (its checksum differs); "
        f"{_AGAIN}"
    )
