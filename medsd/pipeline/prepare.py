"""From a source to arrays: the manifest, every image as model pixels, every note as token ids.

A row that cannot be used, because of its table or its image, is left out and listed with its reason.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from medsd.bundle.layout import NoteInput
from medsd.errors import DataError
from medsd.files import write_json
from medsd.findings import FindingSet
from medsd.pipeline.enough import check_enough
from medsd.pipeline.folder import Run
from medsd.pipeline.images import ImageFile, decode_images, list_images
from medsd.pipeline.near_duplicates import find_near_duplicates, keep_together, write_report
from medsd.preprocessing.notes import NoteTokenizer, clean_note, note_mask
from medsd.privacy import KeyedHasher
from medsd.settings import NoteSettings, Settings
from medsd.studies.manifest import Manifest
from medsd.studies.notes.lexicon import mask_phrases
from medsd.studies.protect import protect
from medsd.studies.rejected import Rejections, TooManyRejected
from medsd.studies.sources import read_source
from medsd.training.loaders import Sentences, StudyArrays, sentences_of

log = logging.getLogger(__name__)

PAD = "[PAD]"  # BERT's, and that of every tokenizer derived from it
NOTES = 4096  # that are tokenised at a time


def prepare(run: Run) -> None:
    """Write the manifest, the pixels (uint8 (N, S, S), .npy) and the rows that were left out, with their reasons.

    warned.csv (images with a warning of the gate) and near_duplicates.csv are written, too. A killed run resumes at the
    image where it stopped. Memory: about 0.4 kB per row, and 1 kB per image for near duplicates. Raises DataError: the
    source cannot be read, more than half of its rows cannot be used, or the rest cannot be trained.
    """
    settings = run.settings
    try:
        manifest = readable(read_source(settings), settings)
        images = None
        if settings.network.image is not None:
            images = decode_images(manifest, settings.pixels, run.pixels, settings.gate)
    except TooManyRejected as error:
        error.rejections.write(run.rejected)
        raise TooManyRejected(f"{error}; all of them are in {run.rejected}", error.rejections) from None
    kept = manifest
    if images is not None:
        images.finish()
        _write_warned(manifest, images, run.folder / "warned.csv")
        kept = manifest.without([row for row, _, _ in images.refused])
        if settings.splits.near_duplicates:
            kept = _without_leaks(kept, images, settings, run.folder / "near_duplicates.csv")
    manifest.rejected.write(run.rejected)
    check_enough(kept, settings.evaluation.minimum_positives)
    if not settings.bundle.public:
        kept = protect(kept, KeyedHasher.from_environment())
    _without_findings(kept, settings).write(run.manifest)
    log.info("%d studies kept, %d rejected (%s)", len(kept), len(manifest.rejected), run.rejected.name)


def _without_findings(manifest: Manifest, settings: Settings) -> Manifest:
    """The manifest without the words that name a finding, if the settings hide them, so that no later step has them."""
    if settings.network.note is None or not settings.network.note.mask_findings:
        return manifest
    mask = note_mask(_masked(settings.network.note, manifest.findings))
    return replace(manifest, table=manifest.table.assign(note=manifest.table["note"].map(mask, na_action="ignore")))


def _write_warned(manifest: Manifest, images: ImageFile, path: Path) -> None:
    """List what the gate let through with a warning, and log how often."""
    warned = Rejections()
    list_images(manifest, images.warned, warned)
    warned.write(path)
    if warned:
        log.warning("%d images are used with a warning of the gate (%s): %s", len(warned), path, warned.counts())


def _without_leaks(kept: Manifest, images: ImageFile, settings: Settings, path: Path) -> Manifest:
    pixels = np.load(images.path, mmap_mode="r", allow_pickle=False)
    alike = find_near_duplicates(pixels, kept.patients)
    try:
        kept = keep_together(kept, alike, settings.splits)
    finally:
        write_report(kept, alike, path)
    return kept


def readable(manifest: Manifest, settings: Settings) -> Manifest:
    """The studies with something that the settings' network reads; without images, one for each note.

    Raises DataError: no study is left.
    """
    network, table = settings.network, manifest.table
    has = np.zeros(len(manifest), dtype=bool)
    if network.image is not None:
        has |= table["path"].notna().to_numpy()
    if network.note is not None:
        has |= np.array([isinstance(note, str) and bool(clean_note(note)) for note in table["note"]], dtype=bool)
    if not has.any():
        wanted = " or ".join(name for name, part in (("an image", network.image), ("a note", network.note)) if part)
        raise DataError(f"no study of {settings.data.source} has {wanted}; change network.image and network.note")
    if not has.all():
        log.warning("%d of %d studies have nothing that this network reads and are left out", (~has).sum(), len(has))
    left = manifest.without(np.flatnonzero(~has).tolist())
    if network.image is not None:
        return left
    alone = left.without(np.flatnonzero(left.table.duplicated("study")).tolist())  # several images, one note
    return replace(alone, table=alone.table.assign(path=None))


def load_arrays(run: Run, manifest: Manifest) -> StudyArrays:
    """The prepared studies; pixels stay on disk until they are used."""
    network, pixels = run.settings.network, None
    if network.image is not None:
        pixels = np.load(run.pixels, mmap_mode="r", allow_pickle=False)
    if pixels is not None and len(pixels) != len(manifest):
        raise DataError(
            f"{run.pixels}: holds {len(pixels)} images, the manifest {len(manifest)}; run `medsd prepare` again"
        )
    has_image = manifest.table["path"].notna().to_numpy()
    has_note = np.zeros(len(manifest), dtype=bool)
    if network.note is None:
        return StudyArrays(pixels, manifest.labels, has_image, has_note)
    spec = note_input(network.note, run.tokenizer, manifest.findings)
    tokenize, notes = NoteTokenizer(run.tokenizer, spec), manifest.table["note"]
    # A million notes of 96 tokens are 1.5 GB as int64; batches widen what they take.
    ids = np.empty((len(notes), spec.max_tokens), dtype=np.int32)
    mask = np.empty((len(notes), spec.max_tokens), dtype=np.int8)
    for start in range(0, len(notes), NOTES):
        part = slice(start, start + NOTES)
        batch = tokenize([None if pd.isna(note) else str(note) for note in notes.iloc[part]])
        ids[part], mask[part], has_note[part] = batch.ids, batch.mask, batch.given > 0
    sentences = None
    if _spoken(run.settings):
        tokens = [tokenize(spoken) for spoken in sentences_of(manifest.findings)]
        sentences = Sentences(tuple(each.ids for each in tokens), tuple(each.mask for each in tokens))
    return StudyArrays(pixels, manifest.labels, has_image, has_note, ids, mask, sentences)


def _spoken(settings: Settings) -> bool:
    """Whether sentences that name findings are contrasted with images; then they must not be masked."""
    note = settings.network.note
    return settings.loss.cross_modal_weight > 0 and note is not None and not note.mask_findings


def note_input(settings: NoteSettings, tokenizer_path: Path, findings: FindingSet) -> NoteInput:
    """How notes are masked, cut and padded, as training uses it and the bundle keeps it."""
    tokenizer = json.loads(tokenizer_path.read_text(encoding="utf-8"))
    pad = (tokenizer.get("padding") or {}).get("pad_id")  # said by those that are not trained here
    if pad is None:
        pad = tokenizer["model"]["vocab"].get(PAD, 0)
    return NoteInput(
        max_tokens=settings.length,
        pad_id=int(pad),
        window=settings.window,
        stride=settings.stride,
        mask=_masked(settings, findings),
    )


def write_tokenizer(run: Run, manifest: Manifest) -> None:
    """Write the tokenizer of the settings' note encoder; one that is trained sees the masked training notes alone.

    Raises DataError: no training study has a note.
    """
    from medsd.networks.note import MIN_PATIENTS, note_tokenizer

    note = run.settings.network.note
    assert note is not None
    rows = manifest.table.iloc[manifest.rows("train")]
    notes = rows["note"].dropna()
    if notes.empty:
        raise DataError("network.note is set, but no training study has a note; remove network.note or add notes")
    mask = note_mask(_masked(note, manifest.findings))
    masked, patients = [mask(clean_note(str(text))) for text in notes], rows.loc[notes.index, "patient"].tolist()
    if _spoken(run.settings):  # the words of these sentences identify nobody
        spoken = [text for texts in sentences_of(manifest.findings) for text in texts]
        masked += [text for text in spoken for _ in range(MIN_PATIENTS)]
        patients += [f"finding {number}" for _ in spoken for number in range(MIN_PATIENTS)]
    write_json(run.tokenizer, json.loads(note_tokenizer(note, masked, patients).to_str()), indent=None)


def _masked(settings: NoteSettings, findings: FindingSet) -> tuple[str, ...]:
    return mask_phrases(findings) if settings.mask_findings else ()
