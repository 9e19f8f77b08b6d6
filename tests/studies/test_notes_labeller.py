"""The rule-based labeller: findings, negation, uncertainty, and a floor on Open-i's hand-checked labels."""

import csv
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.studies.notes.labeller import Status, label_report
from medsd.studies.notes.sections import Note
from tests.studies.openi_notes import called, is_held_back, read_openi_reports

NIH14 = finding_set("nih14")
PRESENT, ABSENT, UNCERTAIN = Status.PRESENT, Status.ABSENT, Status.UNCERTAIN


@pytest.mark.parametrize(
    ("report", "finding", "status"),
    [
        ("Small left pleural effusion.", "Effusion", PRESENT),
        ("No pleural effusion or pneumothorax.", "Pneumothorax", ABSENT),
        ("No focal consolidation, pneumothorax, or large pleural effusion.", "Effusion", ABSENT),
        ("Pneumothorax is not seen.", "Pneumothorax", ABSENT),
        ("The effusion has resolved.", "Effusion", ABSENT),
        ("Near complete resolution of right pleural effusion.", "Effusion", PRESENT),
        ("No change in effusion.", "Effusion", PRESENT),
        ("No significant interval change in the right pneumothorax.", "Pneumothorax", PRESENT),
        ("History of pneumonia.", "Pneumonia", Status.NOT_MENTIONED),
        ("Rule out pneumonia.", "Pneumonia", UNCERTAIN),
        ("Pneumonia cannot be excluded.", "Pneumonia", UNCERTAIN),
        ("Opacity which may represent atelectasis.", "Atelectasis", UNCERTAIN),
        ("No opacity to suggest pneumonia.", "Pneumonia", ABSENT),
        ("No consolidation, mass or fluid to suggest pneumonia.", "Pneumonia", ABSENT),
        ("No mass, possible effusion.", "Effusion", UNCERTAIN),
        ("Atelectasis versus infiltrate.", "Infiltration", Status.ALTERNATIVE),
        ("No effusion, but mild cardiomegaly.", "Cardiomegaly", PRESENT),
        ("No effusion, stable cardiomegaly.", "Cardiomegaly", PRESENT),
        ("The heart is enlarged.", "Cardiomegaly", PRESENT),
        ("The heart is not enlarged.", "Cardiomegaly", ABSENT),
        ("Heart size upper limits of normal.", "Cardiomegaly", Status.NOT_MENTIONED),
        ("Blunting of the costophrenic angle.", "Effusion", Status.NOT_MENTIONED),
        ("Airspace opacity at the left base.", "Consolidation", Status.NOT_MENTIONED),
        ("Low lung volumes.", "Atelectasis", Status.NOT_MENTIONED),
        ("Pericardial effusion.", "Effusion", Status.NOT_MENTIONED),
        ("Subcutaneous emphysema.", "Emphysema", Status.NOT_MENTIONED),
        ("Apical pleural thickening.", "Pleural_Thickening", PRESENT),
        ("Interstitial thickening.", "Pleural_Thickening", Status.NOT_MENTIONED),
        ("Hyperinflated lungs.", "Emphysema", Status.NOT_MENTIONED),
        ("Negative for edema.", "Edema", ABSENT),
        ("NO PNEUMOTHORAX.", "Pneumothorax", ABSENT),
        ("1. No pneumothorax 2. Right effusion", "Effusion", PRESENT),
    ],
)
def test_a_sentence_is_read_as_a_radiologist_means_it(report: str, finding: str, status: Status) -> None:
    assert label_report(report)[finding] is status


def _sentences_by_kind() -> dict[str, list[dict[str, str]]]:
    """Sentences written for this test; a line break or tab in one is spelled out."""
    with (Path(__file__).parent / "report_sentences.csv").open(encoding="utf-8", newline="") as table:
        kinds: dict[str, list[dict[str, str]]] = {}
        for row in csv.DictReader(table):
            kinds.setdefault(row["kind"], []).append(row)
    return kinds


@pytest.mark.parametrize(("kind", "rows"), _sentences_by_kind().items())
def test_sentences_of_a_kind_are_read_as_a_radiologist_means_them(kind: str, rows: list[dict[str, str]]) -> None:
    wrong = []
    for row in rows:
        status = label_report(row["sentence"].replace("\\n", "\n").replace("\\t", "\t"))[row["finding"]]
        said = UNCERTAIN if status is Status.ALTERNATIVE else status
        if said not in row["right"].split("|"):
            wrong.append((row["sentence"], row["finding"], str(said)))
    assert wrong == []


@pytest.mark.parametrize(
    "report",
    [
        "No e\ufb00usion.",
        "No effu\u00adsion.",
        "No pleural effu-\nsion.",
        "No\u200b ef\u2060fusion.",
        "N\uff4f \uff45ffusion.",
    ],
)
def test_a_finding_is_read_in_any_spelling(report: str) -> None:
    assert label_report(report)["Effusion"] is ABSENT


def test_the_strongest_mention_decides() -> None:
    labels = label_report("No large effusion. Possible effusion on the left. Impression: small left effusion.")
    assert labels["Effusion"] is PRESENT
    assert [m.status for m in labels.mentions if m.finding == "Effusion"] == [ABSENT, UNCERTAIN, PRESENT]


def test_present_absent_uncertain_and_unmentioned_are_told_apart() -> None:
    labels = label_report("Cardiomegaly. No effusion. Possible pneumonia.")
    assert (labels["Cardiomegaly"], labels["Effusion"], labels["Pneumonia"]) == (PRESENT, ABSENT, UNCERTAIN)
    assert labels["Mass"] is Status.NOT_MENTIONED


def test_only_the_report_of_a_note_is_labelled() -> None:
    note = Note(indication="Rule out pneumothorax, known effusion", findings="Cardiomegaly.")
    assert NIH14.decode(called(label_report(note))) == ("Cardiomegaly",)


def test_mentions_point_at_their_words() -> None:
    report = "Lungs clear. Large  pleural effusion."
    (mention,) = label_report(report).mentions
    assert report[mention.start : mention.end] == "effusion"


def test_a_vocabulary_without_phrase_lists_is_refused() -> None:
    with pytest.raises(DataError, match=r"phantom8\.yaml"):
        label_report("Cardiomegaly.", finding_set("phantom8"))


@given(st.text(max_size=300))
def test_any_text_gets_labels(text: str) -> None:
    labels = label_report(text)
    assert len(labels.status) == len(NIH14)


@pytest.mark.parametrize("text", ["effusion or ", "pleural " + "-" * 500, ". . ", "no ", "\n", "pleural a b c "])
def test_hostile_text_costs_little(text: str) -> None:
    start = time.process_time()
    label_report(text * (100_000 // len(text)))
    assert time.process_time() - start < 5


def test_the_development_half_of_openi_is_labelled_about_as_well_as_measured(data_root: Path) -> None:
    folder = data_root / "openi_reports"
    if not folder.is_dir():
        pytest.skip("real data: no folder openi_reports")
    with (folder / "findings14.csv").open(encoding="utf-8", newline="") as table:
        checked = {row["filename"]: [row[name] == "1" for name in NIH14] for row in csv.DictReader(table)}
    reports = [(n, r) for n, r in read_openi_reports(folder / "reports.tgz") if n in checked and not is_held_back(n)]
    target = np.array([checked[name] for name, _ in reports])
    found = np.array([called(label_report(report)) for _, report in reports])
    hits, either = (target & found).sum(0), target.sum(0) + found.sum(0)
    often = target.sum(0) >= 10
    assert len(reports) > 1500
    assert 2 * hits[often].sum() / either[often].sum() > 0.94
    assert np.mean(2 * hits[often] / either[often]) > 0.92
