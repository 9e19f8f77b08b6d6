"""What the steps `calibrate` and `evaluate` make of a run's outputs, and what they report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import expit, logit

from medsd.calibration.conformal import read_conformal
from medsd.evaluation.report import EvaluationReport
from medsd.findings import finding_set
from medsd.pipeline import steps
from medsd.pipeline.folder import Run
from medsd.pipeline.run import STEPS, _fingerprint
from medsd.settings import load_settings
from medsd.studies.manifest import Manifest, complete

CONFIG = Path(__file__).parents[2] / "configs" / "nih14.yaml"
ROWS = {"train": 40, "validation": 120, "test": 120}
FINDINGS = finding_set("nih14")


# How often each finding is labelled in ChestX-ray14 (Wang et al., CVPR 2017), in the order of the finding set.
PREVALENCE = {
    "Atelectasis": 0.103, "Cardiomegaly": 0.025, "Consolidation": 0.042, "Edema": 0.021, "Effusion": 0.119,
    "Emphysema": 0.022, "Fibrosis": 0.015, "Hernia": 0.002, "Infiltration": 0.177, "Mass": 0.052, "Nodule": 0.056,
    "Pleural_Thickening": 0.030, "Pneumonia": 0.013, "Pneumothorax": 0.047,
}  # fmt: skip


def _made(folder: Path, rows: dict[str, int], means: dict[str, float], never: str = "") -> Run:
    """A run that has come as far as its outputs, with random logits; `never` is seen in training alone."""
    settings = load_settings(CONFIG, [f"output={folder}", "data.root=nowhere", "evaluation.bootstrap=20"])
    made, rng, count = Run(settings), np.random.default_rng(0), sum(rows.values())
    split = [name for name, number in rows.items() for _ in range(number)]
    columns = {
        "study": [f"s{row}" for row in range(count)],
        "patient": [f"p{row // 2}" for row in range(count)],
        "path": [f"s{row}.png" for row in range(count)],
        "split": split,
        "sex": ["F", "F", "M", "M"] * (count // 4),
        "age": np.where(np.arange(count) % 4 < 2, 30.0, 70.0),
    }
    table = complete(pd.DataFrame(columns), FINDINGS)
    logits = rng.normal([means[name] for name in FINDINGS], 1.5, (count, len(FINDINGS)))
    labels = (rng.random(logits.shape) < expit(logits)).astype(np.float32)
    if never:
        labels[rows["train"] :, FINDINGS.names.index(never)] = 0
    table[list(FINDINGS)] = labels
    Manifest(table, FINDINGS, folder).write(made.manifest)
    embeddings = rng.normal(size=(count, 5)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    save_file({"logits": logits.astype(np.float32), "embeddings": embeddings}, made.outputs)
    return made


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A small run; Hernia is in no validation or test study."""
    return _made(tmp_path, ROWS, dict.fromkeys(FINDINGS, -1.0), never="Hernia")


def _report(run: Run) -> EvaluationReport:
    return steps._measure(run, Manifest.read(run.manifest), load_file(run.outputs), "")


def test_a_thousand_unselected_validation_images_give_every_finding_but_the_rarest_its_calls(tmp_path: Path) -> None:
    rows = {"train": 4000, "validation": 1000, "test": 2000}
    # The mean of a normal logit that gives this prevalence, approximately (MacKay, Neural Computation 4, 1992).
    wide = np.sqrt(1 + np.pi * 1.5**2 / 8)
    run = _made(tmp_path, rows, {name: float(logit(share) * wide) for name, share in PREVALENCE.items()})
    steps._choose_calls(run)
    calls = run.read_calls()
    points, choices, scores, report = calls.operating_points, calls.choices, read_conformal(run.conformal), _report(run)
    assert report.conformal is not None
    measured = {f.name: f for f in report.conformal.findings}
    for name in FINDINGS:
        own = points[name].positives >= run.settings.evaluation.minimum_positives
        assert own == (points[name].threshold is not None) == (choices[name].method != "pooled"), name
        enough = scores[name].present_patients >= 9 and scores[name].absent_patients >= 9
        assert enough == (scores[name].limits(0.9) is not None) == measured[name].enough, name
        if enough:
            for each in (measured[name].present, measured[name].absent):
                assert each.covered.high is not None and each.covered.high >= 0.8, name
    told = [name for name in FINDINGS if measured[name].enough and points[name].threshold is not None]
    assert len(told) >= 10 and "Hernia" not in told


def test_calibrate_keeps_calibration_choices_thresholds_and_conformal_scores_of_every_finding(run: Run) -> None:
    steps._choose_calls(run)
    calls, scores = run.read_calls(), read_conformal(run.conformal)
    calibration, points, choices = calls.calibration, calls.operating_points, calls.choices
    assert set(calibration) == set(points) == set(choices) == set(scores) == set(FINDINGS)
    assert (choices["Hernia"].method, points["Hernia"].threshold, scores["Hernia"].present) == ("pooled", None, ())
    assert choices["Mass"].method == "platt" and scores["Mass"].limits(0.9) is not None
    assert scores["Mass"].present_patients + scores["Mass"].absent_patients <= 120  # a film of each patient and class


def test_the_report_of_a_calibrated_run_has_coverage_and_groups(run: Run) -> None:
    steps._choose_calls(run)
    report = _report(run)
    assert report.conformal is not None and report.subgroups is not None
    assert {(g.attribute, g.value) for g in report.subgroups.groups} == {
        ("sex", "F"),
        ("sex", "M"),
        ("age", "18-39"),
        ("age", "60 and over"),
    }
    assert set(report.subgroups.not_compared) == {"view", "source"}
    covered = [f.covered.value for f in report.conformal.findings if f.enough]
    assert len(covered) == 13 and np.mean(covered) == pytest.approx(0.9, abs=0.05)


def test_settings_that_came_later_leave_older_fingerprints_as_they_were_until_they_ask_for_more(run: Run) -> None:
    def prints(*overrides: str) -> dict[str, str]:
        settings = load_settings(CONFIG, list(overrides))
        return {step.name: _fingerprint(step, settings, "") for step in STEPS}

    plain = prints()
    assert prints("evaluation.calibration=by_size", "evaluation.conformal=0.9") == plain
    changed = {name for name, value in prints("evaluation.calibration=platt").items() if value != plain[name]}
    assert changed == {"calibrate", "evaluate"}
    changed = {name for name, value in prints("evaluation.conformal=0.8").items() if value != plain[name]}
    assert changed == {"evaluate"}
