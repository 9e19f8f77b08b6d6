"""The tab Batch: many files at once, each a row, with progress, and the table to download.

The rows are those of `medsd score`. Files are moved into a folder of the run as soon as they arrive, and are gone when
the run ends, is stopped, or its visitor leaves; the table is handed over within the answer.
"""

import contextlib
import io
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from medsd.apps.web import scripts
from medsd.apps.web.export import link
from medsd.apps.web.html import fill
from medsd.apps.web.reading import Reader
from medsd.apps.web.uploads import MOST_FILES, Uploads, is_regular
from medsd.errors import DataError, MedsdError
from medsd.inference.prediction import Prediction
from medsd.inference.words import impression
from medsd.scoring import table
from medsd.scoring.inputs import name_inputs

MOST_BYTES = 4_000_000_000
_SHOWN = 200  # rows on the page; the table to download has all
_WAITING = '<p class="quiet" role="status">Another batch is being read. Yours begins when it has ended.</p>'
_EVERY_S = 0.5  # between two pictures of the progress


class BatchFile(NamedTuple):
    """One input of a batch."""

    source: Path  # a file, or ``archive.zip!member``
    number: str  # how the page calls it
    name: str  # how its owner calls it


class BatchDesk:
    """What the tab does, shared by all sessions.

    `uploads` knows the names of the files, and counts what a run keeps on disk; without it files are called as on disk.
    """

    def __init__(self, reader: Reader, uploads: Uploads | None = None) -> None:
        self.reader = reader
        self._uploads = uploads
        self._one = threading.Lock()  # a batch is long: one at a time, and others' studies are read beside it

    def run(self, paths: list[str] | None, names: bool) -> Iterator[tuple[Any, Any, Any]]:
        """Score uploads, which are moved away at once; with `names`, the table to download has the names of the files.

        Yields progress and rows as HTML, the download, and what becomes of the drop zone.
        """
        if not paths or self.reader.score is None:
            return
        home = self._uploads.home if self._uploads else None
        with tempfile.TemporaryDirectory(prefix="medsd-batch-", dir=home, ignore_cleanup_errors=True) as folder:
            given = [self._take(path, number, Path(folder)) for number, path in enumerate(paths, 1)]
            yield _page(len(given), Counter()), "", gr.update(value=None)
            try:
                files = _unpacked(given)
            except MedsdError as error:
                yield fill("notice", kind="refused", title="Not read", message=str(error)), "", gr.skip()
                return
            while not self._one.acquire(timeout=_EVERY_S):
                yield _WAITING, gr.skip(), gr.skip()
            try:
                yield from self._score(files, names)
            finally:
                self._one.release()

    def _take(self, path: str, number: int, folder: Path) -> BatchFile:
        """An upload under its number, in the folder of this run; an upload that is not a file becomes a row."""
        name = (self._uploads.name(path) if self._uploads else "") or Path(path).name
        target = folder / f"{number:05d}{'.zip' if name.lower().endswith('.zip') else ''}"
        if is_regular(Path(path)):
            with contextlib.suppress(OSError):  # another request of the same visitor may have read it
                shutil.move(path, target)
        return BatchFile(target, f"Image {number}", name)

    def _score(self, files: Sequence[BatchFile], names: bool) -> Iterator[tuple[Any, Any, Any]]:
        assert self.reader.score is not None
        rows: list[table.Row] = []
        seen: list[tuple[str, Prediction]] = []
        counts: Counter[str] = Counter()
        drawn = 0.0
        for file in files:
            prediction = self.reader.score(file.source, file.number)
            counts[prediction.status] += 1
            rows.append(table.row(file.name if names else file.number, prediction))
            seen.append((file.number, replace(prediction, image=None, evidence_maps=None, regions=None)))
            if time.monotonic() - drawn > _EVERY_S:
                drawn = time.monotonic()
                yield _page(len(files), counts, seen), gr.skip(), gr.skip()
        text = io.StringIO()  # opened in a spreadsheet, from strangers' names
        table.write_csv(text, rows, table.columns(self.reader.bundle.findings), defuse=True)
        saved = link(text.getvalue().encode("utf-8"), "CSV", "medsd-batch.csv", wait=True)
        yield _page(len(files), counts, seen), saved, gr.skip()


def _unpacked(given: Sequence[BatchFile]) -> list[BatchFile]:
    """The inputs of a batch, archives taken apart; DataError for more than a page should score, or no such archive."""
    size = sum(file.source.stat().st_size for file in given if file.source.exists())
    if size > MOST_BYTES:
        raise _too_much(f"{size / 1e9:.1f} GB", f"{MOST_BYTES / 1e9:.0f} GB")
    files: list[BatchFile] = []
    for file in given:
        if file.source.suffix != ".zip" or not file.source.exists():
            files.append(file)
            continue
        for place, source in enumerate(name_inputs([file.source]).names, 1):
            member = source.partition("!")[2]
            name = f"{file.name}!{member}" if member else file.name
            files.append(BatchFile(Path(source), f"{file.number}.{place}", name))
    if len(files) > MOST_FILES:
        raise _too_much(f"{len(files):,} files", f"{MOST_FILES}")
    return files


def _too_much(given: str, most: str) -> DataError:
    return DataError(f"{given} are too much for this page, which takes {most} at a time; use `medsd score` for more")


def _page(total: int, counts: Counter[str], rows: Sequence[tuple[str, Prediction]] = ()) -> str:
    """Progress, and the rows so far."""
    said = ", ".join(f"{counts[status]} {status}" for status in ("scored", "warned", "refused") if counts[status])
    return fill("batch", done=len(rows), total=total, said=said, rows=rows, most=_SHOWN, impression=impression)


class BatchTab:
    """The components of the tab, and their wiring."""

    def __init__(self, reader: Reader, uploads: Uploads | None = None) -> None:
        desk = BatchDesk(reader, uploads)
        self.files = gr.File(
            label=f"Images: DICOM, PNG, JPEG or ZIP, up to {MOST_FILES} at a time",
            file_count="multiple",
            elem_id="batch-files",
            height=90,
            buttons=[],
        )
        with gr.Row(elem_id="batch-tools"):
            names = gr.Checkbox(
                False,
                label="Names of the files in the table",
                info="Off: images are numbered in the order of the drop. A file's name may be a patient's.",
                elem_id="batch-names",
            )
            stop = gr.Button("Stop", size="sm", elem_id="batch-stop", scale=0, min_width=100)
        saved = scripts.html("", "batch-saved", scripts.SAVE)
        rows = scripts.html('<p class="quiet">The rows appear here as the images are read.</p>', "batch-rows")
        # One batch is read, the others are told that they wait.
        handling = scripts.handling("batch", 16, "once")
        running = self.files.upload(desk.run, [self.files, names], [rows, saved, self.files], **handling)
        stop.click(None, None, None, cancels=[running])
