"""Two bundles on the same studies: how much their AUROCs differ, by DeLong's test with Holm's correction."""

from collections.abc import Sequence

import numpy as np

from medsd.evaluation.saved import Measured
from medsd.findings import Finding
from medsd.metrics.delong import DeLong, delong
from medsd.metrics.intervals import Interval, IntervalOptions, metric_intervals
from medsd.metrics.metrics import FloatArray, or_none
from medsd.metrics.two_samples import adjust_p

AGAINST = "against.json"
_WORDS = {"average_precision": "average precision", "brier": "Brier score", "calibration_error": "calibration error"}


class AurocDifference(DeLong):
    """The test of a finding, or of the mean; `adjusted` is its p value adjusted for the number of findings (Holm)."""

    title: str
    adjusted: float | None = None

    def __str__(self) -> str:
        if self.first is None or self.second is None:
            return f"{self.title}: too few to tell"
        p = "" if self.adjusted is None else f", adjusted p = {self.adjusted:.3g}"
        return f"{self.title}: {self.first:.3f} and {self.second:.3f}, difference {self.difference}{p}"


class AgainstReport(Measured):
    """The whole of against.json: studies that both bundles scored and neither learned from, findings that both call.

    `mean` is over the `over` findings that can be told; `others` are differences of the means of other metrics, with
    intervals of a bootstrap over patients.
    """

    first: str
    second: str
    studies: str
    images: int
    patients: int
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

    `target` (N, F) is 1, 0 or NaN, `probs` (N, F) are calibrated, of each model, `patients` (N,) are keys. Shapes or
    values that do not fit are a DataError.
    """
    found = delong(target, *probs, patients, options)
    drawn = metric_intervals(target, probs[0], patients, options, other=probs[1])
    adjusted = adjust_p([test.p for test in found.findings])
    return AgainstReport.of(
        options,
        first=names[0],
        second=names[1],
        studies=studies,
        images=len(target),
        patients=len(np.unique(patients)),
        findings=tuple(
            AurocDifference(title=finding.title, adjusted=or_none(p), **dict(test))
            for finding, test, p in zip(findings, found.findings, adjusted, strict=True)
        ),
        mean=AurocDifference(title=f"Mean over {found.over} findings", **dict(found.macro)),
        over=found.over,
        others={name: drawn[name].macro for name in _WORDS},
    )
