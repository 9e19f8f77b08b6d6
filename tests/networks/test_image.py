"""Image encoders: a map of the right shape, blocks that cover the network, freezing, and the graph that is exported."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import onnxruntime
import pytest
import torch
from monai.networks.nets import EfficientNetBN
from torch import nn

from medsd.calibration.types import PlattCalibration
from medsd.export.onnx import ServingModel, export_onnx, output_names
from medsd.findings import finding_set
from medsd.networks import image
from medsd.networks.fusion import StudyInputs, StudyModel
from medsd.networks.image import ImageEncoder, image_encoder
from medsd.settings import ImageSettings, NetworkSettings
from medsd.settings.network import Backbone

SIZE = 64
# Exports take seconds: these have parts that no other test exports. All, as deep as they are: `make bench`.
SHALLOW = ("efficientnet-b0", "vit-tiny")


@pytest.fixture(scope="module", params=get_args(Backbone))
def encoder(request: pytest.FixtureRequest) -> ImageEncoder:
    torch.manual_seed(0)
    return image_encoder(ImageSettings(backbone=request.param), SIZE).eval()


def test_every_backbone_gives_a_map_of_its_width(encoder: ImageEncoder) -> None:
    side = SIZE // (16 if "ViT" in type(encoder.body).__name__ else 32)
    with torch.inference_mode():
        assert encoder(torch.rand(2, 1, SIZE, SIZE)).shape == (2, encoder.width, side, side)


def test_the_blocks_hold_every_parameter_once(encoder: ImageEncoder) -> None:
    held = [id(p) for block in encoder.blocks for module in block for p in module.parameters()]
    assert sorted(held) == sorted(id(p) for p in encoder.parameters())
    depths = encoder.depths()
    assert set(depths.values()) == set(range(1, len(encoder.blocks) + 1))
    assert depths[id(next(encoder.parameters()))] == len(encoder.blocks)


def test_the_padding_in_the_convolutions_gives_the_map_of_monai() -> None:
    ours = image_encoder(ImageSettings(backbone="efficientnet-b0"), SIZE).body.eval()
    monai = EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=1, num_classes=1).eval()
    monai.load_state_dict(ours.state_dict(), strict=False)
    pixels = torch.rand(2, 1, SIZE, SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(ours(pixels), type(ours).forward(monai, pixels))


@pytest.mark.parametrize("backbone", ["efficientnet-lite0", "densenet-small", "vit-tiny"])
@pytest.mark.parametrize("size", [32, 96, 160])
def test_any_multiple_of_32_is_a_size(backbone: str, size: int) -> None:
    encoder = image_encoder(ImageSettings(backbone=backbone), size).eval()
    with torch.inference_mode():
        assert encoder(torch.rand(1, 1, size, size)).shape[-1] == size // (16 if "vit" in backbone else 32)


@pytest.mark.parametrize("backbone", ["vit-tiny", "resnet50", "efficientnet-b0", "densenet169"])
def test_evidence_of_every_kind_averages_to_the_logit(backbone: str) -> None:
    torch.manual_seed(0)
    model = StudyModel(NetworkSettings(image=ImageSettings(backbone=backbone), embedding=16), 5, SIZE).eval()
    outputs = model(StudyInputs(torch.rand(2, 1, SIZE, SIZE)))
    torch.testing.assert_close(outputs.evidence.mean(dim=(2, 3)) + model.classifier.bias, outputs.logits)


def test_frozen_blocks_learn_nothing_and_keep_their_statistics() -> None:
    torch.manual_seed(0)
    encoder = image_encoder(ImageSettings(backbone="densenet-small"), SIZE)
    encoder.freeze(2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    encoder(torch.rand(4, 1, SIZE, SIZE)).square().mean().backward()
    optimizer.step()
    same = {name for name, value in encoder.state_dict().items() if torch.equal(value, before[name])}
    frozen = {n for n in before if any(part in n for part in ("conv0", "norm0", "denseblock1", "transition1"))}
    assert frozen <= same and not any("denseblock4" in name for name in same)


def test_a_frozen_encoder_is_in_evaluation_mode_whatever_the_model_is_told() -> None:
    encoder = image_encoder(ImageSettings(backbone="efficientnet-lite0"), SIZE)
    encoder.freeze()
    encoder.train()
    assert not any(module.training for module in encoder.body.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(m.training for m in encoder.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("backbone", SHALLOW)
def test_the_graph_of_a_shallow_one_agrees_with_pytorch(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *rest = image._LITE0_BLOCKS  # the second repeats its block, with a way around it
    monkeypatch.setattr(image, "_LITE0_BLOCKS", [first, second, *(f"r1{block[2:]}" for block in rest)])
    monkeypatch.setattr(image, "_VIT_LAYERS", 3)
    _agrees_with_pytorch(backbone, tmp_path)


@pytest.mark.bench
@pytest.mark.parametrize("backbone", get_args(Backbone))
def test_the_graph_of_every_kind_agrees_with_pytorch(backbone: str, tmp_path: Path) -> None:
    _agrees_with_pytorch(backbone, tmp_path)


def _agrees_with_pytorch(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    findings = finding_set("phantom8")
    model = StudyModel(NetworkSettings(image=ImageSettings(backbone=backbone), embedding=16), len(findings), SIZE)
    calibration = {name: PlattCalibration(slope=1, intercept=0) for name in findings}
    serving = ServingModel(model, findings, calibration).eval()
    export_onnx(serving, tmp_path / "model.onnx", size=SIZE, max_tokens=0, metadata={})
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        pixels = torch.rand(count, 1, SIZE, SIZE)
        with torch.inference_mode():
            expected = serving(pixels)
        for value, name in zip(expected, output_names(model), strict=True):
            found = torch.from_numpy(session.run([name], {"pixels": pixels.numpy()})[0])
            torch.testing.assert_close(found, value, atol=1e-5, rtol=1e-4)
