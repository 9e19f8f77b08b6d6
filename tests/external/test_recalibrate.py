"""Recalibration: only what the labels allow is fitted, the gain is real on other patients, the new bundle is whole."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from typer.testing import CliRunner

from medsd.bundle.layout import GRAPHS, Bundle, Variant, write_description
from medsd.calibration.conformal import read_conformal
from medsd.calibration.fit import calibrated
from medsd.calibration.types import CalibrationChoice, IsotonicCalibration, PlattCalibration, call
from medsd.card import CARD, different_pages
from medsd.cases.index import CaseIndex
from medsd.cli import app
from medsd.errors import BundleError, DataError
from medsd.evaluation.studies_report import RecalibrationReport, StudiesReport, compare_probabilities
from medsd.external.evaluate import shift_of
from medsd.external.recalibrate import fit_again, halves_of, next_version, recalibrate
from medsd.external.studies import ScoredStudies, load_studies, read_studies
from medsd.inference.predict import Predictor
from medsd.metrics.intervals import IntervalOptions, metric_intervals
from medsd.settings import EvaluationSettings
from medsd.studies.manifest import Manifest, complete
from tests.bundles import WIDTH
from tests.card_numbers import unexplained_numbers
from tests.elsewhere import bundle_with_cases, hospital
from tests.export.test_tail import outputs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_with_cases(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def reading(bundle: Bundle) -> ScoredStudies:
    """Effusion has many labels and logits twice too steep; Pneumonia few negatives; the rest is unlabelled."""
    rng, count, names = np.random.default_rng(0), 400, bundle.findings.names
    truth = rng.normal(-1, 1.5, (count, len(names)))
    labels = np.full((count, len(names)), np.nan, dtype=np.float32)
    labels[:, names.index("Effusion")] = rng.random(count) < expit(truth[:, names.index("Effusion")])
    pneumonia = np.arange(count) % 40 > 0
    labels[:, names.index("Pneumonia")] = pneumonia
    rows = {"study": [f"s{i}" for i in range(count)], "patient": [f"p{i // 2}" for i in range(count)], "path": None}
    table = complete(pd.DataFrame(rows | dict(zip(names, labels.T, strict=True))), bundle.findings)
    table["split"] = "test"
    vectors = rng.normal(size=(count, WIDTH)).astype(np.float32)
    report = StudiesReport(
        bundle=bundle.label, model_sha256=bundle.model_sha256, name="made up", source="csv", split=None, data_hash="0",
        finding_set="nih14", images=count, patients=200, own=0, rejected={}, refused={}, warned={}, scored=count,
        scored_patients=200, unlabelled=(),
    )  # fmt: skip
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    manifest = Manifest(table, bundle.findings, Path())
    settings = EvaluationSettings(bootstrap=40)
    return ScoredStudies(bundle, manifest, 2 * truth, vectors, np.zeros(200), report, settings, 0)


@pytest.fixture(scope="module")
def recalibrated(bundle: Bundle, reading: ScoredStudies, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the new bundle, which nobody may change."""
    folder = tmp_path_factory.mktemp("recalibrated") / "new"
    recalibrate(bundle, reading, folder)
    return folder


def test_halves_share_no_patient_and_hold_as_many_of_each_kind(reading: ScoredStudies) -> None:
    first, second = halves_of(reading)
    patients, labels = reading.manifest.patients, reading.manifest.labels
    assert not set(patients[first]) & set(patients[second]) and len(first) + len(second) == 400
    negatives = [
        (labels[half][:, reading.bundle.findings.names.index("Pneumonia")] == 0).sum() for half in (first, second)
    ]
    assert abs(negatives[0] - negatives[1]) <= 1
    assert all(np.array_equal(a, b) for a, b in zip((first, second), halves_of(reading), strict=True))


def test_what_is_fitted_depends_on_the_labels(bundle: Bundle, reading: ScoredStudies) -> None:
    fit = fit_again(bundle, reading, np.arange(400))
    assert fit.findings == ("Effusion", "Pneumonia")
    methods = {name: fit.choices[name].method for name in ("Effusion", "Pneumonia", "Hernia")}
    assert methods == {"Effusion": "platt", "Pneumonia": "intercept", "Hernia": "kept"}
    assert fit.calibration["Hernia"] == bundle.description.calibration["Hernia"]
    assert fit.points["Hernia"] == bundle.description.operating_points["Hernia"]
    assert fit.calibration["Effusion"].slope == pytest.approx(0.5, abs=0.12)
    assert fit.calibration["Pneumonia"].slope == bundle.description.calibration["Pneumonia"].slope
    assert fit.calibration["Pneumonia"].intercept > 2


def test_a_calibration_that_was_pooled_and_stays_is_still_named_so(bundle: Bundle, reading: ScoredStudies) -> None:
    choices = {
        name: CalibrationChoice(method="pooled", positives=3, negatives=90, reason="") for name in bundle.findings
    }
    old = bundle.description.model_copy(update={"calibration_choices": choices})
    fit = fit_again(replace(bundle, description=old), reading, np.arange(400))
    assert fit.findings == ("Effusion", "Pneumonia") and fit.choices["Hernia"].method == "pooled"
    said = old.model_copy(update={"calibration_choices": fit.choices}).calibration_words()
    assert "Hiatal hernia" in said and "effusion" not in said and "Pneumonia," not in said


def test_an_intercept_moves_the_mean_of_the_probabilities_to_the_prevalence(
    bundle: Bundle, reading: ScoredStudies
) -> None:
    column = bundle.findings.names.index("Pneumonia")
    fit = fit_again(bundle, reading, np.arange(400))
    probs = calibrated(reading.logits, fit.calibration, bundle.findings.names)[:, column]
    assert probs.mean() == pytest.approx(0.975, abs=0.01)


def test_a_curve_moves_as_a_whole(bundle: Bundle, reading: ScoredStudies) -> None:
    curve = IsotonicCalibration(knots=(-1.0, 1.0), log_odds=(-2.0, 0.0), slope=1.0)
    calibration = bundle.description.calibration | {"Pneumonia": curve}
    old = replace(bundle, description=bundle.description.model_copy(update={"calibration": calibration}))
    new = fit_again(old, reading, np.arange(400)).calibration["Pneumonia"]
    assert new.knots == curve.knots and np.diff(new.log_odds) == pytest.approx(np.diff(curve.log_odds))
    assert new.log_odds[0] > curve.log_odds[0]


def test_a_finding_with_too_few_for_a_new_threshold_keeps_its_calls(bundle: Bundle, reading: ScoredStudies) -> None:
    scarce = replace(reading, evaluation=EvaluationSettings(bootstrap=40, minimum_positives=20))
    fit, column = fit_again(bundle, scarce, np.arange(400)), bundle.findings.names.index("Pneumonia")
    old, new = (
        calibrated(reading.logits, c, bundle.findings.names)[:, column]
        for c in (bundle.description.calibration, fit.calibration)
    )
    points = bundle.description.operating_points["Pneumonia"], fit.points["Pneumonia"]
    assert points[1].threshold > points[0].threshold
    assert [call(p, points[0]) for p in old] == [call(p, points[1]) for p in new]


def test_the_error_on_held_back_patients_falls_and_the_interval_is_paired(recalibrated: Path) -> None:
    report = RecalibrationReport.read(recalibrated / "recalibration.json")
    assert report.fitted_patients == report.measured_patients == 100 and not report.crossed
    for figure in report.figures.values():
        assert figure.after.value < figure.before.value
        assert figure.gain.value == pytest.approx(figure.before.value - figure.after.value, abs=2e-6)
        assert figure.gain.low > 0


def test_figures_of_one_finding_are_those_of_the_metrics(reading: ScoredStudies) -> None:
    column = [reading.bundle.findings.names.index("Effusion")]
    target, before = reading.manifest.labels[:, column].astype(float), expit(reading.logits[:, column])
    after, patients = expit(reading.logits[:, column] / 2), reading.manifest.patients
    found = compare_probabilities(target, before, after, patients, IntervalOptions(resamples=40))
    other = metric_intervals(target, before, patients, IntervalOptions(resamples=40), other=after)
    for name in ("brier", "calibration_error"):
        assert found[name].gain.value == pytest.approx(other[name].macro.value, abs=1e-5)


def test_the_new_bundle_is_whole_and_the_old_one_untouched(bundle: Bundle, recalibrated: Path) -> None:
    Bundle.open(bundle.folder)
    new = Bundle.open(recalibrated)
    assert new.description.version == "1.1" and new.description.recalibrated.model_sha256 == bundle.model_sha256
    assert new.model_sha256 != bundle.model_sha256
    cases, old = CaseIndex.open(new.cases_path, model_sha256=new.model_sha256), CaseIndex.open(bundle.cases_path)
    np.testing.assert_array_equal(cases.embeddings(), old.embeddings())
    assert cases.table().equals(old.table()) and cases.description.vote is None
    assert set(read_conformal(new.folder / "conformal.json")) == set(new.findings)
    assert [path.name for path in recalibrated.parent.iterdir()] == ["new"]


def test_the_new_bundle_serves_the_new_probabilities(
    bundle: Bundle, reading: ScoredStudies, chest: np.ndarray, tmp_path: Path
) -> None:
    recalibrate(bundle, reading, tmp_path / "new", version="2")
    before, after = (Predictor(where, provider="cpu")(chest) for where in (bundle.folder, tmp_path / "new"))
    np.testing.assert_allclose(after.logits, before.logits, atol=1e-5)
    expected = calibrated(
        after.logits[None], Bundle.open(tmp_path / "new").description.calibration, bundle.findings.names
    )
    np.testing.assert_allclose(after.values, expected[0], atol=1e-5)
    assert after.model == "tiny 2" and after.probabilities["Pneumonia"] != before.probabilities["Pneumonia"]


def test_every_graph_of_the_bundle_is_recalibrated(reading: ScoredStudies, tmp_path: Path) -> None:
    old = bundle_with_cases(tmp_path / "old")
    shutil.copyfile(old.model_path, old.folder / GRAPHS["int8"])
    variant = Variant(file=GRAPHS["int8"], auroc_difference=0.0, embedding_cosine=1.0)
    write_description(old.folder, old.description.model_copy(update={"variants": {"int8": variant}}))
    recalibrate(Bundle.open(old.folder), reading, tmp_path / "new")
    said = [outputs(tmp_path / "new" / name)["probabilities"] for name in (GRAPHS["float32"], GRAPHS["int8"])]
    np.testing.assert_array_equal(*said)
    assert np.abs(said[0] - outputs(old.model_path)["probabilities"]).max() > 0.01


def test_the_card_of_the_new_bundle_says_what_was_done_and_invents_nothing(recalibrated: Path) -> None:
    text = (recalibrated / CARD).read_text(encoding="utf-8")
    assert "## Recalibration" in text and "the half that was held back" in text
    assert unexplained_numbers(text, recalibrated)[1] == []
    assert different_pages(Bundle.open(recalibrated)) == []


def test_with_everyone_fitted_each_half_is_measured_with_the_fit_of_the_other(
    bundle: Bundle, reading: ScoredStudies, tmp_path: Path
) -> None:
    report = recalibrate(bundle, reading, tmp_path / "new", everyone=True)
    assert report.crossed and report.fitted_patients == report.measured_patients == 200
    assert report.figures["log_loss"].gain.low > 0
    names, half = bundle.findings.names, halves_of(reading)[0]
    whole = Bundle.open(tmp_path / "new").description.calibration["Effusion"]
    assert whole == fit_again(bundle, reading, np.arange(400)).calibration["Effusion"]
    assert isinstance(whole, PlattCalibration) and whole != fit_again(bundle, reading, half).calibration["Effusion"]
    assert len(names) == 14


def test_without_labels_nothing_is_made(bundle: Bundle, reading: ScoredStudies, tmp_path: Path) -> None:
    blank = reading.manifest.table.assign(**dict.fromkeys(bundle.findings.names, np.float32(np.nan)))
    unlabelled = replace(reading, manifest=replace(reading.manifest, table=blank))
    with pytest.raises(DataError, match="nothing can be recalibrated"):
        recalibrate(bundle, unlabelled, tmp_path / "new")
    (tmp_path / "there").mkdir()
    with pytest.raises(BundleError, match="is there already"):
        recalibrate(bundle, reading, tmp_path / "there")


@pytest.mark.parametrize(("old", "new"), [("1", "1.1"), ("1.9", "1.10"), ("2.0.1", "2.0.2"), ("a", "a.1")])
def test_versions_go_on_below_the_old_one(old: str, new: str) -> None:
    assert next_version(old) == new


def test_the_verb_makes_a_bundle_from_a_table(bundle: Bundle, chest: np.ndarray, tmp_path: Path) -> None:
    table = hospital(tmp_path / "hospital", chest, 60)
    more = [f"--set={s}" for s in ("evaluation.bootstrap=20", "gate.out_of_distribution=accept")]
    run = CliRunner().invoke(
        app, ["recalibrate", str(bundle.folder), "--studies", str(table), "--out", str(tmp_path / "new"), *more]
    )
    assert run.exit_code == 0, run.exception
    assert "log loss:" in run.stdout
    found = RecalibrationReport.read(tmp_path / "new" / "recalibration.json")
    assert found.findings == ("Effusion", "Pneumonia") and found.studies == "studies"


@pytest.mark.bench
def test_on_real_films_of_another_source_the_shift_is_named_and_the_held_back_half_is_read_better(
    data_root: Path, tmp_path: Path
) -> None:
    nih14 = Bundle.open(Path(__file__).parents[2] / "models" / "nih14")
    config = Path(__file__).parents[2] / "configs" / "covid.yaml"
    films = f"data.root={data_root / 'covid_pairs'}"
    reading = read_studies(nih14, load_studies(config, nih14, [films, "evaluation.bootstrap=200"]))
    shift = shift_of(reading, CaseIndex.open(nih14.cases_path))
    assert [p.name for p in shift.prevalences if p.moved] == ["Pneumonia"] and shift.appearance.moved
    assert "of Pneumonia" in shift.sentence and "images look different" in shift.sentence
    report = recalibrate(nih14, reading, tmp_path / "new")
    assert report.findings == ("Pneumonia",) and all(figure.gain.low > 0 for figure in report.figures.values())
