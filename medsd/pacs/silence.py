"""pynetdicom's log, silenced while a node runs."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_turn = threading.Lock()
_running: list[int] = []  # for each node that runs, the level of the logger before it


@contextmanager
def silence() -> Iterator[None]:
    """Let pynetdicom log nothing: its lines hold UIDs and AE titles, and those of the node say what matters.

    The logger is the whole process's. The last node that ends gives it its level back.
    """
    logger = logging.getLogger("pynetdicom")
    with _turn:
        _running.append(logger.level if not _running else _running[0])
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        with _turn:
            before = _running.pop()
            if not _running:
                logger.setLevel(before)
