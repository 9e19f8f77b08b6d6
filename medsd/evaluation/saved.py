"""What a measurement leaves behind: strict, frozen records, each kind in a JSON file of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from medsd.errors import DataError
from medsd.files import write_json


class Part(BaseModel):
    """A part of a report."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Saved(Part):
    """A report that is a file.

    Attributes:
        WAY_OUT: what to do where the file cannot be read.
    """

    WAY_OUT: ClassVar[str] = "run the evaluation again"

    def write(self, path: Path) -> None:
        """Write the report as JSON, atomically."""
        write_json(path, json.loads(self.model_dump_json()))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote; the result is equal to the report that was written.

        Raises:
            DataError: the file is missing, or no report of this kind and version.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({type(error).__name__}); {cls.WAY_OUT}") from None
        except ValidationError as error:
            key = ".".join(str(part) for part in error.errors()[0]["loc"])
            if not key:
                raise DataError(f"{path}: not valid JSON; {cls.WAY_OUT}") from None
            raise DataError(f"{path}: '{key}' is not as this medsd writes it; {cls.WAY_OUT}") from None
        except ValueError:
            raise DataError(f"{path}: not valid UTF-8; {cls.WAY_OUT}") from None
