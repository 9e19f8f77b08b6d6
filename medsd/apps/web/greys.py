"""The grey values of images on their way to the browser, which sets window and level itself.

The page names them, and the browser asks for them: as a part of the page they would be text, which Gradio's front end
copies and compares a dozen times. A name is drawn at random, and good once, for the visitor whose page it stands on.
Twelve bits are as many as detectors have, and four more than a screen. They are not compressed: where browser and
server are one machine, to pack and unpack them takes longer than it saves.
"""

import secrets
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np
from gradio.context import LocalContext

from medsd.results.render import GreyImage

LARGEST = 4095  # 12 bits
MOST = 1 << 28  # bytes that wait to be asked for; the oldest go first
PATIENCE_S = 0.25  # for a browser that fetches an image; a slower one gets the findings meanwhile
_DRAWING_S = 0.05  # in a browser, of what has come
_PIECE = 1 << 18  # bytes that are sent at a time


@dataclass(eq=False)
class Offer:
    """An image that a page may ask for once: H·W numbers of 0…`LARGEST` in two bytes each, the lower one first."""

    session: str  # of the page, as Gradio knows it; "" outside of one
    values: bytes = field(repr=False)
    name: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    taken: bool = False
    sent: threading.Event = field(default_factory=threading.Event)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The bytes, for sending them."""
        try:
            for start in range(0, len(self.values), _PIECE):
                yield self.values[start : start + _PIECE]
        finally:
            with _lock:
                _offers.pop(self.name, None)
            self.sent.set()


_offers: dict[str, Offer] = {}  # by name, the newest last
_lock = threading.Lock()


def offer(image: GreyImage) -> str:
    """The name by which the page that is being answered can ask for an image (H, W) in 0…1."""
    values = np.multiply(image, LARGEST, dtype=np.float32)
    np.clip(np.rint(values, out=values), 0, LARGEST, out=values)
    made = Offer(_session(), values.astype("<u2").tobytes())
    with _lock:
        for old in [each for each in _offers.values() if each.taken and each.session == made.session]:
            del _offers[old.name]  # what the page left before its end
        _offers[made.name] = made
        while len(_offers) > 1 and sum(len(each.values) for each in _offers.values()) > MOST:
            del _offers[next(iter(_offers))]
    return made.name


def hand_over(name: str, visitor: str) -> Offer | None:
    """What this visitor (`Visitor.key`) was offered by that name; None where it was nothing, or is taken."""
    with _lock:
        made = _offers.get(name)
        if made is None or made.taken or not made.session.startswith(f"{visitor}-"):
            return None
        made.taken = True
        return made


def wait_for_page() -> None:
    """Leave the processors to the page that is being answered until it shows its image, for a moment at most."""
    session = _session()
    with _lock:
        last = next((each for each in reversed(_offers.values()) if session and each.session == session), None)
    if last is not None and last.sent.wait(PATIENCE_S):
        time.sleep(_DRAWING_S)


def _session() -> str:
    request = LocalContext.request.get(None)
    return str(request.session_hash) if request is not None else ""
