"""From report text to findings by rules: phrases, negation, uncertainty, in the manner of NegEx and ConText.

Start at `label_report`. The rules are data (`phrases/*.yaml`); this module only finds them and decides which cue
reaches which finding.

References:
    Chapman et al., A simple algorithm for identifying negated findings, J Biomed Inform 34, 2001.
    Harkema et al., ConText, J Biomed Inform 42, 2009. Irvin et al., CheXpert, AAAI 2019 (aggregation over sentences).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from medsd.findings import FindingSet, finding_set
from medsd.studies.notes.lexicon import Cues, Lexicon, Pattern, Scope, load_lexicon, load_scope
from medsd.studies.notes.sections import Note, normalise_placeholders

_MOST_CHARACTERS = 20_000
# What a cue may reach, in characters; keeps one endless sentence from costing the square of its length.
_WINDOW = 600
# «atelectasis in the left base or infiltrate»: so many words may lie between a finding and its «or».
_NEAR = 5
_SENTENCE_END = re.compile(
    # A full stop, but not after the number of a list item, a title or «vs».
    r"(?<![.!?])(?<!\b\d)(?<!\bdr)(?<!\bvs)[.!?]+(?=\s|$)"
    # An empty line, or a line that opens a list item.
    r"|\n[ \t]*\n|\n(?=[ \t]*(?:\d{1,2}[.)]|[-*•])[ \t])"
    # A list item within a line.
    r"|(?<=\w)\s+(?=\d[.)]\s+[A-Z_])",
    re.IGNORECASE,
)


class Status(StrEnum):
    """What a report says of a finding, weakest first."""

    NOT_MENTIONED = "not mentioned"
    ABSENT = "absent"
    UNCERTAIN = "uncertain"
    ALTERNATIVE = "alternative"  # «A versus B»: one of the two
    PRESENT = "present"


_STRENGTH = tuple(Status)


@dataclass(frozen=True)
class Mention:
    """One place where a finding is named; `start` and `end` count characters of the labelled text."""

    finding: str
    status: Status
    start: int
    end: int
    cue: str = ""


@dataclass(frozen=True)
class ReportLabels:
    """What one report says of each finding of a set.

    Attributes:
        findings: the vocabulary.
        status: one a finding, in its order: the strongest of its mentions.
        mentions: every place, in the order of the text.
    """

    findings: FindingSet
    status: tuple[Status, ...]
    mentions: tuple[Mention, ...]

    def __getitem__(self, finding: str) -> Status:
        return self.status[self.findings.names.index(finding)]

    @property
    def uncertain(self) -> npt.NDArray[np.bool_]:
        """(F,) where the report leaves the finding open."""
        return np.array([status in (Status.UNCERTAIN, Status.ALTERNATIVE) for status in self.status])

    def values(self, *, unmentioned: float = np.nan, uncertain: float = np.nan) -> npt.NDArray[np.float32]:
        """float32 (F,): present 1, absent 0; what is open or unmentioned as given, unknown unless told."""
        value = {
            Status.PRESENT: 1.0,
            Status.ABSENT: 0.0,
            Status.NOT_MENTIONED: unmentioned,
            Status.UNCERTAIN: uncertain,
            Status.ALTERNATIVE: uncertain,
        }
        return np.array([value[status] for status in self.status], dtype=np.float32)

    def called(self, *, alternatives: bool = True) -> npt.NDArray[np.bool_]:
        """(F,) the findings that a data set without «uncertain» would call present.

        Args:
            alternatives: «A versus B» counts for both, as annotators of Open-i mostly did; a «may represent» never.
        """
        counted = {Status.PRESENT, Status.ALTERNATIVE} if alternatives else {Status.PRESENT}
        return np.array([status in counted for status in self.status])


def label_report(report: str | Note, findings: FindingSet | None = None) -> ReportLabels:
    """Label a report by rules.

    Args:
        report: the text of findings and impression, or a note, of which only `Note.report` is read.
        findings: the vocabulary, nih14 unless given.

    Raises:
        DataError: there are no phrase lists for this vocabulary.
    """
    wanted = findings or finding_set("nih14")
    text = report.report if isinstance(report, Note) else normalise_placeholders(report)
    lexicon, scope = load_lexicon(wanted), load_scope()
    text = text[:_MOST_CHARACTERS]
    mentions = [m for start, end in _sentences(text) for m in _mentions(text[start:end], start, lexicon, scope)]
    said = {name: {m.status for m in mentions if m.finding == name} for name in wanted}
    status = tuple(max(said[name] | {Status.NOT_MENTIONED}, key=_STRENGTH.index) for name in wanted)
    return ReportLabels(wanted, status, tuple(mentions))


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for stop in _SENTENCE_END.finditer(text):
        yield start, stop.start()
        start = stop.end()
    yield start, len(text)


def _mentions(sentence: str, offset: int, lexicon: Lexicon, scope: Scope) -> Iterator[Mention]:
    places = sorted(_places(sentence, lexicon))
    if not places:
        return
    cued = _without(scope.pseudo, sentence)
    for start, end, finding in places:
        status, cue = _status(cued, start, end, scope)
        yield Mention(finding, status, offset + start, offset + end, cue)


def _places(sentence: str, lexicon: Lexicon) -> Iterator[tuple[int, int, str]]:
    for finding, phrases in lexicon.items():
        if not phrases.present.search(sentence):
            continue
        cleared = _without(phrases.not_this, sentence)
        yield from ((match.start(), match.end(), finding) for match in phrases.present.finditer(cleared))


def _without(pattern: Pattern, text: str) -> str:
    """`text` with what `pattern` finds made blank, so that every place keeps its position."""
    return pattern.sub(lambda match: "~" * len(match.group()), text)


def _status(sentence: str, start: int, end: int, scope: Scope) -> tuple[Status, str]:
    """The status of the mention at [start, end) and the cue that decided it."""
    ahead, inside, behind = sentence[max(0, start - _WINDOW) : start], sentence[start:end], sentence[end:][:_WINDOW]
    before, after = _reach_back(ahead, scope), _reach_on(behind, scope)
    # «Pneumonia cannot be excluded» holds a «not»: the open question is asked first.
    for cues, status in ((scope.history, Status.NOT_MENTIONED), (scope.uncertainty, Status.UNCERTAIN)):
        cue = _cue(cues, before, inside, after)
        if cue and not (status is Status.UNCERTAIN and _plainly_negated(scope.negation, before, cue)):
            return status, cue
    if cue := _cue(scope.negation, before, inside, after):
        return Status.ABSENT, cue
    if cue := _alternative(ahead, behind, scope.alternative):
        return Status.ALTERNATIVE, cue
    return Status.PRESENT, ""


def _reach_back(before: str, scope: Scope) -> str:
    boundary = max((match.end() for match in scope.boundary.finditer(before)), default=0)
    return " ".join(before[boundary:].split()[-scope.reach_before :])


def _reach_on(after: str, scope: Scope) -> str:
    boundary = scope.boundary.search(after)
    return " ".join(after[: boundary.start() if boundary else len(after)].split()[: scope.reach_after])


def _cue(cues: Cues, before: str, inside: str, after: str) -> str:
    match = cues.before.search(before) or cues.before.search(inside) or cues.after.search(after)
    return match.group() if match else ""


def _plainly_negated(negation: Cues, before: str, doubt: str) -> bool:
    """Whether a negation governs the doubt: «no possible effusion», «no opacity, fluid … to suggest pneumonia»."""
    match = negation.before.search(before)
    start = before.find(doubt)
    if match is None or start < match.end():
        return False
    between = before[match.end() : start]
    # A comma ends the negation («no mass, possible effusion»), unless a clause of purpose refers to the whole list.
    return "," not in between or between.endswith("to ")


def _alternative(ahead: str, behind: str, joins: Pattern) -> str:
    """The «or» or «versus» within a few words of a mention, or nothing."""
    near = " ".join(ahead.split()[-_NEAR:]), " ".join(behind.split()[:_NEAR])
    match = joins.search(near[0]) or joins.search(near[1])
    return match.group() if match else ""
