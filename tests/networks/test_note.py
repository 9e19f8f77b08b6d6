"""The vocabulary that is trained on notes: words of many patients, and of no single one."""

from __future__ import annotations

from medsd.networks.note import MIN_PATIENTS, note_tokenizer
from medsd.settings import NoteSettings

NOTES = [f"short of breath, case {letter}" for letter in "abcdefgh"]
HERS = ["Canaryson 金糸雀 has a cough"] * 40
PATIENTS = [f"P{number}" for number in range(len(NOTES))]


def _vocabulary(notes: list[str], patients: list[str] | None) -> set[str]:
    return set(note_tokenizer(NoteSettings(), notes, patients).get_vocab())


def test_a_name_in_many_notes_of_one_patient_is_no_token() -> None:
    words = _vocabulary(NOTES + HERS, PATIENTS + ["canary"] * len(HERS))
    assert "breath" in words and not {"canaryson", "cough", "金", "糸", "雀"} & words


def test_a_word_becomes_a_token_with_the_fifth_patient_who_has_it() -> None:
    for patients, there in ((MIN_PATIENTS - 1, False), (MIN_PATIENTS, True)):
        more = [f"Q{number}" for number in range(patients)]
        words = _vocabulary(NOTES + ["a cough"] * patients, PATIENTS + more)
        assert ("cough" in words) is there


def test_without_patients_each_note_counts() -> None:
    assert "cough" in _vocabulary(NOTES + ["a cough"] * MIN_PATIENTS, None)
