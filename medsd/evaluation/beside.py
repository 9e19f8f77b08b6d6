"""What is measured beside the headline: images that were picked by finding, and the labels of radiologists.

Start at `beside_of`, which takes both from a manifest; `medsd.evaluation.report.evaluate` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medsd.evaluation.radiologists import read_radiologists
from medsd.metrics.metrics import FloatArray
from medsd.settings import EvaluationSettings
from medsd.studies.manifest import Manifest


@dataclass(frozen=True)
class Beside:
    """Studies and labels beside the N studies of the headline.

    Attributes:
        logits, target, patients: (M, F), (M, F), (M,) of test patients' images that were picked by finding.
        answers: by question (N + M,), radiologists' labels of the headline's images and then of these.
        picked, trained: training images that were picked by finding, and all of them.
    """

    logits: npt.NDArray[np.floating]
    target: npt.NDArray[np.floating]
    patients: npt.NDArray[np.str_]
    answers: dict[str, FloatArray] = field(default_factory=dict)
    picked: int = 0
    trained: int = 0


def beside_of(
    manifest: Manifest,
    logits: npt.NDArray[np.floating],
    headline: npt.NDArray[np.int64],
    apart: npt.NDArray[np.int64],
    settings: EvaluationSettings,
) -> Beside:
    """What `manifest` has beside its rows `headline`.

    `apart` are rows picked by finding, of patients who did not train; `logits` (N, F) are before calibration.
    `settings` name the folder of the radiologists' labels, if any.

    Raises:
        DataError: as of `read_radiologists`.
    """
    answers = {}
    if settings.radiologists is not None:
        paths = manifest.table["path"].iloc[np.concatenate([headline, apart])]
        answers = read_radiologists(settings.radiologists, paths)
    return Beside(logits[apart], manifest.labels[apart], manifest.patients[apart], answers)


def picked(manifest: Manifest) -> npt.NDArray[np.bool_]:
    """(N,) True for the images that were picked by finding."""
    return (manifest.table["use"] == "selected").to_numpy(dtype=bool)
