"""The tab Read: an image and its note in, findings, evidence and cases out. `ReadTab` puts the components together.

`Desk` holds the handlers, plain methods that take and return values; what belongs to one person is in `gr.State`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from medsd.apps.web import case_cards, markup, scripts
from medsd.apps.web.batch import BatchRun, BatchTab
from medsd.apps.web.export import Kind, export, link, read_look
from medsd.apps.web.filters import FilterBoxes, to_filter
from medsd.apps.web.html import fill
from medsd.apps.web.pins import Board
from medsd.apps.web.reading import MAX_NOTE, Reader, Reading, Wish
from medsd.apps.web.seat import Asked, Seat
from medsd.apps.web.uploads import is_regular
from medsd.errors import MedsdError
from medsd.inference.coverage import offered

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
    tab's seat what is wanted; `read` reads what is wanted last.

    Args:
        reader: reads studies; shared by all sessions.
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
        return self._take(example.path.read_bytes(), note, seat)

    def take_note(self, note: str | None, seat: Seat) -> Scene:
        """Want the image at hand read once more, or the note alone where there is none."""
        content = seat.asked.content if seat.asked else None
        if content is None and not (note or "").strip():
            gr.Warning("There is nothing to read yet: drop an image, or write a note.")
            return Scene()
        return self._take(content, note, seat)

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
        seat.ask(Asked(content, note or "", place))  # a hidden textbox says None
        busy = (markup.busy_image(), "", "", "", markup.BUSY_FINDINGS, case_cards.no_cases("Searching …"))
        # The drop zone is emptied at once: the name of a file may be a patient's, and belongs to no earlier findings.
        onward = gr.update(visible=False)
        return Scene(*busy, note=note, upload=None, seat=seat, reading=None, shown=None, saved="", onward=onward)

    def read(self, seat: Seat, *wish: Any) -> Scene:
        """Read what the tab wants; what comes too late, because another study was asked for meanwhile, is dropped."""
        asked = seat.claim()
        if asked is None:
            return Scene()
        current = seat.wish = _wish(wish)
        reading = self.reader.read(asked.content, asked.note, current)
        while (taken := seat.put(asked, current, reading)) is None:
            if seat.asked is not asked:
                return Scene()
            current = seat.wish  # the boxes were changed meanwhile
            reading = self.reader.again(reading, current)
        if not self.reader.takes_notes:
            asked.content = None  # only a note is a reason to read an image twice
        return self._done(seat, taken)

    def _done(self, seat: Seat, reading: Reading) -> Scene:
        """The page of a study that was just read."""
        shown = markup.shown_first(reading)
        return Scene(
            markup.image(reading),
            markup.evidence(reading, shown),
            "",
            markup.notice(reading),
            self._findings(reading, shown),
            case_cards.cases(reading),
            seat=seat,
            reading=reading,
            shown=shown,
            narrow=gr.update(visible=not reading.prediction.refused and self.reader.index is not None),
            keep=gr.update(visible=True),
        )

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
        """State and table after a person agreed or disagreed with a call; said again, it stays as it is."""
        finding, opinion = (scripts.sent(event).get(key) for key in ("finding", "opinion"))
        asked, reading = seat.asked, seat.reading
        if reading is None or finding not in reading.ranked or opinion not in ("present", "absent"):
            return _SAME * 2
        try:
            self.reader.opine(reading, finding, opinion, getattr(request, "username", None) or "")
        except MedsdError as error:
            gr.Warning(str(error))
            return _SAME * 2
        taken = seat.agree(asked, finding, opinion)
        return _SAME * 2 if taken is None else (taken, self._findings(taken, shown))

    def export(self, kind: Kind, reading: Reading | None, shown: str | None, look: Any) -> Update:
        """The reading as a download; `look` is what the browser says of the image."""
        if reading is None:
            gr.Warning("There is nothing to save yet: read an image first.")
            return gr.skip()
        window, opacity = read_look(look)
        content, name = export(reading, self.reader.bundle, kind, window, shown, opacity)
        return link(content, kind, name)

    def _findings(self, reading: Reading | None, shown: str | None) -> str:
        feedback = self.reader.feedback is not None
        return markup.findings(reading, self.reader.bundle.description, shown, feedback=feedback)

    def detail(self, seat: Seat, event: gr.EventData) -> Update:
        """Every pixel of the image that the browser zooms into; nothing where another study was asked for meanwhile."""
        asked, reading = seat.asked, seat.reading
        if reading is None or scripts.sent(event).get("detail") != reading.key:
            return gr.skip()
        shown = markup.detail(reading)
        return shown if seat.asked is asked else gr.skip()

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


def _wish(values: Sequence[Any]) -> Wish:
    """What the boxes say: coverage in percent, 0 for operating points, then those of `FilterBoxes`; usual without."""
    if not values:
        return Wish()
    return Wish(float(values[0]) / 100 if values[0] else None, to_filter(values[1:]))


class ReadTab:
    """The components of the tab, and their wiring.

    Args:
        reader: reads studies; shared by all sessions.
        board: where cases are pinned.
    """

    def __init__(self, reader: Reader, board: Board) -> None:
        self.desk = Desk(reader)
        self.reading = gr.State(None, time_to_live=3600)
        self.seat = gr.State(Seat(), time_to_live=3600)
        self.shown = gr.State(None, time_to_live=3600)  # the finding whose evidence lies over the image
        # style.css makes it a grid: image, cases, and the rest side by side.
        with gr.Row(elem_id="desk", equal_height=False):
            with gr.Column(elem_id="viewer", min_width=0):
                self._viewer()
            with gr.Column(elem_id="intake", min_width=0):
                self._intake()
            with gr.Column(elem_id="results", min_width=0):
                self._results()
            with gr.Column(elem_id="similar", min_width=0):
                self._similar(reader)
        board.pin_from(self.cases, self.reading)
        self._wire()
        self._wire_viewer()
        self._wire_results()

    def _viewer(self) -> None:
        self.tools = scripts.html(markup.tools(), "tools", scripts.VIEWER)
        with gr.Column(elem_id="stage", min_width=0):
            scripts.html(fill("plane"), "plane", scripts.DROP)
            self.evidence = scripts.html("", "evidence")
            self.image = scripts.html(markup.image(None, examples=bool(self.desk.reader.examples)), "radiograph")
            self.detail = scripts.html("", "detail")
        self.look = gr.JSON(None, visible=False)  # what `scripts.LOOK` fills in

    def _similar(self, reader: Reader) -> None:
        self.narrow = gr.Accordion("Filter the cases", open=False, elem_id="narrow", visible=False)
        with self.narrow, gr.Row(elem_classes="boxes"):
            self.filters = FilterBoxes(reader, findings=True, key="narrow")
        self.cases = scripts.html(case_cards.cases(None), "cases", scripts.BUTTONS)

    def _intake(self) -> None:
        reader = self.desk.reader
        # Any file name is taken, because DICOM files often have no ending: the content decides what is read.
        self.upload = gr.File(label="Image: DICOM, PNG or JPEG", elem_id="upload", height=76, buttons=[])
        with gr.Column(elem_id="note-box", visible=reader.takes_notes):
            self.note = gr.Textbox(
                label="Clinical note (optional)",
                placeholder="Without names, please: it is read by the model and kept nowhere.",
                lines=2,
                max_lines=6,
                max_length=MAX_NOTE,
                elem_id="note",
            )
            self.again = gr.Button("Read with this note", size="sm", elem_id="again")
        self.examples = []
        if reader.examples:
            with gr.Row(elem_id="examples"):
                gr.HTML('<span class="label">Examples</span>', elem_id="examples-label", js_on_load=None, scale=0)
                self.examples = [gr.Button(example.title, size="sm", min_width=80) for example in reader.examples]

    def _results(self) -> None:
        self.notice = gr.HTML("", elem_id="notice", js_on_load=None)
        self.findings = scripts.html(markup.findings(None, None, None), "findings", scripts.FINDINGS)
        coverages = offered(self.desk.reader.bundle)
        with gr.Row(elem_id="keep", visible=False) as self.keep:
            # The values are whole percents: a share would come back as text where it is a radio's value.
            self.coverage = gr.Radio(
                [("Operating points", 0), *((f"{share * 100:g} %", round(share * 100)) for share in coverages)],
                value=0,
                label="Calls from: operating points, or conformal sets with this coverage",
                elem_id="coverage",
                visible=bool(coverages),
                min_width=240,
            )
            self.onward = gr.Button("Next image", size="sm", elem_id="onward", min_width=90, scale=0, visible=False)
            self.save_pdf = gr.Button("Save PDF", size="sm", elem_id="save-pdf", min_width=90, scale=0)
            self.save_json = gr.Button("Save JSON", size="sm", elem_id="save-json", min_width=90, scale=0)
        self.saved = scripts.html("", "saved", scripts.SAVE)

    @property
    def _scene(self) -> list[Any]:
        return [getattr(self, name) for name in Scene._fields]

    @property
    def _wishes(self) -> list[Any]:
        return [self.coverage, *self.filters.inputs]

    def _wire(self) -> None:
        desk, outputs = self.desk, self._scene
        # What is wanted is taken down at once, however many studies wait to be read.
        taking = {"outputs": outputs, **scripts.handling("take", None, "multiple")}
        reading = {"outputs": outputs, **scripts.handling("read", 2, "multiple")}
        takes = [
            self.upload.upload(desk.take_upload, [self.upload, self.note, self.seat], **taking),
            self.again.click(desk.take_note, [self.note, self.seat], **taking),
            *(
                button.click(partial(desk.take_example, position), [self.seat], **taking)
                for position, button in enumerate(self.examples)
            ),
        ]
        for take in takes:
            take.then(desk.read, [self.seat, *self._wishes], **reading)

    def open_from(self, batch: BatchTab, tabs: Any) -> None:
        """Let the rows of a batch open here, and *Next image* go on to the one below."""
        outputs = [*self._scene, tabs]
        taking = {"outputs": outputs, **scripts.handling("take", None, "multiple")}
        reading = {"outputs": self._scene, **scripts.handling("read", 2, "multiple")}
        opened = batch.rows.select(self.desk.take_row, [batch.run, self.seat], **taking)
        gone_on = self.onward.click(self.desk.take_next, [batch.run, self.seat], **taking)
        for take in (opened, gone_on):
            take.then(self.desk.read, [self.seat, *self._wishes], **reading)

    def _wire_viewer(self) -> None:
        desk = self.desk
        self.tools.select(desk.detail, [self.seat], self.detail, **scripts.EACH)
        self.findings.select(desk.choose, [self.seat], [self.evidence, self.findings, self.shown], **scripts.EACH)

    def _wire_results(self) -> None:
        desk = self.desk
        for box in self._wishes:
            box.input(
                desk.again,
                [self.seat, self.shown, *self._wishes],
                [self.reading, self.evidence, self.findings, self.cases],
                **scripts.QUICK,
            )
        self.findings.like(desk.opine, [self.seat, self.shown], [self.reading, self.findings], **scripts.EACH)
        kinds: tuple[tuple[Any, Kind], ...] = ((self.save_pdf, "PDF"), (self.save_json, "JSON"))
        for button, kind in kinds:
            values = [self.reading, self.shown, self.look]
            button.click(partial(desk.export, kind), values, self.saved, js=scripts.LOOK, **scripts.QUICK)
