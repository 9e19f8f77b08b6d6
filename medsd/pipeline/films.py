"""Every film of a manifest as model pixels in one file, decoded in parallel, within a fixed amount of memory.

Films are read by the functions that serving uses (`medsd.preprocessing.decode`). Pixels are appended to the file as
they come, and a journal beside it says after every portion how far it is, so a run that is killed goes on from there.
The journal stays beside the finished file: as long as no image and no setting has changed, none is decoded again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from medsd.dicom.gate import GatePolicy
from medsd.preprocessing.decode import Decoder, decode_all
from medsd.preprocessing.film import Film
from medsd.progress import Progress
from medsd.settings import PixelSpec
from medsd.studies.manifest import Manifest
from medsd.studies.rejected import Rejections

log = logging.getLogger(__name__)

Told = tuple[int, str, str]  # row of the manifest, reason, message
PORTION = 2048  # films between two entries of the journal
AHEAD = 64  # films that may wait decoded
FEW = 64  # films for which no process is started
MOST_WORKERS = 16


@dataclass
class FilmFile:
    """The pixels of the films that could be used: uint8 (K, S, S) as .npy, unfinished until `finish`.

    Attributes:
        path: where the finished file is to be.
        spec: how films become pixels.
        count: rows of the manifest.
        done: those that have been dealt with.
        refused: (row of the manifest, reason, message) of those that have no place in the file.
        warned: likewise, of those that the gate let through with a warning.
        finished: the file is in its place.
    """

    path: Path
    spec: PixelSpec
    count: int
    done: int = 0
    refused: list[Told] = field(default_factory=list)
    warned: list[Told] = field(default_factory=list)
    finished: bool = False

    @property
    def part(self) -> Path:
        """The unfinished file."""
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def journal(self) -> Path:
        """How far the unfinished file is: a line with what it is made of, then a line a portion."""
        return self.path.with_name(f".{self.path.name}.journal")

    @property
    def record(self) -> Path:
        """The journal of the finished file."""
        return self.path.with_suffix(".journal")

    @property
    def kept(self) -> int:
        """Films in the file."""
        return self.done - len(self.refused)

    def begin(self, made_of: str) -> None:
        """Take the finished file, or go on where an earlier run stopped, if made of the same; start anew otherwise.

        Args:
            made_of: a fingerprint of the films, their order, and how they are read.
        """
        if self.path.exists() and self._recall(self._journalled(self.record, made_of), self.path):
            self.finished = self.done == self.count
            if self.finished:
                return
        entries = self._journalled(self.journal, made_of)
        size = self._size() if self._recall(entries, self.part) else 0
        if not size:
            self.done, self.refused, self.warned = 0, [], []
            self.part.write_bytes(self._header(0))
            self.journal.write_text(json.dumps({"made_of": made_of}) + "\n", encoding="utf-8")
            return
        os.truncate(self.part, size)
        lines = [{"made_of": made_of}, *entries]  # without a line that a kill cut in the middle
        self.journal.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def _recall(self, entries: list[dict[str, Any]], file: Path) -> bool:
        """Take over what a journal says, if the file has that much; whether it has."""
        if not entries or not file.exists():
            return False
        self.done = entries[-1]["done"]
        self.refused, self.warned = (
            [(row, reason, message) for entry in entries for row, reason, message in entry[kind]]
            for kind in ("refused", "warned")
        )
        return file.stat().st_size >= self._size()

    def _size(self) -> int:
        """Bytes of the file as far as it is."""
        return len(self._header(0)) + self.kept * self.spec.size**2

    def append(self, pixels: Sequence[npt.NDArray[np.uint8]], refused: list[Told], warned: list[Told]) -> None:
        """Add the next rows: the `pixels` (S, S) of some, why the others have none, and what is doubtful of some."""
        # Plain writes: pages of a memory-mapped file would count as memory of this process.
        with self.part.open("ab") as file:
            for one in pixels:
                file.write(np.ascontiguousarray(one).tobytes())
            _save(file)
        self.done += len(pixels) + len(refused)
        self.refused += refused
        self.warned += warned
        with self.journal.open("ab") as file:
            file.write((json.dumps({"done": self.done, "refused": refused, "warned": warned}) + "\n").encode())
            _save(file)

    def finish(self) -> None:
        """Put the finished file in its place, with its journal."""
        if self.finished:
            return
        header = self._header(self.kept)
        assert len(header) == len(self._header(0))
        with self.part.open("r+b") as file:
            file.write(header)
            _save(file)
        self.record.unlink(missing_ok=True)  # it must not speak for another file
        self.part.replace(self.path)
        self.journal.replace(self.record)

    def _header(self, count: int) -> bytes:
        """The head of a .npy file, of the same length whatever the count."""
        head = BytesIO()
        shape = (count, self.spec.size, self.spec.size)
        # NumPy leaves room in it for a first dimension that grows.
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return head.getvalue()

    @staticmethod
    def _journalled(journal: Path, made_of: str) -> list[dict[str, Any]]:
        try:
            first, *lines = journal.read_text(encoding="utf-8").splitlines()
            if json.loads(first) != {"made_of": made_of}:
                return []
        except (OSError, ValueError):
            return []
        entries = []
        for line in lines:
            try:
                entries.append(json.loads(line))
            except ValueError:  # a kill in the middle of it
                break
        return entries


def decode_films(manifest: Manifest, spec: PixelSpec, path: Path, policy: GatePolicy | None = None) -> FilmFile:
    """Decode every film of a manifest; a study without a film is black.

    Args:
        manifest: the studies.
        spec: how films become pixels.
        path: where the file is to be; `FilmFile.finish` puts it there.
        policy: what the gate refuses.

    Returns:
        The file, to be finished; what was refused is in `manifest.rejected`, too.

    Raises:
        TooManyRejected: more than half of the source's rows are bad, these films counted.
    """
    films, total = FilmFile(path, spec, len(manifest)), len(manifest) + len(manifest.rejected)
    policy = policy or GatePolicy()
    films.begin(_fingerprint(manifest, spec, policy))
    list_images(manifest, films.refused, manifest.rejected)
    if films.finished:
        log.info("the images are as they were: none is decoded again")
        return films
    names = manifest.table["path"].iloc[films.done :]
    workers = min(os.cpu_count() or 1, MOST_WORKERS) if len(names) >= FEW else 1
    there = (manifest.root / name for name in names if isinstance(name, str))
    decoded = decode_all(there, Decoder(spec, policy), workers=workers, ahead=AHEAD)
    black = Film("scored", pixels=np.zeros((spec.size, spec.size), dtype=np.uint8))
    read = ((row, next(decoded)[1] if isinstance(name, str) else black) for row, name in enumerate(names, films.done))
    with Progress(len(manifest), films.done, name="prepare") as shown:
        while portion := _portion(read, shown):
            refused, warned = (
                [(row, film.reason, film.message) for row, film in portion if film.status == status]
                for status in ("refused", "warned")
            )
            films.append([film.pixels for _, film in portion if film.pixels is not None], refused, warned)
            list_images(manifest, refused, manifest.rejected)
            manifest.rejected.check(total, manifest.root)
    return films


def _portion(read: Iterator[tuple[int, Film]], shown: Progress) -> list[tuple[int, Film]]:
    portion = []
    for one in islice(read, PORTION):
        portion.append(one)
        shown.advance()
    return portion


def list_images(manifest: Manifest, told: list[Told], listed: Rejections) -> None:
    """Add what the gate said of rows of a manifest to a list of rows of its source."""
    paths, patients, places = manifest.table["path"], manifest.table["patient"], manifest.source_rows
    for row, reason, message in told:
        place = 0 if places is None else int(places[row])
        listed.add(place, paths.iloc[row], reason, message, patient=patients.iloc[row])


def _fingerprint(manifest: Manifest, spec: PixelSpec, policy: GatePolicy) -> str:
    """sha256 over the images in their order, their sizes and times of change, and how they are read."""
    digest = hashlib.sha256(f"{spec!r}\x1f{policy!r}\x1f{manifest.root.resolve()}".encode())
    for name in manifest.table["path"]:
        digest.update(f"\n{name}".encode())
        if isinstance(name, str):
            with suppress(OSError, ValueError):  # what cannot be looked at is refused in its turn
                about = (manifest.root / name).stat()
                digest.update(f"\x1f{about.st_size}\x1f{about.st_mtime_ns}".encode())
    return digest.hexdigest()


def _save(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
