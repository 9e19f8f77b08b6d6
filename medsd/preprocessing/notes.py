"""From a clinical note to the token ids that a fused model takes, with the bundle's own tokenizer.json.

Where the bundle names phrases to hide, they are hidden first: the bundle carries them, so that notes are masked here as
they were in training, whatever the phrase lists say later. The length is fixed: longer notes are cut, shorter ones
padded; where the bundle names a window, a note is laid out in overlapping windows. The text of a note is never logged.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsd.bundle.layout import NoteInput
from medsd.errors import BundleError, DataError
from medsd.studies.notes.lexicon import compile_phrases
from medsd.studies.notes.sections import PLACEHOLDER
from medsd.text import normalise_text

MAX_NOTE = 20_000  # characters that a server takes; a long discharge letter has a quarter of it
# No note of 512 tokens is longer; cutting first keeps a pasted megabyte from costing seconds.
_CHARACTERS_A_TOKEN = 48


@dataclass(frozen=True)
class NoteBatch:
    """B notes as the graph takes them; where the bundle has windows, L / window of them side by side, each padded.

    The mask of a missing note keeps its first position, so that attention over nothing does not become NaN.
    """

    ids: npt.NDArray[np.int64]  # (B, L) token ids, padded
    mask: npt.NDArray[np.int64]  # (B, L), 1 where a token stands
    given: npt.NDArray[np.float32]  # (B,), 1 where there is a note


def clean_note(note: str | None, max_characters: int | None = None) -> str:
    """The note in one spelling (`medsd.text`), with single spaces for runs of white space and control characters.

    Empty where there is none. Training and serving both tokenise this text and no other. It is cut to `max_characters`
    before anything that takes time.
    """
    if not note:
        return ""
    text = note.lstrip()[:max_characters]
    # Lone surrogates, which Python strings may hold and UTF-8 may not, become question marks.
    text = normalise_text(text.encode("utf-8", "replace").decode("utf-8"))
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in text).split())


def note_mask(phrases: Sequence[str]) -> Callable[[str], str]:
    """What hides the words that name a finding; all others stay: "no effusion" becomes "no ___".

    The phrases are in the language of `medsd.studies.notes.lexicon`; raises DataError where one cannot be read.
    """
    return partial(compile_phrases(phrases, "mask").sub, PLACEHOLDER)


class NoteTokenizer:
    """Turns notes into `NoteBatch` with the bundle's tokenizer.json; safe to share between threads.

    Raises BundleError where the file is missing or is no tokenizer, or a phrase to hide cannot be read.
    """

    def __init__(self, path: Path, spec: NoteInput) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises plain Exceptions
            raise BundleError(f"{path}: cannot be read as a tokenizer ({error}); copy the bundle again") from None
        try:
            self._mask = note_mask(spec.mask)
        except DataError as error:
            raise BundleError(f"{path.parent}: bundle.json, note: {error}; copy the bundle again") from None
        self.spec = spec
        self._tokenizer.no_padding()
        self._window = spec.window or spec.max_tokens
        text = max(1, self._window - self._tokenizer.num_special_tokens_to_add(False))
        overlap = 0 if spec.window is None else text - (spec.stride or max(1, text // 2))
        self._tokenizer.enable_truncation(self._window, stride=max(0, overlap))

    def __call__(self, notes: Sequence[str | None]) -> NoteBatch:
        """Tokenise B notes; None and blank ones count as missing."""
        length = self.spec.max_tokens
        ids = np.full((len(notes), length), self.spec.pad_id, np.int64)
        mask = np.zeros((len(notes), length), np.int64)
        given = np.zeros(len(notes), np.float32)
        for row, note in enumerate(notes):
            text = self._mask(clean_note(note, length * _CHARACTERS_A_TOKEN))
            for start, tokens in zip(range(0, length, self._window), self._pieces(text), strict=False):
                ids[row, start : start + len(tokens)] = tokens
                mask[row, start : start + len(tokens)] = 1
            mask[row, 0] = 1
            given[row] = float(bool(text))
        return NoteBatch(ids, mask, given)

    def _pieces(self, text: str) -> list[list[int]]:
        """The token ids of each window, of one piece where there are no windows; none of an empty text."""
        if not text:
            return []
        first = self._tokenizer.encode(text)
        return [piece.ids for piece in (first, *first.overflowing)]
