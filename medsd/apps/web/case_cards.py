"""Earlier cases on the page: cards with their relation, each opening larger beside the film; pinned ones side by side.

One set of cards serves all tabs: a `Gallery` says what the cases are compared with, and in which words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

import numpy as np

from medsd.apps.web.reading import Reading
from medsd.apps.web.render import PREVIEW_SIDE, Window, evidence_uri, film_uri, fit_side, likeness_share, thumbnail_uri
from medsd.cases.case import SimilarCase
from medsd.errors import DataError
from medsd.findings import FindingSet

MOST_PINNED = 4
_CASES = "Nearest earlier cases"
_VIEWS = {"LATERAL": "lateral", "LL": "lateral"}
_SEXES = {"F": "female", "M": "male"}

# The relation of a case to the film, in words for the reading room, and what they mean.
RELATION_TITLES: dict[str, tuple[str, str]] = {
    "equal": ("Same findings", "The case has exactly the findings {here}."),
    "superset": ("Same and more", "The case has all the findings {here}, and more."),
    "subset": ("Part of these", "The case has some of the findings {here}, and no other."),
    "overlap": ("Partly shared", "The case has some of the findings {here}, and lacks others; it has some of its own."),
    "disjoint": ("Nothing shared", "The case has none of the findings {here}."),
    "undetermined": ("Cannot tell", "Too little is known of the case, or decided for the film, to compare them."),
}


class Pinned(NamedTuple):
    """A case that a person keeps while looking at others."""

    case: SimilarCase
    picture: bytes | None


@dataclass(frozen=True)
class Gallery:
    """What a row of cards is about.

    Attributes:
        key: begins the ids of its dialogs; "" for the tab «Read».
        title: its heading.
        against: what the cases are compared with, as HTML, or "".
        here: in which words the compared findings are spoken of.
        only_here: heading of what a case lacks.
        film: the film that stands beside a case, as a data URI, or None.
        film_words: what that film is, as HTML.
        likeness: for each case, what makes the two alike, as a data URI over the film, or None.
        case_likeness: the same over the picture of the case.
        related: whether the cases have a relation to something.
        pins: whether cases can be pinned.
    """

    key: str
    title: str
    against: str = ""
    here: str = "called present here"
    only_here: str = "Only in your film"
    film: str | None = field(default=None, repr=False)
    film_words: str = ""
    likeness: Sequence[str | None] = field(default=(), repr=False)
    case_likeness: Sequence[str | None] = field(default=(), repr=False)
    related: bool = True
    pins: bool = True


def cases(reading: Reading | None) -> str:
    """The nearest earlier cases as cards; each opens larger, beside the film. Empty for a refused film."""
    if reading is None:
        return no_cases("Earlier cases that resemble the film appear here, each with what it shares.")
    if reading.prediction.refused:
        return ""
    if not reading.cases:
        return no_cases(reading.no_cases)
    prediction = reading.prediction
    present = titles(prediction.present, prediction.findings) if prediction.present else escape(prediction.called())
    film = reading.display
    here = Gallery(
        key="",
        title=_CASES,
        against=f"compared with what is called present in your film: {present}",
        film=None if film is None else film_uri(fit_side(film, PREVIEW_SIDE), Window(), quality=82),
        film_words=f"<b>Your film</b>, called present: {present}",
        likeness=[_likeness_uri(reading, case) for case in reading.cases],
        case_likeness=reading.alike,
    )
    return gallery(here, reading.cases, reading.pictures, reading.prediction.findings)


def busy_cases() -> str:
    """The cases while a study is being read."""
    return no_cases("Searching …")


def no_cases(text: str, title: str = _CASES) -> str:
    """A sentence in the place of cases."""
    return f'<section class="cases"><h2>{title}</h2><p class="quiet" role="status">{escape(text)}</p></section>'


def gallery(
    about: Gallery, similar: Sequence[SimilarCase], pictures: Sequence[bytes | None], vocabulary: FindingSet
) -> str:
    """Cards and dialogs of some cases.

    Args:
        about: what they are compared with.
        similar: the cases.
        pictures: of each, or None.
        vocabulary: gives the titles of findings.
    """
    shown = [(rank, case, thumbnail_uri(picture)) for rank, (case, picture) in enumerate(_both(similar, pictures), 1)]
    cards = "".join(_card(about, rank, case, uri, vocabulary) for rank, case, uri in shown)
    dialogs = "".join(_side_by_side(about, rank, case, uri, vocabulary) for rank, case, uri in shown)
    against = f"<span>{about.against}</span>" if about.against else ""
    film = f' style="--this-film: url({about.film})"' if about.film else ""  # sent once, shown beside every case
    return f'<section class="cases"{film}><h2>{about.title} {against}</h2><ol>{cards}</ol>{dialogs}</section>'


def _both(similar: Sequence[SimilarCase], pictures: Sequence[bytes | None]) -> list[tuple[SimilarCase, bytes | None]]:
    return list(zip(similar, pictures, strict=True))


def titles(names: Sequence[str], vocabulary: FindingSet) -> str:
    """Findings in words, as HTML."""
    return ", ".join(escape(vocabulary.title(name)) for name in names) or "no finding"


def _likeness_uri(reading: Reading, case: SimilarCase) -> str | None:
    """What each place of the film adds to the likeness; None where the bundle does not say."""
    if reading.display is None or case.embedding is None:
        return None
    try:
        return evidence_uri(likeness_share(reading.prediction, case.embedding, reading.display.shape))
    except DataError:
        return None


def _badge(about: Gallery, case: SimilarCase) -> str:
    if not about.related:
        return "<span></span>"
    title, meaning = RELATION_TITLES[case.relation]
    return f'<span class="badge {case.relation}" title="{meaning.format(here=about.here)}">{title}</span>'


def _similarity(case: SimilarCase) -> str:
    return f'<span class="similarity">similarity {case.similarity:.2f}</span>'


def _scale(case: SimilarCase) -> str:
    """Where the similarity stands among training pairs of the same relation."""
    if case.percentile is None:
        return ""
    title = RELATION_TITLES[case.relation][0].lower()
    return (
        f'<p class="scale-words">More alike than <b>{case.percentile:.0f} %</b> of training pairs with this relation '
        f"({title})</p>"
    )


def _picture(uri: str | None, alt: str) -> str:
    if uri is None:
        return '<span class="nopicture"><span>No picture of this case</span></span>'
    return f'<img src="{uri}" alt="{alt}" draggable="false">'


def _card(about: Gallery, rank: int, case: SimilarCase, uri: str | None, vocabulary: FindingSet) -> str:
    pin = (
        f'<button type="button" class="plain pin" data-pin="{rank}" aria-label="Pin case {rank}">Pin</button>'
        if about.pins
        else ""
    )
    return (
        f'<li class="case" data-relation="{case.relation}"><button type="button" class="open" '
        f'popovertarget="{about.key}case-{rank}" aria-label="Case {rank}: open larger">{_picture(uri, "")}'
        f'<span class="rank">{rank}</span></button><div class="about">'
        f'<p class="head">{_badge(about, case)}{_similarity(case)}</p>{_scale(case)}'
        f'{_differences(about, case, vocabulary)}<p class="meta"><span>{_meta(case)}</span>{pin}</p></div></li>'
    )


def _differences(about: Gallery, case: SimilarCase, vocabulary: FindingSet) -> str:
    """Shared, extra and missing findings, each line with its words: colour never says it alone."""
    if not about.related:
        shown = _difference("shared", "Findings", case.case.findings, vocabulary) if case.case.findings else ""
        return f'<div class="sets">{shown or _nothing(case)}</div>'
    lines = (
        ("shared", "In both", case.shared),
        ("extra", "Only in this case", case.extra),
        ("missing", about.only_here, case.missing),
    )
    shown = "".join(_difference(kind, words, names, vocabulary) for kind, words, names in lines if names)
    # A finding of the case that the model left undecided, or was not trained for, is in none of the three.
    told = {*case.shared, *case.extra}
    untold = tuple(name for name in case.case.findings if name not in told)
    shown += _difference("untold", "In this case, without a call in your image", untold, vocabulary) if untold else ""
    return f'<div class="sets">{_nothing(case)}{shown}</div>'


def _nothing(case: SimilarCase) -> str:
    if case.case.findings:
        return ""
    said = "Nothing is known of the findings of this case." if np.isnan(case.case.labels).all() else ""
    return f'<p class="none">{said or "This case has no finding."}</p>'


def _difference(kind: str, words: str, names: Sequence[str], vocabulary: FindingSet) -> str:
    chips = "".join(f'<span class="chip">{escape(vocabulary.title(name))}</span>' for name in names)
    return f'<p class="{kind}"><span class="what">{words}</span>{chips}</p>'


def _meta(case: SimilarCase) -> str:
    about = case.case
    parts = (
        _VIEWS.get(about.view, about.view),
        _SEXES.get(about.sex, ""),
        f"{about.age_band} years" if about.age_band else "",
        about.source,
    )
    return " · ".join(escape(part) for part in parts if part)


def _side_by_side(about: Gallery, rank: int, case: SimilarCase, uri: str | None, vocabulary: FindingSet) -> str:
    """The dialog of one case: the film at the left where there is one, the case at the right."""
    key = f"{about.key}case-{rank}"
    title = f"Case {rank} beside your film" if about.film_words else f"Case {rank}"
    layer, layer_there = (
        layers[rank - 1] if rank <= len(layers) else None for layers in (about.likeness, about.case_likeness)
    )
    excerpt = case.case.note_excerpt
    note = f'<blockquote class="excerpt">{escape(excerpt)}</blockquote>' if excerpt else ""
    switch = (
        '<label class="alike"><input type="checkbox"> Show what makes them alike</label>' if layer is not None else ""
    )
    meaning = f"<p>{RELATION_TITLES[case.relation][1].format(here=about.here)}</p>" if about.related else ""
    shown = _picture(uri, f"Case {rank}")
    if uri is not None and layer_there is not None:
        shown = f'<div class="stage">{shown}{_layer(layer_there)}</div>'
    there = (
        f"<figure>{shown}<figcaption><b>Case {rank}</b>: "
        f"{titles(case.case.findings, vocabulary)}"
        f'<span class="meta">{_meta(case)}</span></figcaption></figure>'
    )
    return (
        f'<div class="pair" id="{key}" popover role="dialog" aria-label="{title}"><div class="title">'
        f"<strong>{title}</strong>{_badge(about, case)}{_similarity(case)}{switch}"
        f'<button type="button" class="plain close" popovertarget="{key}" popovertargetaction="hide" autofocus>'
        f'✕ Close</button></div><div class="both">{_this_film(about, layer)}{there}</div>'
        f"{meaning}{_scale(case)}{_differences(about, case, vocabulary)}{note}</div>"
    )


def _this_film(about: Gallery, layer: str | None) -> str:
    if not about.film_words:
        return ""
    if about.film is None:
        shown = '<span class="nopicture"><span>This reading is of a note alone</span></span>'
    else:
        over = _layer(layer) if layer else ""
        shown = f'<span class="thisfilm" role="img" aria-label="Your film"></span>{over}'
    return f'<figure><div class="stage">{shown}</div><figcaption>{about.film_words}</figcaption></figure>'


def _layer(uri: str) -> str:
    return f'<img class="likeness" src="{uri}" alt="Places that make the two alike">'


def pinned(pins: Sequence[Pinned], vocabulary: FindingSet) -> str:
    """The pinned cases side by side; empty where there are none."""
    if not pins:
        return ""
    figures = "".join(_pinned(place, pin, vocabulary) for place, pin in enumerate(pins))
    return (
        '<section class="cases pinned"><h2>Pinned cases <span>they stay while you read other films</span></h2>'
        f'<div class="compare">{figures}</div></section>'
    )


def _pinned(place: int, pin: Pinned, vocabulary: FindingSet) -> str:
    return (
        f"<figure>{_picture(thumbnail_uri(pin.picture), f'Pinned case {place + 1}')}<figcaption>"
        f"<b>{titles(pin.case.case.findings, vocabulary)}</b>"
        f'<span class="meta"><span>{_meta(pin.case)}</span>'
        f'<button type="button" class="plain" data-unpin="{place}" aria-label="Unpin case {place + 1}">Unpin</button>'
        "</span></figcaption></figure>"
    )
