"""Silence while strangers' files are read: pydicom warns with header values, which may name a patient.

Warnings and pydicom's log lines are held back only while some thread is inside `quiet()`, and put back after.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_held: warnings.catch_warnings[None] | None = None


_nowhere = logging.NullHandler()


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back Python warnings and pydicom's own log.

    Counted, because `warnings.catch_warnings` saves and restores state of the whole process: two threads that
    overlap would otherwise leave it silenced for good.
    """
    global _inside, _held
    with _lock:
        if _inside == 0:
            _held = warnings.catch_warnings(action="ignore")
            _held.__enter__()
            _silence(True)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _held is not None:
                _silence(False)
                _held.__exit__(None, None, None)
                _held = None


def _silence(on: bool) -> None:
    """Keep what pydicom's loggers say from every handler above them. A filter would not do: it does not see the
    records of child loggers; nor would propagation alone: without any handler Python prints warnings to stderr."""
    logger = logging.getLogger("pydicom")
    logger.propagate = not on
    (logger.addHandler if on else logger.removeHandler)(_nowhere)
