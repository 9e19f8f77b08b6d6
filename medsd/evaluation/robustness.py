"""How calls change when an image is only handled differently: compressed, resampled, turned, brightened, marked.

None of these is a change of the patient, so a call that flips depended on the handling.
`CHANGES` are fixed and mild, as picture archives and cassettes do them; `measure_changes` compares what the model says
before and after, on the same images, with intervals over patients.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from pydantic import AliasChoices, Field

from medsd.evaluation.saved import Measured
from medsd.findings import FindingSet
from medsd.metrics.intervals import Interval, IntervalOptions, bootstrap, row_means
from medsd.metrics.metrics import FloatArray, enough, weighted_aurocs
from medsd.strict import Described

ROBUSTNESS = "evaluation_robustness.json"

Grey = npt.NDArray[np.float32]  # (H, W) in 0…1
Change = Callable[[Grey], Grey]


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

    split: str
    images: int = Field(validation_alias=AliasChoices("images", "films"))
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
    *,
    split: str = "test",
) -> RobustnessReport:
    """Compare what the model says of the same N images before and after each change.

    `before` and `after`, by the name of the change, are of the same N images, `target` (N, F) 1, 0 or NaN, `patients`
    (N,) keys. `thresholds` (F,) are NaN where there is no operating point.

    Raises:
        DataError: there are no images.
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
        split=split,
        images=len(truth),
        patients=len(set(patients)),
        over=len(told),
        changes=tuple(compare(name, said) for name, said in after.items()),
    )


def jpeg(quality: int) -> Change:
    """Compressed as a JPEG of 8 bits and that quality."""

    def change(image: Grey) -> Grey:
        packed = BytesIO()
        _picture(image).save(packed, "JPEG", quality=quality)
        return _greys(Image.open(packed))

    return change


def resampled(factor: float) -> Change:
    """Reduced to a share of its size and enlarged again."""

    def change(image: Grey) -> Grey:
        height, width = image.shape
        picture = Image.fromarray(image)
        small = picture.resize((max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.BOX)
        return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32).clip(0, 1)

    return change


def turned(degrees: float) -> Change:
    """Turned counter-clockwise about its middle; what comes in at the corners is black."""

    def change(image: Grey) -> Grey:
        return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR), dtype=np.float32)

    return change


def gamma(exponent: float) -> Change:
    """Brighter below 1, darker above, black and white staying."""
    return lambda image: np.power(image.clip(0, 1), np.float32(exponent))


def contrast(factor: float) -> Change:
    """The greys' distances from their mean times a factor."""
    return lambda image: ((image - image.mean()) * np.float32(factor) + image.mean()).clip(0, 1)


def marked(text: str) -> Change:
    """With a bright side marker burned into the upper right corner."""

    def change(image: Grey) -> Grey:
        picture = Image.fromarray(image.copy())
        side = min(image.shape)
        place = (image.shape[1] - 0.12 * side, 0.04 * side)
        ImageDraw.Draw(picture).text(place, text, fill=1.0, font=ImageFont.load_default(size=max(8, side // 14)))
        return np.asarray(picture, dtype=np.float32)

    return change


CHANGES: dict[str, Change] = {
    "JPEG, quality 50": jpeg(50),
    "JPEG, quality 20": jpeg(20),
    "half the resolution": resampled(0.5),
    "turned by 3° to the left": turned(3),
    "turned by 5° to the right": turned(-5),
    "brighter (gamma 0.8)": gamma(0.8),
    "darker (gamma 1.25)": gamma(1.25),
    "contrast −20 %": contrast(0.8),
    "contrast +20 %": contrast(1.2),
    "a marker burned in": marked("L"),
}


def _picture(image: Grey) -> Image.Image:
    return Image.fromarray(np.rint(image.clip(0, 1) * 255).astype(np.uint8))


def _greys(picture: Image.Image) -> Grey:
    return np.asarray(picture.convert("L"), dtype=np.float32) / np.float32(255)
