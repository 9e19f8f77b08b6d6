"""The one rule of calls: at the operating points, or conformal where a coverage is named.

`called` makes the calls of a new reading; `recalled` makes those of a reading that is there again, with another
coverage, without running the model.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medsd.bundle.layout import Bundle
from medsd.calibration.conformal import CONFORMAL, Limits, call_of, checked_coverage, read_conformal
from medsd.calibration.types import call
from medsd.errors import BundleError
from medsd.inference.prediction import Prediction

COVERAGES = (0.8, 0.9, 0.95)  # those that people are offered


def offered(bundle: Bundle) -> tuple[float, ...]:
    """The coverages that a bundle can promise; none where it was exported without conformal scores."""
    return COVERAGES if CONFORMAL in bundle.description.files else ()


def called(
    bundle: Bundle,
    values: npt.NDArray[np.float32],
    coverage: float | None = None,
    limits: Mapping[str, Limits | None] | None = None,
) -> dict[str, Any]:
    """The fields of a `Prediction` that say what is called, by calibrated probabilities (F,); NaN gets no call.

    `limits` are those that keep the promise of `coverage` (`conformal_limits`); without, the operating points decide.
    """
    found = zip(bundle.findings, values.astype(float), strict=True)
    probabilities = [(name, value) for name, value in found if not np.isnan(value)]
    if limits is None:
        points = bundle.description.operating_points
        calls = {n: call(value, points[n]) if n in points else "undecided" for n, value in probabilities}
        return {"calls": calls, "conformal_sets": {}, "coverage": None}
    sets = {n: "both" if (limit := limits[n]) is None else limit.set_of(value) for n, value in probabilities}
    return {"calls": {n: call_of(found) for n, found in sets.items()}, "conformal_sets": sets, "coverage": coverage}


def recalled(prediction: Prediction, bundle: Bundle, coverage: float | None) -> Prediction:
    """`prediction` with the calls of another coverage, None for the operating points; errors as `conformal_limits`."""
    if prediction.values is None or prediction.coverage == coverage:
        return prediction
    limits = None if coverage is None else conformal_limits(bundle, coverage)
    return replace(prediction, **called(bundle, prediction.values, coverage, limits))


def conformal_limits(bundle: Bundle, coverage: float) -> dict[str, Limits | None]:
    """The limits of each finding of a bundle at `coverage`; a finding that was not trained has none.

    Raises DataError: `coverage` is no share between 0 and 1; BundleError: the bundle has no conformal scores, or not
    those of all its findings.
    """
    checked_coverage(coverage)
    if CONFORMAL not in bundle.description.files:
        raise BundleError(
            f"{bundle.label} was exported without conformal scores, so that it promises no coverage; "
            "leave the coverage out, or calibrate and export it again"
        )
    scores = read_conformal(bundle.folder / CONFORMAL)
    names = [name for name in bundle.findings if name not in bundle.description.not_trained]
    missing = [name for name in names if name not in scores]
    if missing:
        raise BundleError(f"{bundle.folder / CONFORMAL}: nothing for {', '.join(missing)}; copy the bundle again")
    return {name: scores[name].limits(coverage) for name in names}
