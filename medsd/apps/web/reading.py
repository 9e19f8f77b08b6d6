"""One study on the page (`Reading`, in the state of one tab), and what reads it (`Reader`, shared by all sessions).

No file name, header value or note is logged here.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from medsd.apps.web.examples import offered
from medsd.apps.web.near import Near, Wanted, in_box, like_case
from medsd.bundle.layout import Bundle
from medsd.cases.case import CaseFilter
from medsd.errors import DataError, MedsdError
from medsd.inference.coverage import recalled
from medsd.inference.prediction import Prediction
from medsd.preprocessing.notes import MAX_NOTE
from medsd.results.render import (
    DETAIL_SIDE,
    DISPLAY_SIDE,
    PREVIEW_SIDE,
    GreyImage,
    evidence_uri,
    fit_side,
    likeness_share,
)

if TYPE_CHECKING:
    import pandas as pd

    from medsd.apps.web.feedback import FeedbackFolder, Opinion
    from medsd.cases.ask import Answer, Question
    from medsd.cases.case import SimilarCase
    from medsd.cases.index import CaseIndex
    from medsd.cases.pictures import PictureFolder
    from medsd.cases.vote import FindingVote
    from medsd.preprocessing.image import DecodedImage

log = logging.getLogger(__name__)

NEAREST = 8
ALIKE_S = 0.8  # images of cases are read for so long, nearest first; the rest are the next time that they are near
CASES_KEPT = 256  # images of cases, some 40 KB each, whose regions are remembered
_UNREADABLE = "This file could not be read. Export the radiograph again as DICOM, PNG or JPEG."


@dataclass(frozen=True)
class Wish:
    """How a person wants a study to be read."""

    coverage: float | None = None  # None for calls at the operating points, a share for conformal ones
    filters: CaseFilter = field(default_factory=CaseFilter)  # which cases may stand beside it


@dataclass(frozen=True)
class Reading:
    """One study on the page."""

    prediction: Prediction  # refused where the image must not be read
    display: GreyImage | None = field(default=None, repr=False)  # at the size of the page, float32 (h, w) in 0…1
    cases: tuple[SimilarCase, ...] = ()  # the nearest earlier ones, nearest first
    pictures: tuple[bytes | None, ...] = field(default=(), repr=False)  # of each case
    # What each place of the image of each case adds to the likeness, as a layer over the picture (a data URI); None
    # where the image is not at hand, or there was no time left to read it.
    alike: tuple[str | None, ...] = field(default=(), repr=False)
    no_cases: str = ""  # why there are none
    votes: tuple[FindingVote, ...] = ()  # what the nearest cases say of each finding, whatever the filters
    near: Near | None = None  # other cases that stand in the place of the nearest ones
    opinions: Mapping[str, Opinion] = field(default_factory=dict)  # what the person said of findings, by name
    note: str = field(default="", repr=False)  # what was read with the image, or alone
    read: str = ""  # when, UTC, ISO 8601
    key: str = field(default_factory=partial(token_hex, 8))  # tells its image from others in the browser
    stage: Literal["image", "findings", "whole"] = "whole"  # how far it was read: "whole" is with its cases

    @property
    def every_pixel(self) -> GreyImage | None:
        """The image (h, w) for zooming in; None where it has no more pixels than the page shows."""
        image = self.prediction.image
        return None if image is None or image is self.display else fit_side(image, DETAIL_SIDE)

    @property
    def ranked(self) -> tuple[str, ...]:
        """The findings, most probable first, those that were not trained last; empty when refused."""
        return self.prediction.ranked


Begun = tuple["DecodedImage", Reading | None]  # an image, and what the page shows of it first


@dataclass(frozen=True)
class CaseImage:
    """What is kept of the image of a case: regions and how it became the model's square, and its height and width."""

    prediction: Prediction
    shape: tuple[int, ...]


class Reader:
    """The bundle, its predictor and its cases, ready to read studies; threads may share one.

    Args:
        bundle: the opened bundle.
        predict: ``predict(content, note) -> Prediction``, usually a `medsd.inference.predict.Predictor`.
        index: the cases, or None where the bundle has none.
        pictures: the images of the cases, where the person who runs the app holds them; they win over thumbnails.
        provider, precision: the execution provider in use and the numbers it computes with, for display.
        score: ``score(path, name) -> Prediction`` for the files of a batch, one after another; None: no batches.
        feedback: where opinions are kept; None: they are not asked for.
        decode: ``decode(content, name) -> DecodedImage``, whose image is shown before `predict` reads it; None:
            `predict` decodes the content itself.
    """

    def __init__(
        self,
        bundle: Bundle,
        predict: Callable[..., Prediction],
        index: CaseIndex | None = None,
        pictures: PictureFolder | None = None,
        provider: str = "",
        precision: str = "",
        score: Callable[[Path, str], Prediction] | None = None,
        feedback: FeedbackFolder | None = None,
        decode: Callable[[bytes, str], DecodedImage] | None = None,
    ) -> None:
        self.bundle, self.index, self.score, self.feedback = bundle, index, score, feedback
        self.provider, self.precision = provider, precision
        self.examples = offered(bundle, pictures)
        self._predict, self._pictures, self._decode = predict, pictures, decode
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="begin")
        self._read_case = lru_cache(maxsize=CASES_KEPT)(self._read_case_image)

    @property
    def takes_notes(self) -> bool:
        return self.bundle.description.note is not None

    def read(self, content: bytes | None, note: str = "", wish: Wish | None = None) -> Reading:
        """The last of `stages`."""
        *_, whole = self.stages(content, note, wish)
        return whole

    def begin(self, content: bytes | None) -> Future[Begun] | None:
        """Begin to decode an image, for the call of `stages` that is to come; None where there is nothing to decode."""
        return None if content is None or self._decode is None else self._threads.submit(self._look, content)

    def stages(
        self, content: bytes | None, note: str = "", wish: Wish | None = None, begun: Future[Begun] | None = None
    ) -> Iterator[Reading]:
        """One study as it is read: the image, the findings, and the whole with its cases; all have one key.

        Bad input and failures become a refused reading with one sentence, never an exception.

        Args:
            content: the bytes of a DICOM, PNG or JPEG file, or None for the note alone.
            note: the clinical note.
            wish: coverage of the calls, filters of the cases.
            begun: what `begin` gave for this content; where it is cancelled there are no stages.
        """
        wish, seen = wish or Wish(), None
        if len(note) > MAX_NOTE:
            yield self._refused(f"The note has {len(note):,} characters; at most {MAX_NOTE:,} are read. Shorten it.")
            return
        try:
            source: Any = content
            if content is not None and self._decode is not None:
                source, seen = self._look(content) if begun is None else begun.result()
            if seen is not None:
                yield seen
            prediction = recalled(self._predict(source, note or None), self.bundle, wish.coverage)
        except CancelledError:
            return
        except MedsdError as error:
            yield self._refused(str(error))
            return
        except Exception as error:
            # The message of a foreign exception may quote the file: only its type is safe to log.
            log.error("a study could not be read: %s", type(error).__name__)
            yield self._refused(_UNREADABLE)
            return
        if seen is None:
            display = None if prediction.image is None else fit_side(prediction.image, DISPLAY_SIDE)
            reading = Reading(prediction, display, note=note, read=_now())
        else:
            reading = replace(seen, prediction=prediction, note=note, read=_now())
        if not prediction.refused and self.index is not None:
            yield replace(reading, stage="findings")
        yield self._with_cases(replace(reading, stage="whole"), wish.filters)

    def _look(self, content: bytes) -> Begun:
        """The image, and the reading of it alone; None where it was refused."""
        assert self._decode is not None
        image = self._decode(content, "")
        if image.display is None:
            return image, None
        said = Prediction(
            self.bundle.findings,
            "scored",
            image=image.display,
            spacing_mm=image.spacing_mm,
            spacing_from=image.spacing_from,
            ends=image.ends,
        )
        return image, Reading(said, fit_side(image.display, DISPLAY_SIDE), stage="image")

    def again(self, reading: Reading, wish: Wish) -> Reading:
        """The same study with other calls or other cases beside it; the model is not asked again."""
        prediction = recalled(reading.prediction, self.bundle, wish.coverage)
        read, near = self._with_cases(replace(reading, prediction=prediction, near=None), wish.filters), reading.near
        if near is not None:
            with suppress(MedsdError):
                return self.near(read, near.of, wish.filters)
        return read

    def near(self, reading: Reading, of: Wanted, filters: CaseFilter) -> Reading:
        """The study with other cases beside it: alike in a box of its image, or like one of those that stand there.

        A `MedsdError` is in words for the person who asked.
        """
        with _searching():
            if len(of) == 4:
                near = in_box(self._cases(), reading.prediction, of, filters, NEAREST)
            else:
                near = like_case(self._cases(), of, filters, NEAREST)
        if not near.cases:
            raise DataError("No other case is left to compare with: widen the filters.")
        return replace(reading, near=replace(near, pictures=tuple(map(self.picture, near.cases))))

    def original(self, case: SimilarCase) -> GreyImage | None:
        """Every pixel of the image of a case, up to `DETAIL_SIDE`; None where it is not in the person's own folder."""
        path = self._pictures.path(case.case.study_key) if self._pictures else None
        pixels = _own_pixels(path) if path else None
        return None if pixels is None else fit_side(pixels, DETAIL_SIDE)

    def find(self, question: Question) -> Answer:
        """The cases that fit findings or a sentence; a `MedsdError` is in words for the person who asked."""
        from medsd.cases.ask import ask

        with _searching():
            return ask(self._cases(), question, lambda: self._predict if self.takes_notes else None)  # type: ignore[arg-type, return-value]

    def matches(self, answer: Answer) -> pd.DataFrame:
        """All studies that an answer is of, as a table (`CaseIndex.matches`); a `MedsdError` is for the person."""
        with _searching():
            return self._cases().matches(answer.query, filters=answer.filters)

    def opine(self, reading: Reading, finding: str, opinion: Opinion | None, user: str = "") -> None:
        """Keep what a person says of a finding, None to take it back; a `DataError` where it cannot be kept."""
        if self.feedback is None:
            raise DataError("no feedback is kept here; start the app with --feedback FOLDER")
        self.feedback.add(reading.prediction, finding, opinion, reader=user)

    def picture(self, case: SimilarCase) -> bytes | None:
        """The image of a case: from the person's own folder, else the thumbnail of the index."""
        path = self._pictures.path(case.case.study_key) if self._pictures else None
        return (case_picture(path) if path else None) or case.case.thumbnail

    def _with_cases(self, reading: Reading, filters: CaseFilter) -> Reading:
        if reading.prediction.refused:
            return reading
        cases: tuple[SimilarCase, ...] = ()
        votes: tuple[FindingVote, ...] = ()
        try:
            with _searching():
                cases = tuple(self._cases().similar(reading.prediction, k=NEAREST, filters=filters or None))
                votes = self._cases().vote(reading.prediction)  # its thresholds were chosen without filters
            why_not = "" if cases else "No earlier case is left to compare with: widen the filters."
        except MedsdError as error:
            cases, why_not = (), str(error)
        pictures = tuple(self.picture(case) for case in cases)
        end = time.monotonic() + ALIKE_S
        alike = tuple(self._alike(reading.prediction, case) if time.monotonic() < end else None for case in cases)
        return replace(reading, cases=cases, pictures=pictures, alike=alike, no_cases=why_not, votes=votes)

    def _alike(self, prediction: Prediction, case: SimilarCase) -> str | None:
        """The layer over the case's own image."""
        if prediction.embedding is None or prediction.regions is None:  # a note
            return None
        path = self._pictures.path(case.case.study_key) if self._pictures else None
        image = self._read_case(path, None if path else case.case.thumbnail)
        if image is None:
            return None
        try:
            return evidence_uri(likeness_share(image.prediction, prediction.embedding, image.shape))
        except DataError:
            return None

    def _read_case_image(self, path: Path | None, thumbnail: bytes | None) -> CaseImage | None:
        """What the model says of a case's image: of the person's own file, else of a thumbnail that is fine enough."""
        least = self.bundle.description.pixels.size
        try:
            content = path.read_bytes() if path else thumbnail and thumbnail_image(thumbnail, least)
            if not content:
                return None
            said = self._predict(content, None)
        except Exception as error:  # the case stays, without this layer
            log.warning("the image of a case could not be read: %s", type(error).__name__)
            return None
        if said.regions is None or said.image is None:
            return None
        return CaseImage(replace(said, image=None, evidence_maps=None), said.image.shape)

    def _cases(self) -> CaseIndex:
        if self.index is None:
            raise DataError("This model ships without earlier cases.")
        return self.index

    def _refused(self, message: str) -> Reading:
        prediction = Prediction(self.bundle.findings, "refused", "not_read", message, model=self.bundle.label)
        return Reading(prediction, read=_now())


@contextmanager
def _searching() -> Iterator[None]:
    """Turn a failure into one sentence; the message of a foreign exception may quote what was asked."""
    try:
        yield
    except MedsdError:
        raise
    except Exception as error:
        log.error("the cases could not be searched: %s", type(error).__name__)
        raise DataError("The earlier cases could not be searched. Check the case index with `medsd similar`.") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@lru_cache(maxsize=256)
def case_picture(path: Path) -> bytes | None:
    """The image of a case as a WebP of at most `PREVIEW_SIDE` px; None where it cannot be read."""
    from medsd.cases.pictures import encode_thumbnail

    pixels = _own_pixels(path)
    return None if pixels is None else encode_thumbnail(pixels, PREVIEW_SIDE)


def _own_pixels(path: Path) -> GreyImage | None:
    """The image (H, W) of a case in 0…1; None where it cannot be read."""
    from medsd.dicom.read import read_radiograph

    try:
        return read_radiograph(path).pixels
    except (OSError, MedsdError) as error:
        log.warning("the picture of a case could not be read: %s", type(error).__name__)
        return None


def thumbnail_image(thumbnail: bytes, least: int) -> bytes | None:
    """A thumbnail as the PNG that a predictor reads; None where its shorter side is below `least` pixels."""
    try:
        picture = Image.open(io.BytesIO(thumbnail), formats=("WEBP",))
        if min(picture.size) < least:
            return None
        buffer = io.BytesIO()
        picture.convert("L").save(buffer, "PNG", compress_level=1)
    except (OSError, ValueError):
        return None
    return buffer.getvalue()
