"""The phrases that name a finding; they are masked where a note is an input and must not give the answer away."""

from __future__ import annotations

import re
from functools import cache

from medsd.findings import FindingSet, finding_set
from medsd.studies.notes.lexicon import read_yaml

_LISTED = "nih14"  # the vocabulary that has phrase lists


@cache
def mask_phrases(findings: FindingSet) -> tuple[str, ...]:
    """What names a finding of the set, in the language of the phrase lists.

    The labeller's lists `present` and `mask` of the finding of that title; of a finding that has none, its name, its
    title and its synonyms, in singular and plural.
    """
    lists, titles = read_yaml(f"{_LISTED}.yaml"), {f.title: f.name for f in finding_set(_LISTED).findings}
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
