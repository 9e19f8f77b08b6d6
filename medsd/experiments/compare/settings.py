"""The settings of `medsd compare`: which sets, losses and seeds, and the one budget that all losses get.

Everything here holds for every loss alike. The grid is tried out on a validation part of the training rows; the test
part is looked at once, with the values that won there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from medsd.strict import Strict

SetName = Literal["yeast", "emotions", "scene", "medical", "enron", "openi", "cmc2007", "radiographs"]
LossName = Literal["sd", "any", "all", "supcon", "mulsupcon", "jaccard", "probmcl", "bce", "sd-inside"]

TITLES: Mapping[str, str] = {
    "sd": "SD",
    "any": "ANY",
    "all": "ALL",
    "supcon": "SupCon",
    "mulsupcon": "MulSupCon",
    "jaccard": "Jaccard",
    "probmcl": "ProbMCL",
    "bce": "cross-entropy",
    "sd-inside": "SD, weight inside the logarithm",
}


class BudgetSettings(Strict):
    """The encoder and its training: the same for each loss."""

    hidden: int = Field(512, ge=8, le=4096, description="width of the hidden layer")
    embedding: int = Field(256, ge=2, le=4096, description="dimensions of the learned space, in which cases are found")
    projection: int = Field(128, ge=2, le=4096, description="dimensions in which the contrastive losses compare")
    dropout: float = Field(0.2, ge=0, lt=1)
    corruption: float = Field(0.2, ge=0, lt=1, description="share of the inputs that each view loses (set to 0)")
    views: int = Field(2, ge=1, le=8, description="differently corrupted copies of each sample in a batch")
    batch_size: int = Field(256, ge=2)
    epochs: int = Field(60, ge=1)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with a rising learning rate")
    weight_decay: float = Field(0.01, ge=0, description="of the contrastive losses; cross-entropy tries its own")


class GridSettings(Strict):
    """What is tried for each loss: every learning rate with every temperature.

    Cross-entropy has no temperature; in its place it tries as many values of weight decay, so that each loss has the
    same number of trials.
    """

    learning_rate: tuple[float, ...] = Field((0.001, 0.003), min_length=1)
    temperature: tuple[float, ...] = Field((0.1, 0.2, 0.4), min_length=1)
    weight_decay: tuple[float, ...] = Field((0.01, 0.1, 0.5), min_length=1, description="of cross-entropy alone")
    probe_penalty: tuple[float, ...] = Field(
        (0.0001, 0.001, 0.01), min_length=1, description="of the linear probe; no training of the encoder is needed"
    )
    validation: float = Field(0.2, gt=0, lt=1, description="share of the training rows that decides")
    seeds: tuple[int, ...] = Field((1000,), min_length=1, description="initial weights of the trials")

    @model_validator(mode="after")
    def _equal_effort(self) -> GridSettings:
        if len(self.weight_decay) != len(self.temperature):
            raise ValueError(
                "weight_decay needs as many values as temperature, or the losses would not have equal trials"
            )
        if min(*self.learning_rate, *self.temperature, *self.probe_penalty, 1.0) <= 0 or min(self.weight_decay) < 0:
            raise ValueError("learning rates, temperatures and penalties must be positive")
        return self


class FilmSettings(Strict):
    """How the set `radiographs` becomes features; see `medsd.experiments.compare.films`."""

    size: int = Field(160, ge=32, le=512, multiple_of=32, description="side of the network's input in pixels")
    views: int = Field(4, ge=1, le=32, description="the plain film and so many less one changed copies, made once")


class CompareSettings(Strict):
    """A whole comparison."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    root: Path = Field(description="folder that has the sets' folders; give it with --set root=FOLDER")
    output: Path = Field(Path("runs/compare"), description="the comparison is <output>/<name>")
    sets: tuple[SetName, ...] = Field(min_length=1)
    losses: tuple[LossName, ...] = Field(
        ("sd", "any", "all", "supcon", "mulsupcon", "jaccard", "probmcl", "bce"), min_length=2
    )
    reference: LossName = Field("sd", description="the loss that is tested against each of the others")
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=2)
    k: int = Field(10, ge=1, le=1000, description="neighbours looked at")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    bootstrap: int = Field(2000, ge=20, description="resamples of the test patients")
    workers: int = Field(2, ge=1, le=64, description="processes, one thread each; the figures do not depend on it")
    budget: BudgetSettings = BudgetSettings()
    grid: GridSettings = GridSettings()
    films: FilmSettings = FilmSettings()

    @model_validator(mode="after")
    def _no_loss_twice(self) -> CompareSettings:
        for name in ("sets", "losses", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names the same value twice")
        if self.reference not in self.losses:
            raise ValueError(f"reference '{self.reference}' is not among the losses")
        return self

    @property
    def folder(self) -> Path:
        """Where this comparison keeps its work and its report."""
        return self.output / self.name

    @property
    def rivals(self) -> tuple[str, ...]:
        """The losses but the reference."""
        return tuple(loss for loss in self.losses if loss != self.reference)


@dataclass(frozen=True)
class Trial:
    """One point of the grid; `temperature` is None for cross-entropy."""

    learning_rate: float
    weight_decay: float
    temperature: float | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "temperature": self.temperature,
        }


def trials(loss: str, settings: CompareSettings) -> Iterator[Trial]:
    """The points of the grid for `loss`: as many for each loss."""
    grid, budget = settings.grid, settings.budget
    for rate in grid.learning_rate:
        if loss == "bce":
            yield from (Trial(rate, decay, None) for decay in grid.weight_decay)
        else:
            yield from (Trial(rate, budget.weight_decay, temperature) for temperature in grid.temperature)
