"""The verbs that take a finished bundle further: export it, recalibrate it, write its card, measure it elsewhere."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsd.cli.options import BundleFolder, Digits, Json, Provider, Set, Where, Workers, requiring
from medsd.errors import MedsdError, SettingsError

if TYPE_CHECKING:
    from medsd.bundle.layout import Bundle
    from medsd.settings import Settings

_STUDIES = "other studies: a configuration with `data`, or a table as in configs/own.yaml"
Studies = Annotated[Path | None, typer.Option(help=_STUDIES)]
Split = Annotated[
    str | None,
    typer.Option(help="only this part of the studies: train, validation or test; of the bundle's own, by default test"),
]


def evaluate_elsewhere(
    folder: Path,
    studies: Path | None,
    out: Path | None,
    overrides: Sequence[str],
    *,
    split: str | None,
    against: Path | None,
    provider: Provider,
    workers: int,
) -> None:
    """`medsd evaluate BUNDLE --studies …`."""
    if studies is None or out is None:
        raise SettingsError(f"{folder} is a bundle; say what to measure it on and where to: --studies … --out FOLDER")
    with requiring("train", "measuring"):
        from medsd.bundle.layout import Bundle
        from medsd.evaluation.against import AGAINST, AgainstReport
        from medsd.evaluation.report import EVALUATION, EvaluationReport
        from medsd.evaluation.studies_report import STUDIES, StudiesReport
        from medsd.external.evaluate import evaluate_bundle

        bundle, settings = _opened(folder, studies, overrides)
        shift = evaluate_bundle(
            bundle,
            settings,
            out,
            split=split,
            against=None if against is None else Bundle.open(against),
            provider=provider,
            workers=workers,
            progress=True,
        )
        report, measured = EvaluationReport.read(out / EVALUATION), StudiesReport.read(out / STUDIES)
    print(f"evaluate: done, see {out / 'report.html'}")
    print("\n".join(report.lines()))
    if measured.card is not None and measured.card.findings:
        print(measured.card)
    if shift is not None:
        print(shift.sentence)
    if against is not None:
        print("\n".join(AgainstReport.read(out / AGAINST).lines()))
    print_retrieval(out / EVALUATION)


def print_retrieval(path: Path) -> None:
    """The retrieval table of an evaluation.json, as wide as the terminal; nothing where retrieval was not measured."""
    import pandas as pd

    from medsd.card import rankings
    from medsd.evaluation.report import EvaluationReport

    header, rows = rankings(EvaluationReport.read(path))
    if rows:
        table = pd.DataFrame(rows, columns=header).set_index("").rename_axis(None)
        print(table.to_string(line_width=shutil.get_terminal_size().columns))


def recalibrate(
    bundle: BundleFolder,
    studies: Annotated[Path, typer.Option(help=_STUDIES)],
    out: Annotated[Path, typer.Option(help="folder of the new bundle")],
    everyone: Annotated[bool, typer.Option("--all", help="fit all patients, not half of them")] = False,
    version: Annotated[str | None, typer.Option(help="of the new bundle; by default 1 becomes 1.1")] = None,
    split: Split = None,
    workers: Workers = 1,
    set_: Set = None,
) -> None:
    """Fit calibration and operating points to other studies: a new bundle, measured on patients that were held back.

    Example: medsd recalibrate models/nih14 --studies configs/covid.yaml --set data.root=/data/covid --out models/ours
    """
    with requiring("train", "measuring"):
        from medsd.external.recalibrate import recalibrate as run
        from medsd.external.studies import read_studies

        opened, settings = _opened(bundle, studies, set_ or ())
        if out.exists():
            raise SettingsError(f"{out}: exists already; a recalibrated bundle is a new folder")
        reading = read_studies(opened, settings, split=split, workers=workers, progress=True)
        report = run(opened, reading, out, everyone=everyone, version=version)
    for name, figure in report.figures.items():
        print(f"{name.replace('_', ' ')}: {figure.before} before, {figure.after} after; gain {figure.gain}")
    print(f"recalibrate: {', '.join(report.findings)}; done, see {out / 'card.html'}")


def card(
    bundle: BundleFolder,
    out: Annotated[Path | None, typer.Option(help="write the pages here, not into the bundle")] = None,
    check: Annotated[bool, typer.Option("--check", help="write nothing; fail if a page is not what is made")] = False,
) -> None:
    """Write README.md and card.html again from the bundle's own JSON files, or check that they are made of them.

    Example: medsd card models/nih14 --check
    """
    with requiring("train", "measuring"):
        from medsd import card as making
        from medsd.bundle import layout
        from medsd.files import write_whole

        opened = layout.Bundle.open(bundle)
        if check:
            if different := making.different_pages(opened):
                raise MedsdError(f"{bundle}: {', '.join(different)} is not what the bundle's JSON files give")
            print("card: README.md and card.html are what the JSON files give")
            return
        for name, text in making.pages(opened.folder, opened.description).items():
            target = (out or opened.folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, text)
        if out is None:
            layout.write_description(opened.folder, opened.description)
    print(f"card: done, see {(out or bundle) / making.PAGE}")


def write_forms(bundle: Path, triton: Path | None, monai_bundle: Path | None, reference: bool) -> None:
    """Write a finished bundle in the forms of Triton and MONAI, each where a folder is given, or its reference."""
    from medsd.bundle import layout
    from medsd.bundle.layout import Bundle

    if reference:
        from medsd.card import write_card
        from medsd.scoring.verify import write_reference

        description = write_reference(Bundle.open(bundle)).description
        write_card(bundle, description)  # which lists the hashes of the files
        layout.write_description(bundle, description)
        print(f"reference: {bundle / layout.REFERENCE}")
    if triton:
        from medsd.export.triton import write_repository

        print(f"triton: {write_repository(Bundle.open(bundle), triton)}")
    if monai_bundle:
        with requiring("train", "MONAI's form"):
            from medsd.export.monai_bundle import write_monai_bundle

        print(f"monai bundle: {write_monai_bundle(Bundle.open(bundle), monai_bundle)}")


def verify(bundle: BundleFolder, provider: Where = "auto", precision: Digits = "auto", as_json: Json = False) -> None:
    """Check that this installation gives what a bundle gave when it was made, on each provider and precision.

    medsd draws synthetic radiographs, scores them and compares pixels, rows and embeddings with those in the bundle.
    No data are needed. Exit status: 0 they agree within the tolerances that are printed; 1 they differ; 2 a file of
    the bundle was changed, or the bundle carries no reference.

    Example: medsd verify models/nih14
    """
    from medsd.scoring.verify import verify as run

    result = run(bundle, provider=provider, precision=precision)
    print(json.dumps(result.as_dict(), indent=2) if as_json else result.text())
    if not result.agrees:
        raise typer.Exit(1)


def _opened(folder: Path, studies: Path, overrides: Sequence[str]) -> "tuple[Bundle, Settings]":
    from medsd.bundle.layout import Bundle
    from medsd.external.studies import load_studies

    bundle = Bundle.open(folder)
    return bundle, load_studies(studies, bundle, overrides)


VERBS = (recalibrate, card, verify)
