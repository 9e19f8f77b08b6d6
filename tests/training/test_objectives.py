"""Objectives and schedules: each loss by its written-out formula, unknown labels, what is frozen, rates by layer."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor

from medsd.errors import SettingsError
from medsd.networks.fusion import StudyInputs, StudyModel, StudyOutputs
from medsd.sd import LOSSES, IntraLabelLoss, SDLoss, inverse_frequency_weights
from medsd.settings import (
    FinetuneSettings,
    ImageSettings,
    LossSettings,
    NetworkSettings,
    ObjectiveSettings,
    Settings,
    StageSettings,
)
from medsd.training import stages
from medsd.training.augment import sample_seed
from medsd.training.checkpoints import load_checkpoint
from medsd.training.contrast import Contrast, finding_features, long_tail_weights
from medsd.training.layers import freeze, parameter_groups
from medsd.training.loaders import Batch, StudyArrays
from medsd.training.objectives import (
    Objective,
    build_objective,
    effective_number_weights,
    masked_cross_entropy,
)
from medsd.training.stages import finetune
from tests.runs import small_settings

NAN = float("nan")
LOGITS = torch.tensor([[1.5, -0.5, 0.2], [-2.0, 0.1, 3.0], [0.0, -4.0, 1.0]])
LABELS = torch.tensor([[1.0, 0.0, NAN], [0.0, NAN, 1.0], [NAN, 0.0, 1.0]])
COUNT, SIZE, FINDINGS = 24, 32, 3
ALL = [
    ObjectiveSettings(),
    ObjectiveSettings(balance="effective_number", finding_weights="inverse_frequency"),
    ObjectiveSettings(name="asl"),
    ObjectiveSettings(name="asl", gamma_positive=0.5, gamma_negative=0.5, margin=0.0, balance="effective_number"),
    ObjectiveSettings(name="asl", gamma_negative=0.5),
    ObjectiveSettings(name="focal", alpha=0.25, balance="effective_number"),
]


def _known() -> list[tuple[float, float, int]]:
    """Probability, label and finding of each known label."""
    places = [(row, f) for row in range(3) for f in range(3) if not math.isnan(LABELS[row, f])]
    return [(float(expit(float(LOGITS[row, f]))), float(LABELS[row, f]), f) for row, f in places]


def _arrays() -> StudyArrays:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (COUNT, FINDINGS)).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    pixels = rng.integers(0, 256, (COUNT, SIZE, SIZE), dtype=np.uint8)
    return StudyArrays(pixels, labels, np.ones(COUNT, bool), np.zeros(COUNT, bool))


def _model(backbone: str = "densenet-small") -> StudyModel:
    torch.manual_seed(0)
    network = NetworkSettings(image=ImageSettings(backbone=backbone), embedding=16, projection=16)
    return StudyModel(network, FINDINGS, SIZE)


def _settings(folder: Path, **stage: Any) -> Settings:
    settings = small_settings(folder)
    finetuning_settings = FinetuneSettings(epochs=1, batch_size=8, learning_rate=0.01, weight_decay=0.1, **stage)
    return settings.model_copy(
        update={"training": settings.training.model_copy(update={"finetune": finetuning_settings})}
    )


def test_cross_entropy_is_the_mean_over_the_known_labels() -> None:
    expected = [-(y * math.log(p) + (1 - y) * math.log(1 - p)) for p, y, _ in _known()]
    assert masked_cross_entropy(LOGITS, LABELS).item() == pytest.approx(sum(expected) / 6)


def test_asymmetric_loss_is_that_of_the_paper() -> None:
    settings = ObjectiveSettings(name="asl", gamma_positive=1.0, gamma_negative=4.0, margin=0.05)
    expected = []
    for p, y, _ in _known():
        shifted = max(p - 0.05, 0)
        expected.append(-(1 - p) * math.log(p) if y else -(shifted**4) * math.log(1 - shifted))
    assert Objective(settings)(LOGITS, LABELS).item() == pytest.approx(sum(expected) / 6)


def test_focal_loss_is_that_of_the_paper() -> None:
    expected = []
    for p, y, _ in _known():
        right, alpha = (p, 0.25) if y else (1 - p, 0.75)
        expected.append(-alpha * (1 - right) ** 2 * math.log(right))
    objective = Objective(ObjectiveSettings(name="focal", gamma=2.0, alpha=0.25))
    assert objective(LOGITS, LABELS).item() == pytest.approx(sum(expected) / 6)


def test_without_focusing_all_are_cross_entropy() -> None:
    plain = masked_cross_entropy(LOGITS, LABELS, 0.1)
    for settings in (
        ObjectiveSettings(name="asl", gamma_positive=0, gamma_negative=0, margin=0),
        ObjectiveSettings(name="focal", gamma=0),
    ):
        torch.testing.assert_close(Objective(settings, 0.1)(LOGITS, LABELS), plain)


def test_positives_weigh_by_the_effective_number_of_samples() -> None:
    labels = torch.tensor([[1.0, 0.0, NAN]] * 3 + [[0.0, 0.0, 1.0]] * 97)
    weights = effective_number_weights(labels, 0.99)
    assert weights[0].item() == pytest.approx((1 - 0.99**97) / (1 - 0.99**3))
    assert weights[1].item() == pytest.approx((1 - 0.99**100) / (1 - 0.99))  # none present: as if one were
    assert weights[2].item() < 1


@pytest.mark.parametrize("name", ["bce", "asl", "focal"])
def test_the_weight_multiplies_the_positives_alone(name: str) -> None:
    plain = Objective(ObjectiveSettings(name=name), finding_weights=torch.ones(3))
    weighted = Objective(ObjectiveSettings(name=name), positive_weights=torch.full((3,), 5.0))
    one, other = torch.tensor([[1.0, NAN, NAN]]), torch.tensor([[0.0, NAN, NAN]])
    torch.testing.assert_close(weighted(LOGITS[:1], one), 5 * plain(LOGITS[:1], one))
    torch.testing.assert_close(weighted(LOGITS[:1], other), plain(LOGITS[:1], other))


def test_rare_findings_count_by_their_inverse_frequency() -> None:
    labels = torch.tensor([[1.0, 1.0, 0.0]] * 4 + [[1.0, 0.0, 0.0]] * 11 + [[1.0, 0.0, 1.0]])
    objective = build_objective(ObjectiveSettings(finding_weights="inverse_frequency", finding_power=1.0), labels)
    raw = torch.tensor([1.0, 4.0, 16.0])
    torch.testing.assert_close(objective.finding_weights, raw / raw.mean())
    terms = [(-(y * math.log(p) + (1 - y) * math.log(1 - p)), float(raw[f])) for p, y, f in _known()]
    expected = sum(each * weight for each, weight in terms) / sum(weight for _, weight in terms)
    assert objective(LOGITS, LABELS).item() == pytest.approx(expected)


@pytest.mark.parametrize("settings", ALL, ids=range(len(ALL)))
def test_unknown_labels_give_no_gradient_and_no_batch_is_not_a_number(settings: ObjectiveSettings) -> None:
    objective = build_objective(settings, LABELS, smoothing=0.05)
    logits = torch.tensor([[200.0, -200.0, 0.3]] * 3, requires_grad=True)
    objective(logits, LABELS).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert not logits.grad[LABELS.isnan()].any() and logits.grad[~LABELS.isnan()].any()
    assert objective(LOGITS, torch.full_like(LABELS, NAN)) == 0


def test_easy_negatives_cost_nothing_by_the_asymmetric_loss() -> None:
    easy = torch.full((1, 1), -4.0, requires_grad=True)  # p = 0.018, below the margin
    Objective(ObjectiveSettings(name="asl"))(easy, torch.zeros(1, 1)).backward()
    assert easy.grad is not None and easy.grad.item() == 0


def test_the_sd_term_takes_the_weights_of_the_findings() -> None:
    model, rng = _model(), torch.Generator().manual_seed(0)
    labels = (torch.rand(COUNT, FINDINGS, generator=rng) < torch.tensor([0.8, 0.5, 0.1])).float()
    features = torch.rand(COUNT, 16, generator=rng)
    outputs = StudyOutputs(torch.zeros(COUNT, FINDINGS), features, torch.zeros(COUNT, FINDINGS, 1, 1))
    batch = Batch(StudyInputs(torch.zeros(COUNT, 1, 1, 1)), labels, torch.arange(COUNT))
    settings = LossSettings(finding_weights="inverse_frequency", finding_power=1.0)
    found = Contrast(settings, labels.numpy())(model, outputs, batch)
    weights = inverse_frequency_weights(labels)
    projected = model.project(features)
    torch.testing.assert_close(found, SDLoss(finding_weights=weights)(projected, labels))
    plain = Contrast(LossSettings(), labels.numpy())(model, outputs, batch)
    torch.testing.assert_close(plain, SDLoss()(projected, labels))
    assert abs(plain - found) > 1e-4
    assert long_tail_weights(labels, "none", 1.0) is None


def _after(settings: Settings, tmp_path: Path, model: StudyModel) -> tuple[dict[str, Tensor], set[str]]:
    """State before fine-tuning, and the names of what it changed."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = np.arange(COUNT)
    finetune(settings, model, _arrays(), rows, rows, tmp_path)
    return before, {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_a_probe_leaves_every_bit_of_the_encoder(tmp_path: Path, averaging: float) -> None:
    before, changed = _after(_settings(tmp_path, freeze="encoders", weight_averaging=averaging), tmp_path, _model())
    assert not any(name.startswith("image.") for name in changed)
    assert {"classifier.weight", "classifier.bias", "image_to_space.weight"} <= changed
    assert any(name.endswith("running_mean") for name in before)


def test_frozen_blocks_keep_every_bit_and_the_others_learn(tmp_path: Path) -> None:
    before, changed = _after(_settings(tmp_path, freeze_blocks=3, weight_averaging=0.9), tmp_path, _model())
    frozen = {
        n for n in before if any(p in n for p in ("conv0", "norm0", "block1", "transition1", "block2", "transition2"))
    }
    assert len(frozen) > 50 and not frozen & changed
    assert {n for n in before if "denseblock3" in n and n.endswith("conv1.weight")} <= changed


def test_more_frozen_blocks_than_there_are_is_an_error() -> None:
    with pytest.raises(
        SettingsError, match=r"training\.finetune\.freeze_blocks: 6, but the image backbone has 5 blocks"
    ):
        freeze(_model("resnet18"), StageSettings(freeze_blocks=6), "finetune")


def test_learning_rates_fall_from_block_to_block() -> None:
    model = _model("resnet18")
    stage = StageSettings(learning_rate=0.1, encoder_learning_rate_scale=0.5, layer_decay=0.8)
    rates = {id(p): group["lr"] for group in parameter_groups(model, stage) for p in group["params"]}
    for position, block in enumerate(model.image.blocks):
        expected = 0.1 * 0.5 * 0.8 ** (5 - position)
        found = {rates[id(p)] for module in block for p in module.parameters()}
        assert len(found) == 1 and found.pop() == pytest.approx(expected)
    assert rates[id(model.classifier.weight)] == 0.1
    assert len(rates) == len(list(model.parameters()))


def test_without_decay_there_are_two_rates_and_no_decay_on_biases() -> None:
    model = _model()
    groups = list(parameter_groups(model, StageSettings(learning_rate=0.1, encoder_learning_rate_scale=0.5)))
    assert [(group["lr"], group.get("weight_decay")) for group in groups] == [
        (0.05, None), (0.05, 0.0), (0.1, None), (0.1, 0.0)
    ]  # fmt: skip
    assert all((p.ndim > 1) != ("weight_decay" in group) for group in groups for p in group["params"])


def test_what_is_frozen_is_in_no_group() -> None:
    model = _model()
    freeze(model, StageSettings(freeze="encoders"), "finetune")
    held = {id(p) for group in parameter_groups(model, StageSettings()) for p in group["params"]}
    assert held == {id(p) for name, p in model.named_parameters() if not name.startswith("image.")}


@pytest.mark.parametrize("views", [1, 2])
def test_joint_training_sees_two_views_of_each_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: int
) -> None:
    seen: list[Batch] = []

    class Recorded:
        def __init__(self, *arguments: Any, **_: Any) -> None:
            seen.extend(arguments[3])

        def run(self) -> None:
            return None

    monkeypatch.setattr(stages, "Stage", Recorded)
    rows = np.arange(COUNT)
    finetune(_settings(tmp_path, views=views, sd_weight=1.0), _model(), _arrays(), rows, rows, tmp_path)
    assert [len(batch.inputs.pixels) for batch in seen] == [8 * views] * 3
    if views == 2:
        assert not torch.equal(seen[0].inputs.pixels[:8], seen[0].inputs.pixels[8:])


@pytest.mark.parametrize("name", ["bce", "asl", "focal"])
def test_every_objective_learns(tmp_path: Path, name: str) -> None:
    # Brightness tells the finding, and the rate is low: on every processor the loss falls to a quarter.
    plain = _arrays()
    labels = np.repeat(plain.labels[:, :1], FINDINGS, axis=1)
    bright = (labels[:, 0] == 1)[:, None, None]
    arrays = replace(plain, labels=labels, pixels=(plain.pixels // 2 + np.uint8(128) * bright).astype(np.uint8))
    settings = _settings(tmp_path, objective=ObjectiveSettings(name=name), sd_weight=0.0)
    stage = settings.training.finetune.model_copy(update={"epochs": 6, "learning_rate": 0.003})
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"finetune": stage})})
    rows = np.arange(COUNT)
    history = finetune(settings, _model(), arrays, rows, rows, tmp_path).history
    assert history[-1]["loss"] < history[0]["loss"] / 2


def test_a_network_that_ran_away_is_still_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On some processors six steps at a high rate end with logits beyond 88, whose exponential single precision lacks.
    arrays, rows = _arrays(), np.arange(COUNT)
    logits = np.float32(200) * (2 * np.nan_to_num(arrays.labels) - 1)
    monkeypatch.setattr(stages, "read_studies", lambda *_: (logits, np.zeros((COUNT, 16), np.float32)))
    (epoch,) = finetune(_settings(tmp_path), _model(), arrays, rows, rows, tmp_path).history
    assert (epoch["validation_loss"], epoch["validation_auroc"]) == (0, 1)


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_of_the_family_is_trained_by_its_name(name: str) -> None:
    embeddings, labels = torch.randn(8, 6, requires_grad=True), (torch.rand(8, 4) < 0.4).float()
    value = _contrast_of(LossSettings(name=name), embeddings, labels)
    value.backward()
    assert embeddings.grad is not None and embeddings.grad.isfinite().all()


def test_the_options_of_a_loss_reach_it() -> None:
    embeddings, labels = torch.randn(8, 6), (torch.rand(8, 4) < 0.4).float()
    found = _contrast_of(LossSettings(options={"factors": "similarity", "direction": "both"}), embeddings, labels)
    torch.testing.assert_close(found, SDLoss(factors="similarity", direction="both")(embeddings, labels))


@pytest.mark.parametrize("name", ["msc", "icl"])
def test_a_loss_with_prototypes_and_one_within_images_are_trained(tmp_path: Path, name: str) -> None:
    settings = _settings(tmp_path, sd_weight=1.0)
    settings = settings.model_copy(update={"loss": LossSettings(name=name)})
    rows = np.arange(COUNT)
    history = finetune(settings, _model(), _arrays(), rows, rows, tmp_path).history
    kept = load_checkpoint(tmp_path / "finetune.safetensors").part("learned")
    assert np.isfinite(history[0]["loss"]) and set(kept) == ({"criterion.prototypes"} if name == "msc" else set())
    if name == "msc":
        torch.manual_seed(sample_seed(settings.seed, 2))
        started = Contrast(settings.loss, _arrays().labels, width=settings.network.projection).criterion.prototypes
        assert not torch.equal(kept["criterion.prototypes"], started)


def test_findings_are_compared_within_the_images_that_are_there() -> None:
    regions, labels = torch.randn(2, 5, 3, 3), torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    evidence = torch.full((2, 3, 3, 3), -100.0)
    evidence[:, 0, 0, 0] = evidence[:, 1, 1, 1] = evidence[:, 2, 2, 2] = 100.0
    outputs = StudyOutputs(torch.zeros(2, 3), torch.zeros(2, 5), evidence, regions=regions)
    features = torch.stack([regions[:, :, place, place] for place in range(3)], dim=1)
    torch.testing.assert_close(finding_features(outputs), features)
    batch = Batch(StudyInputs(None, has_image=torch.tensor([1.0, 0.0])), labels, torch.arange(2))
    found = Contrast(LossSettings(name="icl"), labels.numpy())(_model(), outputs, batch)
    torch.testing.assert_close(found, IntraLabelLoss()(features[:1], labels[:1]))


def test_an_option_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="options repeats temperature"):
        LossSettings(options={"temperature": 0.2})
    labels = np.ones((4, 3), np.float32)
    with pytest.raises(SettingsError, match="loss 'any' does not take these options"):
        Contrast(LossSettings(name="any", options={"threshold": 0.5}), labels)
    with pytest.raises(SettingsError, match="msc has no form across modalities"):
        Contrast(LossSettings(name="msc", cross_modal_weight=1), labels, width=6)


def _contrast_of(settings: LossSettings, embeddings: Tensor, labels: Tensor) -> Tensor:
    model = cast(StudyModel, SimpleNamespace(project=lambda features: features))
    outputs, batch = (SimpleNamespace(features=embeddings, logits=embeddings), SimpleNamespace(labels=labels))
    return Contrast(settings, labels.numpy(), width=6)(model, cast(StudyOutputs, outputs), cast(Batch, batch))
