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
    """One earlier study.

    Attributes:
        study_key, patient_key: keyed hashes (`medsd.privacy.KeyedHasher`), never identifiers; the second may be empty.
        labels: float32 (F,) in the index's finding order: 1 present, 0 absent, NaN unknown.
        findings: names of the findings present; an index fills it from `labels`.
        view: ``"PA"``, ``"AP"``, ``"LATERAL"``…, empty if unknown.
        sex: ``"F"``, ``"M"``, ``"O"``, empty if unknown.
        age_band: a decade as `age_band` writes it, never an exact age.
        source: the data set that the study comes from.
        split: train, validation or test.
        thumbnail: an encoded WebP or PNG, or None.
        note_excerpt: the beginning of the note if the licence allows it, or None.
    """

    study_key: str
    patient_key: str = ""
    labels: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32), compare=False)
    findings: tuple[str, ...] = ()
    view: str = ""
    sex: str = ""
    age_band: str = ""
    source: str = ""
    split: str = ""
    thumbnail: bytes | None = field(default=None, repr=False)
    note_excerpt: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class SimilarCase:
    """A case beside a prediction. S is the set of findings predicted present, T the case's.

    Attributes:
        case: the earlier study.
        similarity: cosine of the two embeddings, −1…1.
        relation: of T to S: superset means that the case has all that was predicted, and more.
        shared: S∩T, extra: T∖S (in the case only), missing: S∖T (predicted only); names, in the finding set's order.
        k_s: K_s = |S∩T| / |S| over the probabilities as soft labels, 0…1.
        k_d: K_d = 1 / (1 + |T∖S|) over the probabilities, 0…1.
        percentile: how many percent of training pairs of this relation are less alike (`SimilarityScale`), 0…100; None
            if the index does not say.
        chances: how likely each relation is over the probabilities, were the findings independent; sums to 1, empty
            if there are no probabilities.
        embedding: (D,) of the case, for maps of the likeness.
    """

    case: Case
    similarity: float
    relation: RelationWord
    shared: tuple[str, ...]
    extra: tuple[str, ...]
    missing: tuple[str, ...]
    k_s: float
    k_d: float
    percentile: float | None = None
    chances: Mapping[RelationWord, float] = field(default_factory=dict)
    embedding: FloatArray | None = field(default=None, compare=False, repr=False)


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
    """Which cases may be found; an empty part asks for nothing.

    Attributes:
        present, absent: findings that a case must be known to have, and known not to have (all of them).
        view, sex, age_band, source: a case must have one of the values given. A single string counts as one value.
    """

    present: Sequence[str] = ()
    absent: Sequence[str] = ()
    view: Sequence[str] = ()
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
        """Compare every value with what the index knows.

        Raises:
            DataError: a finding or a value that the index does not have.
        """
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
