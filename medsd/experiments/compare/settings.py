"""The settings of `medsd compare`: which sets, losses and seeds, and the one budget that all losses get.

The grid is tried on a validation part of the training rows; the test part is measured once, with the values that were
best there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from medsd.experiments.compare.measured import ALL_METRICS
from medsd.settings import NAME
from medsd.settings.data import Nih14Part
from medsd.strict import Strict

SetName = Literal["yeast", "emotions", "scene", "medical", "enron", "openi", "cmc2007", "radiographs"]
TITLES: Mapping[str, str] = {
    "sd": "SD",
    "any": "ANY",
    "all": "ALL",
    "supcon": "SupCon",
    "mulsupcon": "MulSupCon",
    "jaccard": "Jaccard",
    "probmcl": "ProbMCL",
    "bce": "cross-entropy",
}


class LossVariant(Strict):
    """A loss with options of its own, for an ablation."""

    loss: str = Field(description="Name of the loss in medsd.sd.")
    options: dict[str, bool | int | float | str] = Field({}, description="Arguments of the loss, as in loss.options.")
    temperature: float | None = Field(None, gt=0, description="Temperature instead of the grid's.")
    title: str | None = Field(None, description="Name in the report.")


class BudgetSettings(Strict):
    """The encoder and its training, the same for each loss."""

    hidden: int = Field(512, ge=8, le=4096, description="Width of the hidden layer.")
    embedding: int = Field(256, ge=2, le=4096, description="Dimensions of the learned space.")
    projection: int = Field(128, ge=2, le=4096, description="Dimensions in which the contrastive losses compare.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout of the hidden layer.")
    corruption: float = Field(0.2, ge=0, lt=1, description="Share of the inputs that each view loses (set to 0).")
    views: int = Field(2, ge=1, le=8, description="Differently corrupted copies of each sample in a batch.")
    batch_size: int = Field(256, ge=2, description="Samples in a batch.")
    epochs: int = Field(60, ge=1, description="Passes over the training samples.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay; cross-entropy tries values of its own.")


class GridSettings(Strict):
    """What is tried for each loss: every learning rate with every temperature.

    Cross-entropy, and a variant with a temperature of its own, try as many values of weight decay, so that each loss
    has the same number of trials.
    """

    learning_rate: tuple[float, ...] = Field((0.001, 0.003), min_length=1, description="Learning rates.")
    temperature: tuple[float, ...] = Field((0.1, 0.2, 0.4), min_length=1, description="Temperatures.")
    weight_decay: tuple[float, ...] = Field(
        (0.01, 0.1, 0.5), min_length=1, description="Weight decay of the losses that try no temperature."
    )
    probe_penalty: tuple[float, ...] = Field(
        (0.0001, 0.001, 0.01), min_length=1, description="Penalties of the linear probe, which cost no training."
    )
    validation: float = Field(0.2, gt=0, lt=1, description="Share of the training rows that decides.")
    seeds: tuple[int, ...] = Field((1000,), min_length=1, description="Seeds of the trials.")

    @model_validator(mode="after")
    def _equal_effort(self) -> Self:
        if len(self.weight_decay) != len(self.temperature):
            raise ValueError(
                "weight_decay needs as many values as temperature, or the losses would not have equal trials"
            )
        if min(*self.learning_rate, *self.temperature, *self.probe_penalty, 1.0) <= 0 or min(self.weight_decay) < 0:
            raise ValueError("learning rates, temperatures and penalties must be positive")
        return self


class FrozenImageSettings(Strict):
    """How the set `radiographs` becomes features; see `medsd.experiments.compare.radiographs`."""

    size: int = Field(160, ge=32, le=512, multiple_of=32, description="Side of the network's input, in pixels.")
    views: int = Field(4, ge=1, le=32, description="The plain image and so many less one changed copies, made once.")
    parts: tuple[Nih14Part, ...] = Field((), description="Folders below root, as data.parts of a training.")


class LossQuestion(Strict):
    """A question that the report answers by paired tests, corrected over all its arms and sets."""

    ask: str = Field(description="The question in words.")
    reference: str = Field(description="The loss that the arms are compared with.")
    arms: tuple[str, ...] = Field(min_length=1, description="Losses that differ from it in one thing.")
    metrics: tuple[str, ...] = Field(("ndcg",), min_length=1, description="Metrics that answer, as in results.json.")

    @model_validator(mode="after")
    def _known_metrics(self) -> Self:
        for metric in self.metrics:
            if metric not in ALL_METRICS:
                raise ValueError(f"metrics: there is no metric '{metric}'; there are {', '.join(ALL_METRICS)}")
        return self


class CompareSettings(Strict):
    """A whole comparison."""

    name: str = Field(pattern=NAME, description="Name of the comparison.")
    root: Path = Field(description="Folder that has the sets' folders; give it with --set root=FOLDER.")
    output: Path = Field(Path("runs/compare"), description="The comparison's folder is <output>/<name>.")
    sets: tuple[SetName, ...] = Field(min_length=1, description="Data sets.")
    losses: tuple[str, ...] = Field(tuple(TITLES), min_length=2, description="bce, losses of medsd.sd, variants.")
    variants: dict[str, LossVariant] = Field({}, description="Losses with options of their own, by a name.")
    reference: str = Field("sd", description="The loss that is tested against each of the others.")
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=2, description="Seeds of the trainings.")
    k: int = Field(10, ge=1, le=1000, description="Neighbours that are looked at.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence of the intervals and level of the tests.")
    bootstrap: int = Field(2000, ge=20, description="Resamples of the test patients.")
    workers: int = Field(2, ge=1, le=64, description="Processes of one thread; the figures do not depend on it.")
    budget: BudgetSettings = Field(BudgetSettings(), description="The encoder and its training.")
    grid: GridSettings = Field(GridSettings(), description="What is tried for each loss.")
    images: FrozenImageSettings = Field(FrozenImageSettings(), description="How radiographs become features.")
    questions: tuple[LossQuestion, ...] = Field(
        (), description="What the report answers, beside the table of all losses."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        from medsd.sd.rivals import LOSSES

        for name in ("sets", "losses", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names the same value twice")
        known = {"bce", *LOSSES, *self.variants}
        for loss in (*self.losses, *(variant.loss for variant in self.variants.values())):
            if loss not in known:
                raise ValueError(f"losses: there is no loss '{loss}'; there are {', '.join(sorted(known))}")
        if self.reference not in self.losses:
            raise ValueError(f"reference '{self.reference}' is not among the losses")
        for question in self.questions:
            for loss in (question.reference, *question.arms):
                if loss not in self.losses:
                    raise ValueError(f"questions: '{loss}' of '{question.ask}' is not among the losses")
        return self

    @property
    def folder(self) -> Path:
        """Where this comparison keeps its work and its report."""
        return self.output / self.name

    @property
    def rivals(self) -> tuple[str, ...]:
        """The losses without the reference."""
        return tuple(loss for loss in self.losses if loss != self.reference)

    def variant(self, loss: str) -> LossVariant:
        """What a name in `losses` stands for."""
        return self.variants.get(loss) or LossVariant(loss=loss)

    def title(self, loss: str) -> str:
        """Name of a loss in the report."""
        return self.variant(loss).title or TITLES.get(loss, loss)


@dataclass(frozen=True)
class Trial:
    """One point of the grid; `temperature` is None for cross-entropy."""

    learning_rate: float
    weight_decay: float
    temperature: float | None


def trials(loss: str, settings: CompareSettings) -> Iterator[Trial]:
    """The points of the grid for `loss`: as many for each loss."""
    grid, fixed = settings.grid, settings.variant(loss).temperature
    for rate in grid.learning_rate:
        if loss == "bce" or fixed is not None:
            yield from (Trial(rate, decay, fixed) for decay in grid.weight_decay)
        else:
            yield from (Trial(rate, settings.budget.weight_decay, temperature) for temperature in grid.temperature)
