"""Conformal calls: present, absent or undecided, with a coverage that the user names; `conformal.json` of a bundle.

The file holds, for each finding, the probabilities of validation patients who have it and of those who do not, from
which `ConformalScores.limits` makes the two limits of any coverage. `medsd.calibration.conformal_fit` chooses them.

The rule of calls is one: without a named coverage a call is that of the operating point; with one, it is conformal.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from medsd.calibration.types import Call
from medsd.errors import BundleError, DataError
from medsd.files import write_json
from medsd.strict import Described, read_json

CONFORMAL = "conformal.json"

RANKS = 256  # scores kept of each finding and class, at most

# Which of present and absent conform with what was seen. A call is made of a set of one; "neither" is unlike both.
ConformalSet = Literal["present", "absent", "both", "neither"]


@dataclass(frozen=True)
class Limits:
    """Present conforms from the probability `present` on, absent up to `absent`."""

    present: float
    absent: float

    def set_of(self, probability: float) -> ConformalSet:
        """The prediction set of a calibrated probability."""
        present, absent = probability >= self.present, probability <= self.absent
        if present and absent:
            return "both"
        return "present" if present else "absent" if absent else "neither"


class ConformalScores(Described):
    """Calibrated probabilities of validation patients, one image each, the most conforming first.

    Of more than `RANKS` patients those at evenly spaced ranks are kept, among them the least conforming; a coverage
    between two ranks takes the wider one.
    """

    present: tuple[float, ...] = Field(max_length=RANKS, description="of patients who have it, falling")
    absent: tuple[float, ...] = Field(max_length=RANKS, description="of patients who do not, rising")
    present_patients: int
    absent_patients: int

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        falling, rising = (-value for value in self.present), self.absent
        if any(b < a for a, b in pairwise(falling)) or any(b < a for a, b in pairwise(rising)):
            raise ValueError("present must fall and absent must rise")
        if min(self.present_patients, RANKS) != len(self.present) or min(self.absent_patients, RANKS) != len(
            self.absent
        ):
            raise ValueError("there must be as many scores as patients, up to the most that is kept")
        return self

    def limits(self, coverage: float) -> Limits | None:
        """The limits at which each class is in the set of at least a share `coverage` (0…1) of its patients.

        Label-conditional split conformal prediction (Vovk, Gammerman and Shafer 2005, section 4.5; Sadinle, Lei and
        Wasserman, JASA 2019): the limit of a class with n patients is its ⌈(n + 1) · coverage⌉-th score. None where a
        class has fewer than coverage / (1 − coverage) patients: no limit can promise that coverage, and every call is
        undecided.
        """
        ranks = [rank(n, coverage) for n in (self.present_patients, self.absent_patients)]
        if ranks[0] is None or ranks[1] is None:
            return None
        present, absent = self.present, self.absent
        return Limits(
            present[kept_rank(ranks[0], self.present_patients, len(present)) - 1],
            absent[kept_rank(ranks[1], self.absent_patients, len(absent)) - 1],
        )


def rank(patients: int, coverage: float) -> int | None:
    """⌈(n + 1) · coverage⌉, or None where that is more than n.

    >>> rank(9, 0.9), rank(8, 0.9)
    (9, None)
    """
    wanted = math.ceil((patients + 1) * coverage - 1e-9)
    return max(wanted, 1) if wanted <= patients else None


def kept_rank(wanted: int, patients: int, kept: int) -> int:
    """The place, from 1, of the first kept score whose rank is at least `wanted`."""
    return math.ceil(wanted * kept / patients - 1e-9)


def rank_of_kept(place: int, patients: int, kept: int) -> int:
    """The rank among all patients of the kept score at `place`, from 1."""
    return math.ceil(place * patients / kept - 1e-9)


def call_of(found: ConformalSet) -> Call:
    """The call that a prediction set makes: only a set of one decides."""
    if found == "present" or found == "absent":
        return found
    return "undecided"


def checked_coverage(coverage: float) -> float:
    """`coverage` itself, if it is a share between 0 and 1; else a DataError."""
    if not 0 < coverage < 1:
        raise DataError(f"coverage {coverage:g} is no share between 0 and 1; give for instance 0.9")
    return coverage


_FILE = TypeAdapter(dict[str, ConformalScores])


def write_conformal(path: Path, scores: Mapping[str, ConformalScores]) -> None:
    """Write the scores by finding, atomically."""
    write_json(path, {name: each.model_dump(mode="json") for name, each in scores.items()}, indent=None)


def read_conformal(path: Path) -> dict[str, ConformalScores]:
    """Read what `write_conformal` wrote; a missing or damaged file is a BundleError."""
    try:
        return _FILE.validate_python(read_json(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({type(error).__name__}); copy the bundle again") from None
    except (ValidationError, ValueError):
        raise BundleError(f"{path}: holds no conformal scores; copy the bundle again") from None
