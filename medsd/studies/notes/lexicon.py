"""Phrase lists that a radiologist can edit, turned into regular expressions; `mask_phrases` hides them in an input.

The lists are the YAML files in `phrases/`; their small language (any ending, alternatives, a gap) is explained at the
head of nih14.yaml. Start at `load_lexicon` for the findings and `load_scope` for negation and its relatives.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from medsd.errors import DataError
from medsd.files import packaged
from medsd.findings import FindingSet, finding_set

Pattern = re.Pattern[str]

# One separator between words; a list's "and/or" is written with a space.
_GLUE = r"[\s/\-]+"
# Its characters are none of the separator's: no way to match a text twice, so no way to make it slow.
_GAP = rf"(?:[\w'’%.]+{_GLUE}){{0,5}}?"
_PIECE = re.compile(r"\(([^()]*)\)([?*]?)|(\S+)")
NOTHING: Pattern = re.compile(r"(?!)")
_MASKED_BY = "nih14"  # the vocabulary that has phrase lists


# Of each finding, what names it and what only seems to, each list as one expression.
Lexicon = Mapping[str, tuple[Pattern, Pattern]]


@dataclass(frozen=True)
class Cues:
    """Cues of one kind: those that stand before the finding and those after it."""

    before: Pattern
    after: Pattern


@dataclass(frozen=True)
class Scope:
    """The lists of scope.yaml, which explains each of them."""

    pseudo: Pattern
    answers: Mapping[str, Pattern]  # "no", "yes" and "open", as forms have them
    negation: Cues
    uncertainty: Cues
    history: Cues
    alone: Pattern
    alternative: Pattern
    boundary: Pattern
    new_item: Pattern  # where a positive finding begins within a list
    opener: Pattern  # how a positive finding begins on a line of its own
    unfinished: Pattern
    located: Pattern
    verbs: Pattern
    reach_before: int  # words
    reach_after: int


def compile_phrases(phrases: Iterable[str], where: str = "phrases") -> Pattern:
    """One expression that finds any of `phrases`, the longest first; DataError where one uses brackets wrongly."""
    wanted = sorted(phrases, key=len, reverse=True)
    if not wanted:
        return NOTHING
    return re.compile("|".join(f"(?:{_translate(phrase, where)})" for phrase in wanted), re.IGNORECASE)


@cache
def load_lexicon(findings: FindingSet) -> Lexicon:
    """The phrases of each finding of `findings`, in its order; DataError where no list has just these."""
    name = f"{findings.key}.yaml"
    lists = read_yaml(name)
    if set(lists) != set(findings.names):
        odd = ", ".join(sorted(set(lists) ^ set(findings.names)))
        raise DataError(f"{name}: the findings must be those of {findings.key}; see {odd}")
    return {finding: _finding_phrases(lists[finding], f"{name}, {finding}") for finding in findings}


@cache
def load_scope() -> Scope:
    """Negation, uncertainty, history and their reach, from scope.yaml."""
    lists = read_yaml("scope.yaml")

    def pattern(kind: str) -> Pattern:
        return compile_phrases(lists[kind], f"scope.yaml, {kind}")

    size, place = "|".join(lists["openers"]["size"]), "|".join(lists["openers"]["place"])
    cues: dict[str, Any] = {
        kind: Cues(*(compile_phrases(lists[kind][side], f"scope.yaml, {kind}") for side in ("before", "after")))
        for kind in ("negation", "uncertainty", "history")
    }
    plain: dict[str, Any] = {kind: pattern(kind) for kind in ("pseudo", "alone", "alternative", "boundary", "verbs")}
    return Scope(
        answers={kind: _answer(lists, kind) for kind in ("no", "yes", "open")},
        **cues,
        **plain,
        new_item=compile_phrases(
            [f", (and)? (a|an)? ({size}|{place})", f"(and|with) (a|an)? ({size})", "and (left|right|bibasilar|bibasal)"]
        ),
        opener=compile_phrases([f"({size}|{place}|no)"]),
        unfinished=re.compile(f"(?:{pattern('unfinished').pattern})\\s*$", re.IGNORECASE),
        located=re.compile(rf"\s*(?:{pattern('located').pattern})", re.IGNORECASE),
        reach_before=int(lists["reach"]["before"]),
        reach_after=int(lists["reach"]["after"]),
    )


def _answer(lists: Mapping[str, Any], kind: str) -> Pattern:
    """A colon or the like, the answer, and nothing more of the clause."""
    words = compile_phrases(lists["answers"][kind], "scope.yaml, answers").pattern
    sign = r"(?:\(e?s\))?\s*(?:\(y(?:es)?\s*/\s*no?\)\s*)?(?:[:=?(\[–—-]+|\.{3,})"
    return re.compile(rf"{sign}\s*(?:{words})\s*(?:$|[.,;)\]])", re.IGNORECASE)


def read_yaml(name: str) -> dict[str, Any]:
    """The phrase file `name` as plain lists and words; raises DataError if there is none, or it is no YAML mapping."""
    try:
        lists = packaged("medsd.studies.notes", f"phrases/{name}")
    except FileNotFoundError:
        raise DataError(f"there is no phrase list {name}; the labeller knows nih14") from None
    except yaml.YAMLError as error:
        raise DataError(f"{name}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(lists, dict):
        raise DataError(f"{name}: expected a mapping of names to lists of phrases")
    return lists


@cache
def mask_phrases(findings: FindingSet) -> tuple[str, ...]:
    """What names a finding of the set, in the language of the phrase lists.

    The labeller's lists `present` and `mask` of the finding of that title; of a finding that has none, its name, its
    title and its synonyms, in singular and plural.
    """
    lists, titles = read_yaml(f"{_MASKED_BY}.yaml"), {f.title: f.name for f in finding_set(_MASKED_BY).findings}
    phrases: dict[str, None] = {}
    for finding in findings.findings:
        if finding.title in titles:
            listed = lists[titles[finding.title]]
            phrases |= dict.fromkeys([*listed["present"], *listed.get("mask", [])])
        else:
            for words in (finding.name, finding.title, *finding.synonyms):
                phrases |= dict.fromkeys(_numbers(words))
    return tuple(phrases)


def _numbers(words: str) -> tuple[str, str]:
    """A finding's own words as phrases, one and many; "Nodule/Mass" has a space, which matches the slash too."""
    turned = " ".join(reversed(words.lower().split(", ")))  # MeSH: "Tube, Inserted"
    one = " ".join(re.sub(r"[_/()|]", " ", turned).split())
    return one, f"{one[:-1]}ies" if one.endswith("y") else f"{one}s"


def _finding_phrases(lists: Mapping[str, list[str]], where: str) -> tuple[Pattern, Pattern]:
    unknown = set(lists) - {"present", "not_this", "mask"}
    if unknown or not lists.get("present"):
        raise DataError(f"{where}: needs a list `present`; may have `not_this` and `mask`; found {', '.join(lists)}")
    return compile_phrases(lists["present"], where), compile_phrases(lists.get("not_this", []), where)


def _translate(phrase: str, where: str) -> str:
    """One phrase as the source of an expression; only its own words are ever code, and those are escaped."""
    pieces = list(_PIECE.finditer(str(phrase)))
    if not pieces or re.search(r"[()|]", _PIECE.sub("", str(phrase)) + "".join(p[3] or "" for p in pieces)):
        raise DataError(f"{where}: cannot read the phrase '{phrase}'; brackets are written (one|other)")
    source = ""
    waiting: list[str] = []  # parts that may be missing, written once it is known what follows them
    for piece in pieces:
        group, often, word = piece.groups()
        choice = "|".join(_words(option) for option in (group or "").split("|"))
        if word == "..":
            waiting.append(_GAP)
        elif often:
            waiting.append(f"(?:(?:{choice}){_GLUE}){'{0,3}' if often == '*' else '?'}")
        else:
            source += (_GLUE if source else "") + "".join(waiting) + (_words(word) if word else f"(?:{choice})")
            waiting = []
    # At a phrase's end the separator stands before what may be missing, not after it.
    return source + "".join(
        re.sub(rf"^\(\?:(.*){re.escape(_GLUE)}\)", lambda m: f"(?:{_GLUE}{m[1]})", part) for part in waiting
    )


def _words(text: str) -> str:
    """Words of a phrase; a star stands for any ending."""
    found = []
    for word in text.split():
        stem = word.rstrip("*")
        whole = rf"\b{re.escape(stem)}" + (r"\w*" if stem != word else r"\b")
        found.append(whole if re.search(r"\w", word) else re.escape(word))
    return _GLUE.join(found)
