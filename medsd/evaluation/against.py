"""Two bundles on the same studies: how much their AUROCs differ, by DeLong's test with Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medsd.evaluation.saved import Saved, rounded
from medsd.findings import Finding
from medsd.metrics.delong import DeLong, delong
from medsd.metrics.intervals import Interval, IntervalOptions, metric_intervals
from medsd.metrics.metrics import FloatArray
from medsd.metrics.two_samples import holm
from medsd.strict import Described

AGAINST = "against.json"
_WORDS = {"average_precision": "average precision", "brier": "Brier score", "calibration_error": "calibration error"}


class AurocDifference(Described):
    """AUROC of the first and of the second bundle, and first less second with DeLong's interval.

    All are None with too few cases. `p` is two-sided, `adjusted` the same for the number of findings (Holm).
    """

    title: str
    first: float | None
    second: float | None
    difference: Interval
    p: float | None
    adjusted: float | None = None

    def __str__(self) -> str:
        if self.first is None or self.second is None:
            return f"{self.title}: too few to tell"
        p = "" if self.adjusted is None else f", adjusted p = {self.adjusted:.3g}"
        return f"{self.title}: {self.first:.3f} and {self.second:.3f}, difference {self.difference}{p}"


class AgainstReport(Saved):
    """The whole of against.json: studies that both bundles scored and neither learned from, findings that both call.

    `mean` is over the `over` findings that can be told; `others` are differences of the means of other metrics, with
    intervals of a bootstrap over patients.
    """

    first: str
    second: str
    studies: str
    images: int
    patients: int
    confidence: float
    findings: tuple[AurocDifference, ...]
    mean: AurocDifference
    over: int
    others: dict[str, Interval]

    def lines(self) -> list[str]:
        """What to print."""
        head = f"AUROC of {self.first} and {self.second}, {self.images} images of {self.patients} patients"
        others = [f"{_WORDS[name]}: difference of the means {value}" for name, value in self.others.items()]
        return [head, *map(str, self.findings), str(self.mean), *others]


def compare_models(
    names: tuple[str, str],
    studies: str,
    findings: Sequence[Finding],
    target: FloatArray,
    probs: tuple[FloatArray, FloatArray],
    patients: Sequence[str],
    options: IntervalOptions,
) -> AgainstReport:
    """Compare two models, of bundles `names`, on N studies of the set `studies`, over F findings in column order.

    `target` (N, F) is 1, 0 or NaN, `probs` (N, F) are calibrated, of each model, `patients` (N,) are keys.

    Raises:
        DataError: shapes or values that do not fit, for instance no image.
    """
    found = delong(target, *probs, patients, options)
    drawn = metric_intervals(target, probs[0], patients, options, other=probs[1])
    tested = [f for f, test in enumerate(found.findings) if not math.isnan(test.p)]
    adjusted = dict(zip(tested, holm([found.findings[f].p for f in tested]), strict=True))
    differences = [
        _difference(finding.title, test, adjusted.get(f))
        for f, (finding, test) in enumerate(zip(findings, found.findings, strict=True))
    ]
    report = AgainstReport(
        first=names[0],
        second=names[1],
        studies=studies,
        images=len(target),
        patients=len(np.unique(patients)),
        confidence=options.confidence,
        findings=tuple(differences),
        mean=_difference(f"Mean over {found.over} findings", found.macro, None),
        over=found.over,
        others={name: drawn[name].macro for name in _WORDS},
    )
    return AgainstReport.model_validate(rounded(report.model_dump()))


def _difference(title: str, test: DeLong, adjusted: float | None) -> AurocDifference:
    first, second, p = (None if math.isnan(value) else value for value in (test.first, test.second, test.p))
    return AurocDifference(title=title, first=first, second=second, difference=test.difference, p=p, adjusted=adjusted)
