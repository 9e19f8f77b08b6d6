"""The verbs that compare studies with what is known: find similar cases, suggest which to label next."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsd.cli import options
from medsd.errors import MedsdError

if TYPE_CHECKING:
    from medsd.inference.predict import Predictor
    from medsd.inference.prediction import Prediction


def similar(
    bundle: options.BundleFolder,
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
    index: options.Elsewhere = None,
    coverage: options.Coverage = None,
    provider: options.Where = "auto",
    precision: options.Digits = "auto",
    gate: options.Gate = None,
    set_: options.GateSet = None,
    as_json: options.Json = False,
) -> None:
    """The nearest earlier cases, and how each resembles this study; or the cases that fit findings or a sentence.

    Example: medsd similar models/nih14 image.dcm -k 8

    Example: medsd similar models/nih14 --with Effusion --without Cardiomegaly
    """
    from medsd.bundle.layout import Bundle
    from medsd.cases import ask
    from medsd.cases.case import CaseFilter
    from medsd.cases.index import CaseIndex
    from medsd.inference.predict import Predictor
    from medsd.inference.words import impression

    opened = Bundle.open(bundle)
    cases = CaseIndex.open(index or opened.cases_path, model_sha256=opened.model_sha256)
    filters = CaseFilter(view=view or (), sex=sex or (), age_band=age or (), source=source or ())
    asked = ask.question(cases, with_, without, words, filters, k)

    def predictor() -> "Predictor":
        policy = options.read_gate(gate, set_)
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
    print(f"{prediction.model}: {impression(prediction, answer.against)}{warning}\n\n{answer.text(cases)}")


def _as_record(prediction: "Prediction", path: Path | None) -> dict[str, object]:
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
    workers: options.Workers = 2,
    provider: options.Where = "auto",
    gate: options.Gate = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="override the gate, or the run's settings")] = None,
    as_json: options.Json = False,
) -> None:
    """Which studies to label next: where the model is unsure, far from what is labelled, of rare combinations.

    Example: medsd suggest models/nih14 /archive/unread --count 50 --out next.csv
    """
    from medsd.labelling import pool
    from medsd.settings import load_settings

    if config is not None:
        if bundle is not None:
            raise MedsdError("give a bundle with images, or --config with a run, not both")
        summary = pool.suggest_studies(load_settings(config, set_ or ()), out, count=count, seed=seed)
    elif bundle is None or not paths:
        raise MedsdError("give a bundle and images to choose from, or --config with a run; see medsd suggest --help")
    else:
        summary = pool.suggest_images(
            bundle,
            paths,
            out,
            count=count,
            labelled=labelled,
            seed=seed,
            workers=workers,
            provider=provider,
            policy=options.read_gate(gate, set_),
            progress=True,
        )
    options.print_summary(summary, as_json)


VERBS = (similar, suggest)
