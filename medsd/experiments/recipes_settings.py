"""The settings of a comparison of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from medsd.strict import Strict


class RecipesSettings(Strict):
    """A comparison of recipes.

    Attributes:
        name: of the comparison; its folder is <output>/<name>.
        base: the configuration under all arms, below the folder of this file.
        common: settings laid over the base for all arms, ``a.b=c`` each.
        arms: settings of each arm, laid over those.
        reference: the arm that the others are compared with.
        seeds: of the training; the split is the base's, the same for all.
        reading: what the studies are read from: all that there is, or, of fused models, the image or the note alone.
        measured_on: validation while recipes are looked for, test once they are found.
        workers: trainings at a time, with one thread each, so that figures do not depend on the machine.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: Path
    output: Path = Path("runs/recipes")
    common: tuple[str, ...] = ()
    arms: dict[str, tuple[str, ...]] = Field(min_length=1)
    reference: str
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    reading: Literal["all", "image", "note"] = "all"
    measured_on: Literal["validation", "test"] = "validation"
    confidence: float = Field(0.95, gt=0.5, lt=1)
    bootstrap: int = Field(1000, ge=20)
    workers: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _known_reference(self) -> RecipesSettings:
        if self.reference not in self.arms:
            raise ValueError(f"reference: there is no arm '{self.reference}'; there are {', '.join(self.arms)}")
        return self

    @property
    def folder(self) -> Path:
        return self.output / self.name
