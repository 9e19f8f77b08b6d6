"""The model on test films as they are and changed; `medsd.evaluation.robustness` has the changes and the figures."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medsd.calibration.fit import calibrated
from medsd.calibration.types import Calibration
from medsd.dicom.read import read_radiograph
from medsd.errors import ImageError
from medsd.evaluation.robustness import CHANGES, RobustnessReport, Said, measure_changes
from medsd.networks.fusion import StudyModel
from medsd.preprocessing.pixels import ModelPixels, to_pixels
from medsd.settings import Settings
from medsd.studies.manifest import Manifest
from medsd.training.loaders import StudyArrays
from medsd.training.stages import read_studies

log = logging.getLogger(__name__)

FILMS = 200  # of the split, at even distances: ten changes of each are read


def judge_robustness(
    settings: Settings,
    manifest: Manifest,
    arrays: StudyArrays,
    model: StudyModel,
    calibration: dict[str, Calibration],
    thresholds: npt.NDArray[np.float64],
    split: str = "test",
) -> RobustnessReport | None:
    """Read up to `FILMS` films of a split, without their notes, as they are and after each change.

    Args:
        settings: of the run.
        manifest: its studies; the films are read again from where they lie.
        arrays: their pixels and labels.
        model: trained.
        calibration: by finding.
        thresholds: (F,), NaN where there is none.
        split: whose films are read.

    Returns:
        None where the model reads no films, the split has none, or a film that was prepared can no longer be read.
    """
    rows = manifest.rows(split)
    rows = rows[arrays.has_image[rows]]
    if model.image is None or not len(rows):
        return None
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(FILMS, len(rows))).astype(np.int64))]
    changed: dict[str, list[ModelPixels]] = {name: [] for name in CHANGES}
    plain: list[ModelPixels] = []
    for name in manifest.table["path"].iloc[rows]:
        try:
            film = read_radiograph(manifest.root / name, policy=settings.gate).pixels
        except ImageError as error:
            log.warning("robustness is not measured: the films have changed since they were prepared: %s", error)
            return None
        plain.append(to_pixels(film, settings.pixels))
        for change, apply in CHANGES.items():
            changed[change].append(to_pixels(apply(film), settings.pixels))

    def said(pixels: Iterable[ModelPixels]) -> Said:
        films = replace(
            arrays,
            pixels=np.stack(list(pixels)),
            labels=arrays.labels[rows],
            has_image=np.ones(len(rows), dtype=bool),
            has_note=np.zeros(len(rows), dtype=bool),
            note_ids=None if arrays.note_ids is None else arrays.note_ids[rows],
            note_mask=None if arrays.note_mask is None else arrays.note_mask[rows],
        )
        logits, embeddings = read_studies(model, films, np.arange(len(rows)), use_note=False)
        return Said(calibrated(logits, calibration, manifest.findings.names), embeddings)

    return measure_changes(
        manifest.findings,
        said(plain),
        {name: said(pixels) for name, pixels in changed.items()},
        manifest.labels[rows],
        manifest.patients[rows],
        thresholds,
        settings.evaluation,
        seed=settings.seed,
        split=split,
    )
