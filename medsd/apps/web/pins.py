"""Pinned cases: they stay beside each other under every tab while other studies are read; per session, in memory."""

from typing import Any

import gradio as gr

from medsd.apps.web import case_cards, scripts
from medsd.apps.web.case_cards import MOST_PINNED, Pinned
from medsd.apps.web.reading import Reader

Pins = tuple[Pinned, ...]


class Board:
    """The pinned cases of one visitor. Make it first, `show` it where it should stand."""

    def __init__(self, reader: Reader) -> None:
        self._findings = reader.bundle.findings
        self.pins = gr.State((), time_to_live=3600)
        self.html = scripts.html("", "pinned", scripts.BUTTONS, render=False)

    def show(self) -> None:
        """Put the board on the page."""
        self.html.render()
        self.html.select(self.unpin, [self.pins], [self.html, self.pins], **scripts.EACH)

    def pin_from(self, gallery: Any, shown: Any) -> None:
        """Let the pins of a gallery's cards work; `shown` is the state with its `cases` and `pictures`."""
        gallery.select(self.pin, [self.pins, shown], [self.html, self.pins], **scripts.EACH)

    def pin(self, pins: Pins, shown: Any, event: gr.EventData) -> tuple[Any, Any]:
        """Keep the case of a card; the oldest goes where there are too many."""
        shown = getattr(shown, "near", None) or shown  # other cases may stand beside a study than the nearest
        beside = zip(shown.cases, shown.pictures, strict=True) if shown is not None else ()
        found = {case.case.study_key: Pinned(case, picture) for case, picture in beside}
        pin = found.get(scripts.sent(event).get("pin"))
        if pin is None:
            return gr.skip(), gr.skip()
        if any(kept.case.case.study_key == pin.case.case.study_key for kept in pins):
            return gr.skip(), gr.skip()
        return self._drawn((*pins, pin)[-MOST_PINNED:])

    def unpin(self, pins: Pins, event: gr.EventData) -> tuple[Any, Any]:
        """Let a case go."""
        place = scripts.sent(event).get("unpin")
        if not isinstance(place, int) or not 0 <= place < len(pins):
            return gr.skip(), gr.skip()
        return self._drawn(pins[:place] + pins[place + 1 :])

    def _drawn(self, pins: Pins) -> tuple[str, Pins]:
        return case_cards.pinned(pins, self._findings), pins
