"""The sentences of a report follow from the figures by rule."""

from __future__ import annotations

from typing import Any

import pytest

from medsd.experiments.compare.measured import GROUPS, MAIN
from medsd.experiments.compare.report import verdicts

METRICS = (*MAIN, *(f"map_{group}" for group in GROUPS))


@pytest.fixture
def summary() -> dict[str, Any]:
    return {
        "titles": {"sd": "SD", "any": "ANY", "bce": "cross-entropy"},
        "settings": {"reference": "sd"},
        "metrics": {name: name for name in METRICS},
    }


@pytest.fixture
def of_set() -> dict[str, Any]:
    """SD wins over ANY in nDCG, loses to cross-entropy in mAP, and is told apart in nothing else."""
    means = {"sd": (0.51, 0.50, 0.52), "any": (0.48, 0.47, 0.49), "bce": (0.505, 0.49, 0.52)}
    tests = {name: {"any": {"verdict": "ties"}, "bce": {"verdict": "ties"}} for name in METRICS}
    tests["ndcg"]["any"], tests["map"]["bce"] = {"verdict": "wins"}, {"verdict": "loses"}
    tests["map_tail"]["any"] = {"verdict": "wins"}
    leads = {"any": {"low": 0.01, "high": 0.05}, "bce": {"low": -0.01, "high": 0.02}}
    return {
        "groups": dict.fromkeys(GROUPS, ()),
        "losses": {
            loss: {"means": {name: {"mean": mean, "low": low, "high": high} for name in METRICS}}
            for loss, (mean, low, high) in means.items()
        },
        "tests": tests,
        "over_test_samples": {"lead": leads},
    }


def test_wins_ties_and_losses_are_named(summary: dict[str, Any], of_set: dict[str, Any]) -> None:
    found = verdicts(summary, of_set)
    ndcg, recall, mean_precision = found[0], found[1], found[list(MAIN).index("map")]
    assert ndcg == (
        "**ndcg**: SD wins over ANY; is not told apart from cross-entropy; the highest mean is that of SD (0.510)."
    )
    assert "wins" not in recall and "not told apart from ANY and cross-entropy" in recall
    assert "loses to cross-entropy" in mean_precision


def test_a_higher_mean_of_a_rival_is_said(summary: dict[str, Any], of_set: dict[str, Any]) -> None:
    of_set["losses"]["bce"]["means"]["map"]["mean"] = 0.6
    assert (
        "the highest mean is that of cross-entropy (0.600; SD 0.510)"
        in verdicts(summary, of_set)[list(MAIN).index("map")]
    )


def test_intervals_that_meet_are_not_called_apart(summary: dict[str, Any], of_set: dict[str, Any]) -> None:
    apart, samples = verdicts(summary, of_set)[-2:]
    assert "wholly above that of ANY, wholly below that of none, and meets that of cross-entropy" in apart
    assert "in favour of SD against ANY, and against it for none" in samples


def test_the_tail_has_a_sentence_of_its_own(summary: dict[str, Any], of_set: dict[str, Any]) -> None:
    assert "tail: wins over ANY, loses to none" in verdicts(summary, of_set)[-3]


def test_a_metric_that_could_not_be_measured_is_not_judged(summary: dict[str, Any], of_set: dict[str, Any]) -> None:
    of_set["losses"]["any"]["means"]["auroc"]["mean"] = None
    assert "auroc: too few test samples to tell." in verdicts(summary, of_set)
