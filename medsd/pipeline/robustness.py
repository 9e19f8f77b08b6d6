"""The model on test images as they are and changed; `medsd.evaluation.robustness` has the changes and the figures."""

import logging

import numpy as np
import numpy.typing as npt

from medsd.calibration.fit import calibrated
from medsd.calibration.types import Calibration
from medsd.dicom.read import read_radiograph
from medsd.errors import ImageError
from medsd.evaluation.robustness import CHANGES, RobustnessReport, Said, measure_changes
from medsd.evaluation.saved import options_of
from medsd.networks.fusion import StudyModel
from medsd.preprocessing.pixels import ModelPixels, to_pixels
from medsd.settings import Settings
from medsd.studies.manifest import Manifest
from medsd.training.loaders import StudyArrays, spread
from medsd.training.stages import read_images

log = logging.getLogger(__name__)

IMAGES = 200  # evenly spaced; ten changes of each are read


def judge_robustness(
    settings: Settings,
    manifest: Manifest,
    arrays: StudyArrays,
    model: StudyModel,
    calibration: dict[str, Calibration],
    thresholds: npt.NDArray[np.float64],
) -> RobustnessReport | None:
    """Read up to `IMAGES` test images from their files, without notes, as they are and after each change.

    `thresholds` are (F,), NaN where there is none. None if the model reads no images, there are none, or a prepared
    image can no longer be read.
    """
    rows = manifest.rows("test")
    rows = rows[arrays.has_image[rows]]
    if model.image is None or not len(rows):
        return None
    rows = spread(rows, IMAGES)
    views: dict[str, list[ModelPixels]] = {name: [] for name in ("", *CHANGES)}
    for name in manifest.table["path"].iloc[rows]:
        try:
            pixels = read_radiograph(manifest.root / name, policy=settings.gate).pixels
        except ImageError as error:
            log.warning("robustness is not measured: the images have changed since they were prepared: %s", error)
            return None
        views[""].append(to_pixels(pixels, settings.pixels))
        for change, apply in CHANGES.items():
            views[change].append(to_pixels(apply(pixels), settings.pixels))

    def said(images: list[ModelPixels]) -> Said:
        logits, embeddings = read_images(model, np.stack(images))
        return Said(calibrated(logits, calibration, manifest.findings.names), embeddings)

    return measure_changes(
        manifest.findings,
        said(views.pop("")),
        {name: said(images) for name, images in views.items()},
        manifest.labels[rows],
        manifest.patients[rows],
        thresholds,
        options_of(settings.evaluation, settings.seed),
    )
