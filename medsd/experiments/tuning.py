"""What `medsd tune` searches: a base configuration, the settings that vary, and the figure that is to be best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from medsd.strict import Strict

Value = bool | int | float | str | None
# What belongs to how it is learned. All else changes what is measured, and figures would no longer compare.
SEARCHED = ("pixels", "network", "loss", "training")


def _number(value: object) -> object:
    """A number like 1e-5, which YAML takes for a text because it has no point."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Number = Annotated[int | float, BeforeValidator(_number)]


class Dimension(Strict):
    """The values of one setting: a range, or a list."""

    low: Number | None = None
    high: Number | None = None
    step: Annotated[Number | None, Field(gt=0)] = None
    log: bool = Field(False, description="equal ratios are equally likely, for learning rates and the like")
    choices: tuple[Value, ...] | None = Field(None, min_length=2)

    @model_validator(mode="after")
    def _range_or_choices(self) -> Dimension:
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
        """Whether the search can come upon `value`."""
        if self.choices is not None:
            return value in self.choices
        if not isinstance(value, int | float) or self.low is None or self.high is None:
            return False
        return self.low <= value <= self.high and (self.step is None or _divides(self.step, value - self.low))


def _divides(step: float, length: float) -> bool:
    return abs(length / step - round(length / step)) < 1e-9


class TuneSettings(Strict):
    """A search for hyper-parameters; every trial is measured on the validation patients."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: Path = Field(description="the configuration under all trials, below the folder of this file")
    output: Path = Field(Path("runs/tune"), description="the search is <output>/<name>")
    common: tuple[str, ...] = Field((), description="settings laid over the base for all trials, a.b=c each")
    space: dict[str, Dimension] = Field(min_length=1, description="the values of each setting, by its dotted name")
    trials: int = Field(40, ge=1, description="in all, those that failed or were ended early among them")
    seed: int = Field(0, ge=0, description="of the sampler; that of the training is the base's")
    objective: Literal["auroc", "ndcg", "loss"] = Field(
        "auroc", description="of the validation patients: macro AUROC, nDCG@10 among the training studies, or the loss"
    )
    startup: int = Field(
        10, ge=1, description="trials drawn at random before the sampler learns from them, or one is ended early"
    )
    pruning: Literal["median", "none"] = Field(
        "median",
        description="median: end a trial early when its best epoch so far, by validation AUROC (or loss, where that is "
        "the objective), is below the median of the earlier trials at the same epoch, from a third of the epochs on",
    )

    @model_validator(mode="after")
    def _comparable(self) -> TuneSettings:
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

    @property
    def folder(self) -> Path:
        return self.output / self.name
