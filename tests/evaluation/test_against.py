"""Two models on the same studies: differences with DeLong's intervals, and p values adjusted for the findings."""

import numpy as np
import pytest
from scipy.special import expit

from medsd.evaluation.against import AgainstReport, compare_models
from medsd.findings import finding_set
from medsd.metrics import metrics
from medsd.metrics.intervals import IntervalOptions

FINDINGS = finding_set("nih14").findings[:3]
SETTINGS = IntervalOptions(resamples=40)


def compared(noise: float) -> tuple[AgainstReport, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 3))
    target = (rng.random((400, 3)) < expit(2 * logits)).astype(float)
    target[:, 2] = 0
    good, poor = expit(logits), expit(logits + rng.normal(0, noise, logits.shape))
    patients = [f"p{i // 2}" for i in range(400)]
    report = compare_models(("a 1", "b 1"), "here", FINDINGS, target, (good, poor), patients, SETTINGS)
    return report, target, good, poor


def test_the_better_model_leads_beyond_chance_after_holms_correction() -> None:
    report, target, good, poor = compared(2.0)
    expected = metrics.auroc(target, good) - metrics.auroc(target, poor)
    for f, finding in enumerate(report.findings[:2]):
        assert finding.difference.value == pytest.approx(expected[f], abs=1e-6)
        assert finding.difference.low > 0 and finding.p < finding.adjusted + 1e-12 < 0.05
    assert report.over == 2 and report.mean.difference.low > 0
    assert report.others["brier"].value < 0  # a lower error is better


def test_a_model_against_itself_differs_in_nothing() -> None:
    report, *_ = compared(0.0)
    assert all((f.difference.value, f.p, f.adjusted) == (0, 1, 1) for f in report.findings[:2])


def test_a_finding_with_too_few_cases_has_no_figures() -> None:
    report, *_ = compared(1.0)
    assert report.findings[2].first is None and report.findings[2].adjusted is None
    assert report.lines()[3] == f"{FINDINGS[2].title}: too few to tell"
