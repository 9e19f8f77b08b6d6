"""The verbs that read studies with a bundle: score many, find similar cases, suggest which to label next."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medsd.cli.options import (
    BundleFolder,
    Coverage,
    Digits,
    Elsewhere,
    Gate,
    GateSet,
    Json,
    NotesTable,
    Where,
    Workers,
    print_summary,
)
from medsd.errors import MedsdError

if TYPE_CHECKING:
    from medsd.inference.predict import Predictor
    from medsd.inference.prediction import Prediction


def score(
    bundle: BundleFolder,
    out: Annotated[Path, typer.Option(help="the table: .csv, .parquet or .jsonl")],
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="files, folders, patterns in quotes, ZIP archives, lists of paths (.txt, .lst, or @FILE), or - for "
            "paths on standard input; leave out to read --notes alone"
        ),
    ] = None,
    lists: Annotated[
        list[Path] | None,
        typer.Option("--list", help="list of paths: CSV with the columns path and perhaps note, else one a line"),
    ] = None,
    notes: NotesTable = None,
    side_notes: Annotated[
        bool, typer.Option("--side-notes", help="the note of image.dcm is image.txt beside it")
    ] = False,
    embeddings: Annotated[Path | None, typer.Option(help="also write embeddings, a row each: .npy or .parquet")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="processes that decode, 2 by default; 1 is this one, without limits. With --engine ray: in the whole "
            "cluster, by default the processors that the model leaves, and always within limits",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images in one run of the model")] = 8,
    resume: Annotated[bool, typer.Option("--resume", help="keep the rows that an earlier run finished")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 when an input was refused")] = False,
    metrics: Annotated[Path | None, typer.Option(help="Prometheus metrics, for node-exporter: FILE.prom")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Prometheus metrics on this port of the loopback address")
    ] = None,
    coverage: Coverage = None,
    by: Annotated[
        Literal["image", "study"],
        typer.Option(
            help="study: one row a study. Its probabilities are the mean over its frontal images that were scored, and "
            "its calls follow from the mean; laterals and refused images are counted and left out, copies of one "
            "instance count once. The table of the images is kept beside it, as OUT.images"
        ),
    ] = "image",
    defuse_formulas: Annotated[
        bool, typer.Option("--defuse-formulas", help="in .csv, an apostrophe before texts that begin with = + - @")
    ] = False,
    provider: Where = "auto",
    precision: Digits = "auto",
    require_gpu: Annotated[bool, typer.Option("--require-gpu", help="fail rather than run on the CPU")] = False,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="ray: on a Ray cluster, an actor a GPU; paths, --out and --embeddings lie where every machine sees "
            "them, or are URLs such as s3://bucket/images (not ZIP archives, --side-notes; no lock)"
        ),
    ] = "local",
    ray_address: Annotated[
        str, typer.Option(help="of the cluster: HOST:6379, ray://HOST:10001; local starts Ray here, for this run")
    ] = "local",
    gate: Gate = None,
    set_: GateSet = None,
    as_json: Json = False,
) -> None:
    """Score DICOM files and images, or notes alone, into a table: one row per input, or per study with --by study.

    Exit status: 0 each input has a row, refused ones with the reason; 1 the same, but --strict was given and an input
    was refused; 2 it could not be done (bad usage, a full disk); 130 interrupted. After 2 and 130, --resume goes on.

    Example: medsd score models/nih14 /archive/2026 --out results.parquet --workers 4

    Example: medsd score models/nih14 s3://archive/2026 --out s3://results/2026.parquet --engine ray --ray-address
    head:6379
    """
    from medsd.scoring import batch, by_study, cluster
    from medsd.settings import load_gate

    if ray_address != cluster.LOCAL and engine != "ray":
        raise typer.BadParameter("--ray-address needs --engine ray")
    on_cluster = partial(cluster.score, address=ray_address, workers=workers)
    run = on_cluster if engine == "ray" else partial(batch.score, workers=workers or 2)
    summary = (partial(by_study.score, run) if by == "study" else run)(
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
        policy=load_gate(gate, set_ or ()),
        coverage=coverage,
        defuse_formulas=defuse_formulas,
        metrics=metrics,
        metrics_port=metrics_port,
        progress=True,
    )
    print_summary(summary, as_json)
    if strict and summary.refused:
        raise typer.Exit(1)


def similar(
    bundle: BundleFolder,
    path: Annotated[Path | None, typer.Argument(help="DICOM file or image; leave out to read a note alone")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="how many cases")] = 8,
    note: Annotated[str | None, typer.Option(help="the clinical note")] = None,
    words: Annotated[str | None, typer.Option(help='a sentence: "effusion without cardiomegaly"')] = None,
    with_: Annotated[list[str] | None, typer.Option("--with", help="a finding that the cases have")] = None,
    without: Annotated[list[str] | None, typer.Option(help="a finding that the cases are known not to have")] = None,
    view: Annotated[list[str] | None, typer.Option(help="PA, AP, LATERAL")] = None,
    sex: Annotated[list[str] | None, typer.Option(help="F, M, O")] = None,
    age: Annotated[list[str] | None, typer.Option(help="age band: 60-69, 90+")] = None,
    source: Annotated[list[str] | None, typer.Option(help="data set that the cases come from")] = None,
    index: Elsewhere = None,
    coverage: Coverage = None,
    provider: Where = "auto",
    precision: Digits = "auto",
    gate: Gate = None,
    set_: GateSet = None,
    as_json: Json = False,
) -> None:
    """The nearest earlier cases, and how each resembles this study; or the cases that fit findings or a sentence.

    Example: medsd similar models/nih14 image.dcm -k 8

    Example: medsd similar models/nih14 --with Effusion --without Cardiomegaly
    """
    from medsd.bundle.layout import Bundle
    from medsd.cases import ask
    from medsd.cases.index import CaseFilter, CaseIndex
    from medsd.inference.predict import Predictor
    from medsd.settings import load_gate

    opened = Bundle.open(bundle)
    cases = CaseIndex.open(index or opened.cases_path, model_sha256=opened.model_sha256)
    filters = CaseFilter(view=view or (), sex=sex or (), age_band=age or (), source=source or ())
    asked = ask.question(cases, with_, without, words, filters, k)

    def predictor() -> Predictor:
        policy = load_gate(gate, set_ or ())
        return Predictor(opened, provider=provider, precision=precision, policy=policy, coverage=coverage)

    if path is None and note is None and (asked.query or words):
        answer = ask.ask(cases, asked, lambda: predictor() if opened.description.note else None)
        print(json.dumps(answer.as_dict(), indent=2) if as_json else answer.text(cases))
        return
    prediction = predictor()(path, note, name=str(path or ""))
    if prediction.refused:
        raise MedsdError(prediction.message)
    answer = ask.ask_study(cases, prediction, asked)
    if as_json:
        print(json.dumps({"prediction": _as_record(prediction, path), **answer.as_dict()}, indent=2))
        return
    warning = f"\n{prediction.message}" if prediction.message else ""
    print(f"{prediction.model}: {prediction.called()}{warning}\n\n{answer.text(cases)}")


def _as_record(prediction: Prediction, path: Path | None) -> dict[str, object]:
    return {
        "status": prediction.status,
        "reason": prediction.reason,
        "message": prediction.message.removeprefix(f"{path}: "),  # the name of a file may be a patient's
        "probabilities": prediction.probabilities,
        "calls": dict(prediction.calls),
        "not_trained": list(prediction.not_trained),
        "coverage": prediction.coverage,
        "neither": list(prediction.neither),
        "out_of_distribution": prediction.out_of_distribution,
        "model": prediction.model,
    }


def suggest(
    bundle: Annotated[Path | None, typer.Argument(help="folder of a bundle; leave out with --config")] = None,
    paths: Annotated[list[Path] | None, typer.Argument(help="files, folders, patterns, or text lists of paths")] = None,
    count: Annotated[int, typer.Option(min=1, help="how many studies, at most one of a patient")] = 20,
    out: Annotated[Path, typer.Option(help="the list, .csv; what was left out stands beside it")] = Path("suggest.csv"),
    config: Annotated[
        Path | None, typer.Option(help="choose among the unlabelled training studies of this run instead")
    ] = None,
    labelled: Annotated[
        Path | None, typer.Option(help="list of images that are labelled, in addition to the cases")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the draw")] = 0,
    workers: Workers = 2,
    provider: Where = "auto",
    gate: Gate = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="override the gate, or the run's settings")] = None,
    as_json: Json = False,
) -> None:
    """Which studies to label next: where the model is unsure, far from what is labelled, of rare combinations.

    Example: medsd suggest models/nih14 /archive/unread --count 50 --out next.csv
    """
    from medsd.labelling import pool
    from medsd.settings import load_gate, load_settings

    if config is not None:
        if bundle is not None:
            raise MedsdError("give a bundle with images, or --config with a run, not both")
        summary = pool.suggest_studies(load_settings(config, set_ or ()), out, count=count, seed=seed)
    elif bundle is None or not paths:
        raise MedsdError("give a bundle and images to choose from, or --config with a run; see medsd suggest --help")
    else:
        summary = pool.suggest_films(
            bundle,
            paths,
            out,
            count=count,
            labelled=labelled,
            seed=seed,
            workers=workers,
            provider=provider,
            policy=load_gate(gate, set_ or ()),
            progress=True,
        )
    print_summary(summary, as_json)


VERBS = (score, similar, suggest)
