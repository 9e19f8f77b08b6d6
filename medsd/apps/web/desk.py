"""What the tab Read does: `Desk` holds its handlers, plain methods that take and return values.

What belongs to one person is in `gr.State`. `medsd.apps.web.read` puts the components together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from medsd.apps.web import case_cards, markup, scripts
from medsd.apps.web.batch import BatchRun
from medsd.apps.web.export import Kind, export, link, read_look
from medsd.apps.web.feedback import WITHDRAWN, Opinion
from medsd.apps.web.filters import to_filter
from medsd.apps.web.greys import offer, wait_for_page
from medsd.apps.web.near import read_box
from medsd.apps.web.reading import Reader, Reading, Wish
from medsd.apps.web.seat import Asked, Seat
from medsd.apps.web.uploads import is_regular
from medsd.cases.case import SimilarCase
from medsd.errors import DataError, MedsdError

Update = Any  # a value, or gr.update(...) / gr.skip()
_SAME: tuple[Update, ...] = (gr.skip(),)


class Scene(NamedTuple):
    """New values of the components of the reading tab, by their names in `ReadTab`; what is left out stays as it is."""

    image: Update = gr.skip()
    evidence: Update = gr.skip()
    detail: Update = gr.skip()
    notice: Update = gr.skip()
    findings: Update = gr.skip()
    cases: Update = gr.skip()
    note: Update = gr.skip()
    upload: Update = gr.skip()
    seat: Update = gr.skip()
    reading: Update = gr.skip()
    shown: Update = gr.skip()
    narrow: Update = gr.skip()
    keep: Update = gr.skip()
    saved: Update = gr.skip()
    onward: Update = gr.skip()


class Desk:
    """What the page does.

    A study is read in two steps: `take_upload`, `take_example` and `take_note` clear the page at once and say in the
    tab's seat what is wanted; `read` reads what is wanted last. The `reader` is shared by all sessions.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def take_upload(self, path: str | None, note: str | None, seat: Seat) -> Scene:
        """Want a dropped file read. Its copy on the server is deleted as soon as its bytes are in memory."""
        if path is None:
            return Scene()
        uploaded = Path(path)
        content = None
        if is_regular(uploaded):
            with suppress(OSError):
                content = uploaded.read_bytes()
            uploaded.unlink(missing_ok=True)
        if content is None:
            gr.Warning("The upload did not arrive whole. Drop the file again.")
            return Scene(upload=None)
        return self._take(content, note, seat)

    def take_example(self, position: int, seat: Seat) -> Scene:
        """Want an image that ships with the bundle read, with its note."""
        example = self.reader.examples[position]
        note = example.note if self.reader.takes_notes else ""
        try:
            content = example.path.read_bytes()
        except OSError:
            gr.Warning("This example cannot be read any more. Take another.")
            return Scene()
        return self._take(content, note, seat)

    def take_offer(self, seat: Seat, event: gr.EventData) -> Scene:
        """The same for an example of the first screen."""
        position = scripts.sent(event).get("example")
        if not isinstance(position, int) or not 0 <= position < len(self.reader.examples):
            return Scene()
        return self.take_example(position, seat)

    def take_note(self, note: str | None, seat: Seat) -> Scene:
        """Want the image at hand read once more, or the note alone where there is none."""
        content, place = (seat.asked.content, seat.asked.place) if seat.asked else (None, None)
        if content is None and not (note or "").strip():
            gr.Warning("There is nothing to read yet: drop an image, or write a note.")
            return Scene()
        return self._take(content, note, seat, place)._replace(onward=gr.skip())

    def take_row(self, run: BatchRun | None, seat: Seat, event: gr.EventData) -> tuple[Update, ...]:
        """Want the image of a row of a batch read; the last value is the tab to show."""
        place = scripts.sent(event).get("open")
        if run is None or not isinstance(place, int) or not 0 <= place < len(run.rows):
            return *Scene(), gr.skip()
        return self._take_place(run, place, seat)

    def take_next(self, run: BatchRun | None, seat: Seat) -> tuple[Update, ...]:
        """Want the image read that stands in the batch after the one at hand."""
        place = None if run is None or seat.asked is None or seat.asked.place is None else run.after(seat.asked.place)
        return (*Scene(), gr.skip()) if run is None or place is None else self._take_place(run, place, seat)

    def _take_place(self, run: BatchRun, place: int, seat: Seat) -> tuple[Update, ...]:
        content = run.content(place)
        if content is None:
            gr.Warning("The images of this batch are no longer kept. Drop them again.")
            return *Scene(), gr.skip()
        scene = self._take(content, "", seat, place)
        return *scene._replace(onward=gr.update(visible=run.after(place) is not None)), gr.update(selected="read")

    def _take(self, content: bytes | None, note: str | None, seat: Seat, place: int | None = None) -> Scene:
        """A busy page: nothing of an earlier study stands on it any more."""
        seat.ask(Asked(content, note or "", place, self.reader.begin(content)))  # a hidden textbox says None
        busy = (markup.busy_image(), "", "", "", markup.BUSY_FINDINGS, case_cards.no_cases("Searching …"))
        # The drop zone is emptied at once: the name of a file may be a patient's, and belongs to no earlier findings.
        onward = gr.update(visible=False)
        return Scene(*busy, note=note, upload=None, seat=seat, reading=None, shown=None, saved="", onward=onward)

    def read(self, seat: Seat, *wish: Any) -> Iterator[Scene]:
        """Read what the tab wants: yields the image, then the findings, then all of it.

        What comes too late, because another study was asked for meanwhile, is dropped.
        """
        yield from self._stages(seat, wish)
        yield Scene()  # Gradio sends the last value once more at the end, when another image may stand on the page

    def _stages(self, seat: Seat, wish: tuple[Any, ...]) -> Iterator[Scene]:
        asked = seat.claim()
        if asked is None:
            return
        current = seat.wish = _wish(wish)
        before: Reading | None = None  # the stage that stands on the page
        for reading in self.reader.stages(asked.content, asked.note, current, asked.begun):
            asked.begun = None
            if reading.stage == "image":
                taken = reading if seat.see(asked, reading) else None
            else:
                taken = self._put(seat, asked, reading, current)
            if taken is None:
                return
            yield self._drawn(seat, taken, before)
            if taken.stage == "image":
                wait_for_page()
            before = taken
        if not self.reader.takes_notes:
            asked.content = None  # only a note is a reason to read an image twice

    def _put(self, seat: Seat, asked: Asked, reading: Reading, wish: Wish) -> Reading | None:
        """The reading as the tab wants it now; None where another study was asked for meanwhile."""
        while (taken := seat.put(asked, wish, reading)) is None:
            if seat.asked is not asked:
                return None
            wish = seat.wish  # the boxes were changed meanwhile
            reading = replace(self.reader.again(reading, wish), stage=reading.stage)
        return taken

    def _drawn(self, seat: Seat, reading: Reading, before: Reading | None) -> Scene:
        """What a stage adds to the page after the stage `before`; the image stays as it is once it is there."""
        scene = Scene() if before else Scene(image=self._image(reading))
        if reading.stage == "image":
            return scene
        shown = seat.shown or markup.shown_first(reading)
        scene = scene._replace(notice=markup.notice(reading), findings=self._findings(reading, shown), shown=shown)
        if before is None or before.stage == "image":
            scene = scene._replace(evidence=markup.evidence(reading, shown))
        if reading.stage == "findings":
            return scene
        cases = not reading.prediction.refused and self.reader.index is not None
        return scene._replace(
            cases=case_cards.cases(reading),
            seat=seat,
            reading=reading,
            narrow=gr.update(visible=cases),
            keep=gr.update(visible=True),
        )

    def _image(self, reading: Reading) -> str:
        greys = "" if reading.display is None else offer(reading.display)
        return markup.image(reading, greys, boxes=self.reader.index is not None)

    def anew(self, seat: Seat) -> Scene:
        """All of the study at hand, for a page on which a late answer for an earlier study covers a part of it."""
        reading = seat.reading
        if reading is None or reading.stage != "whole":
            return Scene()
        return self._drawn(seat, reading, None)._replace(note=seat.asked.note if seat.asked else gr.skip())

    def again(self, seat: Seat, shown: str | None, *wish: Any) -> tuple[Update, ...]:
        """State, evidence, table and cases of the same study with other calls, or with other cases beside it.

        The evidence is drawn anew where the call of its finding is another: the legend says the call.
        """
        current = seat.wish = _wish(wish)
        asked, reading = seat.asked, seat.reading
        if reading is None or reading.prediction.refused:
            return _SAME * 4
        taken = seat.put(asked, current, self.reader.again(reading, current))
        if taken is None:
            return _SAME * 4
        called = shown is not None and reading.prediction.calls.get(shown) != taken.prediction.calls.get(shown)
        evidence = markup.evidence(taken, shown) if called else gr.skip()
        return taken, evidence, self._findings(taken, shown), case_cards.cases(taken)

    def opine(self, seat: Seat, shown: str | None, event: gr.EventData, request: gr.Request) -> tuple[Update, ...]:
        """State and table after a person agreed or disagreed with a call, or took it back."""
        finding, said = (scripts.sent(event).get(key) for key in ("finding", "opinion"))
        asked, reading = seat.asked, seat.reading
        if reading is None or finding not in reading.ranked or said not in ("present", "absent", WITHDRAWN):
            return _SAME * 2
        opinion: Opinion | None = None if said == WITHDRAWN else said
        try:
            self.reader.opine(reading, finding, opinion, getattr(request, "username", None) or "")
        except MedsdError as error:
            gr.Warning(str(error))
            return _SAME * 2
        taken = seat.agree(asked, finding, opinion)
        return _SAME * 2 if taken is None else (taken, self._findings(taken, shown))

    def export(self, kind: Kind, seat: Seat, shown: str | None, look: Any) -> Update:
        """The reading as a download; `look` is what the browser says of the image, and which it is."""
        reading = seat.reading
        if reading is None or reading.stage != "whole":
            gr.Warning("There is nothing to save yet: read an image first.")
            return gr.skip()
        if isinstance(look, dict) and look.get("key", reading.key) != reading.key:
            gr.Warning("Another image was read meanwhile. Save once more.")
            return gr.skip()
        window, opacity = read_look(look)
        content, name = export(reading, self.reader.bundle, kind, window, shown, opacity)
        return link(content, kind, name)

    def _findings(self, reading: Reading | None, shown: str | None) -> str:
        feedback = self.reader.feedback is not None
        return markup.findings(reading, self.reader.bundle.description, shown, feedback=feedback)

    def detail(self, seat: Seat, event: gr.EventData) -> Update:
        """Every pixel of the image that the browser zooms into; nothing where another study was asked for meanwhile."""
        asked, reading = seat.asked, seat.image or seat.reading
        if reading is None or scripts.sent(event).get("detail") != reading.key:
            return gr.skip()
        pixels = reading.every_pixel
        shown = "" if pixels is None else markup.pixels_alone(reading.key, pixels, offer(pixels))
        return shown if seat.asked is asked else gr.skip()

    def near(self, seat: Seat, event: gr.EventData) -> tuple[Update, ...]:
        """State and cases after a box was drawn, a case was taken as the query, or neither counts any more."""
        said, asked, wish, reading = scripts.sent(event), seat.asked, seat.wish, seat.reading
        if reading is None or reading.stage != "whole" or said.get("key", reading.key) != reading.key:
            return _SAME * 2
        seat.near = said
        try:
            near = self._near(reading, wish, said)
        except MedsdError as error:
            gr.Warning(str(error))
            return _SAME * 2
        taken = seat.put(asked, wish, near) if seat.near is said else None
        return _SAME * 2 if taken is None else (taken, case_cards.cases(taken))

    def _near(self, reading: Reading, wish: Wish, said: dict[str, Any]) -> Reading:
        if said.get("box") is not None:
            return self.reader.near(reading, read_box(said["box"]), wish.filters)
        if "like" in said:
            number, case = _case(reading, said["like"])
            if case is None:
                raise DataError("This case stands beside the image no longer. Choose another.")
            return self.reader.near(reading, (case, number), wish.filters)
        return replace(reading, near=None)

    def beside(self, seat: Seat, event: gr.EventData) -> Update:
        """Every pixel of the case that was opened beside the image, where its file is at hand."""
        reading = seat.reading
        _, case = (0, None) if reading is None else _case(reading, scripts.sent(event).get("beside"))
        pixels = None if case is None else self.reader.original(case)
        if case is None or pixels is None:
            return gr.skip()
        return markup.pixels_alone(case.case.study_key, pixels, offer(pixels))

    def choose(self, seat: Seat, event: gr.EventData) -> tuple[Update, ...]:
        """Evidence and table after another finding was chosen by its row."""
        name = str(scripts.sent(event).get("finding", ""))
        asked, reading = seat.asked, seat.reading
        if reading is None or name not in reading.prediction.probabilities:
            return _SAME * 3
        seat.shown = name
        evidence, table = markup.evidence(reading, name), self._findings(reading, name)
        if seat.asked is not asked or seat.shown != name:  # another study, or another row, was chosen meanwhile
            return _SAME * 3
        return evidence, table, name


def _case(reading: Reading, study_key: object) -> tuple[int, SimilarCase | None]:
    """Number and case of a key among those beside a study; 0 and None where it is not there."""
    for number, case in enumerate((reading.near or reading).cases, 1):
        if case.case.study_key == study_key:
            return number, case
    return 0, None


def _wish(values: Sequence[Any]) -> Wish:
    """What the boxes say: coverage in percent, 0 for operating points, then those of `FilterBoxes`; usual without."""
    if not values:
        return Wish()
    return Wish(float(values[0]) / 100 if values[0] else None, to_filter(values[1:]))
