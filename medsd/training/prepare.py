"""From a source to arrays: the manifest, every film as model pixels, every note as token ids.

Films are decoded in parallel by the very functions that serving uses (`medsd.dicom.gate.admit`, then
`medsd.inference.preprocess.to_pixels`). A row whose film is refused is left out and listed with its reason.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.bundle.layout import NoteInput
from medsd.dicom.gate import admit
from medsd.errors import DataError
from medsd.inference.note import NoteTokenizer
from medsd.inference.preprocess import to_pixels
from medsd.progress import Progress
from medsd.settings import NoteSettings, PixelSpec, Settings
from medsd.studies.manifest import Manifest
from medsd.studies.sources import read_source
from medsd.training.loaders import StudyArrays

log = logging.getLogger(__name__)

PAD = "[PAD]"  # BERT's, and that of every tokenizer derived from it


def prepare(
    settings: Settings, manifest_path: Path, pixels_path: Path, refused_path: Path, tokenizer_path: Path
) -> None:
    """Write the manifest, the pixels (uint8 (N, S, S), .npy), the refused rows and, with notes, the tokenizer.

    Raises:
        DataError: the source cannot be read, or no film of it can be used.
    """
    manifest = read_source(settings)
    kept, refused = _decode(manifest, settings.pixels, pixels_path)
    refused.to_csv(refused_path, index=False)
    if not kept.any():
        first = refused["message"].iloc[0]
        raise DataError(f"{manifest.root}: none of the {len(kept)} films can be used; the first: {first}")
    table = manifest.table[kept].reset_index(drop=True)
    result = Manifest(table, manifest.findings, manifest.root)
    if settings.network.note is not None:
        _write_tokenizer(settings, result, tokenizer_path)
    result.write(manifest_path)
    log.info("%d studies kept, %d refused (%s)", len(result), len(refused), refused_path.name)


def load_arrays(settings: Settings, manifest: Manifest, pixels_path: Path, tokenizer_path: Path) -> StudyArrays:
    """The prepared studies; pixels stay on disk until they are needed."""
    pixels = np.load(pixels_path, mmap_mode="r", allow_pickle=False)
    if len(pixels) != len(manifest):
        raise DataError(
            f"{pixels_path}: holds {len(pixels)} films, the manifest {len(manifest)}; run `medsd prepare` again"
        )
    has_image = manifest.table["path"].notna().to_numpy()
    has_note = np.zeros(len(manifest), dtype=bool)
    if settings.network.note is None:
        return StudyArrays(pixels, manifest.labels, has_image, has_note)
    notes = [None if pd.isna(note) else str(note) for note in manifest.table["note"]]
    batch = NoteTokenizer(tokenizer_path, note_input(settings.network.note, tokenizer_path))(notes)
    return StudyArrays(pixels, manifest.labels, has_image, batch.given > 0, batch.ids, batch.mask)


def note_input(settings: NoteSettings, tokenizer_path: Path) -> NoteInput:
    """How notes are cut and padded, as training uses it and the bundle keeps it."""
    pad = json.loads(tokenizer_path.read_text(encoding="utf-8"))["model"]["vocab"].get(PAD, 0)
    return NoteInput(max_tokens=settings.max_tokens, pad_id=int(pad))


def _decode(manifest: Manifest, spec: PixelSpec, path: Path) -> tuple[npt.NDArray[np.bool_], pd.DataFrame]:
    """Decode every film into `path`; returns which rows were kept and a table of those that were not."""
    count = len(manifest)
    files = [manifest.root / name if isinstance(name, str) else None for name in manifest.table["path"]]
    temporary = path.with_name(f".{path.name}.part.npy")
    array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(count, spec.size, spec.size))
    kept, refused, place = np.zeros(count, dtype=bool), [], 0
    results = _decoded([(file, spec) for file in files])
    with Progress(count, name="prepare") as shown:
        for row, (pixels, reason, message) in enumerate(results):
            shown.advance()
            if reason:
                refused.append({"path": manifest.table["path"].iloc[row], "reason": reason, "message": message})
                continue
            array[place] = pixels
            kept[row], place = True, place + 1
    array.flush()
    _shorten(array, place, temporary)
    temporary.replace(path)
    return kept, pd.DataFrame(refused, columns=["path", "reason", "message"])


def _shorten(array: np.memmap, count: int, path: Path) -> None:
    """Rewrite the file without the places that refused films left at the end."""
    if count == len(array) or count == 0:
        return
    shorter = path.with_suffix(".short.npy")
    np.lib.format.open_memmap(shorter, mode="w+", dtype=np.uint8, shape=(count, *array.shape[1:]))[:] = array[:count]
    shorter.replace(path)


def _decoded(tasks: list[tuple[Path | None, PixelSpec]]) -> Iterator[tuple[npt.NDArray[np.uint8], str, str]]:
    workers = min(os.cpu_count() or 1, 16)
    if workers == 1 or len(tasks) < 64:
        yield from map(_film_pixels, tasks)
        return
    # spawn: forking a process that holds threads of torch may hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_film_pixels, tasks, chunksize=16)


def _film_pixels(task: tuple[Path | None, PixelSpec]) -> tuple[npt.NDArray[np.uint8], str, str]:
    """Pixels of one film, or a reason and a message; a study without a film is black."""
    path, spec = task
    black = np.zeros((spec.size, spec.size), dtype=np.uint8)
    if path is None:
        return black, "", ""
    admission = admit(path, name=path.name)
    if admission.radiograph is None:
        return black, admission.reason, admission.message
    return to_pixels(admission.radiograph, spec), "", ""


def _write_tokenizer(settings: Settings, manifest: Manifest, path: Path) -> None:
    from medsd.networks.note import note_tokenizer

    assert settings.network.note is not None
    notes = manifest.table["note"].iloc[manifest.rows("train")].dropna().astype(str)
    if notes.empty:
        raise DataError("network.note is set, but no training study has a note; remove network.note or add notes")
    text = note_tokenizer(settings.network.note, notes).to_str(pretty=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(json.loads(text), ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)
