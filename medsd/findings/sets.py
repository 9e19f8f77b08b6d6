"""The vocabularies of the public data sets, of the phantom and of Open-i's MeSH headings, from `vocabularies.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml

from medsd.errors import DataError
from medsd.findings.vocabulary import Finding, FindingSet

_TABLES: Mapping[str, Any] = yaml.load(
    (files("medsd.findings") / "vocabularies.yaml").read_text(encoding="utf-8"),
    Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader),  # the fast one where PyYAML has it
)
_FINDINGS: Mapping[str, Mapping[str, Mapping[str, Any] | None]] = {
    key: entries["findings"] for key, entries in _TABLES["sets"].items()
}

WIDER: Mapping[str, str] = _TABLES["wider"]
"""Concept → the wider concept that it is a kind of."""

LITERAL = frozenset(key for key, entries in _TABLES["sets"].items() if entries.get("literal"))
"""Sets whose wider labels are words of the report, not the sum of the narrower ones."""

MEANINGS: Mapping[str, Mapping[str, str]] = {
    key: {name: entry["concept"] for name, entry in findings.items() if entry and "concept" in entry}
    for key, findings in _FINDINGS.items()
}
"""Set → finding → the concept that it stands for, where that is not its own name in lower case."""


def _finding(key: str, name: str, entry: Mapping[str, Any]) -> Finding:
    concept = _TABLES["concepts"].get(MEANINGS[key].get(name, name.lower()), {})
    told = {"title": name[:1].upper() + name[1:], **concept, **entry}
    return Finding(name, told["title"], told.get("snomed", ""), told.get("radlex", ""), tuple(told.get("synonyms", ())))


FINDING_SETS: Mapping[str, FindingSet] = {
    key: FindingSet(
        key,
        tuple(_finding(key, name, entry or {}) for name, entry in findings.items()),
        tuple(_TABLES["sets"][key].get("negatives", ())),
    )
    for key, findings in _FINDINGS.items()
}


def finding_set(key: str) -> FindingSet:
    """The vocabulary called `key`.

    Raises:
        DataError: there is none of that name.
    """
    try:
        return FINDING_SETS[key]
    except KeyError:
        raise DataError(f"there is no finding set '{key}'; medsd has {', '.join(sorted(FINDING_SETS))}") from None
