"""A step: in parts or whole, with less memory, in lower precision, and what it says when it cannot go on."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from medsd.errors import DataError, SettingsError
from medsd.networks.fusion import StudyInputs, StudyModel, StudyOutputs
from medsd.settings import ImageSettings, NetworkSettings, StageSettings
from medsd.training.loaders import Batch
from medsd.training.step import TrainingStep, _low_precision, recomputed_activations

SIZE, COUNT, FINDINGS = 32, 12, 3


def model_of(backbone: str = "densenet-small", dropout: float = 0.3) -> StudyModel:
    torch.manual_seed(0)
    image = ImageSettings.model_validate({"backbone": backbone, "dropout": dropout})
    return StudyModel(NetworkSettings(image=image, embedding=16, projection=8), FINDINGS, SIZE).train()


@pytest.fixture
def batch() -> Batch:
    source = torch.Generator().manual_seed(0)
    pixels = torch.rand(COUNT, 1, SIZE, SIZE, generator=source)
    labels = torch.randint(0, 2, (COUNT, FINDINGS), generator=source).float()
    return Batch(StudyInputs(pixels), labels, torch.from_numpy(np.arange(COUNT)))


def pairs(model: StudyModel, outputs: StudyOutputs, batch: Batch) -> Tensor:
    """A loss that is no sum over samples: every one meets every other, as in contrast."""
    projected = model.project(outputs.features.float())
    return (projected @ projected.T).tanh().square().mean() + (outputs.logits.float() - batch.labels).square().mean()


def gradients(model: StudyModel, batch: Batch, accumulate: int) -> dict[str, Tensor]:
    settings = StageSettings(accumulate=accumulate, gradient_clip=1e9)
    TrainingStep("pretrain", model, pairs, SGD(model.parameters(), lr=0.0), settings, "float32", seed=1)(batch, 4)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [2, 5, 12])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(batch: Batch, parts: int) -> None:
    model = model_of(dropout=0.0)
    for module in model.modules():  # its statistics would be those of a part
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
    whole, split = gradients(model, batch, 1), gradients(model, batch, parts)
    assert whole.keys() == split.keys() and "projection.0.weight" in whole
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_a_part_is_counted_once_in_the_running_statistics(batch: Batch) -> None:
    model, part = model_of(), Batch(StudyInputs(batch.inputs.pixels[:6]), batch.labels[:6], batch.rows[:6])
    gradients(model, Batch(StudyInputs(part.inputs.pixels.repeat(2, 1, 1, 1)), batch.labels, batch.rows), 2)
    other = model_of()
    for _ in range(2):
        other(part.inputs)
    torch.testing.assert_close(model.image.body[0].norm0.running_mean, other.image.body[0].norm0.running_mean)


@pytest.mark.parametrize("backbone", ["densenet-small", "efficientnet-lite0", "resnet18"])
def test_activations_computed_again_change_no_number(batch: Batch, backbone: str) -> None:
    plain = model_of(backbone)
    again = copy.deepcopy(plain)
    found = {}
    for name, model, context in (("plain", plain, nullcontext()), ("again", again, recomputed_activations(again))):
        with context:
            found[name] = gradients(model, batch, 1) | model.state_dict()
    assert found["plain"].keys() == found["again"].keys()
    for name, value in found["plain"].items():
        torch.testing.assert_close(found["again"][name], value, rtol=0, atol=0, msg=name)


def test_dropout_is_the_same_for_a_step_and_differs_between_steps(batch: Batch) -> None:
    model = model_of()
    step = TrainingStep("pretrain", model, pairs, SGD(model.parameters(), lr=0.0), StageSettings(), "float32", seed=1)
    first, again, other = step(batch, 3), step(batch, 3), step(batch, 4)
    assert first == again != other


def test_bfloat16_trains_near_float32_and_float16_wants_a_gpu(batch: Batch) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        model = model_of(dropout=0.0)
        step = TrainingStep(
            "pretrain", model, pairs, SGD(model.parameters(), lr=0.0), StageSettings(), precision, seed=1
        )
        losses.append(step(batch, 0))
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[0] != losses[1]
    with pytest.raises(SettingsError, match="'float16', which needs a GPU"):
        _low_precision("float16", torch.device("cpu"))


def test_a_loss_that_is_not_finite_names_the_batch(batch: Batch) -> None:
    model = model_of()
    step = TrainingStep(
        "pretrain", model, lambda m, o, b: pairs(m, o, b) / 0, SGD(model.parameters()), StageSettings(), "float32", 1
    )
    with pytest.raises(DataError, match=r"pretrain is inf in step 8, batch of manifest rows \[0, 1, 2"):
        step(batch, 7)


def test_out_of_memory_says_which_settings_to_change(batch: Batch) -> None:
    def greedy(model: StudyModel, outputs: StudyOutputs, batch: Batch) -> Tensor:
        return torch.empty(1 << 50)

    model = model_of()
    step = TrainingStep("finetune", model, greedy, SGD(model.parameters()), StageSettings(), "float32", seed=1)
    with pytest.raises(
        SettingsError, match=r"training\.finetune\.accumulate, .* or lower training\.finetune\.batch_size"
    ):
        step(batch, 0)
