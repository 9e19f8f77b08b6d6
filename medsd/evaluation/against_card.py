"""Whether a measurement elsewhere agrees with the card of a bundle: finding by finding, and in their order."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from medsd.evaluation.report import EvaluationReport
from medsd.metrics.intervals import Interval
from medsd.strict import Described

_FEWEST = 3  # findings whose order is worth a correlation


class CardFinding(Described):
    """The AUROC of one finding on the card and here; `inside`: the card's interval contains what was measured here."""

    title: str
    card: Interval
    here: Interval
    inside: bool


class AgainstCard(Described):
    """The findings with enough cases in both.

    Attributes:
        rank_correlation: Spearman's, of the AUROC by finding; None with fewer than three findings, or equal values.
        inside: how many of `findings` lie in the card's interval.
    """

    findings: tuple[CardFinding, ...]
    inside: int
    rank_correlation: float | None

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
    told = {f.name: f for f in card.findings}
    pairs = [(f.title, told[f.name].auroc, f.auroc) for f in here.findings if f.name in told]
    pairs = [pair for pair in pairs if pair[1].low is not None and pair[2].value is not None]
    findings = tuple(
        CardFinding(title=title, card=one, here=two, inside=_contains(one, two)) for title, one, two in pairs
    )
    return AgainstCard(
        findings=findings, inside=sum(f.inside for f in findings), rank_correlation=_rank_correlation(findings)
    )


def _contains(card: Interval, here: Interval) -> bool:
    if card.low is None or card.high is None or here.value is None:
        return False
    return card.low <= here.value <= card.high


def _rank_correlation(findings: tuple[CardFinding, ...]) -> float | None:
    values = np.array([[f.card.value, f.here.value] for f in findings], dtype=np.float64)
    if len(findings) < _FEWEST or (np.ptp(values, axis=0) == 0).any():
        return None
    return round(float(spearmanr(values[:, 0], values[:, 1]).statistic), 6)
