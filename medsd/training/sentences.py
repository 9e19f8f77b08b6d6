"""Sentences that name findings, as a reader might look for films with them."""

from __future__ import annotations

from medsd.findings import FindingSet

FORMS = (
    "{}",
    "{}.",
    "large {}",
    "small {}",
    "known {}",
    "follow-up of {}",
    "with {}",
    "{} on the right",
    "{} on the left",
)


def sentences_of(findings: FindingSet) -> list[tuple[str, ...]]:
    """By finding, sentences that name it: its title and synonyms in all `FORMS`, the plain title first."""
    return [
        tuple(form.format(word.lower()) for word in (finding.title, *finding.synonyms) for form in FORMS)
        for finding in findings.findings
    ]
