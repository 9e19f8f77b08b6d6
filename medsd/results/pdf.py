"""A reading as PDF: image with evidence, findings, cases with their relations, model and hash; the disclaimer on every
page.

Nothing in it says who was examined: no note, file name, header or patient's key. The letters are those of DejaVu Sans,
which Matplotlib brings, so that a title in any European script prints.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from medsd.bundle.layout import Bundle, Description
from medsd.cases.case import SimilarCase
from medsd.cases.explain import likeness, percentile_words, relation_line, who
from medsd.cases.vote import FindingVote, share_words
from medsd.inference.prediction import Prediction
from medsd.inference.words import GROUPS, LEGEND, called_by, grouped, impression, notice_words, percent, reason
from medsd.results.result import DISCLAIMER, SYNTHETIC

_MARGIN, _FOOT = 40.0, 54.0  # points
_IMAGE_HEIGHT, _CASE_SIDE = 300.0, 54.0
_INK, _SOFT, _LINE, _ALERT = "#17212b", "#52606d", "#d5dde5", "#a11d2f"


@dataclass(frozen=True)
class Figure:
    content: bytes = field(repr=False)  # an encoded PNG, JPEG or WebP
    caption: str = ""  # the line below it


def reading_pdf(
    prediction: Prediction,
    bundle: Bundle,
    cases: Sequence[SimilarCase] = (),
    votes: Sequence[FindingVote] = (),
    *,
    figures: Sequence[Figure] = (),
    pictures: Sequence[bytes | None] = (),
    when: str = "",
) -> bytes:
    """One reading, by `bundle`'s model, as a PDF document of A4 pages; a refused one gives the reason, not findings.

    `cases` are the nearest earlier cases and `votes` what they say of each finding; `figures` one or two pictures of
    the image, side by side; `pictures` one of each case, or None, or none at all. `when` is the time of the reading,
    ISO 8601; without it the document has no time in it, and the same reading gives the same bytes.
    """
    from reportlab.lib.pagesizes import A4
    from reportlab.platypus import SimpleDocTemplate

    _register_fonts()
    buffer = io.BytesIO()
    margins = {"leftMargin": _MARGIN, "rightMargin": _MARGIN, "topMargin": _MARGIN, "bottomMargin": _FOOT}
    names = dict.fromkeys(("author", "creator", "producer"), "medsd")
    document = SimpleDocTemplate(buffer, pagesize=A4, title="medsd reading", invariant=1, **margins, **names)
    warning = [DISCLAIMER, *([SYNTHETIC] if bundle.description.synthetic else [])]

    def footer(canvas: Any, page: Any) -> None:
        canvas.saveState()
        canvas.setFont("medsd-bold", 8)
        for line, words in enumerate(warning):
            canvas.drawString(_MARGIN + 6, _FOOT - 20 - 11 * line, words)
        canvas.setFont("medsd", 8)
        canvas.drawRightString(A4[0] - _MARGIN, _FOOT - 20, f"page {page.page}")
        canvas.restoreState()

    story = [
        *_head(prediction, bundle, when),
        *_image(figures, document.width),
        *_findings(prediction, bundle, votes),
        *_cases(cases, pictures or [None] * len(cases), prediction, document.width),
    ]
    document.build(story, onFirstPage=footer, onLaterPages=footer)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _register_fonts() -> None:
    import matplotlib
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    pdfmetrics.registerFont(TTFont("medsd", str(folder / "DejaVuSans.ttf")))
    pdfmetrics.registerFont(TTFont("medsd-bold", str(folder / "DejaVuSans-Bold.ttf")))
    pdfmetrics.registerFontFamily("medsd", normal="medsd", bold="medsd-bold", italic="medsd", boldItalic="medsd-bold")


def _text(words: str, size: float = 9, *, bold: bool = False, colour: str = _INK, after: float = 4) -> Any:
    """A paragraph of plain words; whatever looks like mark-up in them is printed as it stands."""
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Paragraph

    font = "medsd-bold" if bold else "medsd"
    look = {"fontSize": size, "leading": size * 1.35, "textColor": colour, "spaceAfter": after}
    return Paragraph(escape(words), ParagraphStyle("text", fontName=font, **look))


def _head(prediction: Prediction, bundle: Bundle, when: str) -> list[Any]:
    lines = [
        f"Model {prediction.model or bundle.label}, computed by {prediction.provider or 'unknown'}",
        f"sha256 of model.onnx {prediction.model_sha256 or bundle.model_sha256}",
        when and f"Read {when}",
        prediction.study_key and f"Study key {prediction.study_key}",
    ]
    notice = ": ".join(filter(None, notice_words(prediction)))
    return [
        _text("Reading of a chest radiograph", 16, bold=True, after=6),
        *(_text(line, 8, colour=_SOFT, after=1) for line in lines if line),
        _text("", 4),
        *([_text(notice, 10, colour=_ALERT, after=8)] if notice else []),
    ]


def _picture(content: bytes, width: float, height: float) -> Any:
    """The picture, re-encoded as JPEG, as large as `width` and `height` allow."""
    from PIL import Image as Pillow
    from reportlab.platypus import Image

    with Pillow.open(io.BytesIO(content)) as opened:
        picture = opened.convert("RGB")
    scale = min(width / picture.width, height / picture.height)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return Image(buffer, picture.width * scale, picture.height * scale)


def _image(figures: Sequence[Figure], width: float) -> list[Any]:
    from reportlab.platypus import Table

    if not figures:
        return []
    share = width / len(figures)
    pictures = [_picture(figure.content, share - 8, _IMAGE_HEIGHT) for figure in figures]
    captions = [_text(figure.caption, 8, colour=_SOFT) for figure in figures]
    table = Table([pictures, captions], colWidths=[share] * len(figures), hAlign="LEFT")
    table.setStyle([("ALIGN", (0, 0), (-1, -1), "LEFT"), ("LEFTPADDING", (0, 0), (-1, -1), 2)])
    return [table]


def _findings(prediction: Prediction, bundle: Bundle, votes: Sequence[FindingVote]) -> list[Any]:
    if not prediction.ranked:
        return []
    about, said = bundle.description, {vote.finding: vote for vote in votes}
    rows: list[list[Any]] = [["Finding", "", "Probability", "Called present from", "Nearest cases"]]
    for key, names in grouped(prediction).items():
        rows += [[f"{GROUPS[key]} ({len(names)})", "", "", "", ""]]
        rows += [_finding(prediction, name, about, said.get(name)) for name in names]
    calls = called_by(prediction.coverage)
    lines = [_text(line, 8, colour=_SOFT) for line in (calls, LEGEND, about.calibration_words()) if line]
    shown = rows if said else [row[:-1] for row in rows]
    against = sum(vote.disagrees for vote in votes)
    return [
        _text(impression(prediction, against), 10.5, bold=True, after=8),
        _text("Findings", 12, bold=True),
        _table(shown, (130, 160, 65, 80, 80)),
        *lines,
        _text("", 4),
    ]


def _finding(prediction: Prediction, name: str, about: Description, vote: FindingVote | None) -> list[Any]:
    point, probability = about.operating_points.get(name), prediction.probabilities.get(name)
    threshold = point.threshold if point and probability is not None and prediction.coverage is None else None
    return [
        prediction.findings.title(name),
        reason(prediction, name, threshold),
        "–" if probability is None else percent(probability),
        "–" if threshold is None else percent(threshold),
        "–" if vote is None else share_words(vote.share) + (f" ⚑ {vote.share_call}" if vote.disagrees else ""),
    ]


def _table(rows: list[list[Any]], widths: Sequence[float]) -> Any:
    from reportlab.lib.colors import HexColor
    from reportlab.platypus import Table

    cells = [
        [_text(cell, 8.5, bold=number == 0, after=0) if isinstance(cell, str) else cell for cell in row]
        for number, row in enumerate(rows)
    ]
    table = Table(cells, colWidths=list(widths[: len(rows[0])]), repeatRows=1, hAlign="LEFT", spaceAfter=10)
    whole, padding = ((0, 0), (-1, -1)), ("TOPPADDING", "BOTTOMPADDING", "LEFTPADDING")
    lines = [("LINEBELOW", *whole, 0.4, HexColor(_LINE)), ("VALIGN", *whole, "MIDDLE")]
    table.setStyle([*lines, *((side, *whole, 2) for side in padding)])
    return table


def _cases(
    cases: Sequence[SimilarCase], pictures: Sequence[bytes | None], prediction: Prediction, width: float
) -> list[Any]:
    if not cases:
        return []
    rows: list[list[Any]] = [["", "Case", "Likeness", "Relation to the findings called present"]]
    for rank, (case, content) in enumerate(zip(cases, pictures, strict=True), 1):
        meta = " · ".join(filter(None, (who(case), case.case.study_key)))
        picture = _picture(content, _CASE_SIDE, _CASE_SIDE) if content else ""
        rows.append(
            [
                picture,
                f"{rank}. {meta}",
                f"{likeness(case)}; {percentile_words(case)}",
                relation_line(case, prediction.findings),
            ]
        )
    table = _table(rows, (_CASE_SIDE + 10, 130, 120, width - _CASE_SIDE - 260))
    return [_text("Nearest earlier cases", 12, bold=True), table]
