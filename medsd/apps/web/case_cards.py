"""Earlier cases on the page: cards with their relation, each opening larger beside the image; pinned ones side by side.

One set of cards serves all tabs: a `Gallery` says what the cases are compared with, and in which words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from medsd.apps.web.html import fill
from medsd.apps.web.reading import Reading
from medsd.cases.case import SimilarCase
from medsd.cases.explain import RELATION_TITLES, likeness, percentile_words, sentence, signed, who, who_briefly
from medsd.errors import DataError
from medsd.findings import FindingSet
from medsd.results.render import evidence_uri, likeness_share, thumbnail_uri

MOST_PINNED = 4
_CASES = "Nearest earlier cases"

# What the relations of a case to the study mean; their titles are those of every document.
_MEANINGS = {
    "equal": "The case has exactly the findings {here}.",
    "superset": "The case has all the findings {here}, and more.",
    "subset": "The case has some of the findings {here}, and no other.",
    "overlap": "The case has some of the findings {here}, and lacks others; it has some of its own.",
    "disjoint": "The case has none of the findings {here}.",
    "undetermined": "Too little is known of the case, or decided for the image, to compare them.",
}
_RELATIONS = {relation: (title, _MEANINGS[relation]) for relation, title in RELATION_TITLES.items()}


class Pinned(NamedTuple):
    """A case that a person keeps while looking at others."""

    case: SimilarCase
    picture: bytes | None


@dataclass(frozen=True)
class Gallery:
    """What a row of cards is about."""

    key: str  # begins the ids of its dialogs; "" for the tab Read
    title: str
    against: str = ""  # what the cases are compared with
    here: str = "called present here"  # in which words the compared findings are spoken of
    image: bool = False  # whether an image stands beside a case: that of the reading area
    image_words: str = ""  # what was read beside a case; "" where cases stand alone
    likeness: Sequence[str | None] = field(default=(), repr=False)  # data URIs over the image: what makes the two alike
    case_likeness: Sequence[str | None] = field(default=(), repr=False)  # the same over the pictures of the cases
    related: bool = True  # whether the cases have a relation to something
    pins: bool = True  # whether cases can be pinned
    before: int = 0  # how many cases stand on earlier pages
    shares: Sequence[float] = ()  # the part of each case's similarity that a box gives; empty without a box
    back: bool = False  # whether there is a way back to the nearest cases
    of: str = ""  # the key of the reading that they stand beside


def cases(reading: Reading | None) -> str:
    """The cases beside a study as cards; each opens larger, beside the image. Empty for a refused image."""
    if reading is None:
        return no_cases("Earlier cases that resemble the image appear here, each with what it shares.")
    prediction = reading.prediction
    if prediction.refused:
        return ""
    near = reading.near
    if not reading.cases and near is None:
        return no_cases(reading.no_cases)
    present = titles(prediction.present, prediction.findings) if prediction.present else "nothing"
    beside = near or reading
    here = Gallery(
        key="",
        title=near.title if near else _CASES,
        against=near.against if near else f"compared with what is called present in your image: {present}",
        here=near.here if near else "called present here",
        image=reading.display is not None,
        image_words=f"called present: {present}",
        likeness=[_likeness_uri(reading, case) for case in beside.cases],
        case_likeness=() if near else reading.alike,
        shares=near.shares if near else (),
        back=near is not None,
        of=reading.key,
    )
    return gallery(here, beside.cases, beside.pictures, prediction.findings)


def no_cases(text: str, title: str = _CASES) -> str:
    """A sentence in the place of cases."""
    return fill("no_cases", text=text, title=title)


def gallery(
    about: Gallery, similar: Sequence[SimilarCase], pictures: Sequence[bytes | None], vocabulary: FindingSet
) -> str:
    """Cards and dialogs of some cases, each with its picture or None; `vocabulary` gives the titles of findings."""
    cards: list[dict[str, Any]] = [
        {
            "rank": rank,
            "number": about.before + rank,
            "relation": case.relation if about.related else "",
            "case": case,
            "uri": thumbnail_uri(picture),
            "likeness": about.likeness[rank - 1] if rank <= len(about.likeness) else None,
            "case_likeness": about.case_likeness[rank - 1] if rank <= len(about.case_likeness) else None,
            "findings": titles(case.case.findings, vocabulary),
            "sentence": _sentence(about, case, vocabulary),
            "alike": f"{signed(about.shares[rank - 1])} in the box" if about.shares else likeness(case),
            "percentile": percentile_words(case),
            "meta": who(case),
            "brief": who_briefly(case),
        }
        for rank, (case, picture) in enumerate(zip(similar, pictures, strict=True), 1)
    ]
    # Where another order counts, cards do not stand in groups.
    relations = [*RELATION_TITLES, ""] if not about.shares else []
    groups = [(relation, [card for card in cards if card["relation"] == relation]) for relation in relations]
    shown = [group for group in groups if group[1]] or [("", cards)]
    return fill("gallery", about=about, cards=cards, groups=shown, relations=_RELATIONS)


def _sentence(about: Gallery, case: SimilarCase, vocabulary: FindingSet) -> str:
    """What a case shares; its findings alone where it is compared with nothing."""
    if about.related:
        return sentence(case, vocabulary)
    unknown = bool(np.isnan(case.case.labels).all())
    said = "nothing is known of its findings" if unknown else titles(case.case.findings, vocabulary)
    return said[:1].upper() + said[1:]


def titles(names: Sequence[str], vocabulary: FindingSet) -> str:
    """Findings in words."""
    return ", ".join(vocabulary.title(name) for name in names) or "no finding"


def _likeness_uri(reading: Reading, case: SimilarCase) -> str | None:
    """What each place of the image adds to the likeness; None where there is no image."""
    if reading.display is None or case.embedding is None:
        return None
    try:
        return evidence_uri(likeness_share(reading.prediction, case.embedding, reading.display.shape))
    except DataError:
        return None


def pinned(pins: Sequence[Pinned], vocabulary: FindingSet) -> str:
    """The pinned cases side by side; empty where there are none."""
    shown: list[dict[str, Any]] = [
        {
            "uri": thumbnail_uri(pin.picture),
            "findings": titles(pin.case.case.findings, vocabulary),
            "meta": who(pin.case),
        }
        for pin in pins
    ]
    return fill("pinned", pins=shown) if shown else ""
