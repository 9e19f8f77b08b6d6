"""What is asked of `medsd score`, the same for either engine, and what it came to.

A `ScoringRequest` says everything. `prepare` opens its bundle, names its inputs and reads their notes; `carry_out`
follows an engine that makes the rows, tells how far it is, and joins the table.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medsd.bundle.layout import DESCRIPTION, Bundle, Precision
from medsd.dicom.gate import GatePolicy
from medsd.dicom.web import is_dicomweb
from medsd.errors import DataError
from medsd.inference.providers import PrecisionChoice, ProviderChoice
from medsd.preprocessing.decode import Decoder
from medsd.privacy import KeyedHasher
from medsd.progress import Progress
from medsd.scoring import embeddings as embedding_files
from medsd.scoring import table
from medsd.scoring.finished import RECORD, FinishedRows
from medsd.scoring.inputs import Inputs, name_inputs
from medsd.scoring.note_files import Notes
from medsd.scoring.prometheus import ScoringGauges
from medsd.scoring.remote import FetchingDecoder, names_at, place_of, url_of

Outcomes = list[tuple[str, str]]  # status and reason of finished rows


@dataclass(frozen=True)
class ScoringRequest:
    """Which inputs are to be scored, by what, and where to; what is not explained here is as for `Predictor`.

    Where there are no inputs and no lists, the notes are read alone, a row a note.
    """

    bundle: Bundle | Path | str
    inputs: Sequence[Path | str]  # see `medsd.scoring.inputs.name_inputs`; the same path given twice is one row
    out: Path | str  # .csv, .parquet or .jsonl
    lists: Sequence[Path] = ()  # of paths: .csv with a column "path" and perhaps "note", else a path a line
    notes: Path | None = None  # a CSV with the columns "path" (or a file name) and "note"
    side_notes: bool = False  # the note of an image without another is the text beside it, image.txt
    embeddings: Path | str | None = None  # .npy or .parquet, a row for each of the table's
    workers: int | None = None  # processes that decode; None leaves it to the engine
    batch_size: int = 8  # images in one run of the model
    resume: bool = False  # keep the rows that an earlier run on `out` finished
    provider: ProviderChoice = "auto"
    precision: PrecisionChoice = "auto"
    require_gpu: bool = False
    policy: GatePolicy = field(default_factory=GatePolicy)
    hasher: KeyedHasher | None = None  # by default this user's own, `KeyedHasher.from_environment`
    coverage: float | None = None
    defuse_formulas: bool = False  # see `medsd.scoring.table.write_table`
    metrics: Path | None = None  # see `medsd.scoring.prometheus.ScoringGauges`, as for `metrics_port`
    metrics_port: int | None = None
    progress: bool = False  # a bar on a terminal, plain lines elsewhere, on stderr


@dataclass(frozen=True)
class Summary:
    """What a batch came to; its counts are rows."""

    out: str
    inputs: int
    scored: int
    warned: int
    refused: int
    reused: int  # that an earlier run had finished
    seconds: float
    provider: str  # that computed
    reasons: dict[str, int] = field(default_factory=dict)  # of warned and refused ones, by code
    studies: int | None = None  # None where the table has one row an input

    @property
    def rate(self) -> float:
        """Rows a second that this run made."""
        return (self.inputs - self.reused) / max(self.seconds, 1e-3)

    def line(self) -> str:
        again = f" ({self.reused} from an earlier run)" if self.reused else ""
        of = "" if self.studies is None else f" of {self.studies} studies"
        why = ", ".join(f"{reason} {count}" for reason, count in self.reasons.items())
        return (
            f"{self.inputs} inputs{of}{again}: {self.scored} scored, {self.warned} warned, {self.refused} refused "
            f"in {self.seconds:.1f} s, {self.rate:.3g} a second{f' ({why})' if why else ''}; {self.out}"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ScoringJob:
    """A request whose bundle is open, whose inputs are named and whose notes are read."""

    request: ScoringRequest
    bundle: Bundle
    out: Path | str  # a path of this machine, or a URL
    embeddings: Path | str | None  # as `out`
    names: list[str]  # what makes a row each: images or, where none are given, notes
    notes: Notes
    images: bool  # whether there are images
    hasher: KeyedHasher
    size: int  # of a batch
    begun: float  # by the monotonic clock

    @property
    def width(self) -> int:
        """Numbers of an embedding that is kept; 0 where none are."""
        return 0 if self.embeddings is None else self.bundle.description.embedding_size

    @property
    def decoder(self) -> Decoder:
        """What reads the images; from DICOMweb, too, where one of them is there."""
        kind = FetchingDecoder if _names_dicomweb(self.names) else Decoder
        return kind(self.bundle.description.pixels, self.request.policy, self.hasher)

    def reading(self, provider: ProviderChoice, precision: Precision) -> dict[str, Any]:
        """How a `Predictor` reads for this request."""
        request = self.request
        return {
            "provider": provider,
            "precision": precision,
            "require_gpu": request.require_gpu,
            "policy": request.policy,
            "coverage": request.coverage,
        }

    def finished(self, precision: Precision) -> FinishedRows:
        """The store of the finished rows, locked; errors as `FinishedRows`."""
        request, bundle = self.request, self.bundle
        made_with = {
            "model": bundle.model_sha256,
            "bundle": hashlib.sha256((bundle.folder / DESCRIPTION).read_bytes()).hexdigest(),
            "gate policy": request.policy.model_dump(mode="json"),
            "key of studies and patients": self.hasher.study_key("medsd score"),  # two secrets give two
            "set of notes": self.notes.digest() if bundle.description.note is not None else "",
            "choice of --embeddings": self.embeddings is not None,
            "coverage": request.coverage,
            "precision": precision,
            "choice of --defuse-formulas": request.defuse_formulas,
        }
        return FinishedRows(
            self.out,
            table.columns(bundle.findings),
            made_with,
            self.names,
            batch_size=self.size,
            resume=request.resume,
            embeddings_out=self.embeddings,
            dimensions=self.width,
            defuse=request.defuse_formulas,
        )


def prepare(request: ScoringRequest, *, urls: bool = False) -> ScoringJob:
    """Open the bundle, name the inputs and read the notes; with `urls`, paths may be URLs that fsspec knows. Inputs may
    be images of DICOMweb without it.

    Raises DataError: an input does not exist or is empty, or the notes or the output cannot be used; BundleError: no
    bundle, or an altered one.
    """
    begun, place = time.monotonic(), place_of if urls else Path
    out, vectors = place(request.out), None if request.embeddings is None else place(request.embeddings)
    _check_outputs(out, vectors)
    bundle = request.bundle if isinstance(request.bundle, Bundle) else Bundle.open(request.bundle)
    images, urls = bool(request.inputs or request.lists), urls or _names_dicomweb(request.inputs)
    if images and not bundle.description.image:
        raise DataError(f"{bundle.label} reads notes alone; leave the images out and give --notes")
    given = _name(request, [out, vectors, request.notes, request.metrics], urls) if images else Inputs([])
    notes = _notes(request, given, urls)
    if not images and bundle.description.note is None:
        raise DataError(f"{bundle.label} reads images; give files, folders, patterns or a list")
    if not images and not notes.by_path:
        raise DataError("there is nothing to score; give images, or notes that are to be read alone with --notes")
    names = given.names if images else list(notes.by_path)
    hasher = request.hasher or KeyedHasher.from_environment()
    size = max(1, min(request.batch_size, len(names)))
    return ScoringJob(request, bundle, out, vectors, names, notes, images, hasher, size, begun)


def _names_dicomweb(names: Iterable[Path | str]) -> bool:
    suspects = (name for name in names if str(name).startswith("dicomweb"))  # of two million, quickly
    return any(is_dicomweb(url_of(name) or "") for name in suspects)


def _check_outputs(out: Path | str, vectors: Path | str | None) -> None:
    table.check_format(Path(out))
    if vectors is None:
        return
    embedding_files.check_format(Path(vectors))
    if vectors == out:
        raise DataError(f"{out}: the table and the embeddings need a file each")
    if isinstance(vectors, Path) and (os.path.isdir(vectors) or not os.path.isdir(vectors.parent)):  # noqa: PTH112
        raise DataError(f"{vectors}: cannot be written; give a file in a folder that exists")


def _name(request: ScoringRequest, outputs: Sequence[Path | str | None], urls: bool) -> Inputs:
    """`name_inputs`, with URLs between the paths."""
    paths = [path for path in outputs if isinstance(path, Path)]
    ours = [*paths, *(path.with_name(path.name + RECORD) for path in paths)]
    if not urls:
        return name_inputs([Path(path) for path in request.inputs], lists=request.lists, leave_out=ours)
    found = [
        Inputs(names_at(place)) if isinstance(place, str) else name_inputs([place], leave_out=ours)
        for place in map(place_of, request.inputs)
    ]
    if request.lists:
        found.append(name_inputs([], lists=request.lists, leave_out=ours))
    names = dict.fromkeys(url_of(name) or name for each in found for name in each.names)
    return Inputs(list(names), {name: note for each in found for name, note in each.notes.items()})


def _notes(request: ScoringRequest, given: Inputs, urls: bool) -> Notes:
    beside = request.side_notes
    if beside and urls and any(url_of(name) for name in given.names):
        raise DataError("--side-notes reads notes beside images of a file system, not behind URLs; give --notes")
    found = given.notes if request.notes is None else Notes.read(request.notes, more=given.notes).by_path
    return Notes({url_of(name) or name: note for name, note in found.items()} if urls else found, beside=beside)


def carry_out(
    job: ScoringJob, rows: FinishedRows, outcomes: Iterable[tuple[Outcomes, str]], *, provider: str
) -> Summary:
    """Follow an engine to the end of its work, and join the table; raises DataError where it cannot be written.

    The engine keeps its `rows`, and gives the `outcomes` of each batch with the provider that computed it; `provider`
    is the one that is expected.
    """
    request, reused = job.request, len(rows.done)
    total = reused + sum(len(block.names) for block in rows.waiting)
    labels = {"model": job.bundle.label, "provider": provider}
    refused = 0
    with (
        ScoringGauges(total, reused, file=request.metrics, port=request.metrics_port, **labels) as told,
        Progress(total, reused, wanted=request.progress) as shown,
    ):
        for found, running in outcomes:
            provider = running
            refused += sum(status == "refused" for status, _ in found)
            told.advance(found)
            shown.advance(len(found), f"{refused} refused")
        rows.join()
        summary = Summary(
            out=str(job.out),
            inputs=rows.counts.total(),
            scored=rows.counts["scored"],
            warned=rows.counts["warned"],
            refused=rows.counts["refused"],
            reused=reused,
            seconds=round(time.monotonic() - job.begun, 3),
            provider=provider,
            reasons=dict(rows.reasons.most_common()),
        )
        rows.finish({"summary": summary.as_dict()})
        told.complete()
    return summary
