"""The tab Batch: many files at once, each a row, with progress, and the table to download.

The rows are those of `medsd score`. Files are moved into a folder of the run as soon as they arrive, and are gone when
the run ends, is stopped, or its visitor leaves; the table is handed over within the answer.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from medsd.apps.web import scripts
from medsd.apps.web.export import link
from medsd.apps.web.markup import percent
from medsd.apps.web.reading import Reader
from medsd.apps.web.uploads import MOST_FILES, Uploads, is_regular
from medsd.errors import DataError, MedsdError
from medsd.findings import FindingSet
from medsd.inference.prediction import Prediction
from medsd.scoring import table
from medsd.scoring.inputs import name_inputs

MOST_BYTES = 4_000_000_000
_SHOWN = 200  # rows on the page; the table to download has all
_WAITING = '<p class="quiet" role="status">Another batch is being read. Yours begins when it has ended.</p>'
_EVERY_S = 0.5  # between two pictures of the progress


class Film(NamedTuple):
    """One input of a batch.

    Attributes:
        source: what is read: a file, or ``archive.zip!member``.
        number: how the page calls it.
        name: how its owner calls it.
    """

    source: Path
    number: str
    name: str


class BatchDesk:
    """What the tab does.

    Args:
        reader: scores one file after another; shared by all sessions.
        uploads: knows the names of the files, and counts what a run keeps on disk; None: files are called as on disk.
    """

    def __init__(self, reader: Reader, uploads: Uploads | None = None) -> None:
        self.reader = reader
        self._uploads = uploads
        self._one = threading.Lock()  # a batch is long: one at a time, and others' films are read beside it

    def run(self, paths: list[str] | None, names: bool) -> Iterator[tuple[Any, Any, Any]]:
        """Score what was dropped.

        Args:
            paths: the visitor's uploads, which are moved away at once.
            names: whether the table to download names the files; a name may be a patient's.

        Yields:
            progress and rows as HTML, the download, and what becomes of the drop zone.
        """
        if not paths or self.reader.score is None:
            return
        home = self._uploads.home if self._uploads else None
        with tempfile.TemporaryDirectory(prefix="medsd-batch-", dir=home, ignore_cleanup_errors=True) as folder:
            given = [self._take(path, number, Path(folder)) for number, path in enumerate(paths, 1)]
            yield _progress(0, len(given), Counter()), "", gr.update(value=None)
            try:
                films = _films(given)
            except MedsdError as error:
                yield _refusal(str(error)), "", gr.skip()
                return
            yield from self._wait()
            try:
                yield from self._score(films, names)
            finally:
                self._one.release()

    def _take(self, path: str, number: int, folder: Path) -> Film:
        """An upload under its number, in a folder that nobody else is served from; what is no file becomes a row."""
        name = (self._uploads.name(path) if self._uploads else "") or Path(path).name
        target = folder / f"{number:05d}{'.zip' if name.lower().endswith('.zip') else ''}"
        if is_regular(Path(path)):
            with contextlib.suppress(OSError):  # another request of the same visitor may have read it
                shutil.move(path, target)
        return Film(target, f"Film {number}", name)

    def _wait(self) -> Iterator[tuple[Any, Any, Any]]:
        """Take the turn; says so while somebody else has it."""
        while not self._one.acquire(timeout=_EVERY_S):
            yield _WAITING, gr.skip(), gr.skip()

    def _score(self, films: Sequence[Film], names: bool) -> Iterator[tuple[Any, Any, Any]]:
        findings, rows, seen = self.reader.bundle.findings, [], []
        counts: Counter[str] = Counter()
        drawn = 0.0
        for done, film in enumerate(films, 1):
            assert self.reader.score is not None
            prediction = self.reader.score(film.source, film.number)
            counts[prediction.status] += 1
            rows.append(table.row(film.name if names else film.number, prediction))
            seen.append(_row(film.number, prediction))
            if time.monotonic() - drawn > _EVERY_S or done == len(films):
                drawn = time.monotonic()
                yield _progress(done, len(films), counts) + _table(seen), gr.skip(), gr.skip()
        saved = link(_csv(rows, findings), "CSV", "medsd-batch.csv", wait=True)
        yield _progress(len(films), len(films), counts) + _table(seen), saved, gr.skip()


def _films(given: Sequence[Film]) -> list[Film]:
    """The inputs of a batch, archives taken apart.

    Raises:
        DataError: an archive that cannot be listed, or more than a page should score.
    """
    size = sum(film.source.stat().st_size for film in given if film.source.exists())
    if size > MOST_BYTES:
        raise _too_much(f"{size / 1e9:.1f} GB", f"{MOST_BYTES / 1e9:.0f} GB")
    films: list[Film] = []
    for film in given:
        if film.source.suffix != ".zip" or not film.source.exists():
            films.append(film)
            continue
        for place, source in enumerate(name_inputs([film.source]).names, 1):
            member = source.partition("!")[2]
            films.append(Film(Path(source), f"{film.number}.{place}", f"{film.name}!{member}" if member else film.name))
    if len(films) > MOST_FILES:
        raise _too_much(f"{len(films):,} files", f"{MOST_FILES}")
    return films


def _too_much(given: str, most: str) -> DataError:
    return DataError(f"{given} are too much for this page, which takes {most} at a time; use `medsd score` for more")


def _csv(rows: Sequence[table.Row], findings: FindingSet) -> bytes:
    text = io.StringIO()
    table.write_csv(text, rows, table.columns(findings), defuse=True)  # opened in a spreadsheet, from strangers' names
    return text.getvalue().encode("utf-8")


def _refusal(sentence: str) -> str:
    return f'<div class="notice refused" role="alert"><strong>Not read.</strong> <span>{escape(sentence)}</span></div>'


def _progress(done: int, total: int, counts: Counter[str]) -> str:
    said = ", ".join(f"{counts[status]} {status}" for status in ("scored", "warned", "refused") if counts[status])
    words = f"{done} of {total}" + (f": {said}" if said else "")
    return (
        f'<div class="progress"><progress max="{max(total, 1)}" value="{done}" aria-label="Films read"></progress>'
        f'<span role="status">{words}</span></div>'
    )


def _row(number: str, prediction: Prediction) -> str:
    if prediction.refused:
        found = f'<span class="why">{escape(prediction.message)}</span>'
    else:
        said = sorted(((prediction.probabilities[name], name) for name in prediction.present), reverse=True)
        title = prediction.findings.title
        found = " ".join(f'<span class="chip">{escape(title(name))} {percent(value)}</span>' for value, name in said)
        found = found or f'<span class="quiet">{escape(prediction.called())}</span>'
    return (
        f'<tr class="{prediction.status}"><th scope="row">{escape(number)}</th><td>{prediction.status}</td>'
        f"<td>{found}</td></tr>"
    )


def _table(rows: Sequence[str]) -> str:
    more = f'<p class="quiet">The last {_SHOWN} of {len(rows)}; the table has all.</p>' if len(rows) > _SHOWN else ""
    return (
        '<table class="batch"><caption>Films</caption><thead><tr><th scope="col">Film</th><th scope="col">Status</th>'
        f'<th scope="col">Called present, or why not read</th></tr></thead><tbody>{"".join(rows[-_SHOWN:])}</tbody>'
        f"</table>{more}"
    )


class BatchTab:
    """The components of the tab, and their wiring.

    Args:
        reader: scores.
        uploads: as in `BatchDesk`.
    """

    def __init__(self, reader: Reader, uploads: Uploads | None = None) -> None:
        desk = BatchDesk(reader, uploads)
        self.files = gr.File(
            label=f"Films: DICOM, PNG, JPEG or ZIP, up to {MOST_FILES} at a time",
            file_count="multiple",
            elem_id="batch-files",
            height=90,
            buttons=[],
        )
        with gr.Row(elem_id="batch-tools"):
            names = gr.Checkbox(
                False,
                label="Names of the files in the table",
                info="Off: films are numbered in the order of the drop. A file's name may be a patient's.",
                elem_id="batch-names",
            )
            stop = gr.Button("Stop", size="sm", elem_id="batch-stop", scale=0, min_width=100)
        saved = gr.HTML("", elem_id="batch-saved", js_on_load=scripts.SAVE, apply_default_css=False)
        rows = gr.HTML(
            '<p class="quiet">The rows appear here as the films are read.</p>',
            elem_id="batch-rows",
            js_on_load=None,
            apply_default_css=False,
        )
        running = self.files.upload(
            desk.run,
            [self.files, names],
            [rows, saved, self.files],
            show_progress="hidden",
            concurrency_limit=16,  # one is read, the others are told that they wait
            concurrency_id="batch",
            api_visibility="private",
        )
        stop.click(None, None, None, cancels=[running])
