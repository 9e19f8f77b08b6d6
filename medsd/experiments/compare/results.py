"""What a comparison of losses found on one data set."""

from __future__ import annotations

from dataclasses import dataclass

from medsd.experiments.compare.cells import Outcome, finding_groups
from medsd.experiments.compare.labelled_set import LabelledSet
from medsd.experiments.compare.settings import Trial


@dataclass(frozen=True)
class Choice:
    """What the validation part decided for one loss.

    Attributes:
        trial: the point of the grid with the highest nDCG, mean over the trial seeds.
        ndcg: that mean, for each point of the grid in its order.
        penalty: of the probe, by mean average precision; unused by cross-entropy.
        threshold: by micro-F1, mean over the trial seeds.
    """

    trial: Trial
    ndcg: tuple[float, ...]
    penalty: float
    threshold: float


@dataclass(frozen=True)
class SetResult:
    """One set: the choice and the cells, seed after seed, of each loss."""

    data: LabelledSet
    choices: dict[str, Choice]
    cells: dict[str, list[Outcome]]

    def values(self, loss: str, metric: str) -> list[float]:
        """The metric of each seed; NaN where there was too little to tell."""
        return [float("nan") if (v := cell["metrics"][metric]) is None else v for cell in self.cells[loss]]

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Names of the head, middle and tail findings."""
        found = finding_groups(self.data.labels[self.data.train])
        return {group: tuple(self.data.findings[c] for c in columns) for group, columns in found.items()}
