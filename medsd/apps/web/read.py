"""The tab Read: an image and its note in, findings, evidence and cases out."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from medsd.apps.web import case_cards, markup, scripts
from medsd.apps.web.batch import BatchTab
from medsd.apps.web.desk import Desk, Scene
from medsd.apps.web.export import Kind
from medsd.apps.web.filters import FilterBoxes
from medsd.apps.web.html import fill
from medsd.apps.web.pins import Board
from medsd.apps.web.reading import Reader
from medsd.apps.web.seat import Seat
from medsd.inference.coverage import offered
from medsd.preprocessing.notes import MAX_NOTE


class ReadTab:
    """The components of the tab, and their wiring; its cases are pinned to the `board`."""

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
            self.plane = scripts.html(fill("plane"), "plane", scripts.DROP)
            self.evidence = scripts.html("", "evidence")
            reader = self.desk.reader
            first = markup.first_screen(reader.bundle, reader.examples)
            self.image = scripts.html(first, "radiograph", scripts.BUTTONS)
            self.detail = scripts.html("", "detail")
        self.look = gr.JSON(None, visible=False)  # what `scripts.LOOK` fills in

    def _similar(self, reader: Reader) -> None:
        self.narrow = gr.Accordion("Filter the cases", open=False, elem_id="narrow", visible=False)
        with self.narrow, gr.Row(elem_classes="boxes"):
            self.filters = FilterBoxes(reader, findings=True, key="narrow")
        self.beside = scripts.html("", "beside")
        self.cases = scripts.html(case_cards.cases(None), "cases", scripts.CASES)

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
                label="Calls by operating point, or conformal at a coverage of",
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
            self.image.select(desk.take_offer, [self.seat], **taking),
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
        self.plane.clear(desk.anew, [self.seat], self._scene, **scripts.QUICK)
        self.tools.select(desk.detail, [self.seat], self.detail, **scripts.EACH)
        self.tools.submit(desk.near, [self.seat], [self.reading, self.cases], **scripts.EACH)
        self.cases.edit(desk.near, [self.seat], [self.reading, self.cases], **scripts.EACH)
        self.cases.play(desk.beside, [self.seat], self.beside, **scripts.EACH)
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
            values = [self.seat, self.shown, self.look]
            button.click(partial(desk.export, kind), values, self.saved, js=scripts.LOOK, **scripts.QUICK)
