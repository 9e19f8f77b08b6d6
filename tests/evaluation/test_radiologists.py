"""Radiologists' labels: read by file name, carried to findings, measured beside mined labels; too few say so."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from medsd.errors import DataError
from medsd.evaluation.radiologists import QUESTIONS, measure_radiologists, read_radiologists
from medsd.evaluation.subgroups import Images
from medsd.findings import finding_set
from medsd.metrics.intervals import IntervalOptions

FINDINGS = finding_set("nih14")
REAL = Path(__file__).parents[2].parent / "shared" / "data"


def tables(folder: Path, count: int = 60) -> list[str]:
    """Both tables, of `count` images whose every third has what is asked; the paths of the images, one unknown."""
    names = [f"{i:08}_000.png" for i in range(count)]
    sick = np.arange(count) % 3 == 0
    google = pd.DataFrame({"Image Index": names, "Fracture": "NO", "Set Id": "test"})
    for column in ("Pneumothorax", "Airspace opacity", "Nodule or mass"):
        google[column] = np.where(sick, "YES", "NO")
    google.to_csv(folder / "google4.csv", index=False)
    rsna = pd.DataFrame({"Image Index": names, "class": np.where(sick, "Lung Opacity", "Normal")})
    rsna.loc[1, "class"] = "No Lung Opacity / Not Normal"
    pd.concat([rsna, rsna.iloc[[4]].assign(**{"class": "Lung Opacity"})]).to_csv(folder / "rsna_class.csv", index=False)
    return [f"part/images/{name}" for name in names] + ["part/images/other.png"]


def images(count: int, minimum_positives: int = 10) -> Images:
    rng = np.random.default_rng(0)
    target = (rng.random((count, 14)) < 0.3).astype(float)
    probs = expit(target + rng.normal(size=target.shape))
    titles = {finding.name: finding.title for finding in FINDINGS.findings}
    options = IntervalOptions(resamples=60, minimum_positives=minimum_positives)
    return Images(titles, target, probs, (np.arange(count) // 2).astype(str), options)


def test_answers_are_found_by_file_name_and_rows_that_disagree_are_unknown(tmp_path: Path) -> None:
    answers = read_radiologists(tmp_path, tables(tmp_path))
    assert set(answers) == {question.name for question in QUESTIONS}
    opacity = answers["Lung opacity (RSNA)"]
    assert opacity[[0, 1, 3]].tolist() == [1, 0, 1] and np.isnan(opacity[[4, 60]]).all()
    assert np.nansum(answers["Pneumothorax (Google)"]) == 20


def test_the_score_is_the_largest_probability_and_the_mined_label_any_of_the_findings(tmp_path: Path) -> None:
    answers, of = read_radiologists(tmp_path, tables(tmp_path)), images(61)
    by_name = {report.name: report for report in measure_radiologists(of, answers)}
    report = by_name["Nodule or mass (Google)"]
    columns = [FINDINGS.names.index(name) for name in ("Nodule", "Mass")]
    score, mined = of.probs[:60, columns].max(1), of.target[:60, columns].max(1)
    assert report.auroc.value == pytest.approx(roc_auc_score(np.arange(60) % 3 == 0, score))
    assert report.mined.value == pytest.approx(roc_auc_score(mined, score))
    assert report.gap.value == pytest.approx(report.auroc.value - report.mined.value)
    assert (report.images, report.patients, report.positives, report.negatives) == (60, 30, 20, 40)
    assert by_name["Lung opacity (RSNA)"].findings == tuple(
        FINDINGS.findings[FINDINGS.names.index(name)].title
        for name in ("Consolidation", "Edema", "Infiltration", "Pneumonia")
    )


def test_too_few_answers_say_so(tmp_path: Path) -> None:
    answers = read_radiologists(tmp_path, tables(tmp_path))
    for report in measure_radiologists(images(61, minimum_positives=30), answers):
        assert str(report.auroc) == "too few to tell" and report.positives in (20, 21)
    assert measure_radiologists(images(61), {name: values * np.nan for name, values in answers.items()})[0].images == 0


def test_a_folder_without_tables_and_a_table_without_the_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither google4\.csv nor rsna_class\.csv"):
        read_radiologists(tmp_path, ["a.png"])
    (tmp_path / "google4.csv").write_text("Image Index,Fracture\na.png,NO\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"google4\.csv: cannot be read as a table with the columns Image Index"):
        read_radiologists(tmp_path, ["a.png"])


@pytest.mark.skipif(not (REAL / "nih_expert").is_dir(), reason="needs ../shared/data/nih_expert")
def test_the_published_tables_are_read() -> None:
    names = pd.read_csv(REAL / "nih_128" / "labels.csv", usecols=["Image Index"], index_col=False)["Image Index"]
    answers = read_radiologists(REAL / "nih_expert", names)
    counts = {name: (int((v == 1).sum()), int((v == 0).sum())) for name, v in answers.items()}
    assert sum(counts["Lung opacity (RSNA)"]) == 2025 and counts["Lung opacity (RSNA)"][0] == 436
    assert sum(counts["Pneumothorax (Google)"]) == 213
