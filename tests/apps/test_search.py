"""Findings search: by names, by a sentence, and what cannot be asked."""

from __future__ import annotations

import re

import pytest

from apps.web.reading import Reader
from apps.web.server import prepare_environment

prepare_environment()
pytest.importorskip("gradio")

from apps.web.search import FOUND, SearchDesk  # noqa: E402


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
