"""`medsd score`: many studies into one table."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medsd.cli import options

if TYPE_CHECKING:
    from medsd.scoring.request import Summary

Engine = Literal["local", "ray"]
Unit = Literal["image", "study"]

_Out = Annotated[Path, typer.Option(help="the table: .csv, .parquet or .jsonl")]
_Paths = Annotated[
    list[Path] | None,
    typer.Argument(
        help="files, folders, patterns in quotes, ZIP archives, lists of paths (.txt, .lst, or @FILE), or - for "
        "paths on standard input; leave out to read --notes alone"
    ),
]
_Lists = Annotated[
    list[Path] | None,
    typer.Option("--list", help="list of paths: CSV with the columns path and perhaps note, else one a line"),
]
_SideNotes = Annotated[bool, typer.Option("--side-notes", help="the note of image.dcm is image.txt beside it")]
_Embeddings = Annotated[Path | None, typer.Option(help="also write embeddings, a row each: .npy or .parquet")]
_Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="processes that decode, 2 by default; 1 is this process, without limits. With --engine ray: in the whole "
        "cluster, by default the processors that the model leaves, and always within limits",
    ),
]
_Images = Annotated[int, typer.Option(min=1, help="images in one run of the model")]
_Resume = Annotated[bool, typer.Option("--resume", help="keep the rows that an earlier run finished")]
_Strict = Annotated[bool, typer.Option("--strict", help="exit with 1 when an input was refused")]
_Metrics = Annotated[Path | None, typer.Option(help="Prometheus metrics, for node-exporter: FILE.prom")]
_MetricsPort = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Prometheus metrics on this port of the loopback address")
]
_By = Annotated[
    Unit,
    typer.Option(
        help="study: one row a study. Its probabilities are the mean over its frontal images that were scored, and its "
        "calls follow from the mean; laterals and refused images are counted and left out, copies of one instance "
        "count once. The table of the images is kept beside it, as OUT.images"
    ),
]
_Defuse = Annotated[
    bool, typer.Option("--defuse-formulas", help="in .csv, an apostrophe before texts that begin with = + - @")
]
_RequireGpu = Annotated[bool, typer.Option("--require-gpu", help="fail rather than run on the CPU")]
_On = Annotated[
    Engine,
    typer.Option(
        help="ray: on a Ray cluster, an actor a GPU; paths, --out and --embeddings lie where every machine sees them, "
        "or are URLs such as s3://bucket/images (not ZIP archives, --side-notes; no lock)"
    ),
]
_RayAddress = Annotated[
    str, typer.Option(help="of the cluster: HOST:6379, ray://HOST:10001; local starts Ray here, for this run")
]


def score(
    bundle: options.BundleFolder,
    out: _Out,
    paths: _Paths = None,
    lists: _Lists = None,
    notes: options.NotesTable = None,
    side_notes: _SideNotes = False,
    embeddings: _Embeddings = None,
    workers: _Workers = None,
    batch_size: _Images = 8,
    resume: _Resume = False,
    strict: _Strict = False,
    metrics: _Metrics = None,
    metrics_port: _MetricsPort = None,
    coverage: options.Coverage = None,
    by: _By = "image",
    defuse_formulas: _Defuse = False,
    provider: options.Where = "auto",
    precision: options.Digits = "auto",
    require_gpu: _RequireGpu = False,
    engine: _On = "local",
    ray_address: _RayAddress = "local",
    gate: options.Gate = None,
    set_: options.GateSet = None,
    as_json: options.Json = False,
) -> None:
    """Score DICOM files and images, or notes alone, into a table: one row per input, or per study with --by study.

    Exit status: 0 each input has a row, refused ones with the reason; 1 the same, but --strict was given and an input
    was refused; 2 it could not be done (bad usage, a full disk); 130 interrupted. After 2 and 130, --resume goes on.

    Example: medsd score models/nih14 /archive/2026 --out results.parquet --workers 4

    Example: medsd score models/nih14 s3://archive --out s3://results/1.parquet --engine ray --ray-address head:6379
    """
    summary = _scorer(engine, by, workers, ray_address)(
        bundle,
        paths or [],
        out,
        lists=lists or [],
        notes=notes,
        side_notes=side_notes,
        embeddings=embeddings,
        batch_size=batch_size,
        resume=resume,
        provider=provider,
        precision=precision,
        require_gpu=require_gpu,
        policy=options.read_gate(gate, set_),
        coverage=coverage,
        defuse_formulas=defuse_formulas,
        metrics=metrics,
        metrics_port=metrics_port,
        progress=True,
    )
    options.print_summary(summary, as_json)
    if strict and summary.refused:
        raise typer.Exit(1)


def _scorer(engine: Engine, by: Unit, workers: int | None, ray_address: str) -> "Callable[..., Summary]":
    """What scores: this machine's processes or those of a Ray cluster, by image or by study."""
    from medsd.scoring import batch, by_study, cluster
    from medsd.scoring.request import ScoringRequest

    if ray_address != cluster.LOCAL and engine != "ray":
        raise typer.BadParameter("--ray-address needs --engine ray")
    run = partial(cluster.score, address=ray_address) if engine == "ray" else batch.score
    score_all = partial(by_study.score, run) if by == "study" else run
    workers = workers if engine == "ray" else workers or 2
    return lambda bundle, inputs, out, **how: score_all(ScoringRequest(bundle, inputs, out, workers=workers, **how))
