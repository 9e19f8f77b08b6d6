"""Findings search: by names, by a sentence, and what cannot be asked."""

from __future__ import annotations

import base64
import csv
import io
import re
from pathlib import Path

import pytest

from medsd.apps.web.reading import Reader
from medsd.apps.web.server import prepare_environment
from medsd.bundle.layout import Bundle
from medsd.cases.index import CaseIndex

prepare_environment()
pytest.importorskip("gradio")

from medsd.apps.web import search  # noqa: E402
from medsd.apps.web.search import FOUND, Found, SearchDesk  # noqa: E402


@pytest.fixture(scope="module")
def desk(reader: Reader) -> SearchDesk:
    return SearchDesk(reader)


def test_every_case_found_has_what_was_wanted_and_lacks_what_was_not(desk: SearchDesk) -> None:
    html, found = desk.find(["Effusion"], ["Cardiomegaly"], "")
    assert 0 < len(found.cases) <= FOUND and len(found.pictures) == len(found.cases) == html.count("<li")
    for case in found.cases:
        assert "Effusion" in case.case.findings and "Cardiomegaly" not in case.case.findings
    assert "with Pleural effusion; without Cardiomegaly" in html


def test_a_sentence_is_read_as_findings(desk: SearchDesk) -> None:
    html, found = desk.find([], [], "effusion without cardiomegaly")
    assert found.cases and all("Cardiomegaly" not in case.case.findings for case in found.cases)
    assert "near these words" in html  # this model reads notes, so nearness to the sentence decides the order


@pytest.mark.parametrize("words", ["xyz", "???", "short of breath", "left", "possible mass", "hernia"])
def test_words_of_which_nothing_is_understood_are_not_answered(desk: SearchDesk, words: str) -> None:
    """A model with notes can place any words among the cases; its reading of them is not what was asked."""
    html, found = desk.find([], [], words)
    assert found.cases == () and "sked for" not in html and "<li" not in html
    said = {"possible mass": "open", "left": "not in the cases", "???": "no finding"}.get(words, "not understood")
    assert said in html


@pytest.mark.parametrize("name", ["phantom", "nih14"])
def test_xyz_is_not_understood_on_the_bundles_that_ship(name: str) -> None:
    bundle = Bundle.open(Path(__file__).parents[2] / "models" / name)
    html, found = SearchDesk(Reader(bundle, pytest.fail, CaseIndex.open(bundle.cases_path))).find([], [], "xyz")
    assert found == Found() and "not understood" in html and "xyz" in html and "<li" not in html


def test_what_was_not_understood_is_said_beside_what_was(desk: SearchDesk) -> None:
    html, found = desk.find([], [], "effusion xyz")
    assert found.cases and all("Effusion" in case.case.findings for case in found.cases)
    assert "with Pleural effusion; not understood: xyz" in html
    assert {case.shared for case in found.cases} == {("Effusion",)} and not any(case.missing for case in found.cases)


def test_words_that_were_not_understood_do_not_order_what_the_boxes_ask_for(desk: SearchDesk) -> None:
    html, found = desk.find(["Effusion"], [], "xyz")
    _, plain = desk.find(["Effusion"], [], "")
    assert found.cases == plain.cases and "not understood: xyz" in html and "near these words" not in html


def test_filters_narrow_the_search(desk: SearchDesk) -> None:
    _, found = desk.find(["Effusion"], [], "", ["PA"], [], [], [])
    assert found.cases and {case.case.view for case in found.cases} == {"PA"}


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (([], [], "  "), "Say what the cases should have"),
        ((["Effusion"], ["Effusion"], ""), "present and absent at once"),
        (([], [], "x" * 1_000_000), "1,000,000 characters"),
        (([], [], "", ["NOSUCHVIEW"], [], [], []), "Say what"),
        ((["Effusion"], [], "", ["NOSUCHVIEW"], [], [], []), "NOSUCHVIEW"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(desk: SearchDesk, question: tuple, sentence: str) -> None:  # type: ignore[type-arg]
    html, found = desk.find(*question)
    assert sentence in html and found.cases == () and len(html) < 2000


def test_a_hostile_sentence_stays_text(desk: SearchDesk) -> None:
    html, _ = desk.find([], [], "left <img src=x onerror=alert(1)> effusion")
    assert not re.search(r"<img src=x", html)


@pytest.mark.parametrize("words", ["", "cardiomegaly"])  # by fit, and by nearness to the words
def test_pages_hold_every_match_once_and_say_where_they_are(
    desk: SearchDesk, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = [] if words else ["Cardiomegaly"]
    monkeypatch.setattr(search, "FOUND", 50)
    _, every = desk.find(present, [], words)
    monkeypatch.setattr(search, "FOUND", 3)
    html, found = desk.find(present, [], words)
    seen, start = [], 1
    while True:
        seen += [case.case.study_key for case in found.cases]
        assert f"Cases {start} to {len(seen)} of {found.total}" in html and f'class="rank">{start}<' in html
        if len(seen) == found.total:
            break
        start += 3
        html, found = desk.turn(1, found)
    assert found.total > 3 and seen == [case.case.study_key for case in every.cases]
    assert desk.turn(1, found)[1] is found  # there is no page after the last
    _, back = desk.turn(-1, found)
    assert [case.case.study_key for case in back.cases] == seen[start - 4 : start - 1]
    assert desk.turn(1, Found())[1] == Found()


def test_every_match_is_saved_as_csv_without_patients(desk: SearchDesk, reader: Reader) -> None:
    _, found = desk.find(["Effusion"], [], "")
    saved = desk.save(found)
    text = base64.b64decode(re.findall(r'data-content="([^"]*)"', saved)[0]).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == found.total and {row["Effusion"] for row in rows} == {"1"}
    assert {row["study_key"] for row in rows} == {case.case.study_key for case in found.cases}
    assert "patient_key" not in rows[0] and [float(row["fit"]) for row in rows] == sorted(
        (float(row["fit"]) for row in rows), reverse=True
    )
    assert desk.save(Found()) == ""
