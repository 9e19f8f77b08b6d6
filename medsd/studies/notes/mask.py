"""Masking of the words that name a finding, where a note is used as an input and must not give the answer away."""

from __future__ import annotations

from medsd.findings import FindingSet
from medsd.studies.notes.lexicon import load_lexicon
from medsd.studies.notes.sections import PLACEHOLDER


def mask_findings(text: str, findings: FindingSet, *, mask: str = PLACEHOLDER) -> str:
    """`text` with every phrase of the labeller's lists, and their `mask` lists, replaced by `mask`.

    Negated mentions are masked too: «no effusion» tells as much as «effusion». Words outside the lists stay, so a
    masked note may still hint at a diagnosis.

    Raises:
        DataError: there are no phrase lists for this vocabulary.
    """
    for phrases in load_lexicon(findings).values():
        text = phrases.mask.sub(mask, text)
    return text
