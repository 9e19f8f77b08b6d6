"""Score many files into one table: one row an input, whatever happens to it.

Films are decoded ahead in other processes, pass through one session in batches, and become rows that are safe as soon
as their batch is done; the table is joined from them at the end. So a run that is killed can be resumed, and a reader
never sees half a table. Begin at `score`.

Batches depend on the inputs and their order alone, and all have the same size: a row does not change with what was
refused around it, with where an earlier run stopped, or with how busy the machine is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medsd.bundle.layout import DESCRIPTION, Bundle, Precision
from medsd.dicom.gate import GatePolicy
from medsd.dicom.policy import concern
from medsd.errors import DataError, ImageError, MedsdError
from medsd.inference.predict import Predictor, Study
from medsd.inference.prediction import Prediction
from medsd.inference.session import CPU, PrecisionChoice, ProviderChoice, planned_precision, processors
from medsd.preprocessing.decode import Decoder, Decoders
from medsd.preprocessing.film import Film, named
from medsd.preprocessing.notes import clean_note
from medsd.privacy import KeyedHasher
from medsd.progress import Progress
from medsd.scoring import embeddings as embedding_files
from medsd.scoring import table
from medsd.scoring.inputs import Inputs, name_inputs
from medsd.scoring.note_files import Notes
from medsd.scoring.parts import RECORD, Parts
from medsd.scoring.prometheus import Metrics

log = logging.getLogger(__name__)

_MOST_WAYS = 8  # batches in the graph at a time; each holds its activations
_REFUSED_A_BATCH = 8  # a batch closes with so many times its size of inputs, however few of them can be scored


@dataclass(frozen=True)
class Summary:
    """What a batch came to.

    Attributes:
        out: the table.
        inputs: rows in the table.
        scored, warned, refused: rows of each status.
        reused: rows that an earlier run had finished.
        seconds: time this run took.
        provider: what computed.
        reasons: rows by reason code, of warned and refused ones.
        studies: rows of the table, where it has one a study; None where it has one an input.
    """

    out: str
    inputs: int
    scored: int
    warned: int
    refused: int
    reused: int
    seconds: float
    provider: str
    reasons: dict[str, int] = field(default_factory=dict)
    studies: int | None = None

    @classmethod
    def of(
        cls, out: object, counts: Counter[str], reasons: Counter[str], *, reused: int, seconds: float, provider: str
    ) -> Summary:
        """The summary of a table whose rows were counted by status and, where warned or refused, by reason."""
        return cls(
            out=str(out),
            inputs=counts.total(),
            scored=counts["scored"],
            warned=counts["warned"],
            refused=counts["refused"],
            reused=reused,
            seconds=round(seconds, 3),
            provider=provider,
            reasons=dict(reasons.most_common()),
        )

    @property
    def rate(self) -> float:
        """Rows a second that this run made."""
        return (self.inputs - self.reused) / max(self.seconds, 1e-3)

    def line(self) -> str:
        """The summary as a sentence."""
        again = f" ({self.reused} from an earlier run)" if self.reused else ""
        of = "" if self.studies is None else f" of {self.studies} studies"
        why = ", ".join(f"{reason} {count}" for reason, count in self.reasons.items())
        return (
            f"{self.inputs} inputs{of}{again}: {self.scored} scored, {self.warned} warned, {self.refused} refused "
            f"in {self.seconds:.1f} s, {self.rate:.3g} a second{f' ({why})' if why else ''}; {self.out}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The summary for a program."""
        return asdict(self)


def score(
    bundle: Bundle | Path | str,
    inputs: Sequence[Path],
    out: Path,
    *,
    lists: Sequence[Path] = (),
    notes: Path | None = None,
    side_notes: bool = False,
    embeddings: Path | None = None,
    workers: int = 1,
    batch_size: int = 8,
    resume: bool = False,
    provider: ProviderChoice = "auto",
    precision: PrecisionChoice = "auto",
    require_gpu: bool = False,
    policy: GatePolicy | None = None,
    hasher: KeyedHasher | None = None,
    coverage: float | None = None,
    defuse_formulas: bool = False,
    metrics: Path | None = None,
    metrics_port: int | None = None,
    progress: bool = False,
    each: Callable[[Path, Prediction], None] | None = None,
) -> Summary:
    """Score `inputs` into the table `out`.

    Args:
        bundle: an opened bundle, or its folder.
        inputs: files, folders, patterns, ZIP archives, lists or standard input, see
            `medsd.scoring.inputs.name_inputs`; the same path given twice is one row. None at all: the notes are read
            alone, a row a note.
        out: .csv, .parquet or .jsonl.
        lists: further lists of paths, .csv with a column ``path`` and perhaps ``note``, else a path a line.
        notes: a CSV with the columns ``path`` (or a file name) and ``note``.
        side_notes: the note of a film without another is the text beside it, ``film.txt``.
        embeddings: .npy or .parquet, a row for each of the table's.
        workers: processes that decode; 1 decodes in this one.
        batch_size: films in one run of the model.
        resume: keep the rows that an earlier run on `out` finished.
        provider, precision, require_gpu: as for `Predictor`.
        policy: of the gate.
        hasher: makes the keys; this user's own by default (`KeyedHasher.from_environment`).
        coverage: None for calls at the operating points, a share for conformal ones, see `Predictor`.
        defuse_formulas: in CSV, put an apostrophe before texts that a spreadsheet would take for a formula
            (`medsd.scoring.table.write_table`).
        metrics, metrics_port: where Prometheus reads how far it is, see `medsd.scoring.prometheus.Metrics`.
        progress: a bar on a terminal, plain lines elsewhere, on stderr.
        each: called with every prediction once its row is safe; what it raises as a `MedsdError` is logged.

    Raises:
        DataError: an input does not exist or is empty, the notes or the output cannot be used, the disk is full,
            another run writes the same output, or `resume` meets rows that were made with something else.
        BundleError: no bundle, or an altered one.
        DependencyError: `require_gpu` and no GPU computes.
    """
    started = time.monotonic()
    out = Path(out)
    _check_outputs(out, embeddings)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    ours = [path for path in (out, out.with_name(out.name + RECORD), embeddings, notes, metrics) if path]
    names, known = _inputs(opened, inputs, lists, ours, notes, side_notes)
    policy, hasher = policy or GatePolicy(), hasher or KeyedHasher.from_environment()
    size = max(1, min(batch_size, len(names)))
    numbers = planned_precision(opened, provider, precision)
    with Parts(
        out,
        table.columns(opened.findings),
        made_with(opened, policy, hasher, coverage, known, embeddings is not None, numbers, defuse_formulas),
        resume=resume,
        defuse=defuse_formulas,
        embeddings_out=embeddings,
        dimensions=opened.description.embedding_size,
    ) as parts:
        waiting = [name for name in names if table.printable(name) not in parts.done]
        reused = parts.counts.total()
        decoder = Decoder(opened.description.pixels, policy, hasher)
        films_left = len(waiting) if inputs or lists else 0  # a fused model reads notes alone, too
        with Decoders(decoder, workers, films=films_left) as decoders:
            predictor = Predictor(
                opened,
                provider=provider,
                precision=numbers,
                require_gpu=require_gpu,
                policy=policy,
                coverage=coverage,
                threads=_threads(),
            )
            if known and not predictor.takes_notes:
                log.warning("%s reads no notes; they are ignored", opened.label)
            done, running = len(names) - len(waiting), predictor.session.provider
            with (
                Metrics(
                    len(names), done, model=opened.label, provider=running, file=metrics, port=metrics_port
                ) as told,
                Progress(len(names), done, wanted=progress) as shown,
                closing(_films(waiting, decoders if films_left else None, ahead=(_ways() + 1) * size)) as films,
                closing(_read_all(predictor, batches(_studies(films, known), size), size)) as read,
            ):
                for batch, predictions in read:
                    _keep(parts, batch, predictions, embeddings is not None)
                    told.advance([(prediction.status, prediction.reason) for prediction in predictions])
                    shown.advance(len(batch), f"{parts.counts['refused']} refused")
                    for name, prediction in zip(batch.names, predictions, strict=True):
                        _tell(each, name, prediction)
                summary = Summary.of(
                    out,
                    parts.counts,
                    parts.reasons,
                    reused=reused,
                    seconds=time.monotonic() - started,
                    provider=running,
                )
                parts.finish({"summary": summary.as_dict()})
                told.complete()
    return summary


def _check_outputs(out: Path, embeddings: Path | None) -> None:
    table.check_format(out)
    if embeddings is not None:
        embedding_files.check_format(embeddings)
        if embeddings == out:
            raise DataError(f"{out}: the table and the embeddings need a file each")
        if os.path.isdir(embeddings) or not os.path.isdir(embeddings.parent):  # noqa: PTH112  # Path raises for long names
            raise DataError(f"{embeddings}: cannot be written; give a file in a folder that exists")


def _inputs(
    bundle: Bundle, inputs: Sequence[Path], lists: Sequence[Path], ours: list[Path], notes: Path | None, beside: bool
) -> tuple[list[str], Notes]:
    """What makes a row each, films or, where none are given, notes; and the notes."""
    films = bool(inputs or lists)
    if films and not bundle.description.image:
        raise DataError(f"{bundle.label} reads notes alone; leave the films out and give --notes")
    given = name_inputs([Path(path) for path in inputs], lists=lists, leave_out=ours) if films else Inputs([])
    known = Notes.read(notes, beside=beside, more=given.notes) if notes else Notes(given.notes, beside=beside)
    if films:
        return given.names, known
    if bundle.description.note is None:
        raise DataError(f"{bundle.label} reads films; give files, folders, patterns or a list")
    if not len(known):
        raise DataError("there is nothing to score; give films, or notes that are to be read alone with --notes")
    return known.names, known


def made_with(
    bundle: Bundle,
    policy: GatePolicy,
    hasher: KeyedHasher,
    coverage: float | None,
    notes: Notes,
    embeddings: bool,
    numbers: Precision,
    defuse: bool,
) -> dict[str, Any]:
    """What decides the rows, by the words that a refusal to mix them uses."""
    return {
        "model": bundle.model_sha256,
        "bundle": hashlib.sha256((bundle.folder / DESCRIPTION).read_bytes()).hexdigest(),
        "gate policy": policy.model_dump(mode="json"),
        "key of studies and patients": hasher.study_key("medsd score"),  # two secrets give two
        "set of notes": notes.digest() if bundle.description.note is not None else "",
        "choice of --embeddings": embeddings,
        "coverage": coverage,
        "precision": numbers,
        "choice of --defuse-formulas": defuse,
    }


Films = Generator[tuple[str, Film | None], None, None]


def _films(names: list[str], decoders: Decoders | None, ahead: int) -> Films:
    """The films of `names` in order; None for each where notes are read alone."""
    if decoders is None:
        yield from ((name, None) for name in names)
        return
    with closing(decoders.decode(map(Path, names), ahead)) as decoded:
        for name, (_, film) in zip(names, decoded, strict=True):
            yield name, film


@dataclass
class Batch:
    """Inputs that become rows together: those that the graph can read, up to its size, and the refused between them.

    Attributes:
        names: of all.
        studies: of all.
        scorable: how many of them the graph reads.
    """

    names: list[str] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    scorable: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def add(self, name: str, study: Study) -> None:
        """Put one more input in."""
        self.names.append(name)
        self.studies.append(study)
        self.scorable += is_scorable(study)


def is_scorable(study: Study) -> bool:
    """Whether a study goes to the graph, as far as film and note tell."""
    return bool(clean_note(study.note)) if study.film is None else study.film.pixels is not None


def _studies(films: Films, notes: Notes) -> Iterator[tuple[str, Study]]:
    return ((name, study_of(name, film, notes)) for name, film in films)


def batches(studies: Iterable[tuple[str, Study]], size: int) -> Iterator[Batch]:
    """Named studies in batches of `size` that can be scored, in order."""
    batch = Batch()
    for name, study in studies:
        batch.add(name, study)
        if batch.scorable == size or len(batch) == _REFUSED_A_BATCH * size or not batch.scorable:
            yield batch
            batch = Batch()
    if len(batch):
        yield batch


def study_of(name: str, film: Film | None, notes: Notes) -> Study:
    """A film with its note; refused where the note cannot be read."""
    try:
        return Study(film, notes.of(name) or "")
    except ImageError as error:  # a film whose note cannot be read is not scored without it
        return Study(Film("refused", error.reason, str(error), Path(name).name))


def _ways() -> int:
    """How many batches the CPU reads at a time."""
    return min(processors(), _MOST_WAYS)


def _threads() -> int:
    """Threads within a batch: one, on few processors, as those of one batch wait for each other and those of several
    do not.
    """
    return max(1, processors() // _ways())


def _read_all(
    predictor: Predictor, batches: Iterable[Batch], size: int
) -> Generator[tuple[Batch, list[Prediction]], None, None]:
    """Read batches in order, several at a time where a CPU computes."""
    ways = _ways() if predictor.session.provider == CPU else 1
    pending: deque[tuple[Batch, Future[list[Prediction]]]] = deque()
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


def read_padded(predictor: Predictor, batch: Batch, size: int) -> list[Prediction]:
    """Read one batch, filled up to `size` by repeating a study, as sums may be taken in another order at another size.

    A GPU is spared to choose its kernels anew, too.
    """
    studies = batch.studies
    if 0 < batch.scorable < size:
        some = next(study for study in studies if is_scorable(study))
        studies = [*studies, *[some] * (size - batch.scorable)]
    return read_safely(predictor, studies)[: len(batch)]


def read_safely(predictor: Predictor, studies: Sequence[Study]) -> list[Prediction]:
    """`Predictor.read`, but studies on which the model fails are refused one by one instead of raising."""
    try:
        return predictor.read(studies)
    except Exception as error:  # ONNX Runtime's own classes, and what runs out of memory
        if len(studies) > 1:
            return [prediction for study in studies for prediction in read_safely(predictor, [study])]
        log.warning("the model failed on one film (%s)", type(error).__name__)
        return predictor.read([Study(_model_failed(studies[0].film or Film("scored"), type(error).__name__))])


def _model_failed(film: Film, detail: str) -> Film:
    """`film` as a refusal, because the model and not the film gave out."""
    message = named(film.name, concern("model_failed", detail=detail).message)
    return replace(film, status="refused", reason="model_failed", message=message, pixels=None, image=None)


def _keep(parts: Parts, batch: Batch, predictions: list[Prediction], embeddings: bool) -> None:
    rows = [table.row(name, prediction) for name, prediction in zip(batch.names, predictions, strict=True)]
    parts.append(rows, [prediction.embedding for prediction in predictions] if embeddings else ())


def _tell(each: Callable[[Path, Prediction], None] | None, name: str, prediction: Prediction) -> None:
    if each is None:
        return
    try:
        each(Path(name), prediction)
    except MedsdError as error:
        log.warning("%s: %s", name, error)
