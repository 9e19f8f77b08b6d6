"""`medsd.scoring.batch.score` over the machines of a Ray cluster: the same rows, in the same order.

Blocks of inputs pass through two pools of Ray Data: actors that decode, each with a helper process of its own that
bounds time and memory, and actors that read, one a GPU, or on processors where there is none. A block that is read is
a file beside the output (`medsd.scoring.blocks`), so a worker that is killed costs no more than the blocks that it
held, which Ray gives to another, and a run that is killed goes on with `resume`. Begin at `score`.

The bundle, the gate and the key for identifiers travel to the workers through Ray: use a cluster that you trust. A
local Ray listens on the loopback address alone, asks no cloud where it runs, shows no dashboard and leaves no files. A
cluster of your own reports as you start it: with `ray start --disable-usage-stats` it still says that it is there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

from medsd.bundle.layout import DESCRIPTION, Bundle
from medsd.dicom.gate import GatePolicy
from medsd.errors import DataError, DependencyError, MedsdError
from medsd.inference.providers import CPU, CUDA, PrecisionChoice, ProviderChoice, choose_precision
from medsd.inference.session import processors
from medsd.preprocessing.decode import Decoder
from medsd.privacy import KeyedHasher
from medsd.progress import Progress
from medsd.scoring import embeddings as embedding_files
from medsd.scoring import table
from medsd.scoring.batch import Summary, made_with
from medsd.scoring.blocks import Block, Blocks, block_size
from medsd.scoring.inputs import Inputs, name_inputs
from medsd.scoring.note_files import Notes
from medsd.scoring.parts import RECORD
from medsd.scoring.prometheus import Metrics
from medsd.scoring.remote import names_at, place_of, url_of
from medsd.scoring.workers import Decode, Read, Stage

log = logging.getLogger(__name__)

LOCAL = "local"
_KNOCK_S = 10.0
_WEIGHTS = "weights/"  # of a bundle: for training, not for reading


def score(
    bundle: Bundle | Path | str,
    inputs: Sequence[Path | str],
    out: Path | str,
    *,
    address: str = LOCAL,
    lists: Sequence[Path] = (),
    notes: Path | None = None,
    side_notes: bool = False,
    embeddings: Path | str | None = None,
    workers: int | None = None,
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
) -> Summary:
    """Score `inputs` into the table `out` on a Ray cluster.

    Paths are read by the workers: they lie on a file system that every machine has mounted at the same place, or are
    URLs (``s3://bucket/films``) that fsspec knows. The bundle, lists, notes and metrics are files of this machine. ZIP
    archives and notes beside films are read from file systems, not behind URLs.

    Args:
        address: of the cluster, as ``ray.init`` takes it; «local» starts Ray on this machine alone, for this run.
        workers: processes that decode, in the whole cluster; by default the processors that the reading leaves.
        bundle, inputs, out, lists, notes, side_notes, embeddings, batch_size, resume, provider, precision,
            require_gpu, policy, hasher, coverage, defuse_formulas, metrics, metrics_port, progress: as for
            `medsd.scoring.batch.score`. Behind a URL nothing is locked: two runs on one output do the work twice.

    Raises:
        DataError: as there, or a worker cannot write its rows.
        BundleError: no bundle, or an altered one.
        DependencyError: Ray is not installed, no cluster answers, or `require_gpu` and it has no GPU.
    """
    started = time.monotonic()
    target, vectors = place_of(out), None if embeddings is None else place_of(embeddings)
    _check_outputs(target, vectors)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    names, known, films = _inputs(opened, inputs, lists, [target, vectors, notes, metrics], notes, side_notes)
    policy, hasher = policy or GatePolicy(), hasher or KeyedHasher.from_environment()
    size = max(1, min(batch_size, len(names)))
    with connected(address, workers) as ray:
        plan = _plan(ray.cluster_resources(), workers, provider, require_gpu)
        numbers = choose_precision(precision, opened, CUDA if plan.gpu else CPU)
        width = opened.description.embedding_size if vectors is not None else 0
        facts = made_with(opened, policy, hasher, coverage, known, vectors is not None, numbers, defuse_formulas)
        with Blocks(
            target,
            table.columns(opened.findings),
            facts,
            resume=resume,
            embeddings_out=vectors,
            dimensions=width,
            defuse=defuse_formulas,
        ) as kept:
            blocks = _cut([name for name in names if table.printable(name) not in kept.done], known, size)
            finished = kept.has(blocks)
            waiting = [block for block in blocks if block.key not in finished]
            reused = len(kept.done) + sum(len(block.names) for block in blocks if block.key in finished)
            decode = Decode(Decoder(opened.description.pixels, policy, hasher) if films else None, side_notes)
            read = Read(
                ray.put(_files(opened)), kept.store, size, width, plan.provider, numbers, require_gpu, policy, coverage
            )
            running, total = CUDA if plan.gpu else CPU, len(kept.done) + sum(len(block.names) for block in blocks)
            with (
                Metrics(
                    total, reused, model=opened.label, provider=plan.provider, file=metrics, port=metrics_port
                ) as told,
                Progress(total, reused, wanted=progress) as shown,
            ):
                refused = 0
                for outcomes, computed in _run(ray, waiting, decode, read, plan):
                    running = computed
                    refused += sum(status == "refused" for status, _ in outcomes)
                    told.advance(outcomes)
                    shown.advance(len(outcomes), f"{refused} refused")
                kept.join(blocks)
                summary = Summary.of(
                    target,
                    kept.counts,
                    kept.reasons,
                    reused=reused,
                    seconds=time.monotonic() - started,
                    provider=running,
                )
                kept.finish({"summary": summary.as_dict()})
                told.complete()
    return summary


def _check_outputs(out: Path | str, vectors: Path | str | None) -> None:
    table.check_format(Path(out))
    if vectors is not None:
        embedding_files.check_format(Path(vectors))
        if vectors == out:
            raise DataError(f"{out}: the table and the embeddings need a file each")


def _inputs(
    bundle: Bundle,
    inputs: Sequence[Path | str],
    lists: Sequence[Path],
    ours: Sequence[Path | str | None],
    notes: Path | None,
    beside: bool,
) -> tuple[list[str], Notes, bool]:
    """What makes a row each, the notes, and whether there are films."""
    films = bool(inputs or lists)
    if films and not bundle.description.image:
        raise DataError(f"{bundle.label} reads notes alone; leave the films out and give --notes")
    given = _name(inputs, lists, [path for path in ours if isinstance(path, Path)]) if films else Inputs([])
    if beside and any(url_of(name) for name in given.names):
        raise DataError("--side-notes reads notes beside films of a file system, not behind URLs; give --notes")
    said = Notes.read(notes, more=given.notes) if notes else Notes(given.notes)
    known = Notes({url_of(name) or name: said.of(name) or "" for name in said.names}, beside=beside)
    if films:
        return given.names, known, True
    if bundle.description.note is None:
        raise DataError(f"{bundle.label} reads films; give files, folders, patterns or a list")
    if not len(known):
        raise DataError("there is nothing to score; give films, or notes that are to be read alone with --notes")
    return known.names, known, False


def _name(inputs: Sequence[Path | str], lists: Sequence[Path], ours: Sequence[Path]) -> Inputs:
    """`name_inputs`, with URLs between the paths."""
    names: dict[str, None] = {}
    notes: dict[str, str] = {}
    beside = [path.with_name(path.name + RECORD) for path in ours]
    for remote, group in groupby(map(place_of, inputs), key=lambda place: isinstance(place, str)):
        given = list(group)
        if remote:
            names |= dict.fromkeys(name for url in given for name in names_at(str(url)))
        else:
            found = name_inputs([Path(place) for place in given], leave_out=[*ours, *beside])
            names, notes = names | dict.fromkeys(found.names), notes | found.notes
    if lists:
        found = name_inputs([], lists=lists, leave_out=[*ours, *beside])
        names, notes = names | dict.fromkeys(found.names), notes | found.notes
    return Inputs(list(dict.fromkeys(url_of(name) or name for name in names)), notes)


def _cut(names: list[str], notes: Notes, size: int) -> list[Block]:
    """Blocks of inputs, each with the notes of the table that are its films'."""
    told = Notes({name: notes.of(name) or "" for name in notes.names}) if len(notes) else Notes()
    step = block_size(len(names), size)
    blocks = []
    for start in range(0, len(names), step):
        some = names[start : start + step]
        texts = {name: text for name in some if (text := told.of(name))} if len(told) else {}
        blocks.append(Block(some, texts))
    return blocks


def _files(bundle: Bundle) -> dict[str, bytes]:
    """What a worker needs of a bundle, whose hashes were compared here."""
    listed = [name for name in bundle.description.files if not name.startswith(_WEIGHTS)]
    return {name: (bundle.folder / name).read_bytes() for name in (DESCRIPTION, *listed)}


# ---- the cluster


@dataclass(frozen=True)
class Plan:
    """How many actors do what.

    Attributes:
        decoding, reading: actors.
        gpu: whether each of those that read has a GPU.
        share: processors that Ray counts for an actor.
        provider: what those that read ask ONNX Runtime for.
    """

    decoding: int
    reading: int
    gpu: bool
    share: float
    provider: ProviderChoice


def _plan(resources: dict[str, float], workers: int | None, provider: ProviderChoice, require_gpu: bool) -> Plan:
    """One actor a GPU reads; without GPUs, half of the processors that decoding may leave."""
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    gpu = provider not in ("cpu", "openvino") and gpus > 0
    if require_gpu and not gpu:
        raise DependencyError("a GPU is required and the Ray cluster has none; start its machines with GPUs")
    if cpus < 1:
        raise DependencyError("the Ray cluster has no processors; start its machines with --num-cpus")
    left = cpus // 2 if workers is None else cpus - workers
    reading = gpus if gpu else max(1, left)
    decoding = max(1, min(workers or cpus, cpus - reading))
    share = min(1.0, int(1000 * cpus / (decoding + reading)) / 1000)
    return Plan(decoding, reading, gpu, share, provider if gpu or provider == "openvino" else "cpu")


def _ray(local: bool) -> Any:
    # All are read at the import.
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its new way; the old one warns
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its native lines on stderr, which are no errors of ours
    if local:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # whatever the system: listen on the loopback alone
    try:
        import ray
        import ray.data
    except ImportError:
        raise DependencyError("--engine ray needs Ray; install it with: pip install 'medsd[cluster]'") from None
    return ray


@contextlib.contextmanager
def connected(address: str, workers: int | None) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`; what was connected before stays so.

    Raises:
        DependencyError: Ray is not installed, or no cluster answers.
    """
    ray = _ray(address == LOCAL)
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    with contextlib.ExitStack() as stack:
        try:
            _knock(address)
            if address == LOCAL:
                options |= {"num_cpus": max(processors(), (workers or 1) + 1), "include_dashboard": False}
                options["_temp_dir"] = stack.enter_context(_without_traces(ray))
            stack.callback(ray.shutdown)
            with _native_stderr_held():
                ray.init(**options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            what = "Ray does not start here" if address == LOCAL else f"--ray-address {address}: no Ray cluster answers"
            raise DependencyError(
                f"{what} ({type(error).__name__}); start one with `ray start --head`, or try --engine local"
            ) from None
        yield ray


@contextlib.contextmanager
def _without_traces(ray: Any) -> Iterator[str]:
    """What a local Ray would leave or ask, stopped: gives a folder for its sessions, which is deleted at the end.

    Without a dashboard Ray still starts its web server, for its usage statistics, and without these the server still
    asks the addresses of three clouds (169.254.169.254, metadata.google.internal) where it runs. Where the user has no
    token for Ray, this process gets one of its own, or Ray would write one into the home folder.
    """
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if not given and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # it stays: Ray's native part reads it once a process
    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it, whose paths may have 107 bytes
    try:
        with patch.object(ray._private.services, "start_api_server", lambda *_, **__: (None, None)):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _native_stderr_held() -> Iterator[None]:
    """Drop what Ray's native part prints while it starts, such as that its log level was set."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _knock(address: str) -> None:
    """See whether anybody listens at HOST:PORT: Ray itself tries for a quarter of an hour.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _run(
    ray: Any, blocks: Sequence[Block], decode: Decode, read: Read, plan: Plan
) -> Iterator[tuple[list[tuple[str, str]], str]]:
    """Outcomes (status and reason) of each block that is finished, in no order, and the provider that computed."""
    if not blocks:
        return
    _quieten(ray)
    pool = ray.data.ActorPoolStrategy
    rows = ray.data.from_items([{"block": block.to_json()} for block in blocks], override_num_blocks=len(blocks))
    decoded = rows.map(Stage, fn_constructor_args=(decode,), compute=pool(size=plan.decoding), num_cpus=plan.share)
    done = decoded.map(
        Stage,
        fn_constructor_args=(read,),
        compute=pool(size=plan.reading),
        num_cpus=plan.share,
        num_gpus=1 if plan.gpu else None,
    )
    try:
        for row in done.iter_rows():
            yield [tuple(outcome) for outcome in json.loads(row["outcomes"])], row["provider"]
    except ray.exceptions.RayError as error:
        raise _complaint(error) from None


def _quieten(ray: Any) -> None:
    """One bar is ours; what Ray logs stands in the files of its session."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _complaint(error: BaseException) -> MedsdError:
    """What a worker raised, in one line; its own words where they are ours."""
    found: BaseException | None = error
    while found is not None:
        cause = getattr(found, "cause", None)
        if isinstance(cause, MedsdError):
            return cause
        if isinstance(found, MedsdError):
            return DataError(str(found.args[0]) if found.args else str(found))
        found = cause if isinstance(cause, BaseException) else found.__cause__
    return DataError(
        f"the cluster gave up a block ({type(error).__name__}), as its workers died again and again or cannot import "
        "medsd; the finished rows are kept: see Ray's logs, then go on with --resume"
    )
