"""The language of the phrase lists, and the lists themselves."""

import pytest

from medsd.errors import DataError
from medsd.studies.notes.lexicon import compile_phrases, load_scope, read_yaml


@pytest.mark.parametrize(
    ("phrase", "text", "found"),
    [
        ("effusion*", "two effusions", "effusions"),
        ("mass", "massive", None),
        ("pleural fluid", "pleural-\nfluid", "pleural-\nfluid"),
        ("(left|right) base", "at the right base", "right base"),
        ("heart (size)? enlarged", "heart enlarged", "heart enlarged"),
        ("heart (size)? enlarged", "heart size enlarged", "heart size enlarged"),
        ("heart .. enlarged", "heart is now mildly enlarged", "heart is now mildly enlarged"),
        ("heart .. enlarged", "heart one two three four five six enlarged", None),
        ("heart .. enlarged", "heart normal, aorta enlarged", None),
        ("no (focal)*", "no focal focal mass", "no focal focal"),
        ("no prior (film)?", "no prior", "no prior"),
        ("angle ___ blunted", "angle ___ blunted", "angle ___ blunted"),
        ("a.b", "axb", None),
    ],
)
def test_a_phrase_finds_what_its_language_says(phrase: str, text: str, found: str | None) -> None:
    match = compile_phrases([phrase]).search(text)
    assert (match.group() if match else None) == found


@pytest.mark.parametrize("phrase", ["", "(left base", "left) base", "a|b"])
def test_a_phrase_that_cannot_be_read_names_its_list(phrase: str) -> None:
    with pytest.raises(DataError, match="nih14, Mass"):
        compile_phrases([phrase], "nih14, Mass")


def test_no_phrases_find_nothing() -> None:
    assert compile_phrases([]).search("anything") is None


def test_every_heading_belongs_to_one_section() -> None:
    names = [name for names in read_yaml("sections.yaml").values() for name in names]
    assert len(names) == len(set(names))


def test_every_phrase_of_the_lists_is_text() -> None:
    # Unquoted `no` would be read as a truth value.
    assert all(isinstance(phrase, str) for phrase in read_yaml("scope.yaml")["negation"]["before"])
    assert load_scope().negation.before.search("no mass")
