"""Search by findings: a query says which are wanted and which must be missing, and a sentence can be read as one.

A sentence is read by the rules that label reports (`medsd.studies.notes.labeller`), because an embedding knows little
of "without".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from textwrap import shorten

from medsd.cases.case import CaseFilter, FloatArray
from medsd.errors import DataError
from medsd.findings import FindingSet, finding_set
from medsd.studies.notes.labeller import ReportLabels, Status, label_report
from medsd.studies.notes.lexicon import load_scope
from medsd.studies.notes.sections import normalise_placeholders

# The vocabulary whose phrases are tried for a set that has none of its own; shared by name (phantom8, openi14, …).
_PHRASES = "nih14"
_PLACES = re.compile(
    r"\b(left|right|bilateral|both|upper|lower|middle|apical|basal|basilar|small|large|mild|moderate|severe|massive)\b",
    re.IGNORECASE,
)
# Words that ask for nothing by themselves.
_JOINING = re.compile(
    r"an?|the|of|in|on|at|to|and|with|as|also|but|that|which|who|all|any|some|there|this|these|is|are|was|were|be|"
    r"has|have|having|had|show(?:s|ing|n)?|find|search|me|i|please|want|seen|visible|cases?|patients?|stud(?:y|ies)|"
    r"images?|radiographs?|films?|x-?rays?|chest|signs?|evidence|findings?",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w[\w'’-]*")
_MOST_QUOTED = 200  # characters


@dataclass(frozen=True)
class FindingQuery:
    """Which findings are asked for, by their names in the index's vocabulary; only the first two filter."""

    present: tuple[str, ...] = ()  # wanted; a case that has all of them and nothing else fits best
    absent: tuple[str, ...] = ()  # a case must be known not to have them
    uncertain: tuple[str, ...] = field(default=(), compare=False)  # named, but as a possibility
    unread: tuple[str, ...] = field(default=(), compare=False)  # words of side, place or size, which no label holds
    not_understood: tuple[str, ...] = field(default=(), compare=False)  # what else a sentence says

    def __bool__(self) -> bool:
        return bool(self.present or self.absent)

    def labels(self, findings: FindingSet) -> FloatArray:
        """The wanted set S as a row (F,): 1 wanted, 0 all others; DataError for what is unknown, or wanted and not."""
        if both := sorted(set(self.present) & set(self.absent)):
            raise DataError(f"findings query: {', '.join(both)} cannot be present and absent at once")
        findings.encode(self.absent)
        return findings.encode(self.present)

    def filters(self, others: CaseFilter | None = None, *, require_present: bool = False) -> CaseFilter:
        """`others` and what must be missing, and with `require_present` what must be there."""
        others = others or CaseFilter()
        present = (*others.present, *self.present) if require_present else others.present
        absent = dict.fromkeys((*others.absent, *self.absent))
        return replace(others, present=tuple(dict.fromkeys(present)), absent=tuple(absent))

    def sentence(self, findings: FindingSet) -> str:
        """How the query was understood, in one line."""
        named = (("with", self.present), ("without", self.absent), ("open, so no filter:", self.uncertain))
        parts = [f"{words} {', '.join(map(findings.title, names))}" for words, names in named if names]
        if self.unread:
            parts.append(f"not in the cases' labels, so no filter: {', '.join(self.unread)}")
        if self.not_understood:
            parts.append(f"not understood: {shorten(', '.join(self.not_understood), _MOST_QUOTED, placeholder=' …')}")
        return "; ".join(parts) or "no finding"


def resolve(names: Sequence[str], findings: FindingSet) -> tuple[str, ...]:
    """Findings by name or title in any case (``"pleural effusion"``), as the set's own names; raises DataError."""
    known = {key.lower(): f.name for f in findings.findings for key in (f.title, f.name.replace("_", " "), f.name)}
    for name in names:
        if name.lower() not in known:
            raise DataError(f"'{name}' is no finding of {findings.key}; it has {', '.join(findings)}")
    return tuple(dict.fromkeys(known[name.lower()] for name in names))


def read_query(sentence: str, findings: FindingSet) -> FindingQuery:
    """Read an English sentence such as "right effusion without cardiomegaly" as a query.

    If `findings` has no phrases of its own, those of nih14 are taken for the findings of the same name; others are not
    understood. Raises DataError if there are no phrases for any finding.
    """
    labels, phrases = _label(sentence, findings)
    said = dict(zip(phrases, labels.status, strict=True))

    def named(*wanted: Status) -> tuple[str, ...]:
        return tuple(name for name in findings if said.get(name) in wanted)

    return FindingQuery(
        present=named(Status.PRESENT),
        absent=named(Status.ABSENT),
        uncertain=named(Status.UNCERTAIN, Status.ALTERNATIVE),
        unread=tuple(dict.fromkeys(word.lower() for word in _PLACES.findall(sentence))),
        not_understood=tuple(_not_understood(sentence, labels, findings)),
    )


def _not_understood(sentence: str, labels: ReportLabels, findings: FindingSet) -> Iterator[str]:
    """The parts of a sentence that are neither a finding of the vocabulary nor a cue, a place or a word that joins."""
    text, scope = normalise_placeholders(sentence), load_scope()
    cues = (scope.negation.before, scope.negation.after, scope.uncertainty.before, scope.uncertainty.after)
    known = (*cues, scope.pseudo, scope.alternative, scope.boundary, _PLACES)
    spans = [match.span() for pattern in known for match in pattern.finditer(text)]
    named = [m for m in labels.mentions if m.finding in findings.names and m.status is not Status.NOT_MENTIONED]
    spans += [(mention.start, mention.end) for mention in named]
    for title in {findings.title(mention.finding) for mention in named}:  # "pleural" goes with its effusion
        spans += [match.span() for match in re.finditer(re.escape(title), text, re.IGNORECASE)]
    read = bytearray(len(text))  # 1 for a character that was understood
    for start, end in spans:
        read[start:end] = b"\1" * (end - start)
    begin = end = 0  # of the words in a row that were not understood
    for word in _WORD.finditer(text):
        if _JOINING.fullmatch(word.group()):
            continue
        if not all(read[word.start() : word.end()]):
            begin, end = begin if end else word.start(), word.end()
        elif end:
            yield text[begin:end]
            end = 0
    if end:
        yield text[begin:end]


def _label(sentence: str, findings: FindingSet) -> tuple[ReportLabels, FindingSet]:
    try:
        return label_report(sentence, findings), findings
    except DataError:
        phrases = finding_set(_PHRASES)
        if not set(phrases) & set(findings):
            raise DataError(
                f"there are no phrases for the findings of {findings.key}, so a sentence cannot be read as a query; "
                "name the findings with --with and --without"
            ) from None
        return label_report(sentence, phrases), phrases
