"""Fingerprints of the files that a step reads; if one has changed, `medsd.pipeline.run` does the step again.

Tables are compared by content. Images and notes are too many to be read each time and are compared by name, size and
time of change: a touched image is decoded again, and later steps are done again only if the result has changed.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from medsd.bundle.layout import file_sha256
from medsd.settings import CsvSource, MergeSource, PhantomSource, Settings, SingleSource
from medsd.studies.boxes import boxes_tables
from medsd.studies.manifest import Manifest

_TABLES = (".csv", ".csv.gz", ".tsv", ".parquet", ".pq", ".json")


def sources(settings: Settings) -> str:
    """sha256 over the files of the sources, links followed; without hidden ones, the runs and the table of boxes."""
    digest = hashlib.sha256()
    for source in _each(settings):
        if isinstance(source, PhantomSource):
            continue
        given = [getattr(source, name) for name in type(source).model_fields]
        places = {source.root, *(source.root / value for value in given if isinstance(value, Path))}
        boxes = [] if isinstance(source, CsvSource) else boxes_tables(source.root)
        for place in sorted(places):
            if place == source.root or not place.is_relative_to(source.root):
                digest.update(_listing(place, settings.output, boxes).encode())
    return digest.hexdigest()


def boxes(settings: Settings) -> str:
    """sha256 over the tables of boxes, "" where there is none."""
    root = Path(os.path.commonpath([source.root.resolve() for source in _each(settings)]))
    told = "".join(file_sha256(table) for table in boxes_tables(root))
    return hashlib.sha256(told.encode()).hexdigest() if told else ""


def radiologists(settings: Settings) -> str:
    """sha256 over the radiologists' labels, "" where there are none."""
    folder = settings.evaluation.radiologists
    tables = [] if folder is None else sorted(folder.glob("*.csv"))
    return hashlib.sha256("".join(map(file_sha256, tables)).encode()).hexdigest() if tables else ""


def weights(settings: Settings) -> str:
    """sha256 over the first weights, if they are files of the user's own."""
    network = settings.network
    given = [network.image and network.image.weights, network.note and network.note.model]
    places = [Path(str(place).removeprefix("xrv:")) for place in given if place]
    listed = "".join(_listing(place, settings.output, (), by_content=("",)) for place in places if place.exists())
    return hashlib.sha256(listed.encode()).hexdigest() if listed else ""


def prepared(manifest: Path, pixels: Path) -> str:
    """sha256 over the result of `prepare`: the studies in their order, and the pixels."""
    read = Manifest.read(manifest)
    rows = pd.util.hash_pandas_object(read.table, index=False).to_numpy()
    digest = hashlib.sha256(f"{read.findings.key} {read.keyed} {list(read.table)}".encode() + rows.tobytes())
    if pixels.exists():
        digest.update(file_sha256(pixels).encode())
    return digest.hexdigest()


def _each(settings: Settings) -> list[SingleSource]:
    return settings.data.sources if isinstance(settings.data, MergeSource) else [settings.data]


def _listing(place: Path, left_out: Path, boxes: Sequence[Path], by_content: tuple[str, ...] = _TABLES) -> str:
    """A line per file at or below `place`: its path, and its sha256 or (by its ending) its size and time of change."""
    lines = []
    for path in _files(place, left_out):
        if path in boxes:
            continue
        about = path.stat()
        whole = path.name.lower().endswith(by_content)
        told = file_sha256(path) if whole else f"{about.st_size} {about.st_mtime_ns}"
        lines.append(f"{path.relative_to(place.parent)}\x1f{told}\n")
    return "".join(sorted(lines))


def _files(place: Path, left_out: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
    seen = {_identity(left_out)} if left_out.exists() else set()
    for folder, names, files in os.walk(place, followlinks=True):
        identity = _identity(Path(folder))
        if identity in seen:  # a link in a circle, or the folder of the runs
            names.clear()
            continue
        seen.add(identity)
        names[:] = [name for name in names if not name.startswith(".")]
        paths = (Path(folder, name) for name in files if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino
