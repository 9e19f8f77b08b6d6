"""The page: Gradio components, and what happens when a person uses them. `build_page` puts both together.

`Desk` holds the handlers. They are plain methods that take and return values, so tests call them without a browser;
whatever belongs to one person is in `gr.State`, never in the desk. Only `apps.web.server` should import this module:
importing Gradio takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from apps.web import card, markup
from apps.web.reading import MAX_NOTE, Reader, Reading
from apps.web.render import PRESETS, Preset, Window, preset_window

STYLE = Path(__file__).with_name("style.css")
Update = Any  # a value, or gr.update(...) / gr.skip()
_SET_OPACITY = "(percent) => { document.documentElement.style.setProperty('--opacity', percent / 100) }"
# The middle of what is seen stays in the middle.
_SET_ZOOM = """(times) => {
  const film = document.querySelector('#film');
  const x = (film.scrollLeft + film.clientWidth / 2) / film.scrollWidth;
  const y = (film.scrollTop + film.clientHeight / 2) / film.scrollHeight;
  document.documentElement.style.setProperty('--zoom', times);
  film.scrollLeft = x * film.scrollWidth - film.clientWidth / 2;
  film.scrollTop = y * film.scrollHeight - film.clientHeight / 2;
}"""
# A zoomed film is moved by dragging it; touch and keyboard scroll it without help. A file that is dropped beside the
# drop zone, most likely on the reading area, is read too: a browser would leave the page and show the file.
_FILM_SCRIPT = """
const film = element.closest('#film') || element;
window.addEventListener('dragover', (event) => event.preventDefault());
window.addEventListener('drop', (event) => {
  if (event.target.closest('#upload')) return;
  event.preventDefault();
  const input = document.querySelector('#upload input[type=file]');
  if (!input || !event.dataTransfer.files.length) return;
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event('change', {bubbles: true}));
});
film.addEventListener('pointerdown', (down) => {
  if (down.pointerType !== 'mouse' || down.button !== 0) return;
  const left = film.scrollLeft + down.clientX, top = film.scrollTop + down.clientY;
  const move = (event) => { film.scrollLeft = left - event.clientX; film.scrollTop = top - event.clientY; };
  window.addEventListener('pointermove', move);
  window.addEventListener('pointerup', () => window.removeEventListener('pointermove', move), {once: true});
});
"""
# A row of the table speaks for its finding; everything else about the table is plain HTML.
_CHOOSE_FINDING = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-finding]');
  if (button) trigger('select', {finding: button.dataset.finding});
});
"""


class Scene(NamedTuple):
    """New values of the components of the reading tab, by their names in `_Page`; what is left out stays as it is."""

    film: Update
    notice: Update
    findings: Update
    cases: Update
    note: Update = gr.skip()
    upload: Update = gr.skip()
    reading: Update = gr.skip()
    content: Update = gr.skip()
    shown: Update = gr.skip()
    preset: Update = gr.skip()
    level: Update = gr.skip()
    width: Update = gr.skip()
    inverted: Update = gr.skip()
    zoom: Update = gr.skip()
    controls: Update = gr.skip()


class Desk:
    """What the page does.

    Args:
        reader: reads studies; shared by all sessions.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._points = dict(reader.bundle.description.operating_points)

    def read_upload(self, path: str | None, note: str | None) -> Iterator[Scene]:
        """Read a dropped file. Its copy on the server is deleted as soon as its bytes are in memory."""
        if path is None:
            return
        uploaded = Path(path)
        try:
            content = uploaded.read_bytes()
        except OSError:
            gr.Warning("The upload did not arrive whole. Drop the file again.")
            return
        finally:
            uploaded.unlink(missing_ok=True)
        yield from self._read(content, note)

    def read_example(self, position: int) -> Iterator[Scene]:
        """Read a film that ships with the bundle, with its note."""
        example = self.reader.examples[position]
        note = example.note if self.reader.takes_notes else ""
        yield from self._read(example.path.read_bytes(), note)

    def read_again(self, content: bytes | None, note: str | None) -> Iterator[Scene]:
        """Read the film at hand once more, or the note alone where there is none."""
        if content is None and not (note or "").strip():
            gr.Warning("There is nothing to read yet: drop a film, or write a note.")
            return
        yield from self._read(content, note)

    def _read(self, content: bytes | None, note: str | None) -> Iterator[Scene]:
        """A busy page first, then the reading."""
        busy = (markup.busy_film(), "", markup.busy_findings(), markup.busy_cases())
        # The drop zone is emptied at once: the name of a file may be a patient's.
        yield Scene(*busy, note=note, upload=None)
        reading = self.reader.read(content, note or "")  # a hidden textbox says None
        shown = reading.ranked[0] if reading.ranked and reading.prediction.evidence_maps is not None else None
        yield Scene(
            markup.film(reading, Window(), shown),
            markup.notice(reading),
            markup.findings(reading, self._points, shown),
            markup.cases(reading),
            reading=reading,
            content=content if self.reader.takes_notes else None,  # only a note is a reason to read a film twice
            shown=shown,
            preset=PRESETS[0],
            level=50,
            width=100,
            inverted=False,
            zoom=1,
            controls=gr.update(visible=reading.display is not None),
        )

    def window(
        self, reading: Reading | None, level: float, width: float, inverted: bool, zoom: float, shown: str | None
    ) -> str:
        """The film under a window. Level and width are in percent of the grey scale."""
        return markup.film(reading, Window(level / 100, width / 100, inverted), shown, zoom)

    def slide(self, reading: Reading | None, *look: Any) -> tuple[str, None]:
        """The film after level or width moved, and no preset any more. `look` is as in `window`."""
        return self.window(reading, *look), None

    def zoom(self, reading: Reading | None, *look: Any) -> Update:
        """The film in the detail of its zoom, where it has more than the page shows. `look` is as in `window`."""
        return self.window(reading, *look) if reading is not None and reading.has_detail else gr.skip()

    def preset(
        self, reading: Reading | None, preset: Preset, inverted: bool, zoom: float, shown: str | None
    ) -> tuple[str, Update, Update]:
        """The film under a preset window, and where the sliders stand then."""
        if reading is None or reading.display is None:
            return markup.film(reading, Window(), shown), gr.skip(), gr.skip()
        window = preset_window(preset, reading.display, inverted=inverted)
        return markup.film(reading, window, shown, zoom), round(window.level * 100, 1), round(window.width * 100, 1)

    def choose(
        self, reading: Reading | None, level: float, width: float, inverted: bool, zoom: float, event: gr.EventData
    ) -> tuple[str, str, Update]:
        """Film and table after another finding was chosen by its row."""
        name = str(event._data.get("finding", ""))
        if reading is None or name not in reading.ranked:
            return gr.skip(), gr.skip(), gr.skip()
        film = self.window(reading, level, width, inverted, zoom, name)
        return film, markup.findings(reading, self._points, name), name


class _Page:
    """The components of the reading tab, and their wiring."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.reading = gr.State(None, time_to_live=3600)
        self.content = gr.State(None, time_to_live=3600)
        self.shown = gr.State(None, time_to_live=3600)  # the finding whose evidence lies over the film
        with gr.Row(elem_id="desk", equal_height=False):  # style.css makes it a grid: the film left, the rest right
            with gr.Column(elem_id="viewer", min_width=0):
                self._viewer()
            with gr.Column(elem_id="intake", min_width=0):
                self._intake()
            with gr.Column(elem_id="results", min_width=0):
                self._results()
        self.cases = gr.HTML(markup.cases(None), elem_id="cases", js_on_load=None, apply_default_css=False)
        self._wire()

    def _viewer(self) -> None:
        self.film = gr.HTML(markup.film(None, Window(), None), elem_id="film", js_on_load=_FILM_SCRIPT)
        with gr.Column(elem_id="controls", visible=False) as self.controls:
            with gr.Row(elem_classes="tools"):
                self.preset = gr.Radio(list(PRESETS), value=PRESETS[0], label="Window", elem_id="preset")
                self.inverted = gr.Checkbox(False, label="Invert", elem_id="invert", container=False, scale=0)
            with gr.Row(elem_classes="tools"):
                self.level = gr.Slider(0, 100, 50, step=0.5, label="Level %", buttons=[], min_width=100)
                self.width = gr.Slider(1, 150, 100, step=0.5, label="Width %", buttons=[], min_width=100)
                self.zoom = gr.Slider(1, 4, 1, step=0.1, label="Zoom ×", buttons=[], min_width=100)
                self.opacity = gr.Slider(0, 100, 40, step=5, label="Evidence %", buttons=[], min_width=100)

    def _intake(self) -> None:
        takes_notes = self.desk.reader.takes_notes
        # Any file name is taken, because DICOM files often have no ending: the content decides what is read.
        self.upload = gr.File(label="Film: DICOM, PNG or JPEG", elem_id="upload", height=76, buttons=[])
        with gr.Column(elem_id="note-box", visible=takes_notes):
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
        if self.desk.reader.examples:
            with gr.Row(elem_id="examples"):
                gr.HTML('<span class="label">Examples</span>', elem_id="examples-label", js_on_load=None, scale=0)
                self.examples = [
                    gr.Button(example.title, size="sm", min_width=80) for example in self.desk.reader.examples
                ]

    def _results(self) -> None:
        self.notice = gr.HTML("", elem_id="notice", js_on_load=None)
        self.findings = gr.HTML(
            markup.findings(None, {}, None), elem_id="findings", js_on_load=_CHOOSE_FINDING, apply_default_css=False
        )

    def _wire(self) -> None:
        reading: dict[str, Any] = {
            "outputs": [getattr(self, name) for name in Scene._fields],
            "show_progress": "hidden",
            "concurrency_limit": 2,
            "concurrency_id": "read",
            "api_visibility": "private",
        }
        desk = self.desk
        self.upload.upload(desk.read_upload, [self.upload, self.note], **reading)
        self.again.click(desk.read_again, [self.content, self.note], **reading)
        for position, button in enumerate(self.examples):
            button.click(partial(desk.read_example, position), None, **reading)
        self._wire_viewer()

    def _wire_viewer(self) -> None:
        quick: dict[str, Any] = {
            "show_progress": "hidden",
            "concurrency_limit": 4,
            "concurrency_id": "look",
            "trigger_mode": "always_last",
            "api_visibility": "private",
        }
        desk, look = self.desk, [self.reading, self.level, self.width, self.inverted, self.zoom, self.shown]
        for slider in (self.level, self.width):
            slider.input(desk.slide, look, [self.film, self.preset], **quick)
        self.inverted.input(desk.window, look, self.film, **quick)
        self.preset.input(
            desk.preset,
            [self.reading, self.preset, self.inverted, self.zoom, self.shown],
            [self.film, self.level, self.width],
            **quick,
        )
        self.findings.select(desk.choose, look[:-1], [self.film, self.findings, self.shown], **quick)
        self.opacity.change(None, self.opacity, None, js=_SET_OPACITY)
        self.zoom.change(None, self.zoom, None, js=_SET_ZOOM)
        self.zoom.change(desk.zoom, look, self.film, **quick)


def build_page(reader: Reader, *, delete_cache: tuple[int, int] = (600, 1800)) -> gr.Blocks:
    """The whole app, ready to launch.

    Args:
        reader: reads studies.
        delete_cache: seconds between two sweeps of uploaded files, and the age at which one goes.
    """
    bundle = reader.bundle
    with gr.Blocks(title=f"medsd · {bundle.label}", fill_width=True, delete_cache=delete_cache) as page:
        gr.HTML(markup.header(bundle, reader.provider), elem_id="header", js_on_load=None, apply_default_css=False)
        with gr.Tabs():
            with gr.Tab("Read"):
                _Page(Desk(reader))
            with gr.Tab("Model"):
                gr.HTML(card.facts(bundle, reader.provider), elem_id="facts", js_on_load=None, apply_default_css=False)
                gr.Markdown(card.card_text(bundle), elem_id="card")
    return page


def theme() -> gr.themes.Base:
    """Calm greys and one blue, in the fonts of the system: no font is fetched from anywhere."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    return gr.themes.Base(
        primary_hue="sky",
        neutral_hue="slate",
        radius_size="sm",
        spacing_size="sm",
        text_size="md",
        font=sans,
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )
