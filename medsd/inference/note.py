"""From a clinical note to the token ids that a fused model takes, with the bundle's own tokenizer.json.

The length is fixed: longer notes are cut, shorter ones padded. The text of a note is never logged.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsd.bundle.layout import NoteInput
from medsd.errors import BundleError

# No note of 512 tokens is longer; cutting first keeps a pasted megabyte from costing seconds.
_CHARACTERS_A_TOKEN = 48


@dataclass(frozen=True)
class NoteBatch:
    """B notes as the graph takes them.

    Attributes:
        ids: int64 (B, L) token ids, padded.
        mask: int64 (B, L), 1 where a token stands; a missing note keeps its first position, so that attention over
            nothing does not become NaN.
        given: float32 (B,), 1 where there is a note.
    """

    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    given: npt.NDArray[np.float32]


def clean_note(note: str | None, max_characters: int | None = None) -> str:
    """The note with control characters and runs of white space made single spaces; empty where there is none.

    Args:
        note: any text, or None.
        max_characters: cut to this many before anything that takes time.
    """
    if not note:
        return ""
    text = note.lstrip()[:max_characters]
    # Lone surrogates, which Python strings may hold and UTF-8 may not, become question marks.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in text).split())


class NoteTokenizer:
    """Turns notes into `NoteBatch`; safe to share between threads.

    Args:
        path: the bundle's tokenizer.json.
        spec: length and padding.

    Raises:
        BundleError: the file is missing or is no tokenizer.
    """

    def __init__(self, path: Path, spec: NoteInput) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises plain Exceptions
            raise BundleError(f"{path}: cannot be read as a tokenizer ({error}); copy the bundle again") from None
        self.spec = spec
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(spec.max_tokens)

    def __call__(self, notes: Sequence[str | None]) -> NoteBatch:
        """Tokenise B notes; None and blank ones count as missing."""
        length = self.spec.max_tokens
        ids = np.full((len(notes), length), self.spec.pad_id, np.int64)
        mask = np.zeros((len(notes), length), np.int64)
        given = np.zeros(len(notes), np.float32)
        for row, note in enumerate(notes):
            text = clean_note(note, length * _CHARACTERS_A_TOKEN)
            tokens = self._tokenizer.encode(text).ids if text else []
            ids[row, : len(tokens)] = tokens
            mask[row, : max(len(tokens), 1)] = 1
            given[row] = float(bool(text))
        return NoteBatch(ids, mask, given)
