"""Every image of a manifest as model pixels in one file, decoded in parallel, within a fixed amount of memory.

Pixels are appended to the file, and a journal beside it records the progress after every portion, so that a killed run
resumes there. While no image and no setting changes, none is decoded again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from medsd.dicom.gate import GatePolicy
from medsd.preprocessing.decode import Decoder, decode_all
from medsd.preprocessing.image import DecodedImage
from medsd.progress import Progress
from medsd.settings import PixelSpec
from medsd.studies.manifest import Manifest
from medsd.studies.rejected import Rejections

log = logging.getLogger(__name__)

Told = tuple[int, str, str]  # row of the manifest, reason, message
PORTION = 2048  # images between two entries of the journal
AHEAD = 64  # decoded images that may wait
FEW = 64  # images for which no process is started
MOST_WORKERS = 16


class ImageFile:
    """The pixels of the images that can be used: uint8 (K, S, S) as .npy, whose header counts none until `finish`."""

    def __init__(self, path: Path, spec: PixelSpec) -> None:
        self.path, self.spec = path, spec
        self.journal = path.with_suffix(".journal")  # what the file is made of, then a line per portion
        self.done = 0  # rows of the manifest that have been read
        self.refused: list[Told] = []  # those that have no place in the file
        self.warned: list[Told] = []  # those that the gate admits with a warning

    @property
    def kept(self) -> int:
        """Images in the file."""
        return self.done - len(self.refused)

    def begin(self, made_of: str) -> None:
        """Go on with the file of an earlier run, if of the same fingerprint `made_of`; else start again."""
        entries = self._journalled(made_of)
        if self._recall(entries):
            os.truncate(self.path, self._size())
        else:
            entries, self.done, self.refused, self.warned = [], 0, [], []
            self.path.unlink(missing_ok=True)  # another run may share it
            self.path.write_bytes(self._header(0))
        lines = [{"made_of": made_of}, *entries]  # without a line that a kill cut in the middle
        self.journal.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def _recall(self, entries: list[dict[str, Any]]) -> bool:
        """Take over what the journal says; returns whether the file has as much."""
        if not entries or not self.path.exists():
            return False
        self.done = entries[-1]["done"]
        self.refused, self.warned = (
            [(row, reason, message) for entry in entries for row, reason, message in entry[kind]]
            for kind in ("refused", "warned")
        )
        return self.path.stat().st_size >= self._size()

    def _size(self) -> int:
        """Bytes of the file so far."""
        return len(self._header(0)) + self.kept * self.spec.size**2

    def append(self, pixels: Sequence[npt.NDArray[np.uint8]], refused: list[Told], warned: list[Told]) -> None:
        """Add the next rows: the `pixels` (S, S) of some, why the others have none, and the warnings."""
        # Plain writes: pages of a memory-mapped file would count as memory of this process.
        with self.path.open("ab") as file:
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
        """Say in the header how many images there are."""
        header = self._header(self.kept)
        assert len(header) == len(self._header(0))
        with self.path.open("r+b") as file:
            file.write(header)
            _save(file)

    def _header(self, count: int) -> bytes:
        """The head of a .npy file, of the same length whatever the count."""
        head = BytesIO()
        shape = (count, self.spec.size, self.spec.size)
        # NumPy leaves room for a first dimension that grows.
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return head.getvalue()

    def _journalled(self, made_of: str) -> list[dict[str, Any]]:
        try:
            first, *lines = self.journal.read_text(encoding="utf-8").splitlines()
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


def decode_images(manifest: Manifest, spec: PixelSpec, path: Path, policy: GatePolicy | None = None) -> ImageFile:
    """Decode every image of a manifest into the file `path`, still to be finished; a study without an image is black.

    Refused images are in `manifest.rejected` too. TooManyRejected is raised if more than half of the source's rows are
    bad, these counted.
    """
    policy, total = policy or GatePolicy(), len(manifest) + len(manifest.rejected)
    images = ImageFile(path, spec)
    images.begin(_fingerprint(manifest, spec, policy))
    list_images(manifest, images.refused, manifest.rejected)
    if images.done == len(manifest):
        log.info("the images are as they were: none is decoded again")
        return images
    names = manifest.table["path"].iloc[images.done :]
    workers = min(os.cpu_count() or 1, MOST_WORKERS) if len(names) >= FEW else 1
    there = (manifest.root / name for name in names if isinstance(name, str))
    decoded = decode_all(there, Decoder(spec, policy), workers=workers, ahead=AHEAD)
    black = DecodedImage("scored", pixels=np.zeros((spec.size, spec.size), dtype=np.uint8))

    def read(shown: Progress) -> Iterator[tuple[int, DecodedImage]]:
        for row, name in enumerate(names, images.done):
            yield row, next(decoded)[1] if isinstance(name, str) else black
            shown.advance()

    with Progress(len(manifest), images.done, name="prepare") as shown:
        pairs = read(shown)
        while portion := list(islice(pairs, PORTION)):
            refused, warned = (
                [(row, image.reason, image.message) for row, image in portion if image.status == status]
                for status in ("refused", "warned")
            )
            images.append([image.pixels for _, image in portion if image.pixels is not None], refused, warned)
            list_images(manifest, refused, manifest.rejected)
            manifest.rejected.check(total, manifest.root)
    return images


def list_images(manifest: Manifest, told: list[Told], listed: Rejections) -> None:
    """Add the gate's reasons for rows of a manifest to a list of rows of its source."""
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
            with suppress(OSError, ValueError):  # such a file is refused when it is read
                about = (manifest.root / name).stat()
                digest.update(f"\x1f{about.st_size}\x1f{about.st_mtime_ns}".encode())
    return digest.hexdigest()


def _save(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
