"""A finding that no training study teaches has no probability, from the run to every output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from medsd.apps.web import markup
from medsd.apps.web.reading import Reader, Reading
from medsd.bundle.layout import GRAPHS, Bundle
from medsd.calibration.conformal import read_conformal
from medsd.card import CARD
from medsd.cases.index import CaseIndex
from medsd.errors import DataError
from medsd.evaluation.report import EvaluationReport
from medsd.external.recalibrate import recalibrate
from medsd.external.studies import load_studies, read_studies
from medsd.findings import finding_set
from medsd.inference.coverage import called
from medsd.inference.predict import Predictor
from medsd.inference.prediction import Prediction
from medsd.inference.words import impression
from medsd.labelling.pool import suggest_studies
from medsd.pipeline.folder import Run
from medsd.pipeline.run import run_steps
from medsd.results.pdf import reading_pdf
from medsd.results.record import reading_record
from medsd.scoring import batch, by_study
from medsd.scoring.request import ScoringRequest
from medsd.scoring.table import read_table, row
from medsd.settings import load_settings
from medsd.studies.phantom import write_phantom
from tests.results.test_pdf import _words
from tests.runs import PHANTOM, SMALL

WHY = {
    "Atelectasis": "no training study is labelled for it",
    "Mass": "no training study has it",
    "Pneumothorax": "no training study is without it",
}


def _table(folder: Path, *, seed: int) -> pd.DataFrame:
    """60 phantoms with their labels."""
    table = write_phantom(folder, count=60, seed=seed, size=64).rename(columns={"path": "image"})
    return table.drop(columns=["source", "note"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, monkeypatch_session: pytest.MonkeyPatch) -> Run:
    """Trained on a table that never labels Atelectasis; nobody trains with a Mass, or without a Pneumothorax."""
    monkeypatch_session.setenv("MEDSD_KEY", "a key for the tests of medsd")
    folder = tmp_path_factory.mktemp("untaught")
    table = _table(folder, seed=0).drop(columns="Atelectasis")
    patients = np.unique(table["patient"])
    place = np.searchsorted(patients, table["patient"]) / len(patients)
    table["split"] = np.select([place < 0.6, place < 0.8], ["train", "validation"], "test")
    train = table["split"] == "train"
    table.loc[train, ["Mass", "Pneumothorax"]] = [0.0, 1.0]
    # One whose findings nobody has looked at, to be suggested.
    table.loc[table.index[train][-1], [name for name in finding_set("phantom8") if name in table]] = np.nan
    table.to_csv(folder / "studies.csv", index=False)
    columns_of = {name: name for name in ("image", "patient", "study", "view", "sex", "age", "split")}
    data = {"source": "csv", "root": str(folder), "table": "studies.csv", "name": "made", "columns": columns_of}
    small = [each for each in SMALL if not each.startswith(("data.", "network.note"))]
    own = [f"data={json.dumps(data)}", "network.note=null", f"output={folder / 'runs'}", "bundle.public=false"]
    more = ["bundle.precisions=[float32,float16,int8]", "bundle.thumbnails=false", "bundle.note_excerpts=false"]
    return run_steps(load_settings(PHANTOM, [*small, *own, *more]))


@pytest.fixture(scope="module")
def bundle(run: Run) -> Bundle:
    return Bundle.open(run.bundle)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other phantoms, of which every finding is labelled."""
    folder = tmp_path_factory.mktemp("elsewhere")
    _table(folder, seed=5).to_csv(folder / "hospital.csv", index=False)
    return folder / "hospital.csv"


@pytest.fixture(scope="module")
def prediction(bundle: Bundle, elsewhere: Path) -> Prediction:
    return Predictor(bundle)(next(iter(sorted((elsewhere.parent / "files").iterdir()))))


def test_the_bundle_names_what_was_not_trained_and_has_no_calibration_of_it(bundle: Bundle) -> None:
    d = bundle.description
    assert d.not_trained == WHY
    for made in (
        d.calibration,
        d.calibration_choices,
        d.operating_points,
        read_conformal(bundle.folder / "conformal.json"),
    ):
        assert set(made) == set(bundle.findings) - set(WHY)


def test_every_graph_of_the_bundle_says_nan_of_it_whoever_serves_it(bundle: Bundle) -> None:
    pixels = np.random.default_rng(0).random((3, 1, 32, 32), dtype=np.float32)
    silent = np.isin(bundle.findings.names, list(WHY))
    for precision in ("float32", *bundle.description.variants):
        session = onnxruntime.InferenceSession(bundle.folder / GRAPHS[precision], providers=["CPUExecutionProvider"])
        (said,) = session.run(["probabilities"], {"pixels": pixels})
        assert np.isnan(said[:, silent]).all() and np.isfinite(said[:, ~silent]).all()


def test_a_reading_says_not_trained_in_place_of_a_call(bundle: Bundle, prediction: Prediction) -> None:
    assert prediction.not_trained == tuple(WHY) and prediction.ranked[-3:] == tuple(WHY)
    assert set(prediction.probabilities) == set(prediction.calls) == set(bundle.findings) - set(WHY)
    assert impression(prediction).endswith("3 cannot be called (too little training data)")
    with pytest.raises(DataError, match="was not trained for it"):
        prediction.evidence("Mass")
    covered = Predictor(bundle, coverage=0.5)
    calls = called(bundle, prediction.values, 0.5, covered._limits)["calls"]  # type: ignore[arg-type]
    assert set(calls) == set(bundle.findings) - set(WHY)


def test_it_has_no_number_in_the_tables_of_images_and_of_studies(
    bundle: Bundle, elsewhere: Path, tmp_path: Path
) -> None:
    out = tmp_path / "studies.csv"
    by_study.score(batch.score, ScoringRequest(bundle, [elsewhere.parent / "files"], out))
    for path in (out, tmp_path / "studies.images.csv"):
        table = pd.read_csv(path)
        for name in bundle.findings:
            assert table[f"probability_{name}"].isna().all() == (name in WHY)
            assert (table[f"call_{name}"] == "not trained").all() == (name in WHY)
    rows = [dict(each, study_key="k", instance_key="") for each in read_table(tmp_path / "studies.images.csv")][:3]
    study = by_study.Studies(bundle).combine(rows)
    assert study["images_used"] == 3 and study["probability_Mass"] is None and study["call_Mass"] == "not trained"
    assert 0 < study["probability_Edema"] < 1


def test_the_page_the_record_and_the_document_have_a_row_without_a_number(
    bundle: Bundle, prediction: Prediction
) -> None:
    votes = CaseIndex.open(bundle.cases_path, model_sha256=bundle.model_sha256).vote(prediction)
    assert not any(vote.disagrees for vote in votes if vote.finding in WHY)
    assert {vote.finding for vote in votes if vote.call == "not trained"} == set(WHY)
    reading = Reading(prediction, prediction.image, votes=votes)
    page = markup.findings(reading, bundle.description, None, feedback=True)
    assert page.count("<small>too little training data</small>") == 3
    assert all(f'title="{why}"' in page for why in WHY.values()) and 'data-finding="Mass"' not in page
    record = reading_record(prediction, bundle, (), votes)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    last = record["findings"][-3:]
    assert [(each["name"], each["probability"], each["call"]) for each in last] == [
        (name, None, "not trained") for name in WHY
    ]
    words = " ".join(_words(reading_pdf(prediction, bundle, (), votes)))
    assert words.replace(" ", "").count("toolittletrainingdata") == 4  # in the impression, too, where a line may end


def test_similar_cases_are_related_by_what_was_trained(bundle: Bundle, prediction: Prediction) -> None:
    cases = CaseIndex.open(bundle.cases_path, model_sha256=bundle.model_sha256).similar(prediction, k=5)
    for case in cases:
        assert np.isfinite([case.k_s, case.k_d]).all() and sum(case.chances.values()) == pytest.approx(1, abs=1e-6)
        assert not set(WHY) & {*case.shared, *case.extra, *case.missing}


def test_the_card_names_it_and_nothing_of_it_is_measured(bundle: Bundle) -> None:
    card = (bundle.folder / CARD).read_text(encoding="utf-8")
    assert "a calibrated probability for each of 5 findings" in card
    assert "**Not trained, so without a probability:** Atelectasis (no training study is labelled for it), Mass" in card
    report = EvaluationReport.read(bundle.folder / "evaluation.json")
    untaught = [f for f in report.findings if not f.trained]
    assert [f.name for f in untaught] == list(WHY) and not set(WHY) & set(report.too_few)
    assert all(f.auroc.value is None and f.threshold is None and f.calibration is None for f in untaught)
    assert report.conformal is not None and not set(WHY) & {f.name for f in report.conformal.findings}
    assert {f.name: f.positives for f in untaught}["Mass"] > 0  # it is in the test split, and still is not measured


def test_labels_from_elsewhere_bring_no_probability_back(bundle: Bundle, elsewhere: Path, tmp_path: Path) -> None:
    settings = load_studies(elsewhere, bundle, ["evaluation.bootstrap=20", "evaluation.minimum_positives=3"])
    reading = read_studies(bundle, settings)
    assert (reading.manifest.labels[:, bundle.findings.names.index("Mass")] == 1).sum() >= 3
    recalibrate(bundle, reading, tmp_path / "new", everyone=True)
    new = Bundle.open(tmp_path / "new")
    assert new.description.recalibrated is not None and new.description.not_trained == WHY
    assert not set(WHY) & {*new.description.calibration, *new.description.operating_points}
    said = Predictor(new)(next(iter(sorted((elsewhere.parent / "files").iterdir()))))
    assert said.not_trained == tuple(WHY) and row("x.png", said)["probability_Mass"] is None
    assert said.values is not None and np.isfinite(said.values).sum() == 5
    # A second one changes a tail that this one made.
    recalibrate(new, read_studies(new, settings), tmp_path / "newer", everyone=True)
    assert Predictor(tmp_path / "newer")(sorted((elsewhere.parent / "files").iterdir())[0]).not_trained == tuple(WHY)


def test_studies_are_suggested_by_what_was_trained(run: Run, tmp_path: Path) -> None:
    suggest_studies(run.settings, tmp_path / "list.csv", count=1)
    listed = pd.read_csv(tmp_path / "list.csv")
    assert np.isfinite(listed["score"]).all() and not any(name in listed["unsure"][0] for name in WHY)


def test_the_monai_form_says_nan_too(bundle: Bundle, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from medsd.export.monai_bundle import load_network, write_monai_bundle

    network = load_network(str(write_monai_bundle(bundle, tmp_path / "monai")))
    with torch.inference_mode():
        said = network(torch.rand(2, 1, 32, 32)).numpy()
    assert (np.isnan(said).all(axis=0) == np.isin(bundle.findings.names, list(WHY))).all()
    assert "not trained for: Atelectasis, Mass, Pneumothorax" in (tmp_path / "monai/docs/README.md").read_text()


def test_the_page_reads_an_image(bundle: Bundle, elsewhere: Path) -> None:
    reader = Reader(bundle, lambda content, note: Predictor(bundle)(content, note))
    reading = reader.read(sorted((elsewhere.parent / "files").iterdir())[0].read_bytes())
    assert not reading.prediction.refused and markup.shown_first(reading) not in WHY
