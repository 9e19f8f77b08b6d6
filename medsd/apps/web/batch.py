"""The tab Batch: many files at once, with progress; then their rows, by image or by study, and the table to download.

The rows are those of `medsd score`. Files are moved into a folder of the run as soon as they arrive. They are gone when
a run is stopped, when the next one begins, or `KEPT_S` after its end: until then a row can be opened.
"""

import contextlib
import io
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gradio as gr

from medsd.apps.web import batch_rows, scripts
from medsd.apps.web.batch_rows import DROPPED, STATUS, BatchRow
from medsd.apps.web.export import link
from medsd.apps.web.html import fill
from medsd.apps.web.reading import Reader
from medsd.apps.web.uploads import KEPT_S, MOST_FILES, Uploads, is_regular
from medsd.cases.pictures import encode_thumbnail
from medsd.dicom.policy import GatePolicy
from medsd.errors import DataError, MedsdError
from medsd.preprocessing.archives import read_member, split_member
from medsd.scoring import table
from medsd.scoring.by_study import Studies
from medsd.scoring.inputs import name_inputs

MOST_BYTES = 4_000_000_000
THUMBNAIL_SIDE = 48
_WAITING = '<p class="quiet" role="status">Another batch is being read. Yours begins when it has ended.</p>'
_EVERY_S = 0.5  # between two pictures of the progress
By = Literal["image", "study"]


class BatchFile(NamedTuple):
    """One input of a batch."""

    source: Path  # a file, or ``archive.zip!member``
    number: str  # how the page calls it
    name: str  # how its owner calls it


class BatchRun:
    """A batch: its rows, and for a while its images, in a folder within `home`; belongs to one browser tab."""

    def __init__(self, home: Path | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="medsd-batch-", dir=home, ignore_cleanup_errors=True)
        self._end = threading.Timer(KEPT_S, self._folder.cleanup)
        self._end.daemon = True
        self.folder = Path(self._folder.name)
        self.files: list[BatchFile] = []
        self.rows: list[BatchRow] = []  # of the files that were read, in their order
        self.order: list[int] = []  # places of the rows as they stand on the page

    def keep(self) -> None:
        """Keep the images for `KEPT_S` from now on."""
        self._end.start()

    def close(self) -> None:
        """Delete the images."""
        self._end.cancel()
        self._folder.cleanup()

    def content(self, place: int) -> bytes | None:
        """The bytes of the image of a row; None where they are gone, or there never were any."""
        source = self.files[place].source
        inside = split_member(str(source))
        try:
            return read_member(*inside, GatePolicy(), self.files[place].number) if inside else source.read_bytes()
        except (OSError, MedsdError):
            return None

    def after(self, place: int) -> int | None:
        """The place of the image that stands after another on the page; None after the last."""
        following = self.order[self.order.index(place) + 1 :] if place in self.order else []
        return following[0] if following else None


class BatchDesk:
    """What the tab does, shared by all sessions.

    `uploads` knows the names of the files, and counts what a run keeps on disk; without it files are called as on disk.
    """

    def __init__(self, reader: Reader, uploads: Uploads | None = None) -> None:
        self.reader = reader
        self._uploads = uploads
        self._one = threading.Lock()  # a batch is long: one at a time, and others' studies are read beside it

    def run(self, paths: list[str] | None, before: BatchRun | None) -> Iterator[tuple[Any, ...]]:
        """Score uploads, which are moved away at once; the images of the run `before` are deleted.

        Yields progress and rows as HTML, the run once it has ended, the download, and what becomes of the drop zone.
        """
        if not paths or self.reader.score is None:
            return
        if before is not None:
            before.close()
        run, ended = BatchRun(self._uploads.home if self._uploads else None), False
        try:
            given = [self._take(path, number, run.folder) for number, path in enumerate(paths, 1)]
            yield _progress(len(given), run), None, "", gr.update(value=None)
            try:
                run.files = _unpacked(given)
            except MedsdError as error:
                yield fill("notice", kind="refused", title="Not read", message=str(error)), None, "", gr.skip()
                return
            while not self._one.acquire(timeout=_EVERY_S):
                yield _WAITING, gr.skip(), gr.skip(), gr.skip()
            try:
                for shown in self._score(run):
                    yield shown, gr.skip(), gr.skip(), gr.skip()
            finally:
                self._one.release()
            ended = True
            run.keep()
            yield gr.skip(), run, gr.skip(), gr.skip()
        finally:  # without an end, the visitor left, or the batch was stopped
            if not ended:
                run.close()

    def show(self, run: BatchRun | None, names: bool, by: By, order: str) -> tuple[Any, Any]:
        """The rows of a run, None where none has ended, as HTML, and its table to download.

        With `names`, images are called by the names of their files. `order` is `DROPPED`, `STATUS`, or a finding.
        """
        if run is None:
            return gr.skip(), gr.skip()
        findings, numbers = self.reader.bundle.findings, [row.number for row in run.rows]
        called = {row.number: row.name if names else row.number for row in run.rows}
        rows: list[table.Row] = [row.said for row in run.rows]
        if by == "study":
            rows = list(Studies(self.reader.bundle).rows(lambda: iter(rows)))
        lines = batch_rows.in_order(batch_rows.lines(rows, run.rows, called, findings), order)
        run.order = [numbers.index(image) for line in lines for image in line.images]
        columns = table.study_columns(findings) if by == "study" else table.columns(findings)
        text = io.StringIO()  # opened in a spreadsheet, from strangers' names
        table.write_csv(text, [batch_rows.renamed(row, called) for row in rows], columns, defuse=True)
        saved = link(text.getvalue().encode("utf-8"), "CSV", "medsd-batch.csv", wait=True)
        counts = Counter(row["status"] for row in rows)
        return batch_rows.page(len(rows), counts, lines, called, places=numbers), saved

    def _take(self, path: str, number: int, folder: Path) -> BatchFile:
        """An upload under its number, in the folder of this run; an upload that is not a file becomes a row."""
        name = (self._uploads.name(path) if self._uploads else "") or Path(path).name
        target = folder / f"{number:05d}{'.zip' if name.lower().endswith('.zip') else ''}"
        if is_regular(Path(path)):
            with contextlib.suppress(OSError):  # another request of the same visitor may have read it
                shutil.move(path, target)
        return BatchFile(target, f"Image {number}", name)

    def _score(self, run: BatchRun) -> Iterator[str]:
        assert self.reader.score is not None
        drawn = 0.0
        for file in run.files:
            prediction = self.reader.score(file.source, file.number)
            thumbnail = None if prediction.image is None else encode_thumbnail(prediction.image, THUMBNAIL_SIDE)
            run.rows.append(BatchRow(file.number, file.name, table.row(file.number, prediction), thumbnail))
            if time.monotonic() - drawn > _EVERY_S:
                drawn = time.monotonic()
                yield _progress(len(run.files), run, self.reader)


def _progress(total: int, run: BatchRun, reader: Reader | None = None) -> str:
    """How far a run is, and its latest rows."""
    counts = Counter(row.said["status"] for row in run.rows)
    latest = run.rows[-batch_rows.LATEST :]
    called = {row.number: row.number for row in latest}
    lines = batch_rows.lines([row.said for row in latest], latest, called, reader.bundle.findings) if reader else []
    return batch_rows.page(total, counts, lines, called, done=len(run.rows))


def _unpacked(given: Sequence[BatchFile]) -> list[BatchFile]:
    """The inputs of a batch, archives taken apart; DataError for more than a page should score, or no such archive."""
    size = sum(file.source.stat().st_size for file in given if file.source.exists())
    too_much = "{} are too much for this page, which takes {} at a time; use `medsd score` for more"
    if size > MOST_BYTES:
        raise DataError(too_much.format(f"{size / 1e9:.1f} GB", f"{MOST_BYTES / 1e9:.0f} GB"))
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
        raise DataError(too_much.format(f"{len(files):,} files", MOST_FILES))
    return files


class BatchTab:
    """The components of the tab, and their wiring; `read` opens its rows."""

    def __init__(self, reader: Reader, uploads: Uploads | None = None) -> None:
        desk = BatchDesk(reader, uploads)
        self.run = gr.State(None, time_to_live=KEPT_S, delete_callback=lambda run: run and run.close())
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
                label="Names of the files",
                info="Off: images are numbered in the order of the drop. A file's name may be a patient's.",
                elem_id="batch-names",
            )
            by = gr.Radio([("Image", "image"), ("Study", "study")], value="image", label="A row", elem_id="batch-by")
            orders = [("As dropped", DROPPED), ("Status", STATUS)]
            orders += [(finding.title, finding.name) for finding in reader.bundle.findings.findings]
            order = gr.Dropdown(orders, value=DROPPED, label="Order", elem_id="batch-order", filterable=False)
            stop = gr.Button("Stop", size="sm", elem_id="batch-stop", scale=0, min_width=100)
        saved = scripts.html("", "batch-saved", scripts.SAVE)
        self.rows = scripts.html(
            '<p class="quiet">The rows appear here as the images are read.</p>', "batch-rows", scripts.BUTTONS
        )
        # One batch is read, the others are told that they wait.
        handling = scripts.handling("batch", 16, "once")
        outputs = [self.rows, self.run, saved, self.files]
        running = self.files.upload(desk.run, [self.files, self.run], outputs, **handling)
        stop.click(None, None, None, cancels=[running])
        looks = [self.run, names, by, order]
        running.then(desk.show, looks, [self.rows, saved], **scripts.QUICK)
        for look in looks[1:]:
            look.input(desk.show, looks, [self.rows, saved], **scripts.QUICK)
