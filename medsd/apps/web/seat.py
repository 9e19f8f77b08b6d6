"""The latest request of one browser tab, and the reading that answers it.

The handlers of one tab run side by side and finish in any order. Each writes into the tab's `Seat`, which takes only
what answers the latest request, so that the findings of one image never stand beside another image.
"""

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from medsd.apps.web.reading import Reading, Wish

if TYPE_CHECKING:
    from concurrent.futures import Future

    from medsd.apps.web.feedback import Opinion
    from medsd.apps.web.reading import Begun


@dataclass(eq=False)
class Asked:
    """One request to read a study; requests are told apart by identity."""

    content: bytes | None = field(repr=False)  # of the image, None for a note alone
    note: str = field(default="", repr=False)
    place: int | None = None  # in the batch that it was opened from
    begun: "Future[Begun] | None" = field(default=None, repr=False)  # the image as it is decoded


class Seat:
    """The latest request of one browser tab and its reading; shared by the threads that serve the tab."""

    def __init__(self, reading: Reading | None = None) -> None:
        self.asked: Asked | None = None  # the latest request, None before the first
        self.wish = Wish()  # how the tab wants its studies to be read now
        self.reading = reading  # what answers `asked`, from its findings on; None while there are none
        self.image: Reading | None = None  # the image of `asked`, as soon as it is seen
        self.shown: str | None = None  # the finding whose evidence was asked for last
        self.near: object = None  # which other cases were asked for last
        self._waiting = False
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: Any) -> Self:
        """Gradio copies the initial value for each tab: everybody begins with an empty seat."""
        return type(self)()

    def ask(self, asked: Asked) -> None:
        """Want a study read: what was read, or is being read, counts no more."""
        with self._lock:
            if self.asked is not None and self.asked.begun is not None:
                self.asked.begun.cancel()  # where another image is still decoded before it
            self.asked, self.reading, self.image, self.shown, self._waiting = asked, None, None, None, True

    def claim(self) -> Asked | None:
        """The request that is not yet being read, or None."""
        with self._lock:
            waiting, self._waiting = self._waiting, False
            return self.asked if waiting else None

    def see(self, asked: Asked, image: Reading) -> bool:
        """Take the image of the latest request; False where another study was asked for meanwhile."""
        with self._lock:
            if self.asked is asked:
                self.image = image
            return self.asked is asked

    def put(self, asked: Asked | None, wish: Wish, reading: Reading) -> Reading | None:
        """Take a reading if it answers the latest request and the latest wish; the reading as it was taken, else None.

        What the person said of its findings meanwhile stays with it.
        """
        with self._lock:
            if self.asked is not asked or self.wish is not wish:
                return None
            self.reading = reading if self.reading is None else replace(reading, opinions=self.reading.opinions)
            return self.reading

    def agree(self, asked: Asked | None, finding: str, opinion: "Opinion | None") -> Reading | None:
        """The reading with what the person said of a finding, or took back; None where another study was asked for."""
        with self._lock:
            if self.asked is not asked or self.reading is None:
                return None
            others = {name: said for name, said in self.reading.opinions.items() if name != finding}
            opinions = others if opinion is None else {**others, finding: opinion}
            self.reading = replace(self.reading, opinions=opinions)
            return self.reading
