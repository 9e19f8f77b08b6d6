"""What is done with an index after it was made: say what is in it, add images, embed again, export a table."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsd.bundle.layout import DESCRIPTION, Bundle
from medsd.cases.case import FILTER_COLUMNS
from medsd.cases.index import CaseIndex, create_index
from medsd.cases.pictures import PictureFolder, encode_thumbnail
from medsd.cases.scale import fit_scale
from medsd.errors import DataError, explained
from medsd.files import replacing
from medsd.preprocessing.notes import note_mask
from medsd.privacy import KeyedHasher, scrub_note
from medsd.studies.protect import image_identities

if TYPE_CHECKING:
    from medsd.cases.table import ImageRow
    from medsd.inference.predict import Predictor
    from medsd.inference.prediction import Prediction
    from medsd.scoring.note_files import Notes

log = logging.getLogger(__name__)

_PORTION = 16
EXCERPT = 160  # characters of a note that are kept


@dataclass(frozen=True)
class Changes:
    """What became of the images of `add_images` or the cases of `rebuild`."""

    cases: int  # in the index afterwards
    written: int  # added, or embedded again
    known: int = 0  # images whose study is a case already, and which were left alone
    missing: int = 0  # cases without an image, which were dropped
    refused: int = 0  # images that must not be scored
    barred: int = 0  # cases left out because their patient was removed from the index

    def line(self) -> str:
        others = (
            (self.known, "known before"),
            (self.missing, "without an image dropped"),
            (self.refused, "refused"),
            (self.barred, "of removed patients left out (medsd cases readmit)"),
        )
        rest = "".join(f", {count} {word}" for count, word in others if count)
        return f"{self.written} cases written{rest}; {self.cases} in the index"

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def is_bundle(target: str | Path) -> bool:
    """Whether `target` is the folder of a bundle, not an index by itself."""
    return "://" not in str(target) and (Path(target) / DESCRIPTION).is_file()


def open_cases(target: str | Path) -> CaseIndex:
    """The index of a bundle, checked against its model, or an index anywhere; errors as `CaseIndex.open`."""
    if not is_bundle(target):
        return CaseIndex.open(target if "://" in str(target) else Path(target))
    bundle = Bundle.open(target)
    return CaseIndex.open(bundle.cases_path, model_sha256=bundle.model_sha256)


def hasher_of(bundle: Bundle) -> KeyedHasher:
    """Makes keys with this site's secret, and knows the keys of cases made from public data."""
    description = bundle.description
    return KeyedHasher.from_environment(public=description.name if description.public else "")


def patient_keys(target: str | Path, ids: Path) -> list[tuple[str, ...]]:
    """Of each patient whose identifier stands in a file, one a line, the keys under which there may be cases."""
    with explained(f"{ids}: cannot be read as a list of identifiers", OSError, UnicodeDecodeError):
        lines = [line.strip() for line in ids.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{ids}: names no patient")
    hasher = hasher_of(Bundle.open(target)) if is_bundle(target) else KeyedHasher.from_environment()
    return [hasher.patient_keys(line) for line in dict.fromkeys(lines)]


def summary(index: CaseIndex) -> dict[str, Any]:
    """What is in an index, for JSON."""
    table, about = index.table(), index.description
    named = table["patient_key"][table["patient_key"] != ""]
    return {
        "cases": len(table),
        "patients": int(named.nunique()),
        "model": about.model,
        "model_sha256": about.model_sha256,
        "finding_set": about.finding_set,
        "findings": {name: int((table[name] == 1).sum()) for name in index.findings},
        "embedding_size": about.embedding_size,
        "created": about.created,
        "public": about.public,
        **{column: {str(k): int(n) for k, n in table[column].value_counts().items()} for column in FILTER_COLUMNS},
        "percentiles": sorted(about.scale.quantiles) if about.scale else [],
        "vote": about.vote.k if about.vote else None,
        "approximate": index.approximate,
    }


def summary_text(said: dict[str, Any]) -> str:
    rows = {
        "cases": f"{said['cases']} of {said['patients']} patients",
        "model": f"{said['model'] or 'unnamed'} ({said['model_sha256'][:12]})",
        "findings": ", ".join(f"{name} {count}" for name, count in said["findings"].items()),
        **{c: ", ".join(f"{value or 'unknown'} {n}" for value, n in said[c].items()) for c in FILTER_COLUMNS},
        "search": "approximate" if said["approximate"] else "exact",
        "percentiles": ", ".join(said["percentiles"]) or "none: rebuild the index to have them",
        "vote": f"of the {said['vote']} nearest" if said["vote"] else "no thresholds: nothing is flagged",
        "created": said["created"],
    }
    return "\n".join(f"{name:<12} {value}" for name, value in rows.items())


def add_images(
    index: CaseIndex,
    predictor: "Predictor",
    rows: "Sequence[ImageRow]",
    hasher: KeyedHasher,
    *,
    thumbnails: bool = False,
    excerpts: bool = False,
) -> Changes:
    """Read images with the index's own model and add them as cases, in one new version.

    With `thumbnails`, a small picture of each image is kept; with `excerpts`, the beginning of each note, without
    identities and without words that the bundle hides. Raises BundleError: another model made the index.
    """
    bundle = predictor.bundle
    index.check_model(bundle.model_sha256, bundle.label)
    before = set(index.table()["study_key"])
    keyed = [(hasher.study_keys(row.study or row.path.stem), row) for row in rows]
    new = list({keys[0]: (keys[0], row) for keys, row in keyed if before.isdisjoint(keys)}.values())
    cases, vectors, refused = [], [], 0
    mask = note_mask(bundle.description.note.mask if bundle.description.note is not None else ())
    readings = _read(predictor, [(row.path, row.note) for _, row in new])
    for (key, row), prediction in zip(new, readings, strict=True):
        if prediction.refused or prediction.embedding is None:
            log.warning("not added: %s", prediction.message)
            refused += 1
            continue
        patient = hasher.patient_key(row.patient) or prediction.patient_key
        thumbnail = encode_thumbnail(prediction.image) if thumbnails and prediction.image is not None else None
        # The beginning of the note, without identities and without what the bundle hides.
        note = scrub_note(row.note, (row.patient, row.study, *image_identities(row.path))) if excerpts else ""
        case = replace(row.case, study_key=key, patient_key=patient, thumbnail=thumbnail)
        cases.append(replace(case, note_excerpt=mask(note)[:EXCERPT].strip() or None))
        vectors.append(prediction.embedding)
    added = index.add(cases, np.stack(vectors)) if cases else 0
    return Changes(len(index), added, known=len(rows) - len(new), refused=refused, barred=len(cases) - added)


def rebuild(
    index_path: str | Path,
    predictor: "Predictor",
    images: Path,
    hasher: KeyedHasher,
    *,
    notes: "Notes | None" = None,
    drop_missing: bool = False,
) -> Changes:
    """Embed every case again from its image, with another model or the same; the index is exchanged in one step.

    The percentiles are measured anew. The vote's thresholds stay if the model is the same. Images are found in a folder
    by their keys (`PictureFolder`, `hasher_of`), notes by file name. A case whose image is missing or must not be
    scored is left out with `drop_missing`, and otherwise ends the rebuild with DataError.
    """
    old, bundle = CaseIndex.open(index_path), predictor.bundle
    if bundle.findings.names != old.findings.names:
        raise DataError(f"{bundle.label} has other findings than the case index; make one with `medsd index`")
    if not predictor.takes_images:
        raise DataError(f"{bundle.label} reads notes alone, which an index does not hold; use `medsd index`")
    pictures = PictureFolder(images, hasher)
    records = [(case, pictures.path(case.study_key)) for case, _ in old.records()]
    found = [(case, path) for case, path in records if path is not None]
    if len(found) < len(records) and not drop_missing:
        raise DataError(
            f"{images}: {len(records) - len(found)} of {len(records)} cases have no image here; "
            "give the folder that holds them, or --drop-missing to leave them out"
        )
    readings = _read(predictor, [(path, notes.of(path) if notes else None) for _, path in found])
    kept = [
        (case, said.embedding)
        for (case, _), said in zip(found, readings, strict=True)
        if not said.refused and said.embedding is not None
    ]
    if len(kept) < len(found) and not drop_missing:
        missed = f"{len(found) - len(kept)} of {len(found)}"
        raise DataError(f"{images}: {missed} images must not be scored; --drop-missing leaves them out")
    same = old.description.model_sha256 == bundle.model_sha256
    cases = [case for case, _ in kept]
    size = bundle.description.embedding_size
    embeddings = np.stack([vector for _, vector in kept]) if kept else np.zeros((0, size), np.float32)
    made = create_index(
        index_path,
        cases,
        embeddings,
        model_sha256=bundle.model_sha256,
        findings=bundle.findings,
        model=bundle.label,
        public=old.description.public,
        replace=True,
        scale=fit_scale(embeddings, [case.labels for case in cases], [case.patient_key for case in cases]),
        vote=old.description.vote if same else None,
        approximate_above=old.description.approximate_above,
    )
    return Changes(len(made), len(kept), missing=len(records) - len(found), refused=len(found) - len(kept))


def export(index: CaseIndex, out: Path) -> int:
    """Write labels, attributes and embeddings as Parquet, without keys, pictures and notes; returns the rows' number.

    Studies and patients are numbered, in an order drawn anew each time, so that rows cannot be matched to the index.
    Raises DataError where `out` does not end in .parquet or cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if out.suffix.lower() != ".parquet":
        raise DataError(f"{out}: cases are written as Parquet; give the output the ending .parquet")
    records = list(index.records())
    order = np.random.default_rng().permutation(len(records))
    cases, vectors = [records[row][0] for row in order], [records[row][1] for row in order]
    keys = [case.patient_key or f"unknown {row}" for row, case in enumerate(cases)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys), 1)}
    labels = np.stack([case.labels for case in cases]) if cases else np.zeros((0, len(index.findings)), np.float32)
    size = index.description.embedding_size
    flat = np.stack(vectors).ravel() if cases else np.zeros(0, np.float32)
    columns: dict[str, Any] = {
        "study": pa.array(range(1, len(cases) + 1), pa.int64()),
        "patient": pa.array([numbers[key] for key in keys], pa.int64()),
        **{name: pa.array([getattr(case, name) for case in cases], pa.string()) for name in (*FILTER_COLUMNS, "split")},
        **{name: pa.array(labels[:, column], from_pandas=True) for column, name in enumerate(index.findings)},
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(np.float32)), size),
    }
    about = index.description.model_dump_json(include={"model", "model_sha256", "finding_set", "embedding_size"})
    with explained(f"{out}: cannot be written", OSError), replacing(out) as draft:
        pq.write_table(pa.table(columns, metadata={"medsd": about}), draft)
    return len(cases)


def _read(predictor: "Predictor", studies: Sequence[tuple[Path, str | None]]) -> "Iterator[Prediction]":
    """The predictions portion by portion, so that few images are in memory."""
    rest = iter(studies)
    while portion := list(islice(rest, _PORTION)):
        yield from (replace(said, evidence_maps=None, regions=None) for said in predictor.batch(portion))
