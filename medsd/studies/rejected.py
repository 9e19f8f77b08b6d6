"""Rows and cells that cannot be used: which, and why, in a table beside the manifest.

No message quotes a cell, and a path is written without the patient's identifier.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from medsd.errors import DataError
from medsd.files import replacing

COLUMNS = ("row", "path", "reason", "message")
_SHOWN, _OFTEN = 8, 3  # so many words at most, in so many rows each: a column of names has more, and rarer ones
LIMIT = 0.5  # a source with a larger share of bad rows is the wrong table, or the wrong settings for it

# Why a row of a table is left out; the gate has reasons of its own (`medsd.dicom.policy.REASONS`).
REASONS = {
    "unreadable_row": "the row has not as many cells as the header has columns",
    "missing_patient": "no patient; every row needs one, so that splits hold",
    "unreadable_label": "labels are 1, 0, -1 or empty",
    "unknown_finding": "lists a word that is no finding of the set; data.finding_names translates your words, "
    "data.separator stands between them",
    "unreadable_list": "not a list of labels such as ['nodule']",
    "unknown_split": "a split is train, validation or test",
    "path_outside_root": "the path leads out of data.root; move the image, or set data.root to a folder above",
    "missing_file": "there is no such image; check data.root and data.images",
    "duplicate_row": "the same study and image stand in an earlier row; their labels are joined",
    "duplicate_image": "the same image stands in an earlier row of another study; their labels are joined",
    "near_duplicate": "the patient has an image that looks the same as one of another patient in another split",
    "divided_patient": "the patient's rows stand in more than one split; a figure measured there would be too good",
}


@dataclass
class Rejections:
    """The rows of a source that are left out: (row, path, reason, message), row 1 the first below the header."""

    entries: list[tuple[int, str, str, str]] = field(default_factory=list)
    # Likewise, of rows that stay although a cell of theirs cannot be read; they do not count.
    remarks: list[tuple[int, str, str, str]] = field(default_factory=list)
    splits: Counter[str] = field(default_factory=Counter)  # cells of a column of splits that are none

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, row: int, path: object, reason: str, message: str = "", *, patient: object = None) -> None:
        """Leave a row out (0 where the source has none), for a reason of `REASONS` or of the gate.

        The message is by default that of `REASONS`; the identifier of `patient` is taken out of what is written.
        """
        hidden = without_patient(patient, path)
        self.entries.append((row, hidden, reason, without_patient(patient, message or REASONS[reason])))

    def remark(self, row: int, reason: str, message: str) -> None:
        """List a row that stays, since only a cell of it cannot be read."""
        self.remarks.append((row, "", reason, f"{message}: {REASONS[reason]}; it counts as unknown, the row stays"))

    def extend(self, rows: Iterable[int], paths: Iterable[object], patients: Iterable[object], reason: str) -> None:
        for row, path, patient in zip(rows, paths, patients, strict=True):
            self.add(int(row), path, reason, patient=patient)

    def check(self, total: int, where: Path) -> None:
        """Refuse a source of which more than half of `total` rows are left out, by `TooManyRejected`."""
        if len(self) > LIMIT * total:
            reason, count = self._reasons.most_common(1)[0]
            first = next(entry for entry in self.entries if entry[2] == reason)
            place = f"row {first[0]}: " if first[0] else ""
            seen = f"; the column has {words}" if reason == "unknown_split" and (words := self.unknown_splits) else ""
            raise TooManyRejected(
                f"{where}: {len(self)} of {total} rows cannot be used, {count} of them because of {reason}; "
                f"{place}{first[3]}{seen}",
                self,
            )

    def write(self, path: Path) -> None:
        """Write the table (CSV) atomically, in the order of the source, remarks included."""
        table = pd.DataFrame(self.entries + self.remarks, columns=list(COLUMNS))
        table["row"] = table["row"].astype("Int64").mask(table["row"] == 0)
        with replacing(path) as draft:
            table.sort_values("row", kind="stable").to_csv(draft, index=False)

    @property
    def unknown_splits(self) -> str:
        """The words that are no split, where they are few and can be nobody's name; "" where there are none."""
        if not self.splits:
            return ""
        words = [f"'{word}' ({count})" for word, count in self.splits.most_common(_SHOWN) if count >= _OFTEN]
        return ", ".join(words) if len(words) == len(self.splits) else f"{len(self.splits)} other words"

    def counts(self) -> str:
        """How often each reason was given, the commonest first, as words."""
        return ", ".join(f"{reason} {count}" for reason, count in self._reasons.most_common())

    @property
    def _reasons(self) -> Counter[str]:
        return Counter(reason for _, _, reason, _ in self.entries)


class TooManyRejected(DataError):
    """More rows are bad than a table may have; `rejections` holds them."""

    def __init__(self, message: str, rejections: Rejections) -> None:
        super().__init__(message)
        self.rejections = rejections


def without_patient(patient: object, text: object) -> str:
    """`text` without a patient's identifier, where that stands by itself, however many zeros it begins with."""
    if not isinstance(text, str):
        return ""
    if not isinstance(patient, str) or not patient.strip():
        return text
    return re.sub(rf"(?<![^\W_])0*{re.escape(patient.strip())}(?![^\W_])", "…", text)
