"""What the node has received, read and delivered, on disk, so that a crash at any moment loses and doubles nothing.

The database (SQLite) holds keyed hashes, states and times, no identity. Beside it lie the images that are waiting and
the results that were not delivered yet, named by the keyed hash of the image; they are DICOM objects with their
patient in them, so the folder is its owner's alone, and each is deleted when its result is delivered.

    waiting --read--> read --delivered--> done          failed: given up on, or sent again and waiting again
"""

import random
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medsd.errors import DataError
from medsd.files import replacing, write_whole

State = Literal["waiting", "read", "done", "failed"]
STATES: tuple[State, ...] = ("waiting", "read", "done", "failed")
MOST_TRIES = 10  # of reading one image; deliveries are tried for ever
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 300.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
    key TEXT PRIMARY KEY, study TEXT NOT NULL, state TEXT NOT NULL, bytes INTEGER NOT NULL, received REAL NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0, results INTEGER NOT NULL DEFAULT 0,
    outcome TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_state ON images (state, due);
CREATE INDEX IF NOT EXISTS by_study ON images (study, received);
"""


@dataclass(frozen=True)
class Counts:
    """How many images are in each state, how many bytes wait on disk, and since when the oldest does, Unix time."""

    images: dict[State, int]
    bytes: int
    oldest: float | None


def pause(tries: int) -> float:
    """Seconds until the next try: twice as long after each, up to five minutes, a fifth of it at random."""
    longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries, 30))
    return longest * random.uniform(0.8, 1.0)


class ImageQueue(AbstractContextManager["ImageQueue"]):
    """The queue of one node; threads may share it. A context manager that closes it.

    `folder` is made where it is absent, readable by its owner only. Raises DataError: another node uses it, or its
    database cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._turn, self._adding = threading.Lock(), threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        self._lock = FileLock(folder / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise DataError(f"{folder}: another node uses this queue; stop it, or name another --queue") from None
        try:
            self._database = sqlite3.connect(folder / "queue.sqlite", check_same_thread=False, isolation_level=None)
            self._database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;" + _SCHEMA)
        except sqlite3.Error as error:
            self._lock.release()
            raise DataError(f"{folder}: its database cannot be used ({error}); name another --queue") from None
        for part in ("images", "results"):
            (folder / part).mkdir(exist_ok=True, mode=0o700)
        self._sweep()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._turn:
            self._database.close()
            self._lock.release()

    def _ask(self, words: str, *values: object) -> list[tuple]:
        with self._turn:
            return self._database.execute(words, values).fetchall()

    def _sweep(self) -> None:
        """Delete what a crash left: drafts, and files whose row was never written or is done."""
        wanted = {key for (key,) in self._ask("SELECT key FROM images WHERE state != 'done'")}
        for part in ("images", "results"):
            for path in (self.folder / part).iterdir():
                if path.name.startswith(".") or path.name.split(".")[0] not in wanted:
                    path.unlink(missing_ok=True)

    def _image(self, key: str) -> Path:
        return self.folder / "images" / f"{key}.dcm"

    def _result(self, key: str, number: int, kind: str = "dcm") -> Path:
        return self.folder / "results" / f"{key}.{number}.{kind}"

    def knows(self, key: str) -> bool:
        """Whether an image has or will have its one result."""
        return bool(self._ask("SELECT 1 FROM images WHERE key = ? AND state != 'failed'", key))

    def add(self, key: str, study: str, content: bytes) -> bool:
        """Keep an image; when this returns, it survives a power cut. `key` and `study` are keyed hashes.

        False where this image is known already: it has or will have its one result. An image that was given up on waits
        again. Raises OSError, sqlite3.Error: the disk is full, or cannot be written; nothing was kept.
        """
        with self._adding:  # several associations may bring one image at once, and a draft has one name
            if self.knows(key):
                return False
            write_whole(self._image(key), content)
            return bool(
                self._ask(
                    "INSERT INTO images (key, study, state, bytes, received) VALUES (?, ?, 'waiting', ?, ?) "
                    "ON CONFLICT (key) DO UPDATE SET state = 'waiting', tries = 0, due = 0, "
                    "received = excluded.received WHERE state = 'failed' RETURNING key",
                    key, study, len(content), time.time(),
                )
            )  # fmt: skip

    def next_to_read(self, quiet_s: float) -> str | None:
        """The key of an image of a study of which nothing new came for `quiet_s` seconds; None where there is none.

        The try is counted before it is made: an image that brings the whole process down is not tried for ever.
        """
        now = time.time()
        found = self._ask(
            "SELECT key, tries FROM images AS image WHERE state = 'waiting' AND due <= ? AND "
            "(SELECT MAX(received) FROM images WHERE study = image.study) <= ? ORDER BY tries, received LIMIT 1",
            now, now - quiet_s,
        )  # fmt: skip
        if not found:
            return None
        key, tries = found[0]
        if tries >= MOST_TRIES:
            self.give_up(key, "reading failed")
            return self.next_to_read(quiet_s)
        self._ask("UPDATE images SET tries = ?, due = ? WHERE key = ?", tries + 1, now + pause(tries), key)
        return str(key)

    def excuse(self, key: str) -> None:
        """Do not count the last try: what failed was this machine, not the image."""
        self._ask("UPDATE images SET tries = MAX(tries - 1, 0) WHERE key = ?", key)

    def content(self, key: str) -> bytes:
        """The image as it was received."""
        return self._image(key).read_bytes()

    def keep_results(self, key: str, results: Sequence[Dataset | bytes], outcome: str) -> None:
        """Keep what shall be delivered for an image. From now on these objects, with these UIDs, are its one result.

        `results` are DICOM objects, and HL7 messages as bytes; an image without results is done. `outcome` is that of
        the reading, for instance "scored".
        """
        for number, result in enumerate(results):
            if isinstance(result, bytes):
                write_whole(self._result(key, number, "hl7"), result)
                continue
            if not hasattr(result, "file_meta"):
                result.file_meta = FileMetaDataset()
            result.file_meta.setdefault("TransferSyntaxUID", ExplicitVRLittleEndian)
            with replacing(self._result(key, number)) as draft:
                dcmwrite(draft, result, enforce_file_format=True)
        self._ask(
            "UPDATE images SET state = ?, results = ?, outcome = ?, tries = 0, due = 0 WHERE key = ?",
            "read" if results else "done", len(results), outcome, key,
        )  # fmt: skip
        if not results:
            self._forget(key)

    def to_deliver(self, most: int) -> list[str]:
        """Keys of images whose results may be sent now, those first that were tried least."""
        due = "SELECT key FROM images WHERE state = 'read' AND due <= ? ORDER BY tries, received LIMIT ?"
        return [key for (key,) in self._ask(due, time.time(), most)]

    def results(self, key: str) -> list[Dataset | bytes]:
        """The kept results of an image that were not delivered."""
        [(count,)] = self._ask("SELECT results FROM images WHERE key = ?", key)
        messages = {number: path for number in range(count) if (path := self._result(key, number, "hl7")).exists()}
        found: list[Dataset | bytes] = [path.read_bytes() for path in messages.values()]
        if self._stored(key).exists():
            return found
        return found + [dcmread(self._result(key, number)) for number in range(count) if number not in messages]

    def objects_stored(self, key: str) -> None:
        """The archive has every object of this image, and a message waits."""
        write_whole(self._stored(key), b"")

    def _stored(self, key: str) -> Path:
        return self.folder / "results" / f"{key}.stored"

    def delivered(self, key: str) -> None:
        """The archive has every result of this image; its row stays, its files go."""
        self._ask("UPDATE images SET state = 'done' WHERE key = ?", key)
        self._forget(key)

    def put_off(self, key: str) -> None:
        """The archive did not take a result: try again after a pause that grows."""
        [(tries,)] = self._ask("SELECT tries FROM images WHERE key = ?", key)
        self._ask("UPDATE images SET tries = ?, due = ? WHERE key = ?", tries + 1, time.time() + pause(tries), key)

    def give_up(self, key: str, outcome: str) -> None:
        """Try no more, and keep the image for whoever looks into it."""
        self._ask("UPDATE images SET state = 'failed', outcome = ? WHERE key = ?", outcome, key)

    def waiting_bytes(self) -> int:
        """How much waits on disk; quick, however many images are done."""
        [(total,)] = self._ask(
            "SELECT COALESCE(SUM(bytes), 0) FROM images WHERE state IN ('waiting', 'read', 'failed')"
        )
        return int(total)

    def counts(self) -> Counts:
        rows = self._ask("SELECT state, COUNT(*), SUM(bytes), MIN(received) FROM images GROUP BY state")
        open_ = [row for row in rows if row[0] != "done"]
        return Counts(
            {**dict.fromkeys(STATES, 0), **{row[0]: row[1] for row in rows}},
            sum(row[2] for row in open_),
            min((row[3] for row in open_ if row[0] != "failed"), default=None),
        )

    def _forget(self, key: str) -> None:
        self._image(key).unlink(missing_ok=True)
        for path in (self.folder / "results").glob(f"{key}.*"):
            path.unlink(missing_ok=True)


class ImageFolder:
    """A folder of images named by keyed hashes of their UIDs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._turn = folder, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def waiting_bytes(self) -> int:
        """Nothing waits here; the disk alone is the bound."""
        return 0

    def knows(self, key: str) -> bool:
        return (self.folder / f"{key}.dcm").exists()

    def add(self, key: str, study: str, content: bytes) -> bool:
        """Write an image; False where it is there."""
        with self._turn:
            new = not self.knows(key)
            if new:
                write_whole(self.folder / f"{key}.dcm", content)
        return new


ImageStore = ImageQueue | ImageFolder  # what images are put into
