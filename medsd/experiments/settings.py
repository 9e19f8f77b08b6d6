"""The settings of `medsd compare` over recipes and of `medsd tune`: trainings of one base configuration."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from medsd.settings import NAME
from medsd.strict import Strict

Value = bool | int | float | str | None
# Settings of how it is learned. All others change what is measured, so that figures would not be comparable.
SEARCHED = ("pixels", "network", "loss", "training")


class OverBase(Strict):
    """Trainings of one base configuration."""

    name: str = Field(pattern=NAME, description="Name of the comparison or search.")
    base: Path = Field(description="Configuration under all trainings, relative to the folder of this file.")
    output: Path = Field(Path("runs/experiments"), description="The trainings and the report are in <output>/<name>.")
    common: tuple[str, ...] = Field((), description="Settings laid over the base for all trainings, a.b=c each.")

    @property
    def folder(self) -> Path:
        """Where the trainings and the report are kept."""
        return self.output / self.name


class RecipesSettings(OverBase):
    """A comparison of recipes."""

    output: Path = Field(Path("runs/recipes"), description="The comparison is in <output>/<name>.")
    arms: dict[str, tuple[str, ...]] = Field(min_length=1, description="Settings of each arm, laid over those.")
    reference: str = Field(description="The arm that is compared with the others.")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="Seeds of the trainings; all share one split.")
    reading: Literal["all", "image", "note"] = Field("all", description="What the measured studies are read from.")
    measured_on: Literal["validation", "test"] = Field(
        "validation", description="validation while recipes are chosen, test at the end."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence of the intervals.")
    bootstrap: int = Field(1000, ge=20, description="Resamples of the patients.")
    workers: int = Field(2, ge=1, description="Trainings at a time, with one thread each, so that figures are stable.")

    @model_validator(mode="after")
    def _known_reference(self) -> Self:
        if self.reference not in self.arms:
            raise ValueError(f"reference: there is no arm '{self.reference}'; there are {', '.join(self.arms)}")
        return self


class Dimension(Strict):
    """The values of one setting: a range, or a list."""

    low: int | float | None = Field(None, description="First value of the range.")
    high: int | float | None = Field(None, description="Last value of the range.")
    step: int | float | None = Field(None, gt=0, description="Distance between the values of the range.")
    log: bool = Field(False, description="Draw from the logarithm of the range, as for learning rates.")
    choices: tuple[Value, ...] | None = Field(None, min_length=2, description="The values, in place of a range.")

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            if self.model_fields_set != {"choices"}:
                raise ValueError("choices stand alone; remove low, high, step and log")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: needs a low above 0, and no step")
        if self.step is not None and not _divides(self.step, self.high - self.low):
            raise ValueError(f"step {self.step} does not lead from low {self.low} to high {self.high}")
        return self

    @property
    def ends(self) -> tuple[Value, Value]:
        """The first and the last value."""
        return (self.low, self.high) if self.choices is None else (self.choices[0], self.choices[-1])

    def contains(self, value: object) -> bool:
        """Whether the search can propose `value`."""
        if self.choices is not None:
            return value in self.choices
        if not isinstance(value, int | float) or self.low is None or self.high is None:
            return False
        return self.low <= value <= self.high and (self.step is None or _divides(self.step, value - self.low))


def _divides(step: float, length: float) -> bool:
    return abs(length / step - round(length / step)) < 1e-9


class TuneSettings(OverBase):
    """A search for hyper-parameters; every trial is measured on the validation patients."""

    output: Path = Field(Path("runs/tune"), description="The search is in <output>/<name>.")
    space: dict[str, Dimension] = Field(min_length=1, description="The values of each setting, by its dotted name.")
    trials: int = Field(40, ge=1, description="Number of trials, with those that failed or were ended early.")
    seed: int = Field(0, ge=0, description="Seed of the sampler; that of the training is the base's.")
    objective: Literal["auroc", "ndcg", "loss"] = Field(
        "auroc", description="Figure of the validation patients: macro AUROC, nDCG@10 among training studies, or loss."
    )
    startup: int = Field(10, ge=1, description="Trials drawn at random, before the sampler learns or one ends early.")
    pruning: Literal["median", "none"] = Field(
        "median",
        description="median: end a trial early, after a third of the epochs, if its best epoch so far is below the "
        "median of the earlier trials at the same epoch (by validation AUROC, or by loss if that is the objective).",
    )

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        for key in self.space:
            if key.split(".")[0] not in SEARCHED:
                allowed = ", ".join(SEARCHED)
                raise ValueError(f"space: '{key}' changes what is measured, not how it is learned; use {allowed}")
        if self.pruning == "median" and "training.finetune.epochs" in self.space:
            raise ValueError(
                "pruning: epochs of schedules of different lengths do not compare; "
                "set pruning: none, or take training.finetune.epochs out of space"
            )
        return self
