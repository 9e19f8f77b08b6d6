"""The tab Findings search: cases by the findings that they have and lack, or by a sentence."""

from typing import Any, NamedTuple

import gradio as gr

from medsd.apps.web import case_cards, scripts
from medsd.apps.web.case_cards import Gallery
from medsd.apps.web.filters import FilterBoxes, finding_boxes, to_filter
from medsd.apps.web.pins import Board
from medsd.apps.web.reading import MAX_NOTE, Reader
from medsd.cases.ask import Question
from medsd.cases.case import SimilarCase
from medsd.cases.query import FindingQuery
from medsd.errors import MedsdError

FOUND = 12
_TITLE = "Cases"
_EMPTY = 'Say what the cases should have, or write a sentence: "effusion without cardiomegaly".'


class Found(NamedTuple):
    """What a search came to; belongs to one browser tab."""

    cases: tuple[SimilarCase, ...] = ()
    pictures: tuple[bytes | None, ...] = ()


class SearchDesk:
    """What the tab does, shared by all sessions."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def find(
        self, present: list[str] | None, absent: list[str] | None, words: str | None, *filters: list[str] | None
    ) -> tuple[str, Found]:
        """The cases that fit, as HTML and for pinning; what cannot be asked is said in a sentence in their place."""
        words = (words or "").strip()
        if not (present or absent or words):
            return case_cards.no_cases(_EMPTY, _TITLE), Found()
        if len(words) > MAX_NOTE:
            sentence = f"The sentence has {len(words):,} characters; at most {MAX_NOTE:,} are read. Shorten it."
            return case_cards.no_cases(sentence, _TITLE), Found()
        query = FindingQuery(tuple(present or ()), tuple(absent or ()))
        try:
            answer = self.reader.find(Question(query, words, to_filter(filters), FOUND))
        except MedsdError as error:
            return case_cards.no_cases(str(error), _TITLE), Found()
        if not answer.cases:
            return case_cards.no_cases(f"No case fits: {answer.understood}. Ask for less.", _TITLE), Found()
        found = Found(answer.cases, tuple(self.reader.picture(case) for case in answer.cases))
        about = Gallery(
            key="found-",
            title=_TITLE,
            against=answer.understood,
            here="asked for",
            # Where nothing is wanted, a relation to it would say nothing.
            related=any(case.shared or case.missing for case in answer.cases),
        )
        return case_cards.gallery(about, *found, self.reader.bundle.findings), found


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
        shown = scripts.html(case_cards.no_cases(_EMPTY, _TITLE), "found", scripts.PINS)
        asked: list[Any] = [desk.find, [*boxes, words, *filters.inputs], [shown, found]]
        go.click(*asked, **scripts.handling("read", 2))
        words.submit(*asked, **scripts.handling("read", 2))
        board.pin_from(shown, found)
