"""The lock of an output: one run at a time, whatever becomes of the one that holds it.

The system takes the lock back when a process dies, so that a stale one never has to be removed by hand.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path
from typing import Any, TextIO

from medsd.errors import DataError

try:
    import fcntl
except ImportError:  # Windows: no lock there
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

LOCK = "lock"


def open_locked(folder: Path, out: Path) -> TextIO:
    """Open the lock in `folder`, which is made, alone; closing it lets go.

    Raises:
        DataError: another run holds it, or the folder cannot be written.
    """
    while True:
        try:
            if out.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / LOCK).open("a+", encoding="utf-8")
        except FileNotFoundError:
            continue  # the run before us removed the folder between its making and our opening
        except OSError as error:
            raise DataError(f"{out}: cannot be written ({error.strerror}); choose another output") from None
        if not _lock(file):
            holder = _holder(file)
            file.close()
            raise DataError(f"{out}: another run is writing it{holder}; wait for that one, or choose another output")
        if _still_there(file, folder / LOCK):
            _sign(file)
            return file
        file.close()  # the run before us finished between our opening and our locking


def _sign(file: TextIO) -> None:
    """Say who holds the lock; for people, as the system keeps it."""
    with contextlib.suppress(OSError):  # a full disk shows itself where it matters
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()


def _holder(file: TextIO) -> str:
    file.seek(0)
    text = file.read(200)
    return f" ({text})" if text else ""


def _lock(file: TextIO) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems
        log.warning("%s keeps no locks (%s); see to it that no second run writes here", file.name, error.strerror)
    return True


def _still_there(file: TextIO, path: Path) -> bool:
    try:
        here: Any = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file.fileno()), here)
