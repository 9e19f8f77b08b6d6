"""Recipes side by side: every arm with every seed, resumed, reported; and the figures behind the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medsd.errors import SettingsError
from medsd.experiments.recipes import Trained, best_threshold, compare_recipes, patient_difference, settings_of
from medsd.experiments.settings import RecipesSettings
from medsd.strict import load_as
from tests.runs import SMALL

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def _config(folder: Path, arms: str, reference: str = "sd") -> Path:
    path = folder / "trial.yaml"
    common = [*SMALL, f"data.root={folder / 'studies'}", "evaluation.minimum_positives=1"]
    common += ["training.pretrain.epochs=1", "training.finetune.epochs=1"]
    path.write_text(
        f"name: trial\nbase: {CONFIGS / 'phantom.yaml'}\noutput: {folder / 'out'}\n"
        f"common: {json.dumps(common)}\n"
        f"arms: {arms}\nreference: {reference}\nseeds: [0, 1]\nbootstrap: 50\nworkers: 1\n"
    )
    return path


def test_every_arm_is_trained_with_every_seed_and_a_second_call_trains_nothing(tmp_path: Path) -> None:
    config = _config(tmp_path, "{sd: [], cross-entropy: [training.pretrain.epochs=0, training.finetune.sd_weight=0]}")
    report = compare_recipes(config)
    tree = json.loads(report.with_suffix(".results.json").read_text())
    assert {arm: len(v["auroc"]) for arm, v in tree["values"].items()} == {"sd": 2, "cross-entropy": 2}
    assert tree["values"]["sd"] != tree["values"]["cross-entropy"]
    assert "measured on the validation patients" in report.read_text()
    models = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("model.safetensors")}
    assert len(models) == 4
    assert len({path.stat().st_ino for path in (tmp_path / "out").rglob("pixels.npy")}) == 1  # they share one file
    before = report.read_bytes()
    assert compare_recipes(config).read_bytes() == before
    assert models == {path: path.stat().st_mtime_ns for path in models}


def test_an_arm_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"arm 'b': .*unknown key 'training.pretrain.epoch'"):
        compare_recipes(_config(tmp_path, "{sd: [], b: [training.pretrain.epoch=1]}"))


@pytest.mark.parametrize("config", sorted((CONFIGS / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_comparison_of_recipes_loads_with_each_of_its_arms(config: Path) -> None:
    settings = load_as(RecipesSettings, config)
    for arm in settings.arms:
        assert settings_of(config, settings, (), arm, seed=0).run_folder == settings.folder / f"{arm}-seed0"


def test_the_reference_must_be_an_arm(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no arm 'any'"):
        compare_recipes(_config(tmp_path, "{sd: []}", reference="any"))


def test_the_difference_over_patients_is_that_of_the_means_over_seeds() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((120, 3)) < 0.4).astype(np.float32)
    patients = np.repeat([f"p{n}" for n in range(60)], 2)

    def trained(signal: float) -> Trained:
        logits = (signal * labels + rng.normal(size=labels.shape)).astype(np.float32)
        return Trained(logits, rng.random(120), labels, patients, 1.0)

    good, poor = [trained(2.0), trained(2.0)], [trained(0.5), trained(0.5)]
    found = patient_difference(good, poor, minimum_positives=5, resamples=200, confidence=0.95)
    mean = {name: np.mean([one.figures(5)["auroc"] for one in some]) for name, some in (("good", good), ("poor", poor))}
    assert found["auroc"]["value"] == pytest.approx(mean["good"] - mean["poor"])
    assert found["auroc"]["low"] > 0
    assert found["ndcg"]["low"] < found["ndcg"]["value"] < found["ndcg"]["high"]


def test_logits_of_any_size_have_figures() -> None:
    labels = np.tile(np.float32([[1, 0], [0, 1]]), (10, 1))
    sure = Trained(2000 * labels - 1000, np.ones(20), labels, np.arange(20).astype(str), 1.0)
    assert sure.figures(1) == {"auroc": 1, "average_precision": 1, "micro_f1": 1, "ndcg": 1}
    assert best_threshold(labels, sure.logits) == 1
    assert (
        patient_difference([sure], [sure], minimum_positives=1, resamples=20, confidence=0.9)["micro_f1"]["value"] == 0
    )
