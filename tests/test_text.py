"""One spelling for notes, and folding for the comparison of names."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsd.text import fold, normalise_text


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("effu\u00adsion", "effusion"),
        ("e\ufb00usion, \ufb01brosis", "effusion, fibrosis"),
        ("pneu\u200bmo\u2060thorax\ufeff", "pneumothorax"),
        ("\u202eno\u202c mass", "no mass"),
        ("oe\u0301deme Mu\u0308ller", "oédeme Müller"),
        ("\uff2d\uff21\uff33\uff33", "MASS"),
        ("no\u00a0mass\u2009seen", "no mass seen"),
        ("pneumo-\nthorax", "pneumothorax"),
        ("pneumo\u2010\r\n  thorax", "pneumothorax"),
        ("effu\u00ad\n sion", "effusion"),
        ("EFFU-\nSION", "EFFUSION"),
        ("Smith-\nJones", "Smith-Jones"),
        ("x-\nray and - one\n- two", "xray and - one\n- two"),
        ("can\u2019t", "can't"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("No effusion.\n\nA 3 mm nodule - stable.\tEnd", "No effusion.\n\nA 3 mm nodule - stable.\tEnd"),
    ],
)
def test_text_gets_one_spelling(given_text: str, expected: str) -> None:
    assert normalise_text(given_text) == expected


@given(st.text(max_size=60))
def test_one_spelling_is_final_and_has_nothing_invisible(text: str) -> None:
    once = normalise_text(text)
    assert normalise_text(once) == once
    assert not any(unicodedata.category(character) == "Cf" for character in once)


@given(st.text(alphabet=st.characters(max_codepoint=126, exclude_characters="-\r"), max_size=60))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert normalise_text(text) == text


@pytest.mark.parametrize(
    "name", ["Mueller", "MÜLLER", "Mu\u0308ller", "Muller", "Mül\u00adler", "Ｍueller", "mü\u200bller"]
)
def test_a_name_is_the_same_in_every_spelling(name: str) -> None:
    assert fold(name)[0] == fold("Müller")[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Strauß", "STRAUSS"),
        ("O’Brien", "O'Brien"),
        ("Søren", "Soeren"),
        ("Łukasz", "Lukasz"),
        ("Anne-Marie", "anne\nmarie"),
        ("Ågård", "Aagaard"),
        ("ﬁsher", "Fisher"),
    ],
)
def test_two_spellings_of_a_name_are_one(one: str, other: str) -> None:
    assert fold(one)[0] == fold(other)[0]


@given(st.text(max_size=60))
def test_every_folded_character_knows_its_place(text: str) -> None:
    folded, places = fold(text)
    assert len(places) == len(folded) + 1 and places == sorted(places) and places[-1] == len(text)
