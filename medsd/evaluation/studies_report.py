"""What was read of another set of studies, how it agrees with the card, and what a recalibration on it changed."""

from typing import ClassVar

import numpy as np
from pydantic import Field
from scipy.stats import spearmanr

from medsd.evaluation.report import EvaluationReport
from medsd.evaluation.saved import Measured, Saved
from medsd.metrics.intervals import Interval, IntervalOptions, bootstrap
from medsd.metrics.metrics import FloatArray, Keys, ratio, weighted_brier, weighted_calibration_error
from medsd.strict import Described

STUDIES, RECALIBRATION = "studies.json", "recalibration.json"
_FEWEST = 3  # findings whose order is worth a correlation


class CardFinding(Described):
    """The AUROC of one finding on the card and here; `inside`: the card's interval contains what was measured here."""

    title: str
    card: Interval
    here: Interval
    inside: bool


class AgainstCard(Described):
    """The findings with enough cases in both."""

    findings: tuple[CardFinding, ...]
    inside: int  # how many of them lie in the card's interval
    rank_correlation: float | None  # Spearman's, of the AUROC; None with fewer than three findings, or equal values

    def __str__(self) -> str:
        order = "" if self.rank_correlation is None else f"; rank correlation {self.rank_correlation:.2f}"
        outside = ", ".join(f.title for f in self.findings if not f.inside)
        return (
            f"the card's interval contains the AUROC measured here for {self.inside} of {len(self.findings)} findings"
            + (f", not for {outside}" if outside else "")
            + order
        )


def compare_with_card(card: EvaluationReport, here: EvaluationReport) -> AgainstCard:
    """Compare the AUROC by finding of a bundle's own evaluation with that of another set."""
    told = {f.name: f.auroc for f in card.findings if f.auroc.low is not None}
    findings = tuple(
        CardFinding(title=f.title, card=told[f.name], here=f.auroc, inside=_contains(told[f.name], f.auroc))
        for f in here.findings
        if f.name in told and f.auroc.value is not None
    )
    values = np.array([[f.card.value, f.here.value] for f in findings], dtype=np.float64)
    ordered = len(findings) >= _FEWEST and np.ptp(values, axis=0).all()
    return AgainstCard(
        findings=findings,
        inside=sum(f.inside for f in findings),
        rank_correlation=float(spearmanr(*values.T).statistic) if ordered else None,
    )


def _contains(card: Interval, here: Interval) -> bool:
    if card.low is None or card.high is None or here.value is None:
        return False
    return card.low <= here.value <= card.high


class StudiesReport(Saved):
    """The whole of studies.json: which studies were measured, and what was left out."""

    bundle: str
    model_sha256: str
    name: str
    source: str
    split: str | None  # the part of the patients that was taken; None for all of them
    data_hash: str  # over the rows that were asked for, `images` of `patients`
    finding_set: str
    images: int
    patients: int
    own: int  # images left out because the bundle learned from them or their patients, or was calibrated on them
    rejected: dict[str, int]  # rows of the source that could not be used, by reason
    refused: dict[str, int]  # images that the gate or the out-of-distribution check refused, by reason
    warned: dict[str, int]  # or warned of
    scored: int
    scored_patients: int
    unlabelled: tuple[str, ...]  # findings that the set never labels
    card: AgainstCard | None = None  # the bundle's card against these studies; None where it has no evaluation


class FigureChange(Described):
    """One figure before and after, over the same labels; `gain` is before minus after, with a paired interval."""

    before: Interval
    after: Interval
    gain: Interval


class RecalibrationReport(Measured):
    """The whole of recalibration.json: from which bundle (`bundle`, `model_sha256`), on whom, and what came of it."""

    DECIMALS: ClassVar[int] = 9  # `outputs` differ by a rounding of single precision

    bundle: str
    model_sha256: str
    version: str
    studies: str
    data_hash: str
    seed: int
    fitted_patients: int
    measured_patients: int
    crossed: bool  # fitted on all patients; the figures are of halves, each with the fit of the other
    findings: tuple[str, ...]  # those whose calibration is new; all others kept theirs
    labels: int  # known labels of these findings among the measured patients
    figures: dict[str, FigureChange] = Field({}, description="log_loss, brier, calibration_error over these labels")
    outputs: dict[str, float] = Field({}, description="largest difference of each output but the probabilities")
    readings: int = 0  # studies of `outputs`


def compare_probabilities(
    target: FloatArray, before: FloatArray, after: FloatArray, patients: Keys, options: IntervalOptions
) -> dict[str, FigureChange]:
    """Log loss, Brier score and calibration error over all known labels, before, after and the gain.

    `target` (N, F) is 1, 0 or NaN, `before` and `after` (N, F) are probabilities, `patients` (N,) keys.
    """
    known = ~np.isnan(target)
    truth, image_of = target[known], np.nonzero(known)[0]
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

    found = bootstrap(statistic, options.draw(patients), options.confidence)
    names = ("calibration_error", "log_loss", "brier")
    return {
        name: FigureChange(before=found[i].within(0, np.inf), after=found[i + 3].within(0, np.inf), gain=found[i + 6])
        for i, name in enumerate(names)
    }
