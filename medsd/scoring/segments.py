"""Segments: the rows of some inputs, and their embeddings, as files that appear as a whole; and how inputs are cut."""

import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from medsd.scoring.embeddings import Vectors
from medsd.scoring.remote import Store
from medsd.scoring.table import Row, json_line, printable

MOST = 256  # inputs of a block: what a killed worker reads again, and what travels decoded at a time
_AT_LEAST = 64  # blocks that a batch is cut into, as far as they hold a whole batch of the model


@dataclass(frozen=True)
class Block:
    """Inputs that become rows together, and travel together."""

    names: list[str]
    notes: dict[str, str] = field(default_factory=dict)  # those that a table gives, by name

    @property
    def key(self) -> str:
        """As the segment of these inputs is called."""
        return key_of([printable(name) for name in self.names])

    def to_json(self) -> str:
        """As ASCII: the name of a file may be no UTF-8."""
        return json.dumps([self.names, self.notes])

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(*json.loads(text))


def key_of(paths: Sequence[str]) -> str:
    """A name that changes with any of the paths and with their order."""
    return hashlib.sha256(json.dumps(paths).encode("ascii")).hexdigest()[:24]


def block_size(inputs: int, batch_size: int) -> int:
    """How many inputs make a block: by the inputs alone, so that another cluster finds the same blocks.

    >>> block_size(2_000_000, 8), block_size(1000, 8), block_size(5, 8)
    (256, 16, 8)
    """
    wanted = batch_size * math.ceil(inputs / (_AT_LEAST * batch_size))
    return max(batch_size, min(MOST, wanted))


def write_segment(store: Store, key: str, rows: Sequence[Row], vectors: Sequence[Vectors | None], width: int) -> None:
    """Keep rows, and with `width` > 0 their embeddings (width,), NaN where there is none; raises OSError."""
    if width:  # before the rows, whose file says that the segment is finished
        empty = np.full(width, np.nan, "<f4")
        content = io.BytesIO()
        np.save(content, np.stack([empty if vector is None else vector for vector in vectors]).astype("<f4"))
        store.write(vectors_name(key), content.getvalue())
    store.write(rows_name(key), "".join(map(json_line, rows)).encode("utf-8"))


def rows_name(key: str) -> str:
    return f"block-{key}.jsonl"


def vectors_name(key: str) -> str:
    return f"block-{key}.npy"
