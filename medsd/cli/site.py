"""The verbs for a site: the web app, de-identification, and what works on this machine."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from medsd.cli.options import BundleFolder, Digits, Gate, GateSet, Inputs, Json, print_summary, read_gate


def app(
    bundle: BundleFolder = Path("models/phantom"),
    host: Annotated[str, typer.Option(help="address; any but a loopback one needs a login")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port")] = 7860,
    images: Annotated[Path | None, typer.Option(help="folder with the images of the cases")] = None,
    auth: Annotated[Path | None, typer.Option(help="file with user:password on each line")] = None,
    feedback: Annotated[Path | None, typer.Option(help="folder that keeps what readers say of the calls")] = None,
    quota_gb: Annotated[float, typer.Option("--uploads-gb", min=0, help="GB on disk for all uploads together")] = 8.0,
    open_browser: Annotated[bool, typer.Option("--open", help="open the page in the browser")] = False,
    precision: Digits = "auto",
    gate: Gate = None,
    set_: GateSet = None,
) -> None:
    """The web app: findings beside the nearest earlier cases.

    Example: medsd app models/nih14 --images /data/nih14/images
    """
    from medsd.apps.web.server import serve

    serve(
        bundle,
        host=host,
        port=port,
        images=images,
        auth=auth,
        feedback=feedback,
        quota_gb=quota_gb,
        open_browser=open_browser,
        policy=read_gate(gate, set_),
        precision=precision,
    )


def deidentify(
    paths: Inputs,
    out: Annotated[Path, typer.Option(help="folder for the cleaned files, apart from the originals")],
    modified_dates: Annotated[
        bool, typer.Option("--modified-dates", help="shift dates instead of removing them")
    ] = False,
    characteristics: Annotated[
        bool, typer.Option("--patient-characteristics", help="keep sex, age, size and weight")
    ] = False,
    burned_in: Annotated[
        Literal["refuse", "warn", "keep"],
        typer.Option(help="what to do where pixels hold text, or where that cannot be checked"),
    ] = "warn",
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
    summary = deidentify_files(files, out, profile, burned_in=burned_in, folders=folders, report=report, progress=True)
    print_summary(summary, as_json)


def doctor(as_json: Json = False) -> None:
    """What works on this machine, and what does not: versions, providers, GPU, decoders, disk.

    Example: medsd doctor
    """
    from medsd.doctor import examine, in_words

    report = examine()
    print(json.dumps(report, indent=2) if as_json else in_words(report))


VERBS = (app, deidentify, doctor)
