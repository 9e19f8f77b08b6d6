"""The words of a reading: where a probability lies, why there is no call, and the impression."""

import numpy as np
import pytest

from medsd.findings import finding_set
from medsd.inference.prediction import Prediction
from medsd.inference.words import grouped, impression, no_call, percent, reason, standing

FINDINGS = finding_set("phantom8")
VALUES = np.array([0.9, 0.8, 0.2, 0.1, 0.05, np.nan, np.nan, 0.5], np.float32)


def _prediction(**changes: object) -> Prediction:
    calls = dict(
        zip(FINDINGS, ("present", "present", "absent", "absent", "absent", None, None, "undecided"), strict=True)
    )
    known = {name: call for name, call in calls.items() if call}
    return Prediction(FINDINGS, "scored", **{"values": VALUES, "calls": known, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("probability", "threshold", "words"),
    [
        (0.9, 0.5, "above"),
        (0.5, 0.5, "just above"),
        (0.6, 0.5, "just above"),
        (0.61, 0.5, "above"),
        (0.4, 0.5, "just below"),
        (0.39, 0.5, "below"),
        (0.13, 0.1, "just above"),
        (0.03, 0.05, "below"),
        (0.0, 0.1, "below"),
        (1.0, 0.9, "above"),
        (0.0, 0.0, "just above"),
    ],
)
def test_just_is_a_matter_of_odds(probability: float, threshold: float, words: str) -> None:
    assert standing(probability, threshold) == f"{words} its threshold"


def test_an_impression_names_what_is_present_and_counts_the_rest() -> None:
    assert impression(_prediction(), against=2) == (
        "2 of 8 findings called present: atelectasis, cardiomegaly; 1 cannot be called (too few validation images); "
        "2 cannot be called (too little training data); similar cases disagree on 2"
    )
    nothing = _prediction(values=np.full(8, 0.1, np.float32), calls=dict.fromkeys(FINDINGS, "absent"))
    assert impression(nothing) == "None of 8 findings called present"
    assert impression(Prediction(FINDINGS, "refused", "modality", "it is CT")) == ""


def test_every_finding_stands_under_one_heading_most_probable_first() -> None:
    groups = grouped(_prediction())
    assert list(groups) == ["present", "uncertain", "absent"] and sum(map(len, groups.values())) == 8
    assert groups["present"] == ("Atelectasis", "Cardiomegaly") and groups["uncertain"][0] == "Support Devices"


def test_a_finding_without_a_call_says_why() -> None:
    names = tuple(FINDINGS)
    covered = _prediction(coverage=0.9, conformal_sets={names[7]: "neither", names[0]: "present"})
    assert no_call(covered, names[7]) == "unlike the validation images of either call"
    assert no_call(_prediction(coverage=0.9), names[7]) == "both calls conform at 90 %"
    assert no_call(covered, names[0]) == "" and reason(covered, names[0], 0.5) == ""
    assert reason(_prediction(), names[0], 0.5) == "above its threshold"
    assert reason(_prediction(), names[5], 0.5) == "too little training data"


@pytest.mark.parametrize(
    ("probability", "words"), [(0.0, "< 1 %"), (0.0049, "< 1 %"), (0.42, "42 %"), (0.999, "> 99 %"), (1.0, "> 99 %")]
)
def test_a_probability_is_never_said_to_be_certain(probability: float, words: str) -> None:
    assert percent(probability) == words
