"""What a measurement leaves behind: strict, frozen records, each kind in a JSON file of its own."""

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from medsd.errors import DataError
from medsd.files import write_json
from medsd.metrics.intervals import IntervalOptions
from medsd.settings import EvaluationSettings
from medsd.strict import Described


def options_of(settings: EvaluationSettings, seed: int) -> IntervalOptions:
    """How the settings want intervals to be made."""
    return IntervalOptions(settings.bootstrap, settings.confidence, settings.minimum_positives, seed)


class Saved(Described):
    """A report that is a file."""

    WAY_OUT: ClassVar[str] = "run the evaluation again"  # what to do where the file cannot be read
    DECIMALS: ClassVar[int] = 6  # of floats in the file; further digits depend on the number of threads

    def write(self, path: Path) -> None:
        """Write the report as JSON, atomically."""

        def rounded(number: str) -> float:
            return round(float(number), self.DECIMALS) + 0.0  # no −0.0

        write_json(path, json.loads(self.model_dump_json(), parse_float=rounded))  # NaN is null

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote; a missing file, or no report of this kind and version, is a DataError."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({type(error).__name__}); {cls.WAY_OUT}") from None
        except ValidationError as error:
            key = ".".join(str(part) for part in error.errors()[0]["loc"])
            what = f"'{key}' is not as this medsd writes it" if key else "not valid JSON"
            raise DataError(f"{path}: {what}; {cls.WAY_OUT}") from None
        except ValueError:
            raise DataError(f"{path}: not valid UTF-8; {cls.WAY_OUT}") from None


class Measured(Saved):
    """A report with intervals of `confidence`, over `resamples` of the patients."""

    confidence: float
    resamples: int

    @classmethod
    def of(cls, options: IntervalOptions, **fields: Any) -> Self:
        """The report with `fields`, and with those of the options that it records."""
        recorded = {name: value for name, value in vars(options).items() if name in cls.model_fields}
        return cls(**recorded, **fields)
