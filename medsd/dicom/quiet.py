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


def _drop(_record: logging.LogRecord) -> bool:
    return False


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
            logging.getLogger("pydicom").addFilter(_drop)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _held is not None:
                logging.getLogger("pydicom").removeFilter(_drop)
                _held.__exit__(None, None, None)
                _held = None
