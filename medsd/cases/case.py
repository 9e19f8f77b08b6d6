"""What the case index holds: one earlier study (`Case`), and how it resembles another (`SimilarCase`).

None of it identifies a patient: keys are keyed hashes, ages are decades.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from medsd.cases.described import RelationWord
from medsd.errors import DataError
from medsd.findings import FindingSet

FloatArray = npt.NDArray[np.float32]
Excluded = Mapping[str, Sequence[str]]  # values of "patient_key" and "study_key" that must not be found


@dataclass(frozen=True)
class Case:
    """One earlier study; texts are empty if unknown."""

    study_key: str  # a keyed hash (`medsd.privacy.KeyedHasher`), never an identifier; the next, too
    patient_key: str = ""
    # (F,) in the index's finding order: 1 present, 0 absent, NaN unknown
    labels: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32), compare=False)
    findings: tuple[str, ...] = ()  # names of those present; an index fills it from `labels`
    view: str = ""  # "PA", "AP", "LATERAL", …
    sex: str = ""  # "F", "M" or "O"
    age_band: str = ""  # a decade as the function `age_band` writes it, never an exact age
    source: str = ""  # the data set
    split: str = ""  # train, validation or test
    thumbnail: bytes | None = field(default=None, repr=False)  # an encoded WebP or PNG
    note_excerpt: str | None = field(default=None, repr=False)  # the note's beginning, if its licence allows it


@dataclass(frozen=True)
class SimilarCase:
    """A case beside a prediction. S is the set of findings predicted present, T the case's."""

    case: Case
    similarity: float  # cosine of the two embeddings, −1…1
    relation: RelationWord  # of T to S: superset means that the case has all that was predicted, and more
    shared: tuple[str, ...]  # S∩T; these are names, in the finding set's order
    extra: tuple[str, ...]  # T∖S, in the case only
    missing: tuple[str, ...]  # S∖T, predicted only
    k_s: float  # K_s = |S∩T| / |S| over the probabilities as soft labels, 0…1
    k_d: float  # K_d = 1 / (1 + |T∖S|), likewise
    # Percent of training pairs of this relation that are less alike (`SimilarityScale`); None without a scale.
    percentile: float | None = None
    # Of each relation over the probabilities, were the findings independent; sums to 1, empty without probabilities.
    chances: Mapping[RelationWord, float] = field(default_factory=dict)
    embedding: FloatArray | None = field(default=None, compare=False, repr=False)  # (D,) of the case


@dataclass(frozen=True)
class Hit:
    """What a store answers: a case, its cosine to the query and its embedding (D,)."""

    case: Case
    similarity: float
    embedding: FloatArray


# The columns that a filter can ask for by value.
FILTER_COLUMNS = ("view", "sex", "age_band", "source")


@dataclass(frozen=True)
class CaseFilter:
    """Which cases may be found; an empty part asks for nothing, and a single string counts as one value."""

    present: Sequence[str] = ()  # findings that a case must be known to have, all of them
    absent: Sequence[str] = ()  # findings that it must be known not to have
    view: Sequence[str] = ()  # it must have one of these values; the same for the next three
    sex: Sequence[str] = ()
    age_band: Sequence[str] = ()
    source: Sequence[str] = ()

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name) or ()
            object.__setattr__(self, part.name, (value,) if isinstance(value, str) else tuple(value))

    def __bool__(self) -> bool:
        return any(getattr(self, part.name) for part in fields(self))

    def check(self, findings: FindingSet, vocabulary: dict[str, tuple[str, ...]]) -> None:
        """Compare every value with what the index knows; raises DataError for what it does not have."""
        for name in (*self.present, *self.absent):
            if name not in findings.names:
                raise DataError(f"filter: '{name}' is no finding of this index; it has {', '.join(findings)}")
        for column in FILTER_COLUMNS:
            for value in getattr(self, column):
                if value not in vocabulary[column]:
                    known = ", ".join(filter(None, vocabulary[column])) or "none"
                    raise DataError(f"filter: {column} '{value}' is in no case of this index; it has {known}")


def age_band(years: float | None) -> str:
    """The decade of an age: ``"60-69"``; ``"90+"`` from 90 on, empty if unknown or not an age.

    Ages above 89 are one group, as the Safe Harbor method of HIPAA asks (45 CFR 164.514(b)(2)(i)(C)).
    """
    if years is None or math.isnan(years) or not 0 <= years <= 120:
        return ""
    decade = int(years) // 10 * 10
    return "90+" if decade >= 90 else f"{decade}-{decade + 9}"
