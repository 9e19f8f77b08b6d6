"""What the workers of a cluster do: decode a block of inputs, read it with the model, keep its rows.

`DecodeBlock` and `ScoreBlock` travel to a machine, `begin` there, and are called with one row of Ray Data a block.
Decoded studies travel between them as JSON and one array of pixels, not as pickles.
"""

import json
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from medsd.bundle.layout import Bundle
from medsd.errors import DataError, MedsdError
from medsd.inference.predict import Predictor, Study
from medsd.preprocessing.decode import Decoder
from medsd.preprocessing.image import DecodedImage
from medsd.scoring import table
from medsd.scoring.batch import batches, read_padded, study_of
from medsd.scoring.note_files import Notes
from medsd.scoring.remote import Store
from medsd.scoring.segments import Block, write_segment

KEPT = "the finished rows are kept: see Ray's logs, then go on with --resume"


@dataclass
class DecodeBlock:
    """The images of a block, decoded in a helper process."""

    decoder: Decoder | None  # None where notes are read alone
    side_notes: bool  # take notes from the texts beside images, too

    def begin(self) -> Self:
        """Start what the work needs, on the machine that does it."""
        _hide_main()
        self._helper = self.decoder.helper() if self.decoder else None
        return self

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        block = Block.from_json(row["block"])
        notes = Notes(block.notes, beside=self.side_notes)
        studies = [study_of(name, self._helper(Path(name)) if self._helper else None, notes) for name in block.names]
        return {"block": row["block"], **pack(studies)}


@dataclass
class ScoreBlock:
    """The decoded images of a block through the model, and its rows into their file."""

    files: Any  # of the bundle, Ray's reference to ``{name: bytes}``
    store: Store
    size: int  # of a batch
    width: int  # of an embedding that is kept, else 0
    reading: dict[str, Any]  # see `medsd.scoring.request.ScoringJob.reading`

    def begin(self) -> Self:
        """Load the model, from a copy of the bundle that is not needed afterwards."""
        import ray

        with tempfile.TemporaryDirectory(prefix="medsd-") as place:
            for name, content in ray.get(self.files).items():
                path = Path(place) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            bundle = Bundle.open(place, verify=False)
            self._predictor = Predictor(bundle, threads=1, **self.reading)  # as the local engine on a CPU
        return self

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        block = Block.from_json(row["block"])
        studies = zip(block.names, unpack(row), strict=True)
        read = [read_padded(self._predictor, batch, self.size) for batch in batches(studies, self.size)]
        predictions = [prediction for some in read for prediction in some]
        rows = [table.row(name, prediction) for name, prediction in zip(block.names, predictions, strict=True)]
        try:
            write_segment(self.store, block.key, rows, [prediction.embedding for prediction in predictions], self.width)
        except Exception as error:  # each store has its own
            detail = getattr(error, "strerror", None) or type(error).__name__
            raise DataError(
                f"{self.store.folder}: a worker cannot write there ({detail}); the finished rows are safe: give a "
                "folder that every machine can write, or make room, then go on with --resume"
            ) from None
        outcomes = [(prediction.status, prediction.reason) for prediction in predictions]
        return {"outcomes": json.dumps(outcomes), "provider": self._predictor.session.provider}


class Actor:
    """An actor: begins its work when it starts, and does it row by row.

    What fails is handed on as a row: of an exception, Ray Data keeps a traceback as text and no more.
    """

    def __init__(self, work: DecodeBlock | ScoreBlock) -> None:
        self._failed: dict[str, Any] = {}
        try:
            self._work = work.begin()
        except Exception as error:
            self._failed = {"failed": _complaint(error)}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._failed or "failed" in row:
            return self._failed or row
        try:
            return self._work(row)
        except Exception as error:
            return {"failed": _complaint(error)}


def _complaint(error: Exception) -> str:
    """What a worker raised, in its own words where they are ours; others may quote a header, so their place is told."""
    if isinstance(error, MedsdError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"a worker failed ({type(error).__name__} in line {place.lineno} of {Path(place.filename).name}); {KEPT}"


def pack(studies: Sequence[Study]) -> dict[str, Any]:
    """Decoded studies as columns of a row of Ray Data; the pixels (n, S, S) of those that have any are one array."""
    said = [(study.note, None if study.image is None else _words(study.image)) for study in studies]
    pixels = [study.image.pixels for study in studies if study.image is not None and study.image.pixels is not None]
    side = pixels[0].shape[0] if pixels else 0
    return {"studies": json.dumps(said), "side": side, "pixels": np.stack(pixels).tobytes() if pixels else b""}


def unpack(row: dict[str, Any]) -> Iterator[Study]:
    """The studies that `pack` packed."""
    side = row["side"]
    pixels = iter(np.frombuffer(row["pixels"], np.uint8).reshape(-1, side, side) if side else ())
    for note, words in json.loads(row["studies"]):
        if words is None:
            yield Study(None, note)
            continue
        there = words.pop("there")
        yield Study(DecodedImage(**words, pixels=next(pixels) if there else None), note)


def _words(image: DecodedImage) -> dict[str, Any]:
    names = ("status", "reason", "message", "name", "study_key", "patient_key", "instance_key", "view")
    return {name: getattr(image, name) for name in names} | {"there": image.pixels is not None}


def _hide_main() -> None:
    """Helper processes would import Ray's worker script, and Ray with it, as their main module."""
    main = sys.modules["__main__"]
    main.__spec__ = None
    main.__dict__.pop("__file__", None)
