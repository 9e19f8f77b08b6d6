"""What an index says of itself: its model and vocabulary, and what was measured when it was made.

`SimilarityScale` turns a cosine into a percentile among pairs of the same relation; `VoteRule` says from which share of
the nearest cases a finding counts as seen. Both are optional, so an index of an older medsd keeps working without them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from medsd.bundle.layout import FindingEntry
from medsd.findings import Finding, FindingSet
from medsd.sd.relations import Relation
from medsd.strict import Described

RelationWord = Literal["equal", "overlap", "superset", "subset", "disjoint", "undetermined"]
RELATION_WORDS: dict[int, RelationWord] = {
    Relation.EQUAL: "equal",
    Relation.OVERLAP: "overlap",
    Relation.SUPERSET: "superset",
    Relation.SUBSET: "subset",
    Relation.DISJOINT: "disjoint",
    Relation.UNDETERMINED: "undetermined",
}
# What `medsd.cases.exact` holds in memory: beyond it an approximate index is made, below it nothing is faster.
APPROXIMATE_ABOVE = 4_000_000


class SimilarityScale(Described):
    """How alike pairs of training cases of different patients are, by the relation of their findings.

    Attributes:
        pairs: how many pairs of each relation were looked at.
        quantiles: their cosines at evenly spaced quantiles from 0 to 1, ascending; a relation of few pairs has none.
    """

    pairs: dict[RelationWord, int]
    quantiles: dict[RelationWord, tuple[float, ...]]

    def percentile(self, relation: RelationWord, similarity: float) -> float | None:
        """Percent of the pairs of this relation that are less alike, 0…100; None where too few pairs were seen."""
        table = self.quantiles.get(relation)
        if table is None:
            return None
        return float(np.interp(similarity, table, np.linspace(0, 100, len(table))))


class VoteRule(Described):
    """When the vote of the nearest cases counts as a call, chosen on validation patients.

    Attributes:
        k: how many cases vote.
        thresholds: the share from which the vote calls a finding present; None where the model makes no call.
        rule: how they were chosen, for people.
    """

    k: int = Field(ge=1)
    thresholds: dict[str, float | None]
    rule: str


class IndexDescription(Described):
    """What an index says of itself; it travels with the table.

    Attributes:
        schema_version: of the table's layout.
        model_sha256: of the model.onnx that made the embeddings.
        model: name and version of that bundle, for people.
        finding_set, findings: the vocabulary of `Case.labels`, in order.
        embedding_size: D.
        created: UTC, ISO 8601.
        public: the keys of the cases that it was made with come from the bundle's name
            (`medsd.privacy.public_hasher`); cases that a site adds have keys of its secret.
        scale: of similarities; None in older indexes and where there are too few pairs.
        vote: when the nearest cases contradict the model; None where it was not chosen.
        approximate_above: number of cases from which the search is approximate.
    """

    schema_version: int
    model_sha256: str
    model: str = ""
    finding_set: str
    findings: tuple[FindingEntry, ...]
    embedding_size: int
    created: str
    public: bool = False
    scale: SimilarityScale | None = None
    vote: VoteRule | None = None
    approximate_above: int = Field(APPROXIMATE_ABOVE, ge=1)

    @property
    def vocabulary(self) -> FindingSet:
        """The findings as a `FindingSet`."""
        return FindingSet(self.finding_set, tuple(Finding(f.name, f.title, f.snomed, f.radlex) for f in self.findings))
