"""`medsd cases`: a short function for each verb on an index of cases; each imports what it needs when it runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsd.cli.options import BundleFolder, Elsewhere, Json, NotesTable, print_summary

if TYPE_CHECKING:
    from medsd.cases.index import CaseIndex

app = typer.Typer(
    help="The index of cases of a bundle, or one anywhere: a folder, s3://…, qdrant+http://host:6333/NAME.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Target = Annotated[str, typer.Argument(help="folder of a bundle, folder of an index, or its URI")]
Images = Annotated[Path, typer.Option(help="folder with the images")]
Patient = Annotated[list[str] | None, typer.Option(help="the patient's key, as the index has it")]
Ids = Annotated[
    Path | None, typer.Option(help="file of patient identifiers, one a line; made keys with this site's secret")
]


@app.command()
def info(target: Target, as_json: Json = False) -> None:
    """What is in the index: cases, patients, findings, model.

    Example: medsd cases info models/nih14
    """
    from medsd.cases.manage import open_cases, summary, summary_text

    said = summary(open_cases(target))
    print(json.dumps(said, indent=2) if as_json else summary_text(said))


@app.command()
def add(
    bundle: BundleFolder,
    table: Annotated[
        Path, typer.Argument(help="CSV: path, a column a finding; study patient view sex age source note")
    ],
    images: Images,
    index: Elsewhere = None,
    thumbnails: Annotated[bool, typer.Option("--thumbnails", help="keep a small picture of each image")] = False,
    excerpts: Annotated[bool, typer.Option("--excerpts", help="keep the beginning of each note, scrubbed")] = False,
    as_json: Json = False,
) -> None:
    """Read images with the bundle's model and add them as cases.

    Example: medsd cases add models/nih14 new.csv --images /data/images
    """
    from medsd.cases.index import CaseIndex
    from medsd.cases.manage import add_images, hasher_of
    from medsd.cases.table import read_image_table
    from medsd.inference.predict import Predictor

    predictor = Predictor(bundle)
    hasher = hasher_of(predictor.bundle)
    predictor.hasher = hasher
    opened = CaseIndex.open(index or predictor.bundle.cases_path)
    rows = read_image_table(table, images, predictor.bundle.findings)
    said = add_images(opened, predictor, rows, hasher, thumbnails=thumbnails, excerpts=excerpts)
    print_summary(said, as_json)


@app.command()
def remove(target: Target, patient: Patient = None, ids: Ids = None, as_json: Json = False) -> None:
    """Remove patients who withdraw, from every answer and every file, and bar them from being added again.

    Example: medsd cases remove models/mine --ids withdrawn.txt
    """
    opened, patients = _patients(target, patient, ids)
    removed = sum(opened.remove_patient(key) for keys in patients for key in keys)
    said = {"patients": len(patients), "removed": removed, "cases": len(opened)}
    print(json.dumps(said) if as_json else f"{removed} cases removed; {len(opened)} in the index")


@app.command()
def readmit(target: Target, patient: Patient = None, ids: Ids = None, as_json: Json = False) -> None:
    """Let patients who were removed be added again; their cases come back with the next `medsd cases add`.

    Example: medsd cases readmit models/mine --ids consented.txt
    """
    opened, patients = _patients(target, patient, ids)
    readmitted = sum(max(opened.readmit_patient(key) for key in keys) for keys in patients)  # each of them
    said = {"patients": len(patients), "readmitted": readmitted}
    line = f"{readmitted} of {len(patients)} patients were removed, and may be added again"
    print(json.dumps(said) if as_json else line)


def _patients(target: str, patient: list[str] | None, ids: Path | None) -> "tuple[CaseIndex, list[tuple[str, ...]]]":
    """The index, and the keys of each patient that was named."""
    from medsd.cases.manage import open_cases, patient_keys

    opened = open_cases(target)
    patients = [*((key,) for key in patient or ()), *(patient_keys(target, ids) if ids else ())]
    if not patients:
        raise typer.BadParameter("give --patient KEY or --ids FILE")
    return opened, patients


@app.command()
def rebuild(
    bundle: BundleFolder,
    images: Images,
    index: Elsewhere = None,
    notes: NotesTable = None,
    drop_missing: Annotated[bool, typer.Option("--drop-missing", help="leave out cases without an image")] = False,
    as_json: Json = False,
) -> None:
    """Embed every case again from its image, with the bundle's model, whichever model made the index.

    Example: medsd cases rebuild models/mine --images /data/images
    """
    from medsd.cases import manage
    from medsd.inference.predict import Predictor
    from medsd.scoring.note_files import Notes

    predictor = Predictor(bundle)
    said = manage.rebuild(
        index or predictor.bundle.cases_path,
        predictor,
        images,
        manage.hasher_of(predictor.bundle),
        notes=Notes.read(notes) if notes else None,
        drop_missing=drop_missing,
    )
    print_summary(said, as_json)


@app.command()
def compact(
    target: Target,
    approximate_above: Annotated[
        int | None, typer.Option(min=1, help="search approximately above this many cases, exactly below")
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge small files, drop older versions, bring an approximate index up to date and measure it.

    Example: medsd cases compact models/mine --approximate-above 1000000
    """
    from medsd.cases.manage import open_cases

    opened = open_cases(target)
    recall = opened.compact(approximate_above=approximate_above)
    how = "exact search" if recall is None else f"approximate search, recall@10 {recall:.4f}"
    print(json.dumps({"cases": len(opened), "recall": recall}) if as_json else f"{len(opened)} cases; {how}")


@app.command()
def export(
    target: Target, out: Annotated[Path, typer.Option(help="the table, .parquet")], as_json: Json = False
) -> None:
    """Write labels, attributes and embeddings as Parquet, without keys, pictures and notes.

    Example: medsd cases export models/nih14 --out cases.parquet
    """
    from medsd.cases import manage

    count = manage.export(manage.open_cases(target), out)
    print(json.dumps({"cases": count, "out": str(out)}) if as_json else f"{count} cases; {out}")
