"""The three ways to ask an index: by a study that a model has read, by findings, and by a sentence."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medsd.cases.case import CaseFilter, SimilarCase
from medsd.cases.explain import as_records, as_text, explain_query
from medsd.cases.index import CaseIndex
from medsd.cases.query import FindingQuery, read_query, resolve
from medsd.cases.vote import FindingVote, disagreement_text, vote_records
from medsd.errors import DataError

if TYPE_CHECKING:
    from medsd.inference.predict import Predictor
    from medsd.inference.prediction import Prediction


@dataclass(frozen=True)
class Question:
    query: FindingQuery = field(default_factory=FindingQuery)  # beside a study, it filters
    words: str = ""  # a sentence; it is read as a query, and by a model with notes also as a note
    filters: CaseFilter = field(default_factory=CaseFilter)
    k: int = 8
    skip: int = 0  # so many of the best are passed over, for a later page; only by `ask`


@dataclass(frozen=True)
class Answer:
    cases: tuple[SimilarCase, ...]
    understood: str = ""  # how findings or words were understood; empty for a study alone
    votes: tuple[FindingVote, ...] = ()  # of the nearest cases, by finding; empty for a search by findings
    # What `CaseIndex.matches` takes, to list all that fit; the first is empty for a study.
    query: FindingQuery = field(default_factory=FindingQuery)
    filters: CaseFilter = field(default_factory=CaseFilter)

    @property
    def against(self) -> int:
        """On how many findings the nearest cases contradict the model."""
        return sum(vote.disagrees for vote in self.votes)

    def as_dict(self) -> dict[str, Any]:
        said: dict[str, Any] = {"cases": as_records(self.cases), "votes": vote_records(self.votes)}
        return {"understood": self.understood, **said} if self.understood else said

    def text(self, index: CaseIndex) -> str:
        asked = "what was predicted" if self.votes else "what was asked for"
        parts = [f"cases {self.understood}" if self.understood else "", as_text(self.cases, index.findings, asked)]
        return "\n".join(filter(None, [*parts, disagreement_text(self.votes, index.findings)]))


def question(
    index: CaseIndex,
    present: list[str] | None,
    absent: list[str] | None,
    words: str | None,
    filters: CaseFilter,
    k: int,
) -> Question:
    """A question in the index's own names; raises DataError for a finding that the index does not have."""
    names = index.findings
    return Question(FindingQuery(resolve(present or (), names), resolve(absent or (), names)), words or "", filters, k)


def ask_study(index: CaseIndex, prediction: "Prediction", asked: Question) -> Answer:
    """The cases most like a study, and their vote; findings and words of the question filter.

    Raises DataError where nothing of the words is understood.
    """
    query, _ = _read(index, asked)
    filters = query.filters(asked.filters, require_present=True)
    similar = index.similar(prediction, asked.k, filters=filters)
    understood = query.sentence(index.findings) if query else ""
    return Answer(tuple(similar), understood, index.vote(prediction, filters=asked.filters))


def ask(index: CaseIndex, asked: Question, load: "Callable[[], Predictor | None]") -> Answer:
    """The cases that fit findings or a sentence; `load` gives the bundle's predictor if it reads notes, else None.

    For findings, they are the best fits (`CaseIndex.find`). A sentence is read as findings too. A model with notes,
    which is loaded only then, orders the cases that have these findings, and lack what the sentence rules out, by
    nearness to it. Raises DataError where nothing is asked, or nothing of the words is understood.
    """
    query, in_words = _read(index, asked)
    said = query.sentence(index.findings)
    predictor = load() if in_words else None  # words that were not understood do not order what the findings ask for
    prediction = predictor(None, asked.words) if predictor is not None else None
    most = asked.skip + asked.k
    if prediction is None or prediction.refused or prediction.embedding is None:
        found = index.find(query, most, filters=asked.filters)[asked.skip :]
        return Answer(tuple(found), said, query=query, filters=asked.filters)
    index.check_model(prediction.model_sha256, prediction.model)
    filters = query.filters(asked.filters, require_present=True)
    hits = index.nearest(prediction.embedding, most, filters=filters)[asked.skip :]
    # The relation is to the findings in the words, not to what the model makes of them.
    found = explain_query(query.labels(index.findings), hits, index.findings)
    return Answer(tuple(found), f"near these words, {said}", query=query, filters=filters)


def _read(index: CaseIndex, asked: Question) -> tuple[FindingQuery, bool]:
    """The findings that are asked for, by name and in words, and whether the words ask for any."""
    if not asked.words:
        return asked.query, False
    words = read_query(asked.words, index.findings)
    query = FindingQuery(
        tuple(dict.fromkeys((*asked.query.present, *words.present))),
        tuple(dict.fromkeys((*asked.query.absent, *words.absent))),
        words.uncertain,
        words.unread,
        words.not_understood,
    )
    if not query:
        raise DataError(
            f"The sentence names no finding that can be searched for ({query.sentence(index.findings)}). "
            f"The findings here are {', '.join(map(index.findings.title, index.findings))}."
        )
    return query, bool(words)
