"""The audit log: a line of JSON for each result, sealed to the line before it. It names nobody.

It is of the kind that who uses AI in care has to keep (Regulation (EU) 2024/1689, articles 12 and 26): which input, by
its hash, got which outcome from which model, and when. A line is written before its result leaves, so that there is
no result without one. The seals are keyed by the secret of this site (`KeyedHasher`): who lacks it can neither change
a line nor take one out unseen. Lines that are cut from the end alone leave no trace here; keep copies elsewhere.
"""

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from medsd import __version__
from medsd.errors import explained
from medsd.inference.prediction import Prediction
from medsd.privacy import KeyedHasher

_TAIL = 1 << 16  # bytes in which the last whole line ends


@dataclass(frozen=True)
class Checked:
    """What a log holds: its lines, those that a crash cut off, and the first whose seal does not fit."""

    path: Path
    lines: int
    cut_off: int
    broken: int | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}

    def line(self) -> str:
        if self.broken is not None:
            why = "it was changed, or lines before it were taken out"
            key = ", or this machine has another key (MEDSD_KEY) than the one that wrote it" if self.broken == 1 else ""
            return f"{self.path}: the seal of line {self.broken} does not fit: {why}{key}"
        cut = f", and {self.cut_off} that a crash cut off" if self.cut_off else ""
        return f"{self.path}: unchanged, {self.lines} lines{cut}"


class AuditLog:
    """A file of JSON lines that grows alone; processes may share it. `hasher` has the secret of the seals.

    It is made where it is absent, readable by its owner only.
    """

    def __init__(self, path: Path, hasher: KeyedHasher) -> None:
        self.path, self._hasher = path, hasher
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))

    def prepare(self) -> None:
        """See to it that lines can be written, before there is one to write; raises DataError: they cannot."""
        with explained(f"{self.path}: the audit log cannot be written", OSError, then="; name another"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(self._open())

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def append(self, content: bytes, prediction: Prediction, forms: Sequence[str], when: datetime) -> None:
        """Write the line of one result in a folder that exists; when this returns, it survives a power cut.

        `content` is that of the input, `forms` are those of the result that leave, `when` is the time of the reading.
        Raises OSError: it cannot be written.
        """
        told = {
            "time": when.isoformat(timespec="milliseconds"),
            "input_sha256": hashlib.sha256(content).hexdigest(),
            "image": prediction.instance_key,
            "model": prediction.model,
            "model_sha256": prediction.model_sha256,
            "medsd": __version__,
            "provider": prediction.provider,
            "status": prediction.status,
            "reason": prediction.reason,
            "forms": list(forms),
        }
        with self._lock:
            handle = self._open()
            try:
                size = os.fstat(handle).st_size
                os.lseek(handle, max(0, size - _TAIL), os.SEEK_SET)
                tail = os.read(handle, _TAIL)
                before = next(filter(None, map(_parsed, reversed(tail.splitlines()))), {"seal": ""})
                line = json.dumps({**told, "seal": self._seal(before["seal"], told)}) + "\n"
                whole = tail.endswith(b"\n") or not tail
                written = (line if whole else f"\n{line}").encode()
                if os.write(handle, written) < len(written):  # a disk that is nearly full takes a part of it
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            finally:
                os.close(handle)

    def check(self) -> Checked:
        """Whether the lines are those that were written; raises DataError: the log cannot be read."""
        before, lines, cut_off = "", 0, 0
        with explained(f"{self.path}: the audit log cannot be read", OSError), self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                told = _parsed(raw)
                if told is None:
                    cut_off += 1
                    continue
                seal = told.pop("seal")
                if seal != self._seal(before, told):
                    return Checked(self.path, lines, cut_off, number)
                before, lines = seal, lines + 1
        return Checked(self.path, lines, cut_off, None)

    def _seal(self, before: str, told: dict[str, Any]) -> str:
        return self._hasher.digest("audit", before + json.dumps(told)).hex()


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(raw)
    except ValueError:
        return None
    return told if isinstance(told, dict) and isinstance(told.get("seal"), str) else None
