"""How long work says how far it is: a bar on a terminal, a plain line now and then elsewhere, both on stderr."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

PLAIN_S = 5.0  # between two plain lines


class Progress:
    """A bar on a terminal, a plain line every few seconds elsewhere, nothing where it is not wanted.

    Args:
        total: units of work.
        done: units that were done before.
        name: of the work, before the figures.
        unit: what is counted, in the singular.
        wanted: False is silent.
    """

    def __init__(self, total: int, done: int = 0, *, name: str = "", unit: str = "film", wanted: bool = True) -> None:
        self._total, self._done, self._name, self._unit, self._wanted = total, done, name, unit, wanted
        self._terminal = wanted and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name or None, unit=unit, disable=not self._terminal)
        self._spoke = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Say that `count` more units are done; `note` stands behind the bar."""
        self._done += count
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)
        late = time.monotonic() - self._spoke > PLAIN_S
        if self._wanted and not self._terminal and (late or self._done == self._total):
            head = f"{self._name}: " if self._name else ""
            print(f"{head}{self._done} of {self._total} {self._unit}s", file=sys.stderr, flush=True)
            self._spoke = time.monotonic()
