"""A note as its sections, with what was known before reading kept apart from the report, which gives the answer away.

Start at `read_note`. Headings are found in capitals, with a colon, on a line of their own or run together in one line.
"""

import re
from dataclasses import dataclass, fields
from functools import cache

from medsd.studies.notes.lexicon import read_yaml
from medsd.text import normalise_text

PLACEHOLDER = "___"
# XXXX: Open-i. ___: MIMIC-CXR. [** **]: MIMIC-II and -III. <unk>-like tags are not theirs.
_REMOVED = re.compile(r"\[\*\*.{0,200}?\*\*\]|\bX{3,}\b|_{2,}", re.DOTALL)
# A placeholder that swallowed part of a word ("x-XXXX", "XXXX-a-XXXX") keeps the rest.


@dataclass(frozen=True)
class Note:
    """The sections of one note; empty where the note has none."""

    indication: str = ""  # the first two are what the request form says
    history: str = ""
    comparison: str = ""  # earlier images, as the reader names them
    technique: str = ""  # how the image was taken
    findings: str = ""  # what the reader wrote, like the impression
    impression: str = ""
    unheaded: str = ""  # text under no known heading; it is taken as the reader's

    @property
    def before_reading(self) -> str:
        """What was known before anybody read the image: the only text that may be an input."""
        return _joined(self.indication, self.history)

    @property
    def report(self) -> str:
        """What the reader wrote: a source of labels, never an input."""
        return _joined(self.unheaded, self.findings, self.impression)

    def __repr__(self) -> str:
        # The text may identify a patient; it stays out of logs.
        held = [f.name for f in fields(self) if getattr(self, f.name)]
        return f"Note(sections: {', '.join(held) or 'none'})"


def read_note(text: str) -> Note:
    """Split free text into its sections; placeholders of de-identification become ``___``."""
    clean = normalise_placeholders(text)
    parts: dict[str, list[str]] = {}
    section, start = "unheaded", 0
    for heading in _headings().finditer(clean):
        parts.setdefault(section, []).append(clean[start : heading.start()])
        name = next(text for text in heading.groupdict().values() if text)
        section = _names().get(" ".join(re.split(r"[ \t/&]+", name.lower().strip())), "unheaded")
        start = heading.end()
    parts.setdefault(section, []).append(clean[start:])
    told = {name: _joined(*(piece.strip() for piece in pieces)) for name, pieces in parts.items()}
    return Note(**told)


def normalise_placeholders(text: str) -> str:
    """`text` in one spelling (`medsd.text`), with every placeholder of Open-i, MIMIC-CXR and -III as ``___``."""
    return _REMOVED.sub(PLACEHOLDER, normalise_text(text))


def _joined(*texts: str) -> str:
    return "\n".join(text for text in texts if text)


@cache
def _names() -> dict[str, str]:
    return {name: section for section, names in read_yaml("sections.yaml").items() for name in names}


@cache
def _headings() -> re.Pattern[str]:
    names = sorted(_names(), key=len, reverse=True)
    any_case = "|".join(re.escape(name).replace(r"\ ", r"[ \t/&]+") for name in names)
    capitals = "|".join(re.escape(name.upper()).replace(r"\ ", r"[ \t/&]+") for name in names)
    return re.compile(
        # At a line's start with a colon in any case; alone on its line with a capital.
        rf"^[ \t#*>]*(?P<line>(?i:{any_case}))[ \t*]*:[ \t*]*"
        rf"|^[ \t#*>]*(?P<alone>(?=[A-Z])(?i:{any_case}))[ \t*]*$"
        # Run together: capitals with a colon anywhere, a capital letter and a colon after a sentence's end.
        rf"|(?<![\w/])(?P<caps>{capitals})[ \t]*:[ \t]*"
        rf"|(?<=[.;?!])[ \t]+(?P<inline>(?=[A-Z])(?i:{any_case}))[ \t]*:[ \t]*"
        # Capitals at a line's start, the text following without a colon.
        rf"|^[ \t]*(?P<bare>{capitals})[ \t]+(?=[A-Z0-9_][a-z0-9_. ])"
        # A heading that is not listed ends a section: what follows may be the reader's, so it is not the request's.
        r"|^[ \t]*(?P<unknown>[A-Z][A-Z &/]{2,40}):[ \t]*",
        re.MULTILINE,
    )
