"""Findings and finding sets: names in the order of every column and output, their codes and synonyms.

The sets of the public data sets, of the phantom and of Open-i's MeSH headings stand in `vocabularies.yaml`.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.files import packaged


@dataclass(frozen=True)
class Finding:
    name: str  # the vocabulary's own spelling, used in columns and outputs ("Pleural_Thickening")
    title: str  # the words a reader sees ("Pleural thickening")
    snomed: str = ""  # SNOMED CT concept identifier, "" where no single concept fits
    radlex: str = ""  # RadLex identifier, likewise
    synonyms: tuple[str, ...] = ()  # further words for it in reports and other data sets, lower case


@dataclass(frozen=True)
class FindingSet(Sequence[str]):
    """An ordered vocabulary; behaves as the sequence of its finding names."""

    key: str  # as configurations and bundles name it: "nih14"
    findings: tuple[Finding, ...]  # in the order of every column and output
    negatives: tuple[str, ...] = ()  # labels of the data set that mean "none of these": "No Finding"

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[str]:
        return (finding.name for finding in self.findings)

    def __getitem__(self, position):  # type: ignore[no-untyped-def]  # int or slice, as Sequence
        return self.names[position]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(finding.name for finding in self.findings)

    def title(self, name: str) -> str:
        """The words a reader sees for `name`."""
        return self.findings[self.names.index(name)].title

    def in_text(self, name: str) -> str:
        """The words for `name` within a sentence: a title that begins with an abbreviation or a name keeps its letters.

        >>> FINDING_SETS["nih14"].in_text("Effusion"), FINDING_SETS["padchest"].in_text("COPD signs")
        ('pleural effusion', 'COPD signs')
        """
        title = self.title(name)
        return title if any(map(str.isupper, title[1:])) else title[:1].lower() + title[1:]

    def without(self, names: Container[str]) -> Self:
        """This set without the findings in `names`, in the same order."""
        return replace(self, findings=tuple(finding for finding in self.findings if finding.name not in names))

    def encode(self, present: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 (F,): 1 for the findings in `present`, else 0; a negative adds nothing.

        Raises DataError: a name is neither a finding nor a negative of this set.
        """
        for name in present:
            if name not in self.names and name not in self.negatives:
                raise DataError(f"'{name}' is no finding of {self.key}; it has {', '.join(self.names)}")
        return np.array([name in present for name in self.names], dtype=np.float32)

    def decode(self, row: npt.ArrayLike, threshold: float = 0.5) -> tuple[str, ...]:
        """Names of the findings whose value in `row` (F,) reaches `threshold`; unknown (NaN) is left out."""
        values = np.asarray(row, dtype=np.float64)
        return tuple(name for name, value in zip(self.names, values, strict=True) if value >= threshold)


Uncertain = Literal["unknown", "present", "absent"]


def resolve_uncertain(values: npt.ArrayLike, uncertain: Uncertain = "unknown") -> npt.NDArray[np.float32]:
    """Turn the −1 with which CheXpert's labeller marks uncertainty into NaN, 1 or 0; float32 of the same shape.

    Unknown (NaN) leaves a label out of the loss and of every figure.
    """
    array = np.array(values, dtype=np.float32)
    array[array == -1] = {"unknown": np.nan, "present": 1.0, "absent": 0.0}[uncertain]
    return array


_TABLES: Mapping[str, Any] = packaged("medsd.findings", "vocabularies.yaml")
_FINDINGS: Mapping[str, Mapping[str, Mapping[str, Any] | None]] = {
    key: entries["findings"] for key, entries in _TABLES["sets"].items()
}

WIDER: Mapping[str, str] = _TABLES["wider"]
"""Concept → the wider concept that it is a kind of."""

LITERAL = frozenset(key for key, entries in _TABLES["sets"].items() if entries.get("literal"))
"""Sets whose wider labels are words of the report, not the sum of the narrower ones."""

MEANINGS: Mapping[str, Mapping[str, str]] = {
    key: {name: entry["concept"] for name, entry in findings.items() if entry and "concept" in entry}
    for key, findings in _FINDINGS.items()
}
"""Set → finding → the concept that it stands for, where that is not its own name in lower case."""


def _finding(key: str, name: str, entry: Mapping[str, Any]) -> Finding:
    concept = _TABLES["concepts"].get(MEANINGS[key].get(name, name.lower()), {})
    told = {"title": name[:1].upper() + name[1:], **concept, **entry}
    return Finding(name, told["title"], told.get("snomed", ""), told.get("radlex", ""), tuple(told.get("synonyms", ())))


FINDING_SETS: Mapping[str, FindingSet] = {
    key: FindingSet(
        key,
        tuple(_finding(key, name, entry or {}) for name, entry in findings.items()),
        tuple(_TABLES["sets"][key].get("negatives", ())),
    )
    for key, findings in _FINDINGS.items()
}


def finding_set(key: str) -> FindingSet:
    """The vocabulary called `key`; raises DataError where there is none."""
    if key not in FINDING_SETS:
        raise DataError(f"there is no finding set '{key}'; medsd has {', '.join(sorted(FINDING_SETS))}")
    return FINDING_SETS[key]
