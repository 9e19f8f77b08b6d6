"""Cells of tables: the one reader of labels for all sources, lists of findings, and images that are labelled twice.

A cell that is no label counts as unknown and is reported by column, row and shape ("Aaaa 99"), never by its value,
which may name somebody.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from medsd.errors import DataError
from medsd.findings import FindingSet
from medsd.studies.rejected import LIMIT, REASONS, Rejections
from medsd.text import normalise_text

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

# What programs and people write into a cell without a value.
EMPTY = frozenset({
    "", "nan", "na", "n/a", "n.a.", "#n/a", "<na>", "nat", "none", "null", "nil", "missing", "unknown",
    "-", "--", ".", "?",
})  # fmt: skip
_WORDS: dict[str, float] = {
    **dict.fromkeys(("yes", "y", "true", "t", "pos", "positive", "present", "+"), 1.0),
    **dict.fromkeys(("no", "n", "false", "f", "neg", "negative", "absent"), 0.0),
    **dict.fromkeys(("uncertain", "u", "unsure", "equivocal", "possible", "maybe"), -1.0),
}
_SHOWN = 5  # rows that a message names


def label_value(text: str) -> float | None:
    """What a cell says: 1, 0, -1 (uncertain), NaN (nothing); None where it is no label.

    >>> [label_value(text) for text in ("1.0", "No", "-1", "maybe so")]
    [1.0, 0.0, -1.0, None]
    """
    word = normalise_text(text).strip(" \t\n'\"").casefold()
    if word in EMPTY:
        return np.nan
    if word in _WORDS:
        return _WORDS[word]
    try:
        value = float(word.replace(",", "."))
    except ValueError:
        return None
    return value if value in (1.0, 0.0, -1.0) else None


@dataclass
class LabelCells:
    """Reads label columns, portion by portion, and remembers which cells are no labels."""

    filled: Counter[str] = field(default_factory=Counter)  # cells that are not empty, by column
    unread: defaultdict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))  # (row, shape)
    reasons: dict[str, str] = field(default_factory=dict)  # by column; "unreadable_label" where none is given

    def read(self, cells: pd.Series, rows: npt.NDArray[np.int64]) -> Floats:
        """float32 (N,) 1, 0, -1 or NaN from a column of text; `rows` (N,) are the cells' places in the table."""
        column = str(cells.name)
        known = {text: label_value(text) for text in cells.unique()}  # few differ
        wrong = cells.map(lambda text: known[text] is None).to_numpy(dtype=bool)
        values = cells.map(lambda text: np.nan if known[text] is None else known[text]).to_numpy(dtype=np.float32)
        self.filled[column] += int((wrong | ~np.isnan(values)).sum())
        self.unread[column] += [(int(rows[at]), shape(cells.iloc[at])) for at in np.flatnonzero(wrong)]
        return values

    def read_lists(
        self,
        cells: pd.Series,
        rows: npt.NDArray[np.int64],
        findings: FindingSet,
        separator: str = "|",
        *,
        names: Mapping[str, str] | None = None,
        unlisted_is_absent: bool = True,
    ) -> Floats:
        """float32 (N, F) from a column that lists what is present ("Effusion|Edema"); an empty cell says nothing.

        Where a word is no finding, what the cell does not name is unknown. `names` translates words to findings.
        """
        known = {text: _listed_labels(text.split(separator), findings, names or {}) for text in cells.unique()}
        labels = np.full((len(cells), len(findings)), np.nan, dtype=np.float32)
        for at, (row, text) in enumerate(zip(rows, cells, strict=True)):
            labels[at], whole, normal = known[text]
            if not (whole and (unlisted_is_absent or normal)):
                labels[at][labels[at] == 0] = np.nan
            if text.strip().casefold() not in EMPTY:
                self.count(str(cells.name), int(row), text, read=whole, reason="unknown_finding")
        return labels

    def count(self, column: str, row: int, text: str, *, read: bool, reason: str) -> None:
        """Count one filled cell that something else reads, and whether that succeeded."""
        self.filled[column] += 1
        if not read:
            self.unread[column].append((row, shape(text)))
            self.reasons[column] = reason

    def tell(self, path: Path, rejected: Rejections | None = None) -> None:
        """Log which cells were no labels, and list each in `rejected`, whose rows stay.

        Where more than half of a column's cells are none, it is another column: DataError.
        """
        for column, cells in self.unread.items():
            if not cells:
                continue
            first, filled, reason = cells[0][0], self.filled[column], self.reasons.get(column, "unreadable_label")
            if len(cells) > LIMIT * filled:
                raise DataError(
                    f"{path}: row {first}, column '{column}': {REASONS[reason]}; {len(cells)} of {filled} cells cannot "
                    "be read: is it the right column?"
                )
            log.warning(
                "%s: column '%s': %d of %d cells cannot be read and count as unknown: row %s; %s",
                path, column, len(cells), filled, _listed([f"{row} (like '{like}')" for row, like in cells]),
                REASONS[reason],
            )  # fmt: skip
            if rejected is not None:
                for row, like in cells:
                    rejected.remark(row, reason, f"column '{column}', like '{like}'")


def _listed_labels(words: Sequence[str], findings: FindingSet, names: Mapping[str, str]) -> tuple[Floats, bool, bool]:
    """(F,) labels, NaN without a finding; whether every word is one; whether all of them are negatives."""
    stripped = [word.strip() for word in words]
    given = [names.get(word, word) for word in stripped if word.casefold() not in EMPTY]
    known = [word for word in given if word in findings.names or word in findings.negatives]
    labels = findings.encode(known) if known else np.full(len(findings), np.nan, dtype=np.float32)
    return labels, len(known) == len(given), all(word in findings.negatives for word in known)


def shape(text: str) -> str:
    """The kind of a value without the value: letters as A and a, digits as 9.

    >>> shape("Doe^Jane 12")
    'Aaa^Aaaa 99'
    """
    letters = re.sub(r"[^\W\d_]", lambda m: "A" if m[0].isupper() else "a", re.sub(r"\d", "9", text.strip()))
    return letters if len(letters) <= 16 else f"{letters[:15]}…"


def listed_words(text: str) -> list[str] | None:
    """The words of a list that Python or NumPy wrote, read as data: "['a', 'b']", "['a' 'b']", "['a', nan]".

    An empty cell is an empty list; empty and missing entries are left out. None where the text is no list of words.

    >>> listed_words("['normal' 'pleural effusion', nan]")
    ['normal', 'pleural effusion']
    """
    text = normalise_text(text).strip()
    if text.casefold() in EMPTY:
        return []
    inner = re.fullmatch(r"[\[(]([^\[\]]*)[\])]", text)
    if inner is None:
        return None
    words, rest = [], inner[1]
    while rest := rest.lstrip(" \t\n,"):
        found = _ENTRY.match(rest)
        if found is None:
            return None
        word = found["quoted"] or found["other"] or found["bare"] or ""
        if found["bare"] and word.casefold() not in EMPTY:
            return None
        words.append(" ".join(re.sub(r"\\(.)", r"\1", word).split()))
        rest = rest[found.end() :]
    return [word for word in words if word.casefold() not in EMPTY]


_ENTRY = re.compile(r"'(?P<quoted>(?:[^'\\]|\\.)*)'|\"(?P<other>(?:[^\"\\]|\\.)*)\"|(?P<bare>[\w/.<>#-]+)", re.DOTALL)


def agreed(labels: pd.DataFrame, rows: npt.NDArray[np.int64], path: Path) -> pd.DataFrame:
    """One row of labels for each value of the index, in their order; how many contradict themselves is logged.

    What one row knows and another does not is taken; where one says present and another absent, the finding is unknown.

    `labels` (N, F) are 1, 0, -1 or NaN, by image or study; `rows` (N,) their places in the table at `path`.
    """
    groups = labels.groupby(level=0, sort=False)
    low, high = groups.min(), groups.max()
    against = (low < high).any(axis=1)
    if against.any():
        places = pd.Series(rows, index=labels.index)[labels.index.isin(against.index[against])]
        pairs = [" and ".join(map(str, found)) for _, found in places.groupby(level=0, sort=False)]
        log.warning(
            "%s: %d images are labelled twice with contradicting labels, which count as unknown: rows %s",
            path, int(against.sum()), _listed(pairs),
        )  # fmt: skip
    return low.where(low == high)


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
