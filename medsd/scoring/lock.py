"""The folder of a run beside its output, and its lock: one run at a time.

The system releases the lock when a process dies, so a stale one never has to be removed by hand.
"""

import contextlib
import errno
import logging
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from medsd.errors import DataError

log = logging.getLogger(__name__)

SUFFIX = ".parts"
LOCK = "lock"
_TRIES = 100  # another run may finish and remove the folder in the same moment


def is_parts(parent: str, name: str) -> bool:
    """Whether a folder is that of a run, which holds no images."""
    return name.endswith(SUFFIX) and os.path.exists(os.path.join(parent, name, LOCK))  # noqa: PTH110, PTH118


def open_locked(folder: Path, out: Path) -> contextlib.ExitStack:
    """Make `folder` and take its lock; closing the result releases it.

    Raises DataError: another run holds it, or the folder cannot be written.
    """
    detail: str | None = None
    for _ in range(_TRIES):
        try:
            if out.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            folder.mkdir(parents=True, exist_ok=True)
            return _take(folder / LOCK)
        except Timeout:
            holder = _holder(folder / LOCK)
            if holder is not None:
                raise DataError(
                    f"{out}: another run is writing it{holder}; wait for that one, or choose another output"
                ) from None
        except FileNotFoundError as error:  # /proc says so, too, where nothing can be written
            detail = error.strerror
        except OSError as error:
            detail = error.strerror
            break
    raise DataError(f"{out}: cannot be written ({detail}); choose another output")


def _take(path: Path) -> contextlib.ExitStack:
    held = contextlib.ExitStack()
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        log.warning("%s keeps no locks (%s); make sure that no second run writes here", path, error.strerror)
        return held
    held.callback(lock.release)
    with contextlib.suppress(OSError):  # only for people
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    return held


def _holder(path: Path) -> str | None:
    """Who holds a lock, in brackets; None where the lock is gone."""
    try:
        text = path.read_text(encoding="utf-8")[:200]
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    return f" ({text})" if text else ""
