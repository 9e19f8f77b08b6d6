"""The pieces of the page that Gradio has no component for: film, findings, notices and case cards, as HTML.

Every text goes through `html.escape`, whether it comes from a file, a bundle or a vocabulary; pictures come as data
URIs from `apps.web.render`. Styles are in style.css.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from apps.web.reading import Reading
from apps.web.render import PREVIEW_SIDE, Window, evidence_uri, film_uri, fit_side, thumbnail_uri
from medsd.bundle.layout import Bundle, OperatingPoint
from medsd.cases.case import SimilarCase
from medsd.findings import FindingSet

# The relation of a case to the film, in words for the reading room, and what they mean.
RELATION_TITLES: dict[str, tuple[str, str]] = {
    "equal": ("Same findings", "The case has exactly the findings called present here."),
    "superset": ("Same and more", "The case has all the findings called present here, and more."),
    "subset": ("Part of these", "The case has some of the findings called present here, and no other."),
    "overlap": ("Partly shared", "Case and film share some findings; each has some of its own."),
    "disjoint": ("Nothing shared", "Case and film share no finding."),
    "undetermined": ("Cannot tell", "Too little is known of the case, or decided for the film, to compare them."),
}
_CASES = "Nearest earlier cases"
_DISCLAIMER = "Research software, no medical device. Not for diagnosis or treatment."
_SYNTHETIC = "Trained on synthetic phantoms; not a medical result."
_VIEWS = {"LATERAL": "lateral", "LL": "lateral"}
_SEXES = {"F": "female", "M": "male"}


def percent(probability: float) -> str:
    """A probability as a person reads it: whole percents, and never 0 % or 100 %."""
    if probability < 0.01:
        return "< 1 %"
    return "> 99 %" if probability > 0.99 else f"{probability * 100:.0f} %"


def header(bundle: Bundle, provider: str) -> str:
    """The bar at the top: program, model and processor, disclaimer, and the switch of light and dark."""
    synthetic = f'<strong class="synthetic">{_SYNTHETIC}</strong> ' if bundle.description.synthetic else ""
    processor = f" · {escape(provider_words(provider))}" if provider else ""
    return (
        '<header class="bar"><h1>medsd</h1>'
        f'<span class="model">{escape(bundle.label)}{processor}</span>'
        f'<span class="disclaimer" role="note">{synthetic}{_DISCLAIMER}</span>'
        '<button type="button" class="plain" aria-label="Switch between light and dark" title="Light or dark" '
        "onclick=\"document.body.classList.toggle('dark')\">◐</button></header>"
    )


def provider_words(provider: str) -> str:
    """``"CUDAExecutionProvider"`` as «CUDA»."""
    return provider.removesuffix("ExecutionProvider")


def film(reading: Reading | None, window: Window, evidence_for: str | None, zoom: float = 1) -> str:
    """The reading area: the film under `window` with the evidence for one finding over it.

    Args:
        reading: None before the first film.
        window: level, width and inversion.
        evidence_for: a finding's name, or None for the bare film.
        zoom: how large it is shown; a large film comes in more detail.
    """
    if reading is None:
        return _empty_film("No film yet", "Drop a DICOM, PNG or JPEG file at the side, or take an example.")
    pixels = reading.at_zoom(zoom)
    if pixels is None:
        why = "The file was not read." if reading.prediction.refused else "This reading is of the note alone."
        return _empty_film("No film to show", why)
    height, width = pixels.shape
    layer, caption = _evidence(reading, evidence_for)
    return (
        f'<div class="plane" style="--ratio: {width / height:.4f}">'
        f'<img class="film" src="{film_uri(pixels, window)}" alt="The radiograph" draggable="false">'
        f"{layer}</div>{caption}"
    )


def busy_film() -> str:
    """The reading area while a study is being read."""
    return _empty_film("Reading …", "The film is decoded, scored and compared with earlier cases.", busy=True)


def _empty_film(title: str, text: str, *, busy: bool = False) -> str:
    spinner = '<span class="spinner" aria-hidden="true"></span>' if busy else ""
    return (
        f'<div class="empty" role="status">{spinner}<strong>{escape(title)}</strong><span>{escape(text)}</span></div>'
    )


def _evidence(reading: Reading, name: str | None) -> tuple[str, str]:
    """The layer over the film and the line that says what it is."""
    prediction = reading.prediction
    if name is None or prediction.evidence_maps is None:
        return "", ""
    label = f"{escape(prediction.findings.title(name))} {percent(prediction.probabilities[name])}"
    uri = evidence_uri(prediction.evidence(name))
    if uri is None:
        return "", f'<p class="legend">Evidence for {label}: no region stands out.</p>'
    legend = (
        f'<p class="legend">Evidence for {label}<span class="scale" aria-hidden="true"></span>'
        "<span>less → more, on this finding's own scale</span></p>"
    )
    return f'<img class="evidence" src="{uri}" alt="Evidence for {label}" draggable="false">', legend


def notice(reading: Reading | None) -> str:
    """What must be read before the findings, or instead of them; empty when there is nothing to say."""
    if reading is None or not reading.prediction.message:
        return ""
    refused = reading.prediction.refused
    kind, title = ("refused", "Not read") if refused else ("warned", "Read with care")
    if refused and reading.prediction.reason == "out_of_distribution":
        title = "Findings withheld"
    message = escape(_sentence(reading.prediction.message))
    after = " No findings are given for this film." if refused else ""
    return f'<div class="notice {kind}" role="alert"><strong>{title}.</strong> <span>{message}{after}</span></div>'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def findings(reading: Reading | None, points: dict[str, OperatingPoint], shown: str | None) -> str:
    """The findings, most probable first: title, probability as number and bar, threshold, call.

    Args:
        reading: None before the first film.
        points: the bundle's operating points by finding.
        shown: the finding whose evidence lies over the film.
    """
    if reading is None:
        return '<p class="quiet">The findings appear here, most probable first.</p>'
    if not reading.ranked:
        return ""
    hint = "Choose a finding to see where its evidence lies." if reading.prediction.evidence_maps is not None else ""
    rows = "".join(_finding_row(reading, name, points.get(name), name == shown) for name in reading.ranked)
    return (
        f'<table class="findings"><caption>Findings <span>{hint}</span></caption>'
        '<thead><tr><th scope="col">Finding</th><th scope="col">Probability</th><th scope="col">Call</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _finding_row(reading: Reading, name: str, point: OperatingPoint | None, shown: bool) -> str:
    probability = reading.prediction.probabilities[name]
    call = reading.prediction.calls.get(name, "undecided")
    title = escape(reading.prediction.findings.title(name))
    threshold = point.threshold if point else None
    tick = "" if threshold is None else f'<i style="left: {threshold * 100:.1f}%" title="called present from here"></i>'
    button = (
        title
        if reading.prediction.evidence_maps is None
        else f'<button type="button" data-finding="{escape(name)}" aria-pressed="{str(shown).lower()}">{title}</button>'
    )
    return (
        f'<tr class="{call}{" shown" if shown else ""}" data-name="{escape(name)}"><th scope="row">{button}</th>'
        f'<td><span class="number">{percent(probability)}</span><span class="track">'
        f'<b style="width: {probability * 100:.1f}%"></b>{tick}</span></td>'
        f'<td><span class="call" title="{_operating_point(point)}">{call}</span></td></tr>'
    )


def _operating_point(point: OperatingPoint | None) -> str:
    """Where the call comes from, for whoever rests on it."""
    if point is None or point.threshold is None:
        return "too few validation films to choose a threshold"
    words = f"called present from {point.threshold * 100:.0f} % on ({escape(point.rule)})"
    if point.sensitivity is None or point.specificity is None:
        return words
    return f"{words}: sensitivity {percent(point.sensitivity)}, specificity {percent(point.specificity)} in validation"


def busy_findings() -> str:
    """Placeholder rows while a study is being read."""
    return '<div class="skeleton" aria-hidden="true">' + "<span></span>" * 8 + "</div>"


def cases(reading: Reading | None) -> str:
    """The nearest earlier cases as cards; each opens larger, beside the film. Empty for a refused film."""
    if reading is None:
        return _no_cases("Earlier cases that resemble the film appear here, each with what it shares.")
    if reading.prediction.refused:
        return ""
    if not reading.cases:
        return _no_cases(reading.no_cases)
    vocabulary = reading.prediction.findings
    uris = [thumbnail_uri(content) for content in reading.pictures]
    pairs = list(zip(reading.cases, uris, strict=True))
    cards = "".join(_card(rank, case, uri, vocabulary) for rank, (case, uri) in enumerate(pairs, 1))
    dialogs = "".join(_side_by_side(rank, case, uri, reading) for rank, (case, uri) in enumerate(pairs, 1))
    against = f"<span>compared with what is called present in your film: {_present(reading)}</span>"
    return (
        f'<section class="cases" style="{_film_variable(reading)}"><h2>{_CASES} {against}</h2>'
        f"<ol>{cards}</ol>{dialogs}</section>"
    )


def busy_cases() -> str:
    """The cases while a study is being read."""
    return _no_cases("Searching …")


def _no_cases(text: str) -> str:
    return f'<section class="cases"><h2>{_CASES}</h2><p class="quiet">{escape(text)}</p></section>'


def _present(reading: Reading) -> str:
    """The findings called present, in words."""
    return _titles(reading.prediction.present, reading.prediction.findings)


def _titles(names: Sequence[str], vocabulary: FindingSet) -> str:
    return ", ".join(escape(vocabulary.title(name)) for name in names) or "no finding"


def _film_variable(reading: Reading) -> str:
    """The film as a CSS variable: sent once, shown beside every case."""
    if reading.display is None:
        return ""
    return f"--this-film: url({film_uri(fit_side(reading.display, PREVIEW_SIDE), Window(), quality=82)})"


def _badge(case: SimilarCase) -> str:
    title, meaning = RELATION_TITLES[case.relation]
    return f'<span class="badge {case.relation}" title="{meaning}">{title}</span>'


def _picture(uri: str | None, alt: str) -> str:
    if uri is None:
        return '<span class="nopicture"><span>No picture of this case</span></span>'
    return f'<img src="{uri}" alt="{alt}" draggable="false">'


def _card(rank: int, case: SimilarCase, uri: str | None, vocabulary: FindingSet) -> str:
    return (
        f'<li class="case" data-relation="{case.relation}"><button type="button" popovertarget="case-{rank}" '
        f'aria-label="Case {rank}: open beside this film">{_picture(uri, "")}'
        f'<span class="rank">{rank}</span></button><div class="about">'
        f'<p class="head">{_badge(case)}<span class="similarity">similarity {case.similarity:.2f}</span></p>'
        f'{_differences(case, vocabulary)}<p class="meta">{_meta(case)}</p></div></li>'
    )


def _differences(case: SimilarCase, vocabulary: FindingSet) -> str:
    """Shared, extra and missing findings, each line with its words: colour never says it alone."""
    lines = (
        ("shared", "In both", case.shared),
        ("extra", "Only in this case", case.extra),
        ("missing", "Only in your film", case.missing),
    )
    shown = "".join(_difference(kind, words, names, vocabulary) for kind, words, names in lines if names)
    # A finding of the case that the model left undecided is in none of the three.
    told = {*case.shared, *case.extra}
    untold = tuple(name for name in case.case.findings if name not in told)
    shown += _difference("untold", "In this case, undecided in your film", untold, vocabulary) if untold else ""
    nothing = "" if case.case.findings else '<p class="none">This case has no finding.</p>'
    return f'<div class="sets">{nothing}{shown}</div>'


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


def _side_by_side(rank: int, case: SimilarCase, uri: str | None, reading: Reading) -> str:
    """The dialog of one case: this film at the left, the case at the right."""
    vocabulary = reading.prediction.findings
    title = f"Case {rank} beside your film"
    here = (
        '<span class="thisfilm" role="img" aria-label="Your film"></span>'
        if reading.display is not None
        else '<span class="nopicture"><span>This reading is of a note alone</span></span>'
    )
    excerpt = case.case.note_excerpt
    note = f'<blockquote class="excerpt">{escape(excerpt)}</blockquote>' if excerpt else ""
    return (
        f'<div class="pair" id="case-{rank}" popover role="dialog" aria-label="{title}"><div class="title">'
        f'<strong>{title}</strong>{_badge(case)}<span class="similarity">similarity {case.similarity:.2f}</span>'
        f'<button type="button" class="plain" popovertarget="case-{rank}" popovertargetaction="hide" autofocus>'
        '✕ Close</button></div><div class="both">'
        f"<figure>{here}<figcaption><b>Your film</b>, called present: {_present(reading)}</figcaption></figure>"
        f"<figure>{_picture(uri, f'Case {rank}')}<figcaption><b>Case {rank}</b>: "
        f"{_titles(case.case.findings, vocabulary)}"
        f'<span class="meta">{_meta(case)}</span></figcaption></figure></div>'
        f"<p>{RELATION_TITLES[case.relation][1]}</p>{_differences(case, vocabulary)}{note}</div>"
    )
