"""Silence while files of others are read: libraries log header values and addresses, which may name a patient."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import config

_lock = threading.Lock()
_inside = 0
_held: "warnings.catch_warnings[None] | None" = None  # no class to subscript while it runs
_nowhere = logging.NullHandler()
_LOGGERS = ("pydicom", "pynetdicom", "highdicom", "dicomweb_client", "retrying", "urllib3")
_handlers: dict[str, list[logging.Handler]] = {}  # of these loggers, while they are held back
_validation: list[int] = []  # pydicom's mode, while it is off


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back Python warnings, the logs of `_LOGGERS`, and pydicom's validation of values that are read.

    Threads inside are counted, because `warnings.catch_warnings` saves and restores state of the whole process.
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
    """Keep what these loggers say from every handler, those above them and their own.

    A filter does not see the records of child loggers, and without any handler Python prints warnings to stderr.
    """
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.propagate = not on
        if on:
            _handlers[name], logger.handlers[:] = logger.handlers[:], [_nowhere]
        else:
            logger.handlers[:] = [*_handlers[name], *(each for each in logger.handlers if each is not _nowhere)]
    if on:
        _validation[:] = [config.settings.reading_validation_mode]
        config.settings.reading_validation_mode = config.IGNORE
    else:
        config.settings.reading_validation_mode = _validation.pop()
