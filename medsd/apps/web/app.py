"""The page: its tabs, put together.

Only `medsd.apps.web.server` should import this module: importing Gradio takes seconds.
"""

from pathlib import Path

import gradio as gr

from medsd.apps.web import card, markup, scripts
from medsd.apps.web.batch import BatchTab
from medsd.apps.web.pins import Board
from medsd.apps.web.read import ReadTab
from medsd.apps.web.reading import Reader
from medsd.apps.web.search import SearchTab
from medsd.apps.web.space import SpaceTab
from medsd.apps.web.uploads import Uploads

STYLES = [Path(__file__).with_name(f"{name}.css") for name in ("viewer", "cases", "style")]


def build_page(reader: Reader, uploads: Uploads | None = None) -> gr.Blocks:
    """The whole app, ready to launch; `uploads` are the files that the page is sent, None where no server runs."""
    bundle = reader.bundle
    with gr.Blocks(title=f"medsd · {bundle.label}", fill_width=True) as page:
        scripts.html(markup.header(bundle, reader.provider, reader.precision), "header", scripts.HEADER)
        board = Board(reader)
        with gr.Tabs() as tabs:
            with gr.Tab("Read", id="read"):
                read = ReadTab(reader, board)
            if reader.index is not None:
                with gr.Tab("Findings search"):
                    SearchTab(reader, board)
                with gr.Tab("Space") as space:
                    SpaceTab(reader, space, read.reading)
            if reader.score is not None:
                with gr.Tab("Batch"):
                    read.open_from(BatchTab(reader, uploads), tabs)
            with gr.Tab("Model"):
                scripts.html(card.summary(bundle, 0 if reader.index is None else len(reader.index)), "summary")
                scripts.html(card.facts(bundle, reader.provider, reader.precision), "facts")
                whole = f'<div class="wide" role="region" aria-label="Card" tabindex="0">{card.card_html(bundle)}</div>'
                gr.HTML(whole, elem_id="card", js_on_load=None)
        board.show()
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
