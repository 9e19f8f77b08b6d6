"""The pieces of the page that Gradio has no component for: film, findings, notices and case cards, as HTML.

Every text goes through `html.escape`, whether it comes from a file, a bundle or a vocabulary; pictures come as data
URIs from `medsd.apps.web.render`. Styles are in style.css.
"""

from __future__ import annotations

from html import escape

from medsd.apps.web.reading import Reading
from medsd.apps.web.record import DISCLAIMER, SYNTHETIC
from medsd.apps.web.render import Window, evidence_uri, film_uri
from medsd.bundle.layout import Bundle, Description
from medsd.calibration.types import OperatingPoint
from medsd.cases.vote import FindingVote
from medsd.inference.prediction import NOT_TRAINED, Prediction

_AGREE = {"present": "absent", "absent": "present"}  # what it means to disagree with a call
_CALL_ORDER = {"present": 0, "undecided": 1, "absent": 2, NOT_TRAINED: 3}
_CALLED = {"absent": "called absent", "undecided": "undecided"}
_SETS = {"both": "both present and absent conform", "neither": "unlike the validation films of either"}


def percent(probability: float) -> str:
    """A probability as a person reads it: whole percents, and never 0 % or 100 %."""
    if probability < 0.01:
        return "< 1 %"
    return "> 99 %" if probability > 0.99 else f"{probability * 100:.0f} %"


def header(bundle: Bundle, provider: str, precision: str = "") -> str:
    """The bar at the top: program, model and processor, disclaimer, and the switch of light and dark."""
    synthetic = f'<strong class="synthetic">{SYNTHETIC}</strong> ' if bundle.description.synthetic else ""
    processor = "".join(f" · {escape(part)}" for part in (provider_words(provider), precision) if part)
    return (
        '<header class="bar"><h1>medsd</h1>'
        f'<span class="model">{escape(bundle.label)}{processor}</span>'
        f'<span class="disclaimer" role="note">{synthetic}{DISCLAIMER}</span>'
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


def shown_first(reading: Reading) -> str | None:
    """The finding whose evidence lies over an image that was just read: the most probable that is called present.

    Where nothing is called present none is shown: a hot spot would contradict the calls.
    """
    if reading.prediction.evidence_maps is None:
        return None
    return next((name for name in reading.ranked if reading.prediction.calls.get(name) == "present"), None)


def evidence_words(prediction: Prediction, name: str) -> str:
    """What a layer of evidence is, as plain text: the finding, its probability, and the call where it is not present.

    Evidence is drawn on its own scale, so there is a brightest place even where the model calls a finding absent.
    """
    call = prediction.said(name)
    words = f"Evidence for {prediction.findings.title(name)} {percent(prediction.probabilities[name])}"
    return words if call == "present" else f"{words}, which is {_CALLED[call]}: where most speaks for it, not a finding"


def _evidence(reading: Reading, name: str | None) -> tuple[str, str]:
    """The layer over the image and the line that says what it is."""
    prediction = reading.prediction
    if name is None or prediction.evidence_maps is None:
        return "", ""
    words = escape(evidence_words(prediction, name))
    uri = evidence_uri(prediction.evidence(name))
    if uri is None:
        return "", _legend(f"{words}. No region stands out.")
    scale = (
        '<span class="scale" aria-hidden="true"></span><span>less → more, on this finding\'s own scale</span>'
        '<span class="unseen">hidden: Evidence is at 0 %</span>'
    )
    return f'<img class="evidence" src="{uri}" alt="{words}" draggable="false">', _legend(
        f"<span>{words}</span>{scale}"
    )


def _legend(line: str) -> str:
    return f'<div class="foot"><p class="legend">{line}</p></div>'


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


def findings(reading: Reading | None, about: Description | None, shown: str | None, *, feedback: bool = False) -> str:
    """The findings, most probable first: title, probability as number and bar, threshold, call, vote of the cases.

    Args:
        reading: None before the first film.
        about: the bundle, whose operating points and calibration the table names.
        shown: the finding whose evidence lies over the film.
        feedback: whether to ask what the person thinks of each.
    """
    if reading is None:
        return '<p class="quiet">The findings appear here, most probable first.</p>'
    if not reading.ranked or about is None:
        return ""
    votes = {vote.finding: vote for vote in reading.votes}
    columns = [("probability", "Probability", "descending"), ("call", "Call", "none")]
    columns += [("cases", "Cases", "none")] if votes else []
    heads = _head("title", "Finding", "none") + "".join(_head(*column) for column in columns)
    heads += '<th scope="col">Your view</th>' if feedback else ""
    rows = "".join(
        _finding_row(reading, name, about, votes.get(name), name == shown, feedback) for name in reading.ranked
    )
    said = about.calibration_words()
    calibration = f'<p class="quiet" role="note">{escape(said)}</p>' if said else ""
    return (
        f'<table class="findings"><caption>Findings <span>{_hint(reading)}</span></caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{_disagreement(reading)}{calibration}"
    )


def _head(key: str, title: str, order: str) -> str:
    return (
        f'<th scope="col" aria-sort="{order}"><button type="button" data-sort="{key}" title="Sort by {title.lower()}">'
        f"{title}</button></th>"
    )


def _hint(reading: Reading) -> str:
    hint = "Choose a finding to see where its evidence lies." if reading.prediction.evidence_maps is not None else ""
    coverage = reading.prediction.coverage
    return f"{hint} Calls cover {coverage * 100:g} % of patients." if coverage is not None else hint


def _disagreement(reading: Reading) -> str:
    """Where the cases contradict the model, in a sentence: a flag in a table is soon overlooked."""
    against = [vote for vote in reading.votes if vote.disagrees]
    if not against:
        return ""
    said = "; ".join(
        f"{escape(reading.prediction.findings.title(vote.finding))} is {vote.call} for the model, "
        f"{vote.share_call} by the cases"
        for vote in against
    )
    return f'<p class="disagreement" role="note"><strong>⚑ Model and nearest cases disagree.</strong> {said}.</p>'


def _finding_row(
    reading: Reading,
    name: str,
    about: Description,
    vote: FindingVote | None,
    shown: bool,
    feedback: bool,
) -> str:
    probability = reading.prediction.probabilities.get(name)
    call, point = reading.prediction.said(name), about.operating_points.get(name)
    title = escape(reading.prediction.findings.title(name))
    button = (
        title
        if reading.prediction.evidence_maps is None or probability is None
        else f'<button type="button" data-finding="{escape(name)}" aria-pressed="{str(shown).lower()}">{title}</button>'
    )
    key = "-1" if probability is None else f"{probability:.6f}"
    share = -1.0 if vote is None or vote.share != vote.share else vote.share
    return (
        f'<tr class="{call.replace(" ", "-")}{" shown" if shown else ""}" data-name="{escape(name)}" '
        f'data-title="{title.lower()}" '
        f'data-probability="{key}" data-call="{_CALL_ORDER[call]}" data-cases="{share:.4f}">'
        f'<th scope="row">{button}</th><td>{_bar(reading, probability, point)}</td>'
        f"<td>{_call(reading, name, call, about)}</td>{_vote_cell(reading, vote)}"
        f"{_opinion_cell(reading, name, call, title) if feedback else ''}</tr>"
    )


def _bar(reading: Reading, probability: float | None, point: OperatingPoint | None) -> str:
    if probability is None:
        return '<span class="number">–</span>'
    threshold = point.threshold if point and reading.prediction.coverage is None else None
    tick = "" if threshold is None else f'<i style="left: {threshold * 100:.1f}%" title="called present from here"></i>'
    return (
        f'<span class="number">{percent(probability)}</span><span class="track" aria-hidden="true">'
        f'<b style="width: {probability * 100:.1f}%"></b>{tick}</span>'
    )


def _call(reading: Reading, name: str, call: str, about: Description) -> str:
    """The call, and below it where it comes from."""
    if call == NOT_TRAINED:
        return f'<span class="call" title="{escape(about.not_trained.get(name, ""))}">{call}</span>'
    point = about.operating_points.get(name)
    coverage = reading.prediction.coverage
    if coverage is not None:
        found = reading.prediction.conformal_sets.get(name, "both")
        why = _SETS.get(found, f"the other call does not conform at {coverage * 100:g} %")
        return f'<span class="call" title="{why}">{call}</span>'
    start = "" if point is None or point.threshold is None else f"<small>from {point.threshold * 100:.0f} %</small>"
    return f'<span class="call" title="{_operating_point(point)}">{call}</span>{start}'


def _vote_cell(reading: Reading, vote: FindingVote | None) -> str:
    if not reading.votes:
        return ""
    if vote is None or vote.share != vote.share:
        return '<td><span class="vote" title="no case near this film knows the finding">–</span></td>'
    title = f"{percent(vote.share)} of the nearest cases have it, weighted by likeness"
    share = f'<span class="vote" title="{title}">{vote.share * 100:.0f} %</span>'
    if not vote.disagrees:
        return f"<td>{share}</td>"
    return f'<td class="against">{share} <span class="flag">⚑ {vote.share_call}</span></td>'


def _opinion_cell(reading: Reading, name: str, call: str, title: str) -> str:
    """Two buttons: agree or disagree with a call; where there is none, present or absent."""
    pairs = (
        (("present", "present", "+"), ("absent", "absent", "−"))
        if call not in _AGREE
        else ((call, "agree", "✓"), (_AGREE[call], "disagree", "✗"))
    )
    said = reading.opinions.get(name)
    buttons = "".join(
        f'<button type="button" class="opinion" data-opinion="{opinion}" data-on="{escape(name)}" '
        f'aria-pressed="{str(said == opinion).lower()}" aria-label="{words}: {title} {call}" title="{words}">'
        f"{sign}</button>"
        for opinion, words, sign in pairs
    )
    return f'<td class="view">{buttons}</td>'


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
