"""The settings of a comparison: shipped ones load, equal effort is enforced."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsd.errors import SettingsError
from medsd.experiments.compare.settings import CompareSettings, trials
from medsd.strict import load_as

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "compare").glob("*.yaml"))
SCENE = next(path for path in CONFIGS if path.stem == "scene")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_comparison_loads(path: Path) -> None:
    settings = load_as(CompareSettings, path)
    assert settings.name == path.stem
    assert settings.reference == "sd" and {"any", "mulsupcon", "jaccard", "bce"} <= set(settings.losses)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_loss_gets_as_many_trials(path: Path) -> None:
    settings = load_as(CompareSettings, path)
    assert len({len(list(trials(loss, settings))) for loss in settings.losses}) == 1


def test_cross_entropy_tries_weight_decay_in_place_of_a_temperature() -> None:
    settings = CompareSettings(name="x", root=Path(), sets=("yeast",))
    assert {trial.temperature for trial in trials("bce", settings)} == {None}
    assert len({trial.weight_decay for trial in trials("bce", settings)}) == len(settings.grid.temperature)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grid.weight_decay=[0.1]", "equal trials"),
        ("grid.temperature=[0.1,0,0.3]", "positive"),
        ("losses=[sd,focal]", "there is no loss 'focal'"),
        ("variants.one={loss: focal}", "there is no loss 'focal'"),
        ("questions=[{ask: Which, reference: sd, arms: [jscl]}]", "'jscl' of 'Which' is not among the losses"),
        ("questions=[{ask: Which, reference: sd, arms: [any], metrics: [ap]}]", "no metric 'ap'; there are ndcg"),
        ("losses=[any,all]", "reference 'sd' is not among the losses"),
        ("seeds=[1,1]", "seeds names the same value twice"),
        ("budget.epoch=3", "unknown key 'budget.epoch'; did you mean 'epochs'"),
        ("sets=[mnist]", "'sets"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_key(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_as(CompareSettings, SCENE, [override])


def test_a_variant_has_options_a_temperature_and_a_title_of_its_own() -> None:
    variant = "{loss: sd, options: {direction: both}, temperature: 0.3, title: SD both ways}"
    settings = load_as(CompareSettings, SCENE, [f"variants.both={variant}", "losses=[sd,both]"])
    assert settings.variant("both").options == {"direction": "both"} and settings.title("both") == "SD both ways"
    tried = list(trials("both", settings))
    assert {trial.temperature for trial in tried} == {0.3}
    assert {trial.weight_decay for trial in tried} == set(settings.grid.weight_decay)  # as many trials as every loss
