"""Progress of long work on stderr: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from contextlib import AbstractContextManager

from tqdm import tqdm

PLAIN_S = 5.0  # between two plain lines


class Progress(AbstractContextManager["Progress"]):
    """A bar on a terminal, a plain line every few seconds elsewhere, nothing where it is not wanted.

    `done` of `total` units were done before; `name` is that of the work, `unit` that of what is counted, in the
    singular.
    """

    def __init__(self, total: int, done: int = 0, *, name: str = "", unit: str = "image", wanted: bool = True) -> None:
        self._total, self._done, self._name, self._unit, self._wanted = total, done, name, unit, wanted
        self._terminal = wanted and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name or None, unit=unit, disable=not self._terminal)
        self._begun = self._spoke = time.monotonic()
        self._done_before = done

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Say that `count` more units are done; `note` stands behind the bar, or at the end of the line."""
        self._done += count
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)
        late = time.monotonic() - self._spoke > PLAIN_S
        if self._wanted and not self._terminal and (late or self._done == self._total):
            head = f"{self._name}: " if self._name else ""
            tail = f", {note}" if note else ""
            print(f"{head}{self._done} of {self._total} {self._unit}s{self._pace()}{tail}", file=sys.stderr, flush=True)
            self._spoke = time.monotonic()

    def _pace(self) -> str:
        """Rate since the start and the time that is left at it."""
        rate = (self._done - self._done_before) / max(time.monotonic() - self._begun, 1e-9)
        if rate <= 0 or self._done >= self._total:
            return ""
        left = tqdm.format_interval((self._total - self._done) / rate)
        return f", {rate:.3g} a second, {left} left"
