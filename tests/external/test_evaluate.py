"""A bundle on another hospital's studies: labels mapped, refusals counted, and what has moved is said."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from medsd.bundle.layout import VALIDATION, Bundle, write_description
from medsd.cli import app
from medsd.errors import DataError, SettingsError
from medsd.evaluation.against import AgainstReport
from medsd.evaluation.report import EvaluationReport
from medsd.evaluation.shift import ShiftReport
from medsd.evaluation.studies_report import StudiesReport, compare_with_card
from medsd.external.evaluate import evaluate_bundle, measure
from medsd.external.studies import load_studies, read_studies
from medsd.files import write_json
from medsd.metrics.intervals import Interval, patient_means
from medsd.metrics.retrieval import FIGURES
from medsd.privacy import public_hasher
from tests.card_numbers import unexplained_numbers
from tests.elsewhere import bundle_with_cases, hospital

QUICK = ("evaluation.bootstrap=30", "evaluation.minimum_positives=3", "gate.out_of_distribution=accept")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_with_cases(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, chest: np.ndarray) -> Path:
    return hospital(tmp_path_factory.mktemp("hospital"), chest)


@pytest.fixture(scope="module")
def report(bundle: Bundle, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "there"
    evaluate_bundle(bundle, load_studies(table, bundle, QUICK), out)
    return out


def test_every_patient_is_measured_and_what_cannot_be_read_is_counted(report: Path) -> None:
    studies = StudiesReport.read(report / "studies.json")
    assert (studies.images, studies.scored, studies.own) == (30, 29, 0)
    assert sum(studies.refused.values()) == 1 and studies.split is None
    assert EvaluationReport.read(report / "evaluation.json").images == 29


def test_findings_that_the_set_never_labels_are_unknown(report: Path) -> None:
    studies = StudiesReport.read(report / "studies.json")
    assert "Hiatal hernia" in studies.unlabelled and "Pneumonia" not in studies.unlabelled
    by_name = {f.name: f for f in EvaluationReport.read(report / "evaluation.json").findings}
    assert by_name["Hernia"].unknown == 29 and by_name["Effusion"].positives == 9


def test_the_shift_is_named(report: Path) -> None:
    shift = ShiftReport.read(report / "shift.json")
    assert "Pneumonia" in shift.sentence and "views differ" in shift.sentence and "ages differ" in shift.sentence
    assert {a.attribute for a in shift.attributes if a.moved} == {"view", "sex", "age"}


def test_the_report_is_a_page_whose_numbers_stand_in_its_files(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    assert ShiftReport.read(report / "shift.json").sentence in text
    count, missing = unexplained_numbers(text, report)
    assert count > 100 and missing == []
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "![The learned space by relation](plots/space.png)" in text and (report / "plots" / "space.png").is_file()
    assert "data:image/png;base64," in page and 'id="review"' in page and "http" not in page.split("</style>")[1]


def test_no_identifier_of_the_set_is_in_the_report(report: Path) -> None:
    for path in report.rglob("*.*"):
        assert path.suffix == ".png" or b"other1" not in path.read_bytes(), path


def test_studies_that_the_bundle_learned_from_are_left_out(bundle: Bundle, table: Path) -> None:
    rows = pd.read_csv(table)
    rows.loc[3, "study"] = "case7"
    again = table.with_name("again.csv")
    rows.to_csv(again, index=False)
    reading = read_studies(bundle, load_studies(again, bundle, QUICK))
    assert reading.report.own == 1 and len(reading.manifest) == 28


def test_films_beyond_the_limit_are_counted_by_patient() -> None:
    shares = patient_means(np.array([1.0, 0.0, 1.0, 0.0]), np.array(["a", "a", "b", "c"]))
    assert shares.tolist() == [0.5, 1.0, 0.0]


def test_a_split_takes_its_patients_alone(bundle: Bundle, table: Path) -> None:
    settings = load_studies(table, bundle, QUICK)
    parts = [read_studies(bundle, settings, split=name).report.images for name in ("train", "validation", "test")]
    assert sum(parts) == 30 and all(parts)
    with pytest.raises(DataError, match="there is no split 'tests'"):
        read_studies(bundle, settings, split="tests")


def test_a_bundle_without_cases_is_measured_and_says_that_nothing_can_be_compared(
    table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.bundles import tiny_bundle

    alone = tiny_bundle(tmp_path / "alone")
    assert evaluate_bundle(alone, load_studies(table, alone, QUICK), tmp_path / "out") is None
    assert "has no cases" in caplog.text and not (tmp_path / "out" / "shift.json").exists()


def test_figures_are_those_of_the_probabilities_that_the_bundle_serves(bundle: Bundle, table: Path) -> None:
    from sklearn.metrics import roc_auc_score

    reading = read_studies(bundle, load_studies(table, bundle, QUICK))
    column = bundle.findings.names.index("Effusion")
    area = roc_auc_score(reading.manifest.labels[:, column], reading.logits[:, column])
    assert measure(reading).findings[column].auroc.value == pytest.approx(area, abs=1e-6)


def test_a_configuration_needs_no_more_than_data(bundle: Bundle, table: Path, tmp_path: Path) -> None:
    config = tmp_path / "ours.yaml"
    config.write_text(f"data: {{source: csv, root: {table.parent}}}\n", encoding="utf-8")
    settings = load_studies(config, bundle)
    assert (settings.name, settings.findings) == ("ours", "nih14")


def test_the_verb_tells_a_bundle_from_a_run(bundle: Bundle, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["evaluate", str(bundle.folder)])
    assert isinstance(run.exception, SettingsError) and "--studies" in str(run.exception)
    run = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run.yaml"), "--out", "x"])
    assert "is not a bundle" in str(run.exception)


def test_the_step_of_a_run_prints_the_retrieval_table(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(Path(__file__).parents[2] / "configs" / "phantom.yaml")
    run = SimpleNamespace(folder=report, bundle=report, evaluation=report / "evaluation.json")
    monkeypatch.setattr("medsd.pipeline.run.run_steps", lambda *_, **__: run)
    said = CliRunner().invoke(app, ["evaluate", config]).stdout
    figures = EvaluationReport.read(run.evaluation).retrieval.rankings.images.figures
    assert "All images" in said and all(str(figures[name]) in said for name in FIGURES)
    assert "All images" not in CliRunner().invoke(app, ["finetune", config]).stdout


def test_measuring_elsewhere_needs_no_torch(bundle: Bundle, table: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom medsd.cli import app\n"
        f"app(['evaluate', {str(bundle.folder)!r}, '--studies', {str(table)!r}, '--out', {str(tmp_path / 'o')!r},"
        "'--set', 'evaluation.bootstrap=20'], standalone_mode=False)\n"
        "assert not {'torch', 'monai', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "o" / "shift.json").read_text(encoding="utf-8"))["sentence"] in done.stdout
    found = EvaluationReport.read(tmp_path / "o" / "evaluation.json").retrieval.rankings
    for figures in (found.images.figures, found.findings["Effusion"].figures):
        assert all(str(figures[name]) in done.stdout for name in FIGURES)
    assert "Pleural effusion" in done.stdout and "nDCG@100" in done.stdout


def test_the_bundles_own_set_is_measured_on_test_patients_who_neither_trained_nor_chose_thresholds(
    table: Path, tmp_path: Path
) -> None:
    """Another deal of the same patients: some who trained, or were validation patients, stand in its test split."""
    own = bundle_with_cases(tmp_path / "own", count=12)
    keys = public_hasher(own.description.name)
    write_json(own.folder / VALIDATION, [keys.patient_key(f"patient{number}") for number in (12, 13, 14)])
    provenance = own.description.provenance.model_copy(update={"data": "csv"})
    write_description(own.folder, own.description.model_copy(update={"provenance": provenance}))
    rows = pd.read_csv(table)
    rows["patient"] = [f"patient{number}" for number in range(len(rows))]
    rows["split"] = ["train"] * 10 + ["test"] * 16 + ["validation"] * 4
    again = table.with_name("own.csv")
    rows.to_csv(again, index=False)
    own = Bundle.open(own.folder)
    reading = read_studies(own, load_studies(again, own, QUICK))
    assert (reading.report.split, reading.report.images, reading.report.own) == ("test", 16, 5)
    assert set(reading.manifest.patients) == {f"patient{number}" for number in range(15, 26)}

    own_report = measure(reading)
    own_report.write(own.folder / "evaluation.json")
    run = CliRunner().invoke(
        app,
        ["evaluate", str(own.folder), "--studies", str(again), "--out", str(tmp_path / "out")]
        + [word for setting in QUICK for word in ("--set", setting)],
    )
    assert run.exit_code == 0, run.output
    card = StudiesReport.read(tmp_path / "out" / "studies.json").card
    told = [f for f in own_report.findings if f.auroc.low is not None]
    assert card.inside == len(card.findings) == len(told) > 0
    assert own_report.lines()[0] in run.output and str(card) in run.output
    assert "### What the card says" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_set_that_the_bundle_did_not_learn_from_is_measured_whole(bundle: Bundle, table: Path) -> None:
    assert read_studies(bundle, load_studies(table, bundle, QUICK)).report.split is None


def test_the_card_is_compared_finding_by_finding_and_by_their_order() -> None:
    def report(values: list[float]) -> EvaluationReport:
        findings = [
            SimpleNamespace(name=str(i), title=f"F{i}", auroc=Interval(value=v, low=v - 0.05, high=v + 0.05))
            for i, v in enumerate(values)
        ]
        none = SimpleNamespace(name="none", title="None", auroc=Interval())
        return cast(EvaluationReport, SimpleNamespace(findings=[*findings, none]))

    found = compare_with_card(report([0.6, 0.7, 0.8, 0.9]), report([0.62, 0.5, 0.79, 0.88]))
    assert (found.inside, len(found.findings)) == (3, 4) and found.rank_correlation == pytest.approx(0.8)
    assert str(found).endswith("for 3 of 4 findings, not for F1; rank correlation 0.80")
    assert compare_with_card(report([0.6, 0.7]), report([0.6, 0.7])).rank_correlation is None


def test_two_bundles_are_compared_on_the_studies_that_both_scored(bundle: Bundle, table: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(table)
    rows.loc[3, "study"] = "case7"
    again = table.with_name("against.csv")
    rows.to_csv(again, index=False)
    other = bundle_with_cases(tmp_path / "other")
    run = CliRunner().invoke(
        app,
        ["evaluate", str(bundle.folder), "--studies", str(again), "--out", str(tmp_path / "out")]
        + ["--against", str(other.folder)]
        + [word for setting in QUICK for word in ("--set", setting)],
    )
    assert run.exit_code == 0, run.output
    found = AgainstReport.read(tmp_path / "out" / "against.json")
    told = [f for f in found.findings if f.first is not None]
    assert found.images == 28 and told and all(f.first == f.second and f.p == 1 for f in told)
    assert found.lines()[0] in run.output
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert f"## {found.first} and {found.second}" in text and "Difference in AUROC" in text
    assert unexplained_numbers(text, tmp_path / "out")[1] == []
