"""From report text to findings by rules: phrases, negation, uncertainty, in the manner of NegEx and ConText.

Start at `label_report`. The rules are data (`phrases/*.yaml`); this module finds them and decides which cue reaches
which finding.

References:
    Chapman et al., A simple algorithm for identifying negated findings, J Biomed Inform 34, 2001 (cues, pseudo cues).
    Harkema et al., ConText, J Biomed Inform 42, 2009 (direction, termination, history). Peng et al., NegBio, AMIA
    Informatics Summit 2018 (a clause of its own for each finding). Irvin et al., CheXpert, AAAI 2019 (aggregation).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from medsd.findings import FindingSet, finding_set
from medsd.studies.notes.lexicon import Cues, Lexicon, Pattern, Scope, load_lexicon, load_scope
from medsd.studies.notes.sections import Note, normalise_placeholders

_MOST_CHARACTERS = 20_000
# What a cue may reach, in characters; keeps one endless sentence from costing the square of its length.
_WINDOW = 600
# "Atelectasis in the left base or infiltrate": so many words may lie between a finding and its "or".
_NEAR = 5
# Ways to write "not" that every rule reads alike; the full form stands in scope.yaml.
_REWORDED = (
    (re.compile(r"\bcan(?:'t|not)\b", re.IGNORECASE), "can not"),
    (re.compile(r"n't\b", re.IGNORECASE), " not"),
    (re.compile(r"\b(?:not\s+(?:as\s+)?yet|still\s+not|not\s+still)\b", re.IGNORECASE), "not"),
    (re.compile(r"\b(whether|if|that|say|tell)\s+there\s+(?:is|are|was|were)\b", re.IGNORECASE), r"\1"),
    (re.compile(r"\bsince\s+(?=resolved|cleared|drained|disappeared|vanished|re-?expanded)", re.IGNORECASE), ""),
)
_SENTENCE_END = re.compile(
    # A full stop, but not after the number of a list item, a title or "vs", and no row of dots before a form's answer;
    # also where the space behind it is missing.
    r"(?<![.!?])(?<!\b\d)(?<!\bdr)(?<!\bvs)(?!\.{3,}[ ]*(?:no|none|nil|yes|negative|absent|present)[ ]*(?:$|[.,;\n]))"
    r"[.!]+(?=\s|$)"
    r"|(?-i:(?<=[a-z)])[.!](?=[A-Z][a-z])|(?<=[a-z]{4})\.(?=[a-z]{3})|(?<=[A-Z]{3})\.(?=[A-Z]{3}))"
    # A question mark, unless the answer follows; one before a word is a cue ("? nodule").
    r"|(?<=\w\?)\s+(?=(?-i:[A-Z]))(?!(?:no|none|nil|yes|not|negative|absent|present)\b)"
    # An empty line, or a line that opens a list item.
    r"|\n[ \t]*\n|\n(?=[ \t]*(?:\d{1,2}[.)]|[-*•])[ \t])"
    # A list item within a line.
    r"|(?<=\w)\s+(?=\d[.)]\s+[A-Z_])"
    # Another line or column: `_sentences` looks whether it begins anew.
    r"|(?P<line>[ ]*\n\s*|[ ]*\t\s*|[ ]{3,})",
    re.IGNORECASE,
)


class Status(StrEnum):
    """What a report says of a finding, weakest first."""

    NOT_MENTIONED = "not mentioned"
    ABSENT = "absent"
    UNCERTAIN = "uncertain"
    ALTERNATIVE = "alternative"  # "A versus B": one of the two
    PRESENT = "present"


@dataclass(frozen=True)
class Mention:
    """One place where a finding is named; `start` and `end` count characters of `normalise_placeholders(report)`."""

    finding: str
    status: Status
    start: int
    end: int
    cue: str = ""


@dataclass(frozen=True)
class ReportLabels:
    """What one report says of each finding of a set: the strongest status (F,), and all mentions in their order."""

    findings: FindingSet
    status: tuple[Status, ...]
    mentions: tuple[Mention, ...]

    def __getitem__(self, finding: str) -> Status:
        return self.status[self.findings.names.index(finding)]


def label_report(report: str | Note, findings: FindingSet | None = None) -> ReportLabels:
    """Label a report (findings and impression, or a note, of which `Note.report` is read) by rules.

    `findings` is nih14 unless given; raises DataError if there are no phrase lists for it.
    """
    wanted = findings or finding_set("nih14")
    text = report.report if isinstance(report, Note) else normalise_placeholders(report)
    lexicon, scope = load_lexicon(wanted), load_scope()
    text = text[:_MOST_CHARACTERS]
    mentions = [m for start, end in _sentences(text, scope) for m in _mentions(text[start:end], start, lexicon, scope)]
    said = {name: {m.status for m in mentions if m.finding == name} for name in wanted}
    status = tuple(max(said[name] | {Status.NOT_MENTIONED}, key=list(Status).index) for name in wanted)
    return ReportLabels(wanted, status, tuple(mentions))


def _sentences(text: str, scope: Scope) -> Iterator[tuple[int, int]]:
    start, shouted = 0, text.isupper()
    for stop in _SENTENCE_END.finditer(text):
        before, after = text[max(start, stop.start() - 40) : stop.start()], text[stop.end() : stop.end() + 40]
        opens = (after[:1].isupper() and not shouted) or scope.opener.match(after)  # in a shouted report all do
        if stop["line"] and (not opens or scope.unfinished.search(before)):
            continue
        yield start, stop.start()
        start = stop.end()
    yield start, len(text)


def _mentions(sentence: str, offset: int, lexicon: Lexicon, scope: Scope) -> Iterator[Mention]:
    places = sorted(_places(sentence, lexicon))
    for start, end, finding in places:
        last = max((stop for _, stop, _ in places if stop <= start), default=0)
        following = min((begin for begin, _, _ in places if begin >= end), default=len(sentence))
        status, cue = _status(_Surroundings.of(sentence, (last, start, end, following), scope), scope)
        yield Mention(finding, status, offset + start, offset + end, cue)


def _places(sentence: str, lexicon: Lexicon) -> Iterator[tuple[int, int, str]]:
    for finding, (present, not_this) in lexicon.items():
        if present.search(sentence):
            cleared = _without(not_this, sentence)
            yield from ((match.start(), match.end(), finding) for match in present.finditer(cleared))


def _without(pattern: Pattern, text: str) -> str:
    """`text` with what `pattern` finds made blank, so that every place keeps its position."""
    return pattern.sub(lambda match: "~" * len(match.group()), text)


@dataclass(frozen=True)
class _Surroundings:
    """What a cue for one mention may stand in: pseudo cues are blank, and the text ends at boundaries."""

    before: str
    inside: str
    after: str
    answer: str  # what follows, as it stands

    @classmethod
    def of(cls, sentence: str, place: tuple[int, int, int, int], scope: Scope) -> Self:
        """Of the mention at [start, end); `place`: the end of the mention before, start, end, start of the next."""
        last, start, end, following = place
        far = _plain(sentence[max(0, last - _WINDOW) : last], scope) if last else ""
        gap = _plain(sentence[max(last, start - _WINDOW) : start], scope)
        near = _plain(sentence[end : min(following, end + _WINDOW)], scope)
        beyond = _plain(sentence[following : end + _WINDOW], scope)
        if last:  # a cue behind the mention before is that one's, and a verb there ends its clause
            gap = _spent(gap, scope)
            far = "" if _is_clause(gap, scope) else far
        comma = near.rfind(",") + 1
        if following < len(sentence) and comma and scope.negation.after.search(near, comma):
            near = near[:comma]  # "atelectasis, less likely pneumonia": the cue is the next one's
        after = near if _is_clause(near, scope) else near + " " + beyond
        # The boundary's own words included: "less likely than" speaks of both sides.
        boundary = scope.boundary.search(after)
        after = " ".join(after[: boundary.end() if boundary else len(after)].split()[: scope.reach_after])
        inside = _reworded(sentence[start:end])
        return cls(_reach_back(far + gap, inside, after, scope), inside, after, near)


def _status(around: _Surroundings, scope: Scope) -> tuple[Status, str]:
    """The status of a mention and the cue that decided it."""
    for answer, status in (("no", Status.ABSENT), ("yes", Status.PRESENT), ("open", Status.UNCERTAIN)):
        if match := scope.answers[answer].match(around.answer):
            return status, match.group().strip()
    if scope.alone.fullmatch(around.before) and not re.search(r"\w", around.after):
        return Status.NOT_MENTIONED, around.before
    # "Pneumonia cannot be excluded" holds a "not": the open question is asked first.
    for cues, status in ((scope.history, Status.NOT_MENTIONED), (scope.uncertainty, Status.UNCERTAIN)):
        cue = _cue(cues, around)
        if cue and not (status is Status.UNCERTAIN and _plainly_negated(scope.negation, around.before, cue)):
            return status, cue
    if cue := _cue(scope.negation, around):
        return Status.ABSENT, cue
    if cue := _alternative(around, scope):
        return Status.ALTERNATIVE, cue
    return Status.PRESENT, ""


def _reworded(text: str) -> str:
    for pattern, words in _REWORDED:
        text = pattern.sub(words, text)
    return text


def _plain(text: str, scope: Scope) -> str:
    return _without(scope.pseudo, _reworded(text))


def _spent(gap: str, scope: Scope) -> str:
    """The text between two mentions without the cues that belong to the first: "effusion is not seen, nodule"."""
    for cues in (scope.negation, scope.uncertainty):
        match = cues.after.search(gap)
        if match and not re.search(r"[,;:]", gap[: match.start()]):
            gap = gap[: match.start()] + "~" * len(match.group()) + gap[match.end() :]
    return gap


def _is_clause(gap: str, scope: Scope) -> bool:
    """Whether the text between two mentions has a verb and then begins something else."""
    verb = scope.verbs.search(gap)
    return verb is not None and re.search(r",|\band\b", gap[verb.end() :]) is not None


def _reach_back(before: str, inside: str, after: str, scope: Scope) -> str:
    boundary = max((match.end() for match in scope.boundary.finditer(before)), default=0)
    before = before[boundary:]
    return " ".join(before[_item(before, inside, after, scope) :].split()[-scope.reach_before :])


def _item(before: str, inside: str, after: str, scope: Scope) -> int:
    """Where in `before` a positive finding begins that only looks like one more of a list; 0 where none does."""
    item = 0
    for match in scope.new_item.finditer(before):
        # "May be infiltrate and mild edema": what is open stays so beyond an "and".
        if match.group().startswith(",") or not scope.uncertainty.before.search(before[: match.start()]):
            item = match.start()
    if scope.located.match(after) or scope.verbs.search(inside):  # "no edema, the heart is enlarged"
        item = max(item, before.rfind(","))
    return 0 if re.search(r"\b(?:or|nor)\b", before[item:] + " " + after) else item


def _cue(cues: Cues, around: _Surroundings) -> str:
    match = cues.before.search(around.before) or cues.before.search(around.inside) or cues.after.search(around.after)
    return match.group() if match else ""


def _plainly_negated(negation: Cues, before: str, doubt: str) -> bool:
    """Whether a negation governs the doubt: "no possible effusion", "no opacity, fluid … to suggest pneumonia"."""
    match = negation.before.search(before)
    start = before.find(doubt)
    if match is None or start < match.end():
        return False
    between = before[match.end() : start]
    # A comma ends the negation ("no mass, possible effusion"), unless a clause of purpose refers to the whole list.
    return "," not in between or between.endswith("to ")


def _alternative(around: _Surroundings, scope: Scope) -> str:
    """The "or" or "versus" within a few words of a mention, or nothing."""
    other = scope.negation.before.search(around.after)  # "A without B or C": the "or" is not A's
    after = around.after[: other.start()] if other else around.after
    near = " ".join(around.before.split()[-_NEAR:]), " ".join(after.split()[:_NEAR])
    match = scope.alternative.search(near[0]) or scope.alternative.search(near[1])
    return match.group() if match else ""
