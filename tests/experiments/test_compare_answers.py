"""Questions are answered by the figures: what is said, and that Holm's correction is over the whole question."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from medsd.experiments import engine
from medsd.experiments.compare.answers import answer, best_three, whole_network
from medsd.experiments.compare.settings import CompareSettings, LossQuestion, LossVariant, Trial
from medsd.experiments.compare.summary import Choice, SetResult
from medsd.experiments.recipes import settings_of
from medsd.experiments.settings import RecipesSettings

ROOT = Path(__file__).parents[2]
NOISE = (0.0, 0.002, -0.001, 0.001, -0.002)
SETTINGS = CompareSettings(
    name="small",
    root=Path(),
    sets=("yeast", "enron"),
    losses=("sd", "any", "far", "warm", "bce"),
    variants={
        "far": LossVariant(loss="sd", options={"direction": "both", "positives": 0.5}, title="far and wide"),
        "warm": LossVariant(loss="sd", temperature=0.5),
    },
)


def result(name: str, **lead: float) -> SetResult:
    """Losses with the same five seeds, `lead` above 0.5; each loss turns the noise its own way."""
    values = {
        loss: [0.5 + lead.get(loss, 0.0) + noise for noise in (*NOISE[turn:], *NOISE[:turn])]
        for turn, loss in enumerate(SETTINGS.losses)
    }
    cells: Any = {
        loss: [{"metrics": {"ndcg": each}, "query_ndcg": [each - 0.3, each + 0.3, None]} for each in seeds]
        for loss, seeds in values.items()
    }
    choices = {loss: Choice(Trial(0.001, 0.01, 0.2), (), 0.01, 0.5) for loss in SETTINGS.losses}
    data: Any = SimpleNamespace(name=name, patients=np.array(["a", "b", "c", "d"]), test=np.array([0, 2, 3]))
    return SetResult(data, choices, cells)


def ask(*arms: str, results: list[SetResult]) -> dict[str, Any]:
    return answer(LossQuestion(ask="Well?", reference="sd", arms=arms), results, SETTINGS)["answers"]["ndcg"]


def test_what_is_higher_lower_or_not_told_apart_is_said() -> None:
    found = ask("any", "far", results=[result("yeast", any=-0.1, far=0.1), result("enron", any=-0.1)])
    assert found["short"] == ("An effect was seen in 3 of 4 comparisons with SD: nDCG@10 is higher in 1, lower in 2.")
    assert found["said"][0] == "**ANY**: is lower on yeast (-0.100) and enron (-0.100)."
    assert found["said"][1].startswith("**far and wide**: is higher on yeast (+0.100); no effect seen on enron (95 % ")


def test_a_lead_that_hangs_on_few_test_samples_is_no_effect() -> None:
    hanging = result("yeast", any=0.1)
    for cell in hanging.cells["any"]:
        cell["query_ndcg"][:2] = [0.9, 0.4]  # SD: 0.2 and 0.8
    test = ask("any", results=[hanging])["tests"]["any"]["yeast"]
    assert test["p_holm"] < 0.05 and test["over_samples"]["low"] < 0 < test["over_samples"]["high"]
    assert test["verdict"] == "ties"


def test_no_effect_is_said_with_how_large_it_may_be() -> None:
    found = ask("any", results=[result("yeast"), result("enron")])
    assert found["short"] == "No effect was seen: nDCG@10 is told apart from that of SD in none of 2 comparisons."
    each = found["tests"]["any"]["yeast"]["difference"]
    assert f"intervals within {each['low']:+.3f} to {each['high']:+.3f}" in found["said"][0]


def test_the_correction_is_over_all_arms_and_sets() -> None:
    results = [result("yeast", any=0.004), result("enron")]
    tests = ask("any", "far", results=results)["tests"]
    plain = stats.ttest_rel(results[0].values("any", "ndcg"), results[0].values("sd", "ndcg")).pvalue
    assert tests["any"]["yeast"]["p"] == pytest.approx(plain)
    assert tests["any"]["yeast"]["p_holm"] == pytest.approx(4 * plain)  # the least of four


def test_a_metric_without_enough_samples_is_not_judged() -> None:
    poor = result("yeast")
    for cell in poor.cells["any"]:
        cell["metrics"]["ndcg"] = None
    assert ask("any", results=[poor])["said"] == ["**ANY**: too few test samples on yeast."]


def test_the_best_three_are_tuned_alike_and_differ() -> None:
    found = result("radiographs", far=0.1, warm=0.2, any=0.05)
    found.cells["bce"] = found.cells["any"]
    assert best_three(found, SETTINGS) == ["far", "any", "sd"]


def test_the_command_for_whole_networks_is_a_comparison_that_loads() -> None:
    """Three recipes, each with the loss, its options and the temperature that was chosen."""
    command = shlex.split(whole_network(result("radiographs", far=0.2, bce=0.1), SETTINGS))
    assert command[:2] == ["medsd", "compare"]
    settings, everyone = engine.load_experiment(RecipesSettings, ROOT / command[2], command[4::2])
    assert everyone == ["data.root=FOLDER"] and settings.seeds == SETTINGS.seeds and settings.reference == "far"
    assert list(settings.arms)[:2] == ["far", "bce"]
    loss = settings_of(ROOT / command[2], settings, everyone, "far", 3).loss
    assert (loss.name, loss.temperature, loss.options) == ("sd", 0.2, {"direction": "both", "positives": 0.5})
    assert settings_of(ROOT / command[2], settings, everyone, "bce", 0).training.finetune.sd_weight == 0
