"""What an index says of itself: its model and vocabulary, and what was measured when it was made."""

from datetime import UTC, datetime
from typing import Any, Literal, get_args

import numpy as np
from pydantic import Field

from medsd.bundle.layout import FindingEntry, finding_entries
from medsd.findings import Finding, FindingSet
from medsd.sd.relations import Relation
from medsd.strict import Described

SCHEMA_VERSION = 2
RelationWord = Literal["equal", "overlap", "superset", "subset", "disjoint", "undetermined"]
RELATION_WORDS: dict[int, RelationWord] = {Relation[word.upper()]: word for word in get_args(RelationWord)}
# `medsd.cases.exact` holds this many cases in memory; below that an approximate index is not faster.
APPROXIMATE_ABOVE = 4_000_000


class SimilarityScale(Described):
    """How alike pairs of training cases of different patients are, by the relation of their findings."""

    pairs: dict[RelationWord, int]  # how many were looked at
    quantiles: dict[RelationWord, tuple[float, ...]]  # cosines, evenly spaced from 0 to 1; none of a few pairs

    def percentile(self, relation: RelationWord, similarity: float) -> float | None:
        """Percent of the pairs of this relation that are less alike, 0…100; None if too few pairs were seen."""
        table = self.quantiles.get(relation)
        return None if table is None else float(np.interp(similarity, table, np.linspace(0, 100, len(table))))


class VoteRule(Described):
    """When the vote of the nearest cases counts as a call, chosen on validation patients."""

    k: int = Field(ge=1)  # cases that vote
    thresholds: dict[str, float | None]  # the share from which a finding is present; None if the model makes no call
    rule: str  # how they were chosen, for people


class IndexDescription(Described):
    """What an index says of itself; it travels with the table."""

    schema_version: int  # of the table's layout
    model_sha256: str  # of the model.onnx that made the embeddings
    model: str = ""  # name and version of that bundle, for people
    finding_set: str
    findings: tuple[FindingEntry, ...]  # the vocabulary of `Case.labels`, in order
    embedding_size: int  # D
    created: str  # UTC, ISO 8601
    # The keys of its first cases are made with the bundle's name (`medsd.privacy.public_hasher`); those of cases that
    # a site adds, with the site's secret.
    public: bool = False
    scale: SimilarityScale | None = None  # of similarities, where it was measured
    vote: VoteRule | None = None  # when the nearest cases contradict the model, where it was chosen
    approximate_above: int = Field(APPROXIMATE_ABOVE, ge=1)  # number of cases from which the search is approximate

    @property
    def vocabulary(self) -> FindingSet:
        return FindingSet(self.finding_set, tuple(Finding(f.name, f.title, f.snomed, f.radlex) for f in self.findings))


def describe(model_sha256: str, findings: FindingSet, embedding_size: int, **about: Any) -> IndexDescription:
    """The description of an index made now; `about` are the optional fields of `IndexDescription`."""
    return IndexDescription(
        schema_version=SCHEMA_VERSION,
        model_sha256=model_sha256,
        finding_set=findings.key,
        findings=finding_entries(findings),
        embedding_size=embedding_size,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **about,
    )
