"""The command `medsd`: a short function a verb, importing what it needs when it runs.

Exit status: 0 done, 1 some inputs were refused and `--strict` asked for that, 2 bad usage or input (one clear line),
130 interrupted.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from medsd.cli_cases import cases as cases_app
from medsd.cli_training import VERBS, Provider, Where
from medsd.errors import MedsdError

if TYPE_CHECKING:
    from medsd.inference.prediction import Prediction

app = typer.Typer(
    help="Multi-label reading of chest radiographs with clinical notes. Research software, no medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(cases_app, name="cases")


@app.callback()
def _begin() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise MedsdError("the working folder was removed; change to one that is there") from None


_INTERRUPTED, _SOME_REFUSED = 130, 1
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class PrecisionOf(StrEnum):
    """The numbers that the model computes with."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


class Engine(StrEnum):
    """What scores: the processes of this machine, or those of a Ray cluster."""

    local = "local"
    ray = "ray"


class By(StrEnum):
    """What a row of the table is of."""

    image = "image"
    study = "study"


class BurnedInChoice(StrEnum):
    """What text in the pixels, or not knowing of it, leads to."""

    refuse = "refuse"
    warn = "warn"
    keep = "keep"


Gate = Annotated[Path | None, typer.Option("--gate", help="what the gate refuses: configs/gate/default.yaml, changed")]
GateSet = Annotated[list[str] | None, typer.Option("--set", help="override the gate: --set gate.view=warn")]
BundleFolder = Annotated[Path, typer.Argument(help="folder of a bundle, for instance models/nih14")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Coverage = Annotated[
    float | None,
    typer.Option(help="conformal calls that hold the truth of this share, e.g. 0.9; else operating points"),
]
Precision = Annotated[PrecisionOf, typer.Option(help="its numbers; auto: float16 on a GPU, else float32")]


for _verb in VERBS:
    app.command()(_verb)


@app.command()
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
    notes: Annotated[Path | None, typer.Option(help="CSV with the columns path (or file name) and note")] = None,
    side_notes: Annotated[
        bool, typer.Option("--side-notes", help="the note of film.dcm is film.txt beside it")
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
    batch_size: Annotated[int, typer.Option(min=1, help="films in one run of the model")] = 8,
    resume: Annotated[bool, typer.Option("--resume", help="keep the rows that an earlier run finished")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 when an input was refused")] = False,
    metrics: Annotated[Path | None, typer.Option(help="Prometheus metrics, for node-exporter: FILE.prom")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Prometheus metrics on this port of the loopback address")
    ] = None,
    coverage: Coverage = None,
    by: Annotated[
        By,
        typer.Option(
            help="study: one row a study. Its probabilities are the mean over its frontal images that were scored, and "
            "calls are made of the mean; laterals and refused images are counted and left out, copies of one instance "
            "count once. The table of the images is kept beside, as OUT.images"
        ),
    ] = By.image,
    defuse_formulas: Annotated[
        bool, typer.Option("--defuse-formulas", help="in .csv, an apostrophe before texts that begin with = + - @")
    ] = False,
    provider: Where = Provider.auto,
    precision: Precision = PrecisionOf.auto,
    require_gpu: Annotated[bool, typer.Option("--require-gpu", help="fail rather than run on the CPU")] = False,
    engine: Annotated[
        Engine,
        typer.Option(
            help="ray: on a Ray cluster, an actor a GPU; paths, --out and --embeddings lie where every machine sees "
            "them, or are URLs such as s3://bucket/films (not ZIP archives, --side-notes; no lock)"
        ),
    ] = Engine.local,
    ray_address: Annotated[
        str, typer.Option(help="of the cluster: HOST:6379, ray://HOST:10001; local starts Ray here, for this run")
    ] = "local",
    gate: Gate = None,
    set_: GateSet = None,
    as_json: Json = False,
) -> None:
    """Score DICOM files and images, or notes alone, into a table, one row an input, or a study with --by study.

    Exit status: 0 each input has a row, refused ones with the reason; 1 the same, and --strict met a refused one; 2 it
    could not be done (bad usage, a disk that is full); 130 interrupted. After 2 and 130, --resume goes on.

    Example: medsd score models/nih14 /archive/2026 --out results.parquet --workers 4

    Example: medsd score models/nih14 s3://archive/2026 --out s3://results/2026.parquet --engine ray --ray-address
    head:6379
    """
    from medsd.scoring import batch, by_study, cluster
    from medsd.settings import load_gate

    on_ray = engine is Engine.ray
    if ray_address != cluster.LOCAL and not on_ray:
        raise typer.BadParameter("--ray-address needs --engine ray")
    on_cluster = partial(cluster.score, address=ray_address, workers=workers)
    run = on_cluster if on_ray else partial(batch.score, workers=workers or 2)
    summary = (partial(by_study.score, run) if by is By.study else run)(
        bundle,
        paths or [],
        out,
        lists=lists or [],
        notes=notes,
        side_notes=side_notes,
        embeddings=embeddings,
        batch_size=batch_size,
        resume=resume,
        provider=provider.value,
        precision=precision.value,
        require_gpu=require_gpu,
        policy=load_gate(gate, set_ or ()),
        coverage=coverage,
        defuse_formulas=defuse_formulas,
        metrics=metrics,
        metrics_port=metrics_port,
        progress=True,
    )
    print(json.dumps(summary.as_dict()) if as_json else summary.line())
    if strict and summary.refused:
        raise typer.Exit(_SOME_REFUSED)


@app.command()
def similar(
    bundle: BundleFolder,
    path: Annotated[Path | None, typer.Argument(help="DICOM file or image; leave out to read a note alone")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="how many cases")] = 8,
    note: Annotated[str | None, typer.Option(help="the clinical note")] = None,
    words: Annotated[str | None, typer.Option(help="a sentence: «effusion without cardiomegaly»")] = None,
    with_: Annotated[list[str] | None, typer.Option("--with", help="a finding that the cases have")] = None,
    without: Annotated[list[str] | None, typer.Option(help="a finding that the cases are known not to have")] = None,
    view: Annotated[list[str] | None, typer.Option(help="PA, AP, LATERAL")] = None,
    sex: Annotated[list[str] | None, typer.Option(help="F, M, O")] = None,
    age: Annotated[list[str] | None, typer.Option(help="age band: 60-69, 90+")] = None,
    source: Annotated[list[str] | None, typer.Option(help="data set that the cases come from")] = None,
    index: Annotated[str | None, typer.Option("--index", help="the index, where it is not in the bundle")] = None,
    coverage: Coverage = None,
    provider: Where = Provider.auto,
    precision: Precision = PrecisionOf.auto,
    gate: Gate = None,
    set_: GateSet = None,
    as_json: Json = False,
) -> None:
    """The nearest earlier cases, and how each resembles this study; or the cases that fit findings or a sentence.

    Example: medsd similar models/nih14 film.dcm -k 8

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
        return Predictor(opened, provider=provider.value, precision=precision.value, policy=policy, coverage=coverage)

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
    print(_in_words(prediction))
    print(answer.text(cases))


@app.command()
def suggest(
    bundle: Annotated[Path | None, typer.Argument(help="folder of a bundle; leave out with --config")] = None,
    paths: Annotated[list[Path] | None, typer.Argument(help="files, folders, patterns, or text lists of paths")] = None,
    count: Annotated[int, typer.Option(min=1, help="how many studies, at most one of a patient")] = 20,
    out: Annotated[Path, typer.Option(help="the list, .csv; what was left out stands beside it")] = Path("suggest.csv"),
    config: Annotated[
        Path | None, typer.Option(help="choose among the unlabelled training studies of this run instead")
    ] = None,
    labelled: Annotated[Path | None, typer.Option(help="films that are labelled beside the cases: a list")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the draw")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="processes that decode; 1 is this one, without limits")] = 2,
    provider: Where = Provider.auto,
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
            raise MedsdError("give a bundle with films, or --config with a run, not both")
        summary = pool.suggest_studies(load_settings(config, set_ or ()), out, count=count, seed=seed)
    elif bundle is None or not paths:
        raise MedsdError("give a bundle and films to choose from, or --config with a run; see medsd suggest --help")
    else:
        summary = pool.suggest_films(
            bundle,
            paths,
            out,
            count=count,
            labelled=labelled,
            seed=seed,
            workers=workers,
            provider=provider.value,
            policy=load_gate(gate, set_ or ()),
            progress=True,
        )
    print(json.dumps(summary.as_dict()) if as_json else summary.line())


@app.command()
def deidentify(
    paths: Annotated[list[Path], typer.Argument(help="files, folders, patterns, or text lists of paths")],
    out: Annotated[Path, typer.Option(help="folder for the cleaned files, apart from the originals")],
    modified_dates: Annotated[bool, typer.Option("--modified-dates", help="shift dates, don't remove them")] = False,
    characteristics: Annotated[
        bool, typer.Option("--patient-characteristics", help="keep sex, age, size and weight")
    ] = False,
    burned_in: Annotated[BurnedInChoice, typer.Option(help="what text in the pixels leads to")] = BurnedInChoice.warn,
    report: Annotated[Path | None, typer.Option(help="CSV of what became of each file; names the originals")] = None,
    as_json: Json = False,
) -> None:
    """De-identify DICOM files by the basic profile of PS3.15 annex E; the originals are only read.

    Example: medsd deidentify /archive/2026 --out /research/2026 --modified-dates --burned-in refuse
    """
    from medsd.dicom.confidentiality import Confidentiality
    from medsd.dicom.deidentify import deidentify_files
    from medsd.privacy import KeyedHasher
    from medsd.scoring.inputs import expand_inputs

    profile = Confidentiality(KeyedHasher.from_environment(), modified_dates, characteristics)
    files, folders = expand_inputs(paths), [path for path in paths if path.is_dir()]
    summary = deidentify_files(
        files, out, profile, burned_in=burned_in.value, folders=folders, report=report, progress=True
    )
    print(json.dumps(summary.as_dict()) if as_json else summary.line())


@app.command("app")
def app_(
    bundle: Annotated[Path, typer.Argument(help="folder of a bundle")] = Path("models/phantom"),
    host: Annotated[str, typer.Option(help="address; any but a loopback one needs a login")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 7860,
    images: Annotated[Path | None, typer.Option(help="folder with the films of the cases")] = None,
    auth: Annotated[Path | None, typer.Option(help="file with user:password on each line")] = None,
    feedback: Annotated[Path | None, typer.Option(help="folder that keeps what readers say of the calls")] = None,
    quota_gb: Annotated[float, typer.Option("--uploads-gb", min=0, help="GB on disk for the uploads of all")] = 8.0,
    open_browser: Annotated[bool, typer.Option("--open", help="open the page in the browser")] = False,
    precision: Precision = PrecisionOf.auto,
    gate: Gate = None,
    set_: GateSet = None,
) -> None:
    """The web app: findings beside the nearest earlier cases.

    Example: medsd app models/nih14 --images /data/nih14/images
    """
    from medsd.apps.web.server import serve
    from medsd.settings import load_gate

    policy = load_gate(gate, set_ or ())
    serve(
        bundle,
        host=host,
        port=port,
        images=images,
        auth=auth,
        feedback=feedback,
        quota_gb=quota_gb,
        open_browser=open_browser,
        policy=policy,
        precision=precision.value,
    )


@app.command()
def doctor(as_json: Json = False) -> None:
    """What works on this machine, and what does not: versions, providers, GPU, decoders, disk.

    Example: medsd doctor
    """
    from medsd.doctor import examine, in_words

    report = examine()
    print(json.dumps(report, indent=2) if as_json else in_words(report))


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


def _in_words(prediction: Prediction) -> str:
    warning = f"\n{prediction.message}" if prediction.message else ""
    return f"{prediction.model}: {prediction.called()}{warning}\n"


def main() -> None:
    """Entry point: errors that a person can act on become one line and exit status 2."""
    from medsd.privacy import install_log_filter
    from medsd.telemetry import use_own_caches

    use_own_caches()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("ignite", "monai", "onnxscript", "onnx_ir", "torch", "httpx"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    install_log_filter()
    try:
        status = app(standalone_mode=False)
        if status == _INTERRUPTED:  # typer makes an exit status of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(status)
    except MedsdError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(
            f"{where}{os.strerror(error.errno or 0)}; what was finished is kept: make room, then go on (score --resume)"
        )
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; what was finished is kept", _INTERRUPTED)
    except Exception as error:
        # Wrong usage: typer carries its own copy of click and exports no name for these.
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()
        sys.exit(error.exit_code)


def _fail(message: str, status: int = 2) -> NoReturn:
    print(f"medsd: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
