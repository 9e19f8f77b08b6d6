"""The three ways to ask an index: by a study that a model has read, by findings, and by a sentence.

`ask` chooses the way from what is given and answers with the cases, how the question was understood, and the vote.
"""

from __future__ import annotations

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
    """What is asked.

    Attributes:
        query: findings that must be there and that must not; beside a study they filter.
        words: a sentence; it is read as a query, and by a model with notes also as a note.
        filters: view, sex, age band and source.
        k: how many cases.
    """

    query: FindingQuery = field(default_factory=FindingQuery)
    words: str = ""
    filters: CaseFilter = field(default_factory=CaseFilter)
    k: int = 8


@dataclass(frozen=True)
class Answer:
    """What was found.

    Attributes:
        cases: the cases.
        understood: how findings or words were understood; empty for a study alone.
        votes: what the nearest cases say of each finding; empty for a search by findings.
    """

    cases: tuple[SimilarCase, ...]
    understood: str = ""
    votes: tuple[FindingVote, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        said: dict[str, Any] = {"cases": as_records(self.cases), "votes": vote_records(self.votes)}
        return {"understood": self.understood, **said} if self.understood else said

    def text(self, index: CaseIndex) -> str:
        """For a terminal."""
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
    """A question in the index's own names.

    Raises:
        DataError: a finding that the index does not have.
    """
    names = index.findings
    query = FindingQuery(resolve(present or (), names), resolve(absent or (), names))
    return Question(query, words or "", filters, k)


def ask_study(index: CaseIndex, prediction: Prediction, asked: Question) -> Answer:
    """The cases most like a study, and their vote; findings and words of the question filter.

    Raises:
        DataError: nothing of the words is understood.
    """
    query, _ = _read(index, asked)
    filters = query.filters(asked.filters, require_present=True)
    similar = index.similar(prediction, asked.k, filters=filters)
    understood = _said(query, index) if query else ""
    return Answer(tuple(similar), understood, index.vote(prediction, filters=asked.filters))


def ask(index: CaseIndex, asked: Question, load: Callable[[], Predictor | None]) -> Answer:
    """The cases that fit findings or a sentence.

    Args:
        index: to search.
        asked: with findings, words or both.
        load: gives the bundle's predictor if it reads notes, else None; called only for a sentence.

    Returns:
        for findings, the best fits (`CaseIndex.find`). A sentence is read as findings, too. A model with notes puts
        the cases that have them, and lack what the sentence rules out, in the order of nearness to the sentence; for
        other models the findings alone decide. What a model takes the words for is never what was asked.

    Raises:
        DataError: nothing is asked, or nothing of the words is understood.
    """
    query, words = _read(index, asked)
    said = _said(query, index)
    predictor = load() if words else None
    if predictor is not None:
        prediction = predictor(None, asked.words)
        if not prediction.refused and prediction.embedding is not None:
            return Answer(tuple(_near_words(index, prediction, query, asked)), f"near these words, {said}")
    return Answer(tuple(index.find(query, asked.k, filters=asked.filters)), said)


def _near_words(index: CaseIndex, prediction: Prediction, query: FindingQuery, asked: Question) -> list[SimilarCase]:
    """Cases that have what the words name, nearest to the words first; related to the words, not to their reading."""
    assert prediction.embedding is not None
    index.check_model(prediction.model_sha256, prediction.model)
    filters = query.filters(asked.filters, require_present=True)
    hits = index.nearest(prediction.embedding, asked.k, filters=filters)
    return explain_query(query.labels(index.findings), hits, index.findings)


def _read(index: CaseIndex, asked: Question) -> tuple[FindingQuery, FindingQuery]:
    """The findings that are asked for, by name and in words, and those in words alone.

    Raises:
        DataError: there are words that ask for nothing, and no names beside them.
    """
    if not asked.words:
        return asked.query, FindingQuery()
    words = read_query(asked.words, index.findings)
    query = _joined(asked.query, words)
    if not query:
        raise DataError(
            f"The sentence names no finding that can be searched for ({_said(query, index)}). "
            f"The findings here are {', '.join(map(index.findings.title, index.findings))}."
        )
    return query, words


def _said(query: FindingQuery, index: CaseIndex) -> str:
    return query.sentence(index.findings)


def _joined(first: FindingQuery, second: FindingQuery) -> FindingQuery:
    return FindingQuery(
        tuple(dict.fromkeys((*first.present, *second.present))),
        tuple(dict.fromkeys((*first.absent, *second.absent))),
        second.uncertain,
        second.unread,
        second.not_understood,
    )
