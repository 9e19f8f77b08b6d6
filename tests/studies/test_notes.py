"""Sections, placeholders and masking of notes."""

import pytest

from medsd.findings import FINDING_SETS, FindingSet, finding_set
from medsd.studies.notes.lexicon import compile_phrases, mask_phrases
from medsd.studies.notes.sections import PLACEHOLDER, Note, normalise_placeholders, read_note
from medsd.text import normalise_text

NIH14 = finding_set("nih14")


def test_headings_in_capitals_with_a_colon_open_sections() -> None:
    note = read_note("INDICATION: Cough.\nCOMPARISON: None.\nFINDINGS: Clear lungs.\nIMPRESSION: Normal chest.")
    assert (note.indication, note.comparison) == ("Cough.", "None.")
    assert (note.findings, note.impression) == ("Clear lungs.", "Normal chest.")


def test_headings_run_together_in_one_line_are_found() -> None:
    note = read_note("HISTORY: Smoker. TECHNIQUE: PA and lateral. FINDINGS: Clear. IMPRESSION: Normal.")
    assert (note.history, note.technique, note.findings, note.impression) == (
        "Smoker.",
        "PA and lateral.",
        "Clear.",
        "Normal.",
    )


def test_headings_on_a_line_of_their_own_need_no_colon() -> None:
    note = read_note("Clinical history\nFever.\n\nFindings\nThe heart is large.\n\nConclusion\nCardiomegaly.")
    assert (note.history, note.findings, note.impression) == ("Fever.", "The heart is large.", "Cardiomegaly.")


def test_capitals_at_the_start_of_a_line_need_no_colon() -> None:
    note = read_note("INDICATION Chest pain\nFINDINGS The lungs are clear.")
    assert (note.indication, note.findings) == ("Chest pain", "The lungs are clear.")


def test_a_heading_after_a_sentence_is_found_in_mixed_case() -> None:
    note = read_note("Reason for exam: fall. Findings: No fracture. Impression: Normal.")
    assert (note.indication, note.findings, note.impression) == ("fall.", "No fracture.", "Normal.")


def test_words_of_headings_within_a_sentence_split_nothing() -> None:
    text = "FINDINGS: No findings in comparison with the prior study\nsuggest a change; history noted."
    assert read_note(text).findings == text.removeprefix("FINDINGS: ")


def test_what_is_known_before_reading_holds_nothing_of_the_report() -> None:
    note = read_note("INDICATION: dyspnea\nFINDINGS: large effusion\nIMPRESSION: effusion")
    assert note.before_reading == "dyspnea"
    assert note.report == "large effusion\neffusion"


def test_text_under_an_unlisted_heading_is_never_taken_as_known_before() -> None:
    note = read_note("INDICATION: dyspnea\nRADIOLOGIST SAYS: large effusion")
    assert note.before_reading == "dyspnea"
    assert "large effusion" in note.report


def test_text_without_headings_is_a_report() -> None:
    note = read_note("large effusion")
    assert (note.before_reading, note.report) == ("", "large effusion")


@pytest.mark.parametrize("removed", ["XXXX", "___", "[** 2101-3-4 **]", "[**Hospital\nward**]", "XXXXXX"])
def test_placeholders_of_every_corpus_become_one(removed: str) -> None:
    assert normalise_placeholders(f"Seen on {removed}.") == f"Seen on {PLACEHOLDER}."


def test_a_note_shows_which_sections_it_holds_and_no_text() -> None:
    assert repr(Note(indication="Jane Doe, cough")) == "Note(sections: indication)"


def mask_findings(text: str, findings: FindingSet) -> str:
    return compile_phrases(mask_phrases(findings)).sub(PLACEHOLDER, normalise_text(text))


def test_masking_takes_the_label_words_and_leaves_the_rest() -> None:
    masked = mask_findings("Fever. Known pleural effusions, COPD; s/p fall.", NIH14)
    assert masked == "Fever. Known pleural ___, ___; s/p fall."
    assert mask_findings("known \u0153dema", NIH14) == "known ___"


def test_masking_takes_negated_mentions_too() -> None:
    assert "pneumothorax" not in mask_findings("no pneumothorax after tube", NIH14)


def test_no_phrase_that_the_labeller_reads_survives_masking() -> None:
    from medsd.studies.notes.labeller import Status, label_report

    report = "Cardiomegaly. Bibasilar atelectasis, small effusion, infiltrate and a nodule. Emphysema; hiatal hernia."
    assert set(label_report(mask_findings(report, NIH14)).status) == {Status.NOT_MENTIONED}


@pytest.mark.parametrize("key", FINDING_SETS)
def test_every_vocabulary_can_be_masked(key: str) -> None:
    findings = finding_set(key)
    for finding in findings.findings:
        words = " ".join(reversed(finding.title.lower().split(", ")))  # MeSH: "Tube, Inserted"
        assert "___" in mask_findings(f"Query {words} today.", findings), finding.name
    harmless = "Known here since last week, no allergies."
    assert mask_findings(harmless, findings) == harmless


def test_findings_of_a_set_without_phrase_lists_are_masked_in_singular_and_plural() -> None:
    masked = mask_findings("two pacemakers; a line, linear pain, lung opacities", finding_set("chexpert14"))
    assert masked == "two ___; a ___, linear pain, ___"
