"""How the out-of-distribution check works on test images and on the same images made unsuitable.

Start at `measure_distribution`; the report is `evaluation_distribution.json` of a bundle. It is made at export, where
the check is fitted, of images that neither the network nor the check has seen.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from medsd.calibration.conformal_fit import clopper_pearson
from medsd.evaluation.saved import Measured
from medsd.metrics.intervals import Interval, IntervalOptions, bootstrap, patient_means
from medsd.metrics.metrics import weighted_auroc
from medsd.strict import Described

DISTRIBUTION = "evaluation_distribution.json"
AS_THEY_ARE = "as they are"
Pixels = npt.NDArray[np.uint8]  # (N, S, S)


class GroupBeyond(Described):
    """One group of images: the share above the limit, each patient weighing the same.

    `auroc`: of telling them from the images as they are by the check's value; None of those themselves.
    """

    name: str
    images: int
    beyond: Interval
    auroc: Interval | None


class DistributionReport(Measured):
    """The whole of evaluation_distribution.json.

    `told_apart`: AUROC of telling embeddings of test images from those of training images, of other patients: how much
    the network remembers the latter (`medsd.metrics.two_samples.tell_apart`).
    """

    WAY_OUT: ClassVar[str] = "export the bundle again"

    split: str = "test"
    images: int
    patients: int
    groups: tuple[GroupBeyond, ...]
    told_apart: Interval | None


def unsuitable(pixels: Pixels) -> dict[str, Pixels]:
    """The same images (N, S, S), made unsuitable, by what was done."""
    blank = np.empty_like(pixels)
    blank[:] = np.median(pixels, axis=(1, 2)).astype(np.uint8)[:, None, None]
    return {
        "as their negative": 255 - pixels,
        "turned by 90°": np.ascontiguousarray(np.rot90(pixels, axes=(1, 2))),
        "upside down": np.ascontiguousarray(pixels[:, ::-1, ::-1]),
        "blank": blank,
    }


def measure_distribution(
    values: Mapping[str, npt.NDArray[np.floating]],
    patients: npt.NDArray[np.str_],
    options: IntervalOptions,
    told_apart: Interval | None = None,
) -> DistributionReport:
    """What the check says of images and of the same images made unsuitable.

    `values` by group, `AS_THEY_ARE` among them, are (N,) values of the check as shares of its limit, of the same images
    with patient keys (N,).
    """
    drawn = options.draw(np.tile(patients, 2))
    truth = np.repeat([0.0, 1.0], len(patients))

    def group(name: str, value: npt.NDArray[np.floating]) -> GroupBeyond:
        means = patient_means((value > 1).astype(np.float64), patients)
        both = np.concatenate([values[AS_THEY_ARE], value]).astype(np.float64)
        area = None
        if name != AS_THEY_ARE:
            (area,) = bootstrap(lambda w: weighted_auroc(truth, both, w)[:, None], drawn, options.confidence, (0, 1))
        return GroupBeyond(name=name, images=len(value), beyond=clopper_pearson(means, options.confidence), auroc=area)

    return DistributionReport.of(
        options,
        images=len(patients),
        patients=len(np.unique(patients)),
        groups=tuple(group(name, value) for name, value in values.items()),
        told_apart=told_apart,
    )
