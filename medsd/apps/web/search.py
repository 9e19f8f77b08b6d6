"""The tab Findings search: cases by the findings that they have and lack, or by a sentence; page by page, or as CSV."""

import io
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from medsd.apps.web import case_cards, scripts
from medsd.apps.web.case_cards import Gallery
from medsd.apps.web.export import link
from medsd.apps.web.filters import FilterBoxes, finding_boxes, to_filter
from medsd.apps.web.pins import Board
from medsd.apps.web.reading import Reader
from medsd.cases.ask import Answer, Question
from medsd.cases.case import SimilarCase
from medsd.cases.query import FindingQuery
from medsd.errors import MedsdError
from medsd.preprocessing.notes import MAX_NOTE
from medsd.scoring.table import write_csv

FOUND = 12  # cases on a page
_TITLE = "Cases"
_EMPTY = 'Say what the cases should have, or write a sentence: "effusion without cardiomegaly".'
_NOT_SAVED = ("patient_key", "split")  # of the table of cases


class Found(NamedTuple):
    """What a search came to; belongs to one browser tab."""

    cases: tuple[SimilarCase, ...] = ()  # of the page in sight
    pictures: tuple[bytes | None, ...] = ()
    question: Question | None = None  # that of this page
    answer: Answer | None = None
    total: int = 0  # studies that fit


class SearchDesk:
    """What the tab does, shared by all sessions."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def find(
        self, present: list[str] | None, absent: list[str] | None, words: str | None, *filters: list[str] | None
    ) -> tuple[str, Found]:
        """The first of the cases that fit, as HTML and for pinning; or a sentence why none can be shown."""
        words = (words or "").strip()
        if not (present or absent or words):
            return _none(_EMPTY)
        if len(words) > MAX_NOTE:
            return _none(f"The sentence has {len(words):,} characters; at most {MAX_NOTE:,} are read. Shorten it.")
        query = FindingQuery(tuple(present or ()), tuple(absent or ()))
        return self._page(Question(query, words, to_filter(filters), FOUND))

    def turn(self, pages: int, found: Found) -> tuple[str, Found]:
        """So many pages further in the same search."""
        skip = 0 if found.question is None else found.question.skip + pages * FOUND
        if found.question is None or not 0 <= skip < found.total:
            return gr.skip(), found
        return self._page(replace(found.question, skip=skip), found.total)

    def save(self, found: Found) -> str:
        """Every study that fits as CSV, best first, as HTML; without patients."""
        if found.answer is None:
            return ""
        try:
            table = self.reader.matches(found.answer)
        except MedsdError as error:
            gr.Warning(str(error))
            return ""
        names = list(self.reader.bundle.findings)
        table = table.drop(columns=list(_NOT_SAVED)).round({"fit": 4}).astype(dict.fromkeys(names, "Int64"))
        rows: list[Any] = table.astype(object).where(table.notna(), "").to_dict("records")
        text = io.StringIO()
        write_csv(text, rows, list(table.columns), defuse=True)
        return link(text.getvalue().encode(), "CSV", "medsd-cases.csv")

    def _page(self, question: Question, total: int | None = None) -> tuple[str, Found]:
        """The cases of a page; `total` where it is known."""
        try:
            answer = self.reader.find(question)
            total = len(self.reader.matches(answer)) if total is None else total
        except MedsdError as error:
            return _none(str(error))
        if not answer.cases and question.skip:  # the same images under other keys count, and are listed once
            rest = case_cards.no_cases("All others are copies of images on earlier pages.", _TITLE)
            return rest, Found(question=question, answer=answer, total=total)
        if not answer.cases:
            return _none(f"No case fits: {answer.understood}. Ask for less.")
        pictures = tuple(self.reader.picture(case) for case in answer.cases)
        found = Found(answer.cases, pictures, question, answer, total)
        about = Gallery(
            key="found-",
            title=f"{_TITLE} {question.skip + 1:,} to {question.skip + len(answer.cases):,} of {total:,}",
            against=answer.understood,
            here="asked for",
            # Where nothing is wanted, a relation to it would say nothing.
            related=any(case.shared or case.missing for case in answer.cases),
            before=question.skip,
        )
        return case_cards.gallery(about, found.cases, pictures, self.reader.bundle.findings), found


def _none(sentence: str) -> tuple[str, Found]:
    return case_cards.no_cases(sentence, _TITLE), Found()


def _pages(shown: str, found: Found) -> tuple[Any, ...]:
    """What the components of the tab become."""
    skip = found.question.skip if found.question else 0
    back, on = (gr.update(interactive=there) for there in (skip > 0, skip + FOUND < found.total))
    return shown, found, gr.update(visible=found.total > 0), back, on, ""


class SearchTab:
    """The components of the tab, and their wiring."""

    def __init__(self, reader: Reader, board: Board) -> None:
        desk = SearchDesk(reader)
        found = gr.State(Found(), time_to_live=3600)
        with gr.Row(elem_id="search-findings", elem_classes="boxes"):
            boxes = finding_boxes(reader, "search-", "With these findings", "Without these")
        with gr.Row(elem_id="search-words", elem_classes="boxes"):
            words = gr.Textbox(
                label="In words (optional)",
                placeholder="effusion without cardiomegaly",
                max_lines=1,
                max_length=MAX_NOTE,
                elem_id="search-sentence",
                scale=3,
            )
            filters = FilterBoxes(reader, findings=False, key="search")
            go = gr.Button("Search", variant="primary", size="sm", elem_id="search-go", scale=0, min_width=120)
        shown = scripts.html(case_cards.no_cases(_EMPTY, _TITLE), "found", scripts.BUTTONS)
        with gr.Row(elem_id="found-pages", visible=False) as pages:
            back, on, save = (
                gr.Button(words, size="sm", elem_id=f"found-{name}", min_width=110, scale=0)
                for words, name in (("Previous", "back"), ("Next", "on"), ("Save all as CSV", "save"))
            )
        saved = scripts.html("", "found-saved", scripts.SAVE)
        outputs = [shown, found, pages, back, on, saved]
        asked: list[Any] = [lambda *values: _pages(*desk.find(*values)), [*boxes, words, *filters.inputs], outputs]
        go.click(*asked, **scripts.handling("read", 2))
        words.submit(*asked, **scripts.handling("read", 2))
        for button, step in ((back, -1), (on, 1)):
            turn = partial(lambda pages, found: _pages(*desk.turn(pages, found)), step)
            button.click(turn, [found], outputs, **scripts.handling("read", 2, "once"))
        save.click(desk.save, [found], saved, **scripts.handling("read", 2, "once"))
        board.pin_from(shown, found)
