"""How calls change when an image is only handled differently: compressed, resampled, turned, brightened, marked.

None of these is a change of the patient, so a call that flips depended on the handling.
`CHANGES` are fixed and mild, as picture archives and cassettes do them; `measure_changes` compares what the model says
before and after, on the same images, with intervals over patients.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from medsd.evaluation.saved import Measured
from medsd.findings import FindingSet
from medsd.metrics.intervals import Interval, IntervalOptions, bootstrap, row_means
from medsd.metrics.metrics import FloatArray, enough, weighted_aurocs
from medsd.strict import Described

ROBUSTNESS = "evaluation_robustness.json"

Grey = npt.NDArray[np.float32]  # (H, W) in 0…1


class ChangeReport(Described):
    """One change; `flipped` is the share of calls that are the other way round afterwards.

    `most_flipped`: the finding whose calls flip most often, and its share. `moved`: the mean distance of probabilities.
    `auroc_lost`: macro AUROC before minus after. `likeness`: the mean cosine between the embeddings before and after.
    """

    name: str
    flipped: Interval
    most_flipped: tuple[str, float] | None
    moved: Interval
    auroc_lost: Interval
    likeness: Interval


class RobustnessReport(Measured):
    """The whole of evaluation_robustness.json."""

    split: str = "test"
    images: int
    patients: int
    over: int
    changes: tuple[ChangeReport, ...]


@dataclass(frozen=True)
class Said:
    """What the model says of N images: probabilities (N, F), NaN where not trained; embeddings (N, D)."""

    probabilities: FloatArray
    embeddings: npt.NDArray[np.floating]


def measure_changes(
    findings: FindingSet,
    before: Said,
    after: Mapping[str, Said],
    target: npt.ArrayLike,
    patients: npt.NDArray[np.str_],
    thresholds: FloatArray,
    options: IntervalOptions,
) -> RobustnessReport:
    """Compare what the model says of the same N images before and after each change.

    `after` is by the name of the change, `target` (N, F) 1, 0 or NaN, `patients` (N,) keys, `thresholds` (F,) NaN where
    there is no operating point. DataError where there are no images.
    """
    truth = np.asarray(target, dtype=np.float64)
    drawn = options.draw(patients)
    told = np.flatnonzero(enough(truth, options.minimum_positives) & ~np.isnan(before.probabilities).all(axis=0))
    called = np.flatnonzero(~np.isnan(thresholds))

    def compare(name: str, said: Said) -> ChangeReport:
        flips = (said.probabilities >= thresholds)[:, called] != (before.probabilities >= thresholds)[:, called]
        each = np.column_stack(
            [
                row_means(flips.astype(np.float64)),
                np.nanmean(np.abs(said.probabilities - before.probabilities), axis=1),
                (said.embeddings * before.embeddings).sum(axis=1),
            ]
        )

        def statistic(weights: FloatArray) -> FloatArray:
            aurocs = (
                weighted_aurocs(truth[:, told], side.probabilities[:, told], weights).sum(axis=1)
                / (told.size or np.nan)
                for side in (before, said)
            )
            return np.column_stack([weights @ each / weights.sum(axis=1, keepdims=True), np.subtract(*aurocs)])

        flipped, moved, likeness, lost = bootstrap(statistic, drawn, options.confidence, (-1, 1))
        share = flips.mean(axis=0)
        most = (findings.names[called[share.argmax()]], float(share.max())) if called.size else None
        return ChangeReport(
            name=name, flipped=flipped, most_flipped=most, moved=moved, auroc_lost=lost, likeness=likeness
        )

    return RobustnessReport.of(
        options,
        images=len(truth),
        patients=len(set(patients)),
        over=len(told),
        changes=tuple(compare(name, said) for name, said in after.items()),
    )


def jpeg(image: Grey, quality: int) -> Grey:
    """Compressed as a JPEG of 8 bits and that quality."""
    packed = BytesIO()
    Image.fromarray(np.rint(image.clip(0, 1) * 255).astype(np.uint8)).save(packed, "JPEG", quality=quality)
    return np.asarray(Image.open(packed).convert("L"), dtype=np.float32) / np.float32(255)


def resampled(image: Grey, factor: float) -> Grey:
    """Reduced to a share of its size and enlarged again."""
    height, width = image.shape
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32).clip(0, 1)


def turned(image: Grey, degrees: float) -> Grey:
    """Turned counter-clockwise about its middle; what comes in at the corners is black."""
    return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR), dtype=np.float32)


def gamma(image: Grey, exponent: float) -> Grey:
    """Brighter below 1, darker above, black and white staying."""
    return np.power(image.clip(0, 1), np.float32(exponent))


def contrast(image: Grey, factor: float) -> Grey:
    """The greys' distances from their mean times a factor."""
    return ((image - image.mean()) * np.float32(factor) + image.mean()).clip(0, 1)


def marked(image: Grey, text: str) -> Grey:
    """With a bright side marker burned into the upper right corner."""
    picture, side = Image.fromarray(image.copy()), min(image.shape)
    place = (image.shape[1] - 0.12 * side, 0.04 * side)
    ImageDraw.Draw(picture).text(place, text, fill=1.0, font=ImageFont.load_default(size=max(8, side // 14)))
    return np.asarray(picture, dtype=np.float32)


CHANGES: dict[str, Callable[[Grey], Grey]] = {
    "JPEG, quality 50": partial(jpeg, quality=50),
    "JPEG, quality 20": partial(jpeg, quality=20),
    "half the resolution": partial(resampled, factor=0.5),
    "turned by 3° to the left": partial(turned, degrees=3),
    "turned by 5° to the right": partial(turned, degrees=-5),
    "brighter (gamma 0.8)": partial(gamma, exponent=0.8),
    "darker (gamma 1.25)": partial(gamma, exponent=1.25),
    "contrast −20 %": partial(contrast, factor=0.8),
    "contrast +20 %": partial(contrast, factor=1.2),
    "a marker burned in": partial(marked, text="L"),
}
