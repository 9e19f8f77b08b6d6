from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from medsd.bundle.layout import Bundle, NoteInput
from medsd.errors import BundleError
from medsd.findings import finding_set
from medsd.preprocessing.notes import NoteTokenizer, clean_note
from medsd.studies.notes.lexicon import mask_phrases


@pytest.fixture(scope="module")
def tokenize(fused_bundle: Bundle) -> NoteTokenizer:
    return NoteTokenizer(fused_bundle.tokenizer_path, fused_bundle.description.note)


def test_a_note_becomes_ids_and_mask_of_fixed_length(tokenize: NoteTokenizer):
    batch = tokenize(["Short of breath"])
    assert batch.ids.tolist() == [[2, 4, 5, 6, 3] + [0] * 11]  # [CLS] short of breath [SEP]
    assert batch.mask.tolist() == [[1] * 5 + [0] * 11]
    assert batch.ids.dtype == batch.mask.dtype == np.int64
    assert batch.given.tolist() == [1.0]


def test_a_long_note_is_cut_and_keeps_its_end_mark(tokenize: NoteTokenizer):
    batch = tokenize(["fever " * 100])
    assert batch.ids[0].tolist() == [2] + [7] * 14 + [3]
    assert batch.mask.sum() == 16


@pytest.mark.parametrize("blank", [None, "", "  \n\t ", "\x00\x07"])
def test_a_blank_note_counts_as_none(tokenize: NoteTokenizer, blank):
    batch = tokenize(["fever", blank])
    assert batch.given.tolist() == [1.0, 0.0]
    assert batch.mask[1].tolist() == [1] + [0] * 15


def test_control_characters_are_white_space(tokenize: NoteTokenizer):
    np.testing.assert_array_equal(tokenize(["short\x00of\x1b\r\nbreath"]).ids, tokenize(["short of breath"]).ids)


def test_a_lone_surrogate_does_not_break_the_tokenizer(tokenize: NoteTokenizer):
    assert tokenize(["fever \ud800 cough"]).ids[0, :3].tolist() == [2, 7, 1]


@pytest.mark.parametrize("note", ["fever " * 200_000, "x" * 1_000_000, "\x00" * 1_000_000, " " * 1_000_000 + "fever"])
def test_a_million_characters_take_no_time(tokenize: NoteTokenizer, note: str):
    started = time.perf_counter()
    tokenize([note])
    assert time.perf_counter() - started < 0.5


def test_cleaning_joins_white_space():
    assert clean_note(" a\n\n b\t\x0bc ") == "a b c"


def test_a_broken_tokenizer_is_a_bundle_error(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        NoteTokenizer(path, NoteInput(max_tokens=16))


def _masking(bundle: Bundle, *phrases: str) -> NoteTokenizer:
    return NoteTokenizer(bundle.tokenizer_path, bundle.description.note.model_copy(update={"mask": phrases}))


def test_what_names_a_finding_is_hidden_and_negation_stays(fused_bundle: Bundle, tokenize: NoteTokenizer):
    masked = _masking(fused_bundle, *mask_phrases(finding_set("nih14")))
    notes = ["fever, no pleural effusions", "cough; Infiltrates, fever", "short of breath"]
    expected = ["fever, no pleural ___", "cough; ___, fever", "short of breath"]
    np.testing.assert_array_equal(masked(notes).ids, tokenize(expected).ids)


_DISGUISED = (
    "e\ufb00usion",
    "effu\u00adsion",
    "effu\u200bsion",
    "effu-\nsion",
    "effu\u00ad\nsion",
    "\uff25ffusion",
    "e\u2060ffusion",
)


@pytest.mark.parametrize("word", _DISGUISED)
def test_what_names_a_finding_is_hidden_in_any_spelling(fused_bundle: Bundle, tokenize: NoteTokenizer, word: str):
    masked = _masking(fused_bundle, "effusion*")
    np.testing.assert_array_equal(masked([f"fever, no {word} cough"]).ids, tokenize(["fever, no ___ cough"]).ids)
    np.testing.assert_array_equal(tokenize([f"{word} fever"]).ids, tokenize(["effusion fever"]).ids)


def test_a_note_of_nothing_but_a_finding_is_still_a_note(fused_bundle: Bundle):
    assert _masking(fused_bundle, "pneumonia")(["Pneumonia"]).given.tolist() == [1.0]


def test_a_bundle_that_says_nothing_of_masking_hides_nothing(fused_bundle: Bundle, tokenize: NoteTokenizer):
    plain = fused_bundle.description.note.model_dump(exclude={"mask"})
    again = NoteTokenizer(fused_bundle.tokenizer_path, NoteInput.model_validate(plain))
    assert again.spec.mask == ()
    np.testing.assert_array_equal(again(["effusion fever"]).ids, tokenize(["effusion fever"]).ids)


def test_masking_a_million_characters_takes_no_time(fused_bundle: Bundle):
    masked = _masking(fused_bundle, *mask_phrases(finding_set("nih14")))
    for note in ("enlarged the " * 80_000, "effusion " * 100_000, "heart size is " * 80_000):
        started = time.process_time()
        masked([note])
        assert time.process_time() - started < 1.0


def test_a_phrase_that_cannot_be_read_is_a_bundle_error(fused_bundle: Bundle):
    with pytest.raises(BundleError, match=r"bundle\.json, note: mask: cannot read the phrase"):
        _masking(fused_bundle, "(heart")


def _windowed(bundle: Bundle, window: int, stride: int, tokens: int) -> NoteTokenizer:
    return NoteTokenizer(bundle.tokenizer_path, NoteInput(max_tokens=tokens, window=window, stride=stride))


def test_windows_lie_side_by_side_each_with_its_marks(fused_bundle: Bundle):
    batch = _windowed(fused_bundle, 8, 5, 24)(["fever cough " * 4])  # eight words: six, then those from the sixth on
    assert batch.ids.reshape(3, 8).tolist() == [
        [2, 7, 8, 7, 8, 7, 8, 3],
        [2, 8, 7, 8, 3, 0, 0, 0],
        [0] * 8,
    ]
    assert batch.mask.tolist() == [[1] * 13 + [0] * 11]


@pytest.mark.parametrize("stride", [1, 6, 7, 100])
def test_no_stride_leaves_a_word_out_or_stops_the_tokenizer(fused_bundle: Bundle, stride: int):
    note = "short of breath fever cough known heart failure"
    ids = _windowed(fused_bundle, 8, stride, 32)([note]).ids
    assert {4, 5, 6, 7, 8, 9, 10, 11} <= set(ids[0].tolist())


def test_a_million_characters_in_windows_take_no_time(fused_bundle: Bundle):
    tokenize = _windowed(fused_bundle, 16, 1, 128)
    started = time.process_time()
    tokenize(["fever " * 200_000])
    assert time.process_time() - started < 0.5


def test_windows_that_do_not_fill_the_input_are_refused():
    with pytest.raises(ValueError, match="max_tokens 20 is no multiple of window 8"):
        NoteInput(max_tokens=20, window=8)
