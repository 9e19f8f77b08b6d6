"""Calibrations and operating points, as a bundle carries them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from medsd.strict import Described

KNOTS = 32  # of an isotonic calibration, at most


class PlattCalibration(Described):
    """probability = sigmoid(slope · logit + intercept), inside the ONNX graph; kept here for the record."""

    slope: float = Field(gt=0)
    intercept: float


class IsotonicCalibration(Described):
    """probability = sigmoid(g(logit)), g linear between knots and rising; inside the ONNX graph, kept for the record.

    Below the first knot and above the last, g goes on with `slope`, so that no two logits are ever tied.
    """

    knots: tuple[float, ...] = Field(min_length=1, max_length=KNOTS, description="logits, rising")
    log_odds: tuple[float, ...] = Field(description="g at the knots, rising")
    slope: float = Field(gt=0)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        for name, values in (("knots", self.knots), ("log_odds", self.log_odds)):
            if len(values) != len(self.knots) or any(b <= a for a, b in pairwise(values)):
                raise ValueError(f"{name} must be as many as knots, and each above the one before")
        return self


Calibration = PlattCalibration | IsotonicCalibration

UNCALIBRATED = PlattCalibration(slope=1.0, intercept=0.0)


@dataclass(frozen=True)
class Hinges:
    """Any calibration as log-odds = slope · z + intercept + Σ bend · max(z − knot, 0), as the graph computes it."""

    slope: float
    intercept: float
    knots: tuple[float, ...] = ()
    bends: tuple[float, ...] = ()


def as_hinges(calibration: Calibration) -> Hinges:
    """The calibration of one finding as a sum of hinges."""
    if isinstance(calibration, PlattCalibration):
        return Hinges(calibration.slope, calibration.intercept)
    points = list(zip(calibration.knots, calibration.log_odds, strict=True))
    between = [(y - b) / (x - a) for (a, b), (x, y) in pairwise(points)]
    slopes = [calibration.slope, *between, calibration.slope]
    intercept = calibration.log_odds[0] - calibration.slope * calibration.knots[0]
    return Hinges(calibration.slope, intercept, calibration.knots, tuple(b - a for a, b in pairwise(slopes)))


def hinge_arrays(calibrations: Sequence[Calibration | None]) -> dict[str, npt.NDArray[Any]]:
    """The hinges of F findings as the graph's constants, float32: slope and intercept (F,), knots and bends (F, K).

    A finding with fewer knots has bends of 0; knots and bends are left out where every finding has Platt's calibration.
    `trained` (F,), 1, or NaN for None, is there where a finding was not trained.
    """
    hinges = [as_hinges(each or UNCALIBRATED) for each in calibrations]
    arrays = {name: np.array([getattr(each, name) for each in hinges], np.float32) for name in ("slope", "intercept")}
    if most := max(len(each.knots) for each in hinges):
        arrays |= {name: np.zeros((len(hinges), most), np.float32) for name in ("knots", "bends")}
        for f, each in enumerate(hinges):
            arrays["knots"][f, : len(each.knots)], arrays["bends"][f, : len(each.bends)] = each.knots, each.bends
    if None in calibrations:
        arrays["trained"] = np.array([np.nan if each is None else 1 for each in calibrations], np.float32)
    return arrays


# The last two are a recalibration's (`medsd.external.recalibrate`).
CalibrationMethod = Literal["none", "pooled", "temperature", "platt", "isotonic", "intercept", "kept"]


class CalibrationChoice(Described):
    """Which calibration a finding has, and the validation cases that decided it (`medsd.calibration.fit`)."""

    method: CalibrationMethod
    positives: int
    negatives: int
    reason: str


class OperatingPoint(Described):
    """Where a probability becomes a call.

    `threshold` None: too few validation cases to choose one; every call is "undecided".
    Sensitivity and specificity are those of the validation split, where the threshold was chosen.
    """

    threshold: float | None
    rule: str
    sensitivity: float | None = None
    specificity: float | None = None
    positives: int
    negatives: int


Call = Literal["present", "absent", "undecided"]


def call(probability: float, point: OperatingPoint) -> Call:
    """What the operating point makes of a calibrated probability."""
    if point.threshold is None:
        return "undecided"
    return "present" if probability >= point.threshold else "absent"
