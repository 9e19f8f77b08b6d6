"""Score many files into one table: one row an input, whatever happens to it.

Images are decoded ahead in other processes, pass through one session in batches, and become rows that are safe as soon
as their batch is done; the table is joined from them at the end. So a run that is killed can be resumed, and a reader
never sees half a table. Begin at `score`.

Batches depend on the inputs and their order alone, and all have the same size: a row does not change with what was
refused around it, with where an earlier run stopped, or with how busy the machine is.
"""

import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from medsd.dicom.policy import concern
from medsd.errors import ImageError
from medsd.inference.predict import Predictor, Study
from medsd.inference.prediction import Prediction
from medsd.inference.providers import CPU
from medsd.inference.session import planned_precision, processors
from medsd.preprocessing.decode import Decoders
from medsd.preprocessing.image import DecodedImage, named
from medsd.preprocessing.notes import clean_note
from medsd.scoring import table
from medsd.scoring.finished import FinishedRows
from medsd.scoring.note_files import Notes
from medsd.scoring.request import Outcomes, ScoringJob, ScoringRequest, Summary, carry_out, prepare

log = logging.getLogger(__name__)

_MOST_WAYS = 8  # batches in the graph at a time; each holds its activations
_REFUSED_A_BATCH = 8  # a batch closes with so many times its size of inputs, however few of them can be scored


def score(request: ScoringRequest) -> Summary:
    """Score the inputs of `request` on this machine, by default with one process that decodes: this one.

    Raises DataError: an input does not exist or is empty, the notes or the output cannot be used, the disk is full,
    another run writes the same output, or `resume` meets rows that were made with something else; BundleError: no
    bundle, or an altered one; DependencyError: `require_gpu` and no GPU computes.
    """
    job = prepare(request)
    precision = planned_precision(job.bundle, request.provider, request.precision)
    with job.finished(precision) as rows:
        waiting = [name for block in rows.waiting for name in block.names]
        with Decoders(job.decoder, request.workers or 1, images=len(waiting) if job.images else 0) as decoders:
            # Threads of one batch wait for each other, those of several batches do not.
            threads = max(1, processors() // _ways())
            predictor = Predictor(job.bundle, threads=threads, **job.reading(request.provider, precision))
            if job.notes and not predictor.takes_notes:
                log.warning("%s reads no notes; they are ignored", job.bundle.label)
            with closing(_score_all(job, rows, predictor, waiting, decoders)) as outcomes:
                return carry_out(job, rows, outcomes, provider=predictor.session.provider)


def _score_all(
    job: ScoringJob, rows: FinishedRows, predictor: Predictor, waiting: list[str], decoders: Decoders
) -> Generator[tuple[Outcomes, str], None, None]:
    """Read `waiting` in order, and keep the rows; what `carry_out` wants to know of each batch."""
    with closing(_images(waiting, decoders if job.images else None, ahead=(_ways() + 1) * job.size)) as images:
        studies = ((name, study_of(name, image, job.notes)) for name, image in images)
        for batch, predictions in _read_all(predictor, batches(studies, job.size), job.size):
            found = [table.row(name, prediction) for name, prediction in zip(batch.names, predictions, strict=True)]
            rows.append(found, [prediction.embedding for prediction in predictions])
            yield [(prediction.status, prediction.reason) for prediction in predictions], predictor.session.provider


Images = Generator[tuple[str, DecodedImage | None], None, None]


def _images(names: list[str], decoders: Decoders | None, ahead: int) -> Images:
    """The images of `names` in order; None for each where notes are read alone."""
    if decoders is None:
        yield from ((name, None) for name in names)
        return
    with closing(decoders.decode(map(Path, names), ahead)) as decoded:
        for name, (_, image) in zip(names, decoded, strict=True):
            yield name, image


@dataclass
class InputBatch:
    """Inputs that become rows together: those that the graph can read, up to its size, and the refused between them."""

    names: list[str] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    scorable: int = 0  # studies that the graph reads

    def add(self, name: str, study: Study) -> None:
        self.names.append(name)
        self.studies.append(study)
        self.scorable += is_scorable(study)


def is_scorable(study: Study) -> bool:
    """Whether a study goes to the graph, as far as image and note tell."""
    return bool(clean_note(study.note)) if study.image is None else study.image.pixels is not None


def batches(studies: Iterable[tuple[str, Study]], size: int) -> Iterator[InputBatch]:
    """Named studies in batches of `size` that can be scored, in order."""
    batch = InputBatch()
    for name, study in studies:
        batch.add(name, study)
        if batch.scorable == size or len(batch.names) == _REFUSED_A_BATCH * size or not batch.scorable:
            yield batch
            batch = InputBatch()
    if batch.names:
        yield batch


def study_of(name: str, image: DecodedImage | None, notes: Notes) -> Study:
    """An image with its note; refused where the note cannot be read."""
    try:
        return Study(image, notes.of(name) or "")
    except ImageError as error:  # an image whose note cannot be read is not scored without it
        return Study(DecodedImage("refused", error.reason, str(error), Path(name).name))


def _ways() -> int:
    """How many batches the CPU reads at a time."""
    return min(processors(), _MOST_WAYS)


def _read_all(
    predictor: Predictor, batches: Iterable[InputBatch], size: int
) -> Generator[tuple[InputBatch, list[Prediction]], None, None]:
    """Read batches in order, several at a time where a CPU computes."""
    ways = _ways() if predictor.session.provider == CPU else 1
    pending: deque[tuple[InputBatch, Future[list[Prediction]]]] = deque()
    with ThreadPoolExecutor(ways, thread_name_prefix="read") as threads:
        try:
            for batch in batches:
                pending.append((batch, threads.submit(read_padded, predictor, batch, size)))
                while pending and (len(pending) > ways or pending[0][1].done()):
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def read_padded(predictor: Predictor, batch: InputBatch, size: int) -> list[Prediction]:
    """Read one batch, filled up to `size` by repeating a study, as sums may be taken in another order at another size.

    A GPU is spared to choose its kernels anew, too.
    """
    studies = batch.studies
    if 0 < batch.scorable < size:
        some = next(study for study in studies if is_scorable(study))
        studies = [*studies, *[some] * (size - batch.scorable)]
    return read_safely(predictor, studies)[: len(batch.names)]


def read_safely(predictor: Predictor, studies: Sequence[Study]) -> list[Prediction]:
    """`Predictor.read`, but studies on which the model fails are refused one by one instead of raising."""
    try:
        return predictor.read(studies)
    except Exception as error:  # ONNX Runtime's own classes, and what runs out of memory
        if len(studies) > 1:
            return [prediction for study in studies for prediction in read_safely(predictor, [study])]
        log.warning("the model failed on one image (%s)", type(error).__name__)
        image = studies[0].image or DecodedImage("scored")
        message = named(image.name, concern("model_failed", detail=type(error).__name__).message)
        refusal = replace(image, status="refused", reason="model_failed", message=message, pixels=None, display=None)
        return predictor.read([Study(refusal)])
