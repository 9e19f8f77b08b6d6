"""Notes: known before the reading, related to the findings, and never their names."""

import re

import numpy as np

from medsd.findings import finding_set
from medsd.studies.phantom import plan_study

FINDINGS = finding_set("phantom8")
PLANS = [plan_study(index) for index in range(1000)]
NOTES = [plan.note for plan in PLANS]
WRITTEN = [note for note in NOTES if note is not None]


def test_one_note_in_ten_is_missing_and_the_others_vary() -> None:
    assert 0.07 < 1 - len(WRITTEN) / len(NOTES) < 0.13
    assert len(set(WRITTEN)) > 600


def test_no_note_names_a_finding() -> None:
    # Devices are known beforehand; the words of the other findings would be a reading of the film.
    words = {
        word.lower()
        for finding in FINDINGS.findings
        if finding.name != "Support Devices"
        for word in (finding.name, finding.title, *finding.synonyms)
    } | {"edema", "oedema", "opacity", "normal chest", "enlarged"}
    for note in WRITTEN:
        assert not [word for word in words if re.search(rf"\b{re.escape(word)}", note.lower())], note


def test_no_note_carries_an_identity() -> None:
    for plan, note in zip(PLANS, NOTES, strict=True):
        assert note is None or ("PHANTOM" not in note and plan.patient not in note)
        assert note is None or not re.search(r"\b(Mr|Mrs|Ms|Dr)\b|\d{2}[./-]\d{2}[./-]\d{2,4}|\d{6}", note)


def test_notes_are_clean_sentences() -> None:
    for note in WRITTEN:
        assert note == note.strip() and note[-1] in ".?" and "{" not in note and ".." not in note and "  " not in note


def _share(word: str, finding: str) -> tuple[float, float]:
    """How many notes with and without `finding` match `word`."""
    said = np.array([bool(note and re.search(word, note.lower())) for note in NOTES])
    present = np.array([finding in plan.condition.findings for plan in PLANS])
    return float(said[present].mean()), float(said[~present].mean())


def test_symptoms_follow_findings_with_noise() -> None:
    for word, finding in (
        ("haemoptysis|blood|weight loss", "Mass"),
        ("fever|rigors|pyrexial|febrile|cough", "Consolidation"),
        ("orthopnoea|pillows|lie flat|breathless at night|crackles|crepitations", "Edema"),
        ("sudden|sharp pain|acute", "Pneumothorax"),
    ):
        with_it, without = _share(word, finding)
        assert 0.25 < with_it < 0.95, (finding, with_it)
        assert 0.0 < without < 0.5 * with_it, (finding, without)


def test_a_note_alone_does_not_settle_the_reading() -> None:
    silent = [note for plan, note in zip(PLANS, NOTES, strict=True) if plan.condition.findings and (note or "") == ""]
    assert len(silent) > 30
    healthy = [note or "" for plan, note in zip(PLANS, NOTES, strict=True) if not plan.condition.findings]
    assert sum(bool(re.search("cough|pain|breathless|temperature|smoker", note.lower())) for note in healthy) > 60
