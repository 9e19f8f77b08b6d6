"""The evaluation report: the same inputs give the same bytes, and its numbers are those of the metrics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from medsd.calibration.conformal_fit import conformal_scores, measure_conformal
from medsd.calibration.fit import calibrated, choose_calibration, choose_operating_points, thresholds_of
from medsd.errors import DataError
from medsd.evaluation.report import EvaluationReport, evaluate
from medsd.findings import finding_set
from medsd.metrics import metrics
from medsd.metrics.intervals import IntervalOptions
from medsd.metrics.retrieval import Cases, measure_retrieval
from medsd.settings import EvaluationSettings
from tests.metrics.measured import measure

FINDINGS = finding_set("phantom8")
FEW = EvaluationSettings(bootstrap=50)


def split(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits that are twice too large, the truth, patients and embeddings; the last finding is rare."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-0.5, 1.5, (n, len(FINDINGS)))
    z[:, -1] -= 6
    target = (rng.random(z.shape) < expit(z)).astype(float)
    target[rng.random(z.shape) < 0.1] = np.nan
    return 2 * z, target, np.array([f"p{i}" for i in rng.integers(n // 2, size=n)]), rng.normal(size=(n, 6))


def inputs() -> tuple[tuple[Any, ...], dict[str, Any]]:
    logits, target, _, _ = split(1, 120)
    calibration, choices = choose_calibration(logits, target, FINDINGS.names)
    probs = calibrated(logits, calibration, FINDINGS.names)
    points = choose_operating_points(probs, target, FINDINGS.names)
    scores = conformal_scores(probs, target, np.arange(120).astype(str), FINDINGS.names)
    logits, target, patients, embeddings = split(2, 150)
    _, index_target, index_patients, index_embeddings = split(3, 90)
    return (FINDINGS, logits, target, patients), {
        "calibration": calibration,
        "operating_points": points,
        "embeddings": embeddings,
        "index": Cases(index_embeddings, index_target, index_patients),
        "settings": FEW,
        "choices": choices,
        "conformal": scores,
        "groups": {"sex": np.where(np.arange(150) % 3, "F", "M"), "source": np.full(150, "here")},
    }


@pytest.fixture(scope="module")
def report() -> EvaluationReport:
    positional, named = inputs()
    return evaluate(*positional, **named)


def test_the_same_inputs_give_the_same_bytes_and_another_seed_other_intervals(
    report: EvaluationReport, tmp_path: Path
) -> None:
    positional, named = inputs()
    report.write(tmp_path / "first.json")
    evaluate(*positional, **named).write(tmp_path / "second.json")
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    other = evaluate(*positional, **named, seed=1)
    assert other.macro["auroc"].interval.low != report.macro["auroc"].interval.low
    assert other.macro["auroc"].interval.value == report.macro["auroc"].interval.value


def test_the_numbers_are_those_of_the_metrics(report: EvaluationReport) -> None:
    (_, logits, target, _), named = inputs()
    probs = calibrated(logits, named["calibration"], FINDINGS.names)
    expected = measure(target, probs, thresholds_of(named["operating_points"], FINDINGS.names))
    for f, finding in enumerate(report.findings[:-1]):
        for name in ("auroc", "average_precision", "brier", "calibration_error", "sensitivity", "ppv", "f1"):
            assert getattr(finding, name).value == pytest.approx(getattr(expected, name)[f], abs=1e-6)
        assert finding.positives + finding.negatives + finding.unknown == report.images
    assert report.macro["auroc"].interval.value == pytest.approx(metrics.macro(expected.auroc), abs=1e-6)
    assert report.macro["micro_f1"].interval.value == pytest.approx(expected.micro_f1, abs=1e-6)
    assert report.patients == len(set(inputs()[0][3]))


def test_a_rare_finding_is_too_few_to_tell_and_left_out_of_the_means(report: EvaluationReport) -> None:
    assert report.too_few == ("Support Devices",)
    assert report.findings[-1].too_few
    assert report.findings[-1].auroc.value is None
    assert report.macro["auroc"].over == len(FINDINGS) - 1


def test_calibration_is_shown_before_and_after(report: EvaluationReport) -> None:
    (_, logits, target, _), _ = inputs()
    assert report.calibration.after.log_loss < report.calibration.before.log_loss
    assert report.calibration.before.brier == pytest.approx(
        metrics.macro(metrics.brier(target, expit(logits), minimum_positives=10)), abs=1e-6
    )
    assert sum(report.calibration.after.curve.counts) == (~np.isnan(target)).sum()


def test_conformal_calls_and_groups_are_those_of_their_modules(report: EvaluationReport) -> None:
    (_, logits, target, patients), named = inputs()
    probs = calibrated(logits, named["calibration"], FINDINGS.names)
    expected = measure_conformal(probs, target, patients, named["conformal"], FINDINGS.names, coverage=0.9)
    assert report.conformal.coverage == 0.9
    for mine, theirs in zip(report.conformal.findings, expected.findings, strict=True):
        assert mine.covered.value == pytest.approx(theirs.covered.value, abs=1e-6)
    assert [g.value for g in report.conformal.groups] == ["F", "M", "here"]
    assert [(g.attribute, g.value) for g in report.subgroups.groups] == [("sex", "F"), ("sex", "M")]
    assert report.subgroups.not_compared == ("source",)
    assert report.findings[0].calibration == named["choices"][FINDINGS.names[0]]


def test_retrieval_is_that_of_the_retrieval_module_and_absent_without_embeddings(report: EvaluationReport) -> None:
    (_, _, target, patients), named = inputs()
    expected = measure_retrieval(
        Cases(named["embeddings"], target, patients), named["index"], IntervalOptions(resamples=50)
    )
    assert report.retrieval.ndcg.value == pytest.approx(expected.ndcg.value, abs=1e-6)
    assert list(report.retrieval.rankings.findings) == list(FINDINGS.names)
    assert str(report.retrieval.rankings.findings[FINDINGS.names[-1]].figures["mAP"]) == "too few to tell"
    positional, named = inputs()
    assert evaluate(*positional, **named | {"embeddings": None}).retrieval is None


def test_a_finding_without_calibration_and_a_wrong_number_of_columns_are_refused() -> None:
    positional, named = inputs()
    with pytest.raises(DataError, match="operating_points: nothing for Mass"):
        points = {name: point for name, point in named["operating_points"].items() if name != "Mass"}
        evaluate(*positional, **named | {"operating_points": points})
    with pytest.raises(DataError, match="phantom8 has 8 findings"):
        evaluate(FINDINGS, np.zeros((4, 3)), np.zeros((4, 3)), ["a"] * 4, **named)
