"""What was read of another set of studies, and what a recalibration on it changed: the records beside the figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medsd.evaluation.against_card import AgainstCard
from medsd.evaluation.saved import Saved, rounded
from medsd.metrics.intervals import Interval, IntervalOptions, bootstrap
from medsd.metrics.metrics import FloatArray, ratio, weighted_brier, weighted_calibration_error
from medsd.strict import Described

STUDIES, RECALIBRATION = "studies.json", "recalibration.json"


class StudiesReport(Saved):
    """The whole of studies.json: which studies were measured, and what was left out.

    Attributes:
        split: the part of the patients that was taken; None for all of them.
        data_hash: over the rows that were asked for, `images` of `patients`.
        own: images left out because the bundle learned from them or their patients, or was calibrated on them.
        rejected: rows of the source that could not be used, by reason.
        refused, warned: images that the gate or the out-of-distribution check refused, or warned of, by reason.
        unlabelled: findings that the set never labels.
        card: what the bundle's card says of each finding, against these studies; None where it has no evaluation.
    """

    bundle: str
    model_sha256: str
    name: str
    source: str
    split: str | None
    data_hash: str
    finding_set: str
    images: int
    patients: int
    own: int
    rejected: dict[str, int]
    refused: dict[str, int]
    warned: dict[str, int]
    scored: int
    scored_patients: int
    unlabelled: tuple[str, ...]
    card: AgainstCard | None = None


class FigureChange(Described):
    """One figure before and after, over the same labels; `gain` is before minus after, with a paired interval."""

    before: Interval
    after: Interval
    gain: Interval


class RecalibrationReport(Saved):
    """The whole of recalibration.json: from which bundle (`bundle`, `model_sha256`), on whom, and what came of it.

    Attributes:
        crossed: fitted on all patients; the figures are of halves, each with the fit of the other.
        findings: those whose calibration is new; all others kept theirs.
        labels: known labels of these findings among the measured patients.
        figures: log_loss, brier and calibration_error over all these labels.
        outputs: largest absolute difference of each output of the graph but the probabilities, on `readings` studies.
    """

    bundle: str
    model_sha256: str
    version: str
    studies: str
    data_hash: str
    seed: int
    confidence: float
    resamples: int
    fitted_patients: int
    measured_patients: int
    crossed: bool
    findings: tuple[str, ...]
    labels: int
    figures: dict[str, FigureChange] = Field(default_factory=dict)
    outputs: dict[str, float] = Field(default_factory=dict)
    readings: int = 0


def compare_probabilities(
    target: FloatArray,
    before: FloatArray,
    after: FloatArray,
    patients: Sequence[str] | npt.NDArray[np.str_],
    options: IntervalOptions,
) -> dict[str, FigureChange]:
    """Log loss, Brier score and calibration error over all known labels, before, after and the gain.

    Args:
        target: (N, F) 1, 0 or NaN.
        before, after: (N, F) probabilities.
        patients: (N,) keys, of which the intervals are made.
    """
    known = ~np.isnan(target)
    truth = target[known]
    image_of = np.nonzero(known)[0]
    sides = [np.clip(probs[known], 1e-12, 1 - 1e-12) for probs in (before, after)]

    def statistic(weights: FloatArray) -> FloatArray:
        each = weights[:, image_of]
        figures = []
        for probs in sides:
            losses = -(truth * np.log(probs) + (1 - truth) * np.log1p(-probs))
            figures += [
                weighted_calibration_error(truth, probs, each),
                ratio(each @ losses, each.sum(1)),
                weighted_brier(truth, probs, each),
            ]
        before, after = np.split(np.stack(figures, axis=1), 2, axis=1)
        return np.hstack([before, after, before - after])

    drawn = bootstrap(statistic, options.draw(patients), options.confidence)
    found = [Interval(**rounded(each.model_dump())) for each in drawn]
    names = ("calibration_error", "log_loss", "brier")
    return {
        name: FigureChange(before=found[i].within(0, np.inf), after=found[i + 3].within(0, np.inf), gain=found[i + 6])
        for i, name in enumerate(names)
    }
