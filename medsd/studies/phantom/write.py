"""A folder of synthetic studies and the table that describes them."""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from pydicom import dcmread

from medsd.errors import DataError
from medsd.studies.phantom.dicomfile import write_dicom, write_whole
from medsd.studies.phantom.study import FINDINGS, PhantomStudy, plan_study, render_plan

log = logging.getLogger(__name__)


def write_png(study: PhantomStudy, path: Path) -> None:
    """Write the image as an 8-bit grey PNG, whole or not at all."""
    buffer = BytesIO()
    Image.fromarray(np.round(study.pixels * 255).astype(np.uint8)).save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())


def write_phantom(
    folder: Path, *, count: int, seed: int, size: int, as_dicom: bool = True, workers: int = 1
) -> pd.DataFrame:
    """Write studies 0…count−1 of `seed` under `folder`/files and describe them.

    Files are written whole and named after their study, so a second call continues where the first one stopped: what
    is there in the same size is kept.

    Args:
        folder: made if it is missing.
        count, seed, size: see `generate_study`.
        as_dicom: DICOM DX files, or else 8-bit PNG.
        workers: processes that draw.

    Returns:
        One row a study, in the manifest's columns; `path` is relative to `folder`.

    Raises:
        DataError: a count, a size or a number of workers that makes no sense, or a folder that cannot be written to.
    """
    if count < 1 or size < 64 or workers < 1:
        raise DataError(
            f"phantom: count {count}, size {size}, workers {workers}; it takes 1 study, 64 pixels and 1 worker at least"
        )
    files = folder / "files"
    try:
        files.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise DataError(f"{files}: cannot be made ({exc.strerror}); choose a folder that can be written to") from exc
    make = partial(_write_one, folder=folder, seed=seed, size=size, as_dicom=as_dicom)
    if workers == 1:
        rows = [make(index) for index in range(count)]
    else:
        with ProcessPoolExecutor(workers) as pool:
            rows = list(pool.map(make, range(count), chunksize=8))
    return pd.DataFrame(rows)


def _write_one(index: int, *, folder: Path, seed: int, size: int, as_dicom: bool) -> dict[str, object]:
    plan = plan_study(index, seed=seed)
    name = f"files/{plan.study}.{'dcm' if as_dicom else 'png'}"
    if not _is_complete(folder / name, size, as_dicom):
        (write_dicom if as_dicom else write_png)(render_plan(plan, size=size), folder / name)
    present = FINDINGS.encode(plan.condition.findings)
    return {
        "study": plan.study,
        "patient": plan.patient,
        "path": name,
        "note": plan.note,
        "view": plan.view,
        "sex": plan.habitus.sex,
        "age": plan.habitus.age,
        "source": "phantom",
        **dict(zip(FINDINGS, present.astype(float).tolist(), strict=True)),
    }


def _is_complete(path: Path, size: int, as_dicom: bool) -> bool:
    """Whether `path` holds a picture of this size; writing is atomic, so what is there is whole."""
    if not path.exists():
        return False
    try:
        if not as_dicom:
            with Image.open(path) as picture:
                return picture.size == (size, size)
        header = dcmread(path, stop_before_pixels=True)
        return (header.Rows, header.Columns) == (size, size) and path.stat().st_size > 2 * size * size
    except Exception as exc:  # whatever stands there is not ours: draw it again
        log.warning("%s cannot be read (%s) and is written again", path, type(exc).__name__)
        return False
