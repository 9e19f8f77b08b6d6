"""`medsd.scoring.batch.score` over the machines of a Ray cluster: the same rows, in the same order.

Blocks of inputs pass through two pools of Ray Data: actors that decode, each with a helper process of its own that
bounds time and memory, and actors that read, one a GPU, or on processors where there is none. A block that is read is
a file beside the output (`medsd.scoring.finished`), so a worker that is killed costs no more than the blocks that it
held, which Ray gives to another, and a run that is killed goes on with `resume`. Begin at `score`.

The bundle, the gate and the key for identifiers travel to the workers through Ray: use a cluster that you trust. A
local Ray listens on the loopback address alone, asks no cloud where it runs, shows no dashboard and leaves no files. A
cluster of your own reports as you start it: with `ray start --disable-usage-stats` it still says that it is there.
"""

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from medsd.bundle.layout import DESCRIPTION, Bundle
from medsd.errors import DataError, DependencyError
from medsd.inference.providers import CPU, CUDA, ProviderChoice, choose_precision
from medsd.inference.session import processors
from medsd.scoring.note_files import Notes
from medsd.scoring.remote import FetchingDecoder
from medsd.scoring.request import Outcomes, ScoringRequest, Summary, carry_out, prepare
from medsd.scoring.segments import Block
from medsd.scoring.workers import KEPT, Actor, DecodeBlock, ScoreBlock

LOCAL = "local"
_KNOCK_S = 10.0
_WEIGHTS = "weights/"  # of a bundle: for training, not for reading


def score(request: ScoringRequest, *, address: str = LOCAL) -> Summary:
    """Score the inputs of `request` on a Ray cluster.

    Paths are read by the workers: they lie on a file system that every machine has mounted at the same place, or are
    URLs (``s3://bucket/images``) that fsspec knows. The bundle, lists, notes and metrics are files of this machine. ZIP
    archives and notes beside images are read from file systems, not behind URLs. Behind a URL nothing is locked: two
    runs on one output do the work twice.

    The `workers` of the request are those that decode, in the whole cluster, by default the processors that the reading
    leaves. `address` is that of the cluster, as ``ray.init`` takes it; "local" starts Ray on this machine alone, for
    this run. Raises DataError: as for `medsd.scoring.batch.score`, or a worker cannot write its rows; BundleError: no
    bundle, or an altered one; DependencyError: Ray is not installed, no cluster answers, or `require_gpu` and it has no
    GPU.
    """
    job = prepare(request, urls=True)
    with connected(address, request.workers) as ray:
        plan = _plan(ray.cluster_resources(), request.workers, request.provider, request.require_gpu)
        precision = choose_precision(request.precision, job.bundle, CUDA if plan.gpu else CPU)
        with job.finished(precision) as rows:
            decoder = FetchingDecoder(job.bundle.description.pixels, request.policy, job.hasher) if job.images else None
            files, reading = ray.put(_files(job.bundle)), job.reading(plan.provider, precision)
            work = ScoreBlock(files, rows.store, job.size, job.width, reading)
            blocks = with_notes(rows.waiting, job.notes)
            outcomes = _run(ray, blocks, DecodeBlock(decoder, request.side_notes), work, plan)
            rows.take(blocks)
            return carry_out(job, rows, outcomes, provider=plan.provider)


def with_notes(blocks: Sequence[Block], notes: Notes) -> list[Block]:
    """The blocks, each with the notes of the table that belong to its images."""
    told = Notes(notes.by_path)
    return [
        Block(block.names, {name: text for name in block.names if (text := told.of(name))} if told.by_path else {})
        for block in blocks
    ]


def _files(bundle: Bundle) -> dict[str, bytes]:
    """What a worker needs of a bundle, whose hashes were compared here."""
    listed = [name for name in bundle.description.files if not name.startswith(_WEIGHTS)]
    return {name: (bundle.folder / name).read_bytes() for name in (DESCRIPTION, *listed)}


# ---- the cluster


@dataclass(frozen=True)
class Plan:
    """How many actors decode and how many read."""

    decoding: int
    reading: int
    gpu: bool  # whether each of those that read has one
    share: float  # processors that Ray counts for an actor
    provider: ProviderChoice  # what those that read ask ONNX Runtime for


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

    Raises DependencyError: Ray is not installed, or no cluster answers.
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

    Raises OSError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _run(
    ray: Any, blocks: Sequence[Block], decode: DecodeBlock, read: ScoreBlock, plan: Plan
) -> Iterator[tuple[Outcomes, str]]:
    """Outcomes (status and reason) of each block that is finished, in no order, and the provider that computed."""
    if not blocks:
        return
    # One bar is ours; what Ray logs stands in the files of its session.
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.execution_options.verbose_progress = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    pool = ray.data.ActorPoolStrategy
    rows = ray.data.from_items([{"block": block.to_json()} for block in blocks], override_num_blocks=len(blocks))
    decoded = rows.map(Actor, fn_constructor_args=(decode,), compute=pool(size=plan.decoding), num_cpus=plan.share)
    done = decoded.map(
        Actor,
        fn_constructor_args=(read,),
        compute=pool(size=plan.reading),
        num_cpus=plan.share,
        num_gpus=1 if plan.gpu else None,
    )
    try:
        for row in done.iter_rows():
            if row.get("failed"):
                raise DataError(row["failed"])
            yield [tuple(outcome) for outcome in json.loads(row["outcomes"])], row["provider"]
    except ray.exceptions.RayError as error:
        raise DataError(
            f"the cluster gave up a block ({type(error).__name__}), as its workers died again and again or cannot "
            f"import medsd; {KEPT}"
        ) from None
