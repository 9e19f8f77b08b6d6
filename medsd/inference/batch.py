"""Score many files into one table: one row an input, whatever happens to it.

`score` decodes ahead of the model, appends rows as they finish and writes the table at the end, so a run that is killed
can be resumed and a reader never sees half a table.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medsd.bundle.layout import Bundle
from medsd.dicom.gate import GatePolicy
from medsd.dicom.policy import concern
from medsd.errors import DataError, MedsdError
from medsd.inference.decode import Decoder, decode_all
from medsd.inference.film import Film, named
from medsd.inference.inputs import Notes, expand_inputs
from medsd.inference.parts import Parts
from medsd.inference.predict import Predictor, Study
from medsd.inference.prediction import Prediction
from medsd.inference.session import ProviderChoice
from medsd.privacy import KeyedHasher
from medsd.progress import Progress
from medsd.results import table

log = logging.getLogger(__name__)


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
    """

    out: str
    inputs: int
    scored: int
    warned: int
    refused: int
    reused: int
    seconds: float
    provider: str

    def line(self) -> str:
        """The summary as a sentence."""
        again = f" ({self.reused} from an earlier run)" if self.reused else ""
        return (
            f"{self.inputs} inputs{again}: {self.scored} scored, {self.warned} warned, {self.refused} refused "
            f"in {self.seconds:.1f} s; {self.out}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The summary for a program."""
        return asdict(self)


def score(
    bundle: Bundle | Path | str,
    inputs: Sequence[Path],
    out: Path,
    *,
    notes: Path | None = None,
    workers: int = 1,
    batch_size: int = 8,
    resume: bool = False,
    provider: ProviderChoice = "auto",
    require_gpu: bool = False,
    policy: GatePolicy | None = None,
    hasher: KeyedHasher | None = None,
    progress: bool = False,
    each: Callable[[Path, Prediction], None] | None = None,
) -> Summary:
    """Score `inputs` into the table `out`.

    Args:
        bundle: an opened bundle, or its folder.
        inputs: files, folders, patterns or text lists, see `medsd.inference.inputs.expand_inputs`; the same path
            given twice is one row. None at all: the notes are read alone, a row a note.
        out: .csv, .parquet or .jsonl.
        notes: a CSV with the columns ``path`` (or a file name) and ``note``.
        workers: processes that decode; 1 decodes in this one.
        batch_size: films in one run of the model.
        resume: keep the rows that an earlier run on `out` finished.
        provider, require_gpu: as for `Predictor`.
        policy: of the gate.
        hasher: makes the keys; this user's own by default (`KeyedHasher.from_environment`).
        progress: a bar on a terminal, plain lines elsewhere, on stderr.
        each: called with every prediction once its row is safe; what it raises as a `MedsdError` is logged.

    Raises:
        DataError: an input does not exist or is empty, the notes or the output cannot be used, or another run
            writes the same output.
        BundleError: no bundle, or an altered one.
        DependencyError: `require_gpu` and no GPU computes.
    """
    started = time.monotonic()
    out = Path(out)
    table.check_format(out)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    known = Notes.read(notes) if notes else Notes()
    paths = _inputs(opened, inputs, known, [out, *([notes] if notes else [])])
    predictor = Predictor(opened, provider=provider, require_gpu=require_gpu, policy=policy)
    if known and not predictor.takes_notes:
        log.warning("%s reads no notes; they are ignored", opened.label)
    decoder = Decoder(opened.description.pixels, predictor.policy, hasher or KeyedHasher.from_environment())
    with Parts(out, table.columns(opened.findings), opened.model_sha256, resume=resume) as parts:
        waiting = [path for path in paths if table.printable(path) not in parts.done]
        films: Iterable[tuple[Path, Film | None]] = (
            decode_all(waiting, decoder, workers=workers, ahead=2 * batch_size)
            if inputs
            else ((path, None) for path in waiting)
        )
        with Progress(len(paths), len(paths) - len(waiting), wanted=progress) as shown:
            for portion in _portions(films, batch_size):
                _score_portion(predictor, portion, known, parts, each)
                shown.advance(len(portion))
        counts = parts.counts()
        parts.finish()
    return Summary(
        out=str(out),
        inputs=sum(counts.values()),
        scored=counts.get("scored", 0),
        warned=counts.get("warned", 0),
        refused=counts.get("refused", 0),
        reused=sum(counts.values()) - len(waiting),
        seconds=round(time.monotonic() - started, 3),
        provider=predictor.session.provider,
    )


def _inputs(bundle: Bundle, inputs: Sequence[Path], notes: Notes, others: list[Path]) -> list[Path]:
    """What makes a row each: films, or, where none are given, notes."""
    if inputs and not bundle.description.image:
        raise DataError(f"{bundle.label} reads notes alone; leave the films out and give --notes")
    if inputs:
        return expand_inputs([Path(given) for given in inputs], leave_out=others)
    if bundle.description.note is None:
        raise DataError(f"{bundle.label} reads films; give files, folders, patterns or a list")
    if not notes:
        raise DataError("there is nothing to score; give films, or notes that are to be read alone with --notes")
    return [Path(name) for name in notes.names]


Portion = list[tuple[Path, Film | None]]


def _portions(films: Iterable[tuple[Path, Film | None]], size: int) -> Iterator[Portion]:
    portion: Portion = []
    for pair in films:
        portion.append(pair)
        if len(portion) == max(size, 1):
            yield portion
            portion = []
    if portion:
        yield portion


def _score_portion(
    predictor: Predictor,
    portion: Portion,
    notes: Notes,
    parts: Parts,
    each: Callable[[Path, Prediction], None] | None,
) -> None:
    studies = [Study(film, notes.of(path) or "") for path, film in portion]
    predictions = read_safely(predictor, studies)
    paths = [path for path, _ in portion]
    parts.append([table.row(path, prediction) for path, prediction in zip(paths, predictions, strict=True)])
    for path, prediction in zip(paths, predictions, strict=True):
        _tell(each, path, prediction)


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


def _tell(each: Callable[[Path, Prediction], None] | None, path: Path, prediction: Prediction) -> None:
    if each is None:
        return
    try:
        each(path, prediction)
    except MedsdError as error:
        log.warning("%s: %s", path, error)
