"""Names of weights: those of MONAI, torchvision, timm, transformers and torchxrayvision put into medsd's own.

Whatever stands around the backbone in a file (`module.`, `model.`, other towers, a classifier) is found by the name and
the shape of the first convolution, and left out. Start at `fit_names`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]
# The first convolution: where the backbone begins in a file, whatever stands before the name.
_STEMS = {
    "densenet": ("conv0.weight",),
    "resnet": ("stages.0.weight", "conv1.weight", "0.weight"),
    "efficientnet": ("_conv_stem.weight", "conv_stem.weight", "features.0.0.weight"),
    "vit": (
        "patch_embedding.patch_embeddings.weight",
        "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.weight",
    ),
}
_NO_BACKBONE = re.compile(
    r"(classifier|fc|_fc|head|heads|head_dist|class_layers|class_token|fc_norm|pooler|cls_token|dist_token|mask_token"
    r"|embeddings\.cls_token|embeddings\.mask_token|decoder\w*|op_threshs)(\.|$)|.*relative_position_index$"
)
_RESNET_PARTS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
_TIMM_VIT = (
    ("patch_embed.proj", "patch_embedding.patch_embeddings"),
    ("pos_embed", "patch_embedding.position_embeddings"),
    (".attn.proj.", ".attn.out_proj."),
    (".mlp.fc", ".mlp.linear"),
)
_TRANSFORMERS_VIT = (
    ("embeddings.patch_embeddings.projection", "patch_embedding.patch_embeddings"),
    ("embeddings.position_embeddings", "patch_embedding.position_embeddings"),
    ("encoder.layer.", "blocks."),
    (".attention.output.dense.", ".attn.out_proj."),
    (".intermediate.dense.", ".mlp.linear1."),
    (".output.dense.", ".mlp.linear2."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    ("layernorm.", "norm."),
)
# The parts of EfficientNet's blocks, in those that widen first and in those of the first stage, which do not.
_TIMM_BLOCK = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}
_TIMM_FIRST = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
_TIMM_OUTER = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
_TIMM_SE = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
_TORCHVISION_BLOCK = {
    "0.0": "_expand_conv",
    "0.1": "_bn0",
    "1.0": "_depthwise_conv",
    "1.1": "_bn1",
    "2.fc1": "_se_reduce",
    "2.fc2": "_se_expand",
    "3.0": "_project_conv",
    "3.1": "_bn2",
}
_TORCHVISION_OUTER = {"0.0": "_conv_stem", "0.1": "_bn0", "8.0": "_conv_head", "8.1": "_bn1"}


def fit_names(weights: Mapping[str, Tensor], encoder: nn.Module, backbone: str) -> Weights:
    """`weights` under the names of `encoder`: the backbone alone, three input channels summed to one, the positions of
    a ViT of another size interpolated. What cannot be renamed keeps its name."""
    family = backbone.partition("-")[0].rstrip("0123456789")
    own = encoder.state_dict()
    own_prefix, own_stem = _find_stem(own, family, None)
    shape = own[own_prefix + own_stem].shape
    prefix, stem = _find_stem(weights, family, shape)
    if not stem:
        return dict(weights)  # another network's; the message will list them
    inner = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    inner = {name: value for name, value in inner.items() if not _NO_BACKBONE.match(name)}
    match family:
        case "densenet":
            inner = {_dense_name(name): value for name, value in inner.items()}
        case "resnet":
            inner = {_resnet_name(name): value for name, value in inner.items()}
        case "efficientnet":
            inner = _staged({_efficient_name(name, stem): value for name, value in inner.items()}, own)
        case "vit":
            inner = _vit_names(inner, stem)
    fitted = {own_prefix + name: value for name, value in inner.items()}
    _fill(fitted, own)
    first = own_prefix + own_stem
    if first in fitted and fitted[first].ndim == 4 and fitted[first].shape[1] == 3 != shape[1]:
        fitted[first] = fitted[first].sum(dim=1, keepdim=True)  # a grey image in each channel
    for name in fitted.keys() & own.keys():
        if name.endswith("position_embeddings"):
            fitted[name] = _interpolated(fitted[name], own[name])
    left_out = len(weights) - len(inner)
    if left_out > 0:
        log.info("network.image.weights: %d tensors that do not belong to the backbone are left out", left_out)
    return fitted


def _find_stem(weights: Mapping[str, Tensor], family: str, shape: torch.Size | None) -> tuple[str, str]:
    """What stands before the first convolution's name, and that name; two empty strings where there is none."""
    for stem in _STEMS[family]:
        found = [
            name
            for name, value in weights.items()
            if (name == stem or name.endswith(f".{stem}"))
            and (shape is None or (value.shape[:1] == shape[:1] and value.shape[2:] == shape[2:]))
        ]
        if found:
            first = min(found, key=lambda name: (name.count("."), name))
            stem = stem.removeprefix("stages.")  # medsd's own name for the parts that others number alone
            return first.removesuffix(stem), stem
    return "", ""


def _dense_name(name: str) -> str:
    """torchvision's and torchxrayvision's ``denselayer1.norm1`` (once ``norm.1``) is MONAI's ``layers.norm1``."""
    return re.sub(r"(denselayer\d+)\.(norm|conv)\.?(\d)\.", r"\1.layers.\2\3.", name)


def _resnet_name(name: str) -> str:
    part, dot, rest = name.partition(".")
    return f"{_RESNET_PARTS.get(part, part)}{dot}{rest}"


def _efficient_name(name: str, stem: str) -> str:
    """timm's and torchvision's names of EfficientNet's parts; they count stages and repeats as MONAI does."""
    if stem == "conv_stem.weight":
        part, _, last = name.rpartition(".")
        if not (m := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", part)):
            return f"{_TIMM_OUTER.get(part, part)}.{last}"
        table = (_TIMM_FIRST if m[1] == "0" else _TIMM_BLOCK) | _TIMM_SE
        return f"_blocks.{m[1]}.{m[2]}.{table.get(m[3], m[3])}.{last}"
    if stem == "features.0.0.weight":
        part, _, last = name.removeprefix("features.").rpartition(".")
        if not (m := re.fullmatch(r"(\d+)\.(\d+)\.block\.(\d+)\.(\w+)", part)):
            return f"{_TORCHVISION_OUTER.get(part, part)}.{last}"
        inner = f"{int(m[3]) + (m[1] == '1')}.{m[4]}"  # the first stage begins with its second part
        return f"_blocks.{int(m[1]) - 1}.{m[2]}.{_TORCHVISION_BLOCK.get(inner, inner)}.{last}"
    return name


def _staged(weights: Weights, own: Mapping[str, Tensor]) -> Weights:
    """The ImageNet files number EfficientNet's blocks through; MONAI numbers them within stages."""
    pattern = re.compile(r"_blocks\.(\d+)\.(\d+)\.")
    places = sorted({(int(m[1]), int(m[2])) for m in map(pattern.search, own) if m})
    if any(pattern.match(name) for name in weights):
        return weights
    renamed = {}
    for name, value in weights.items():
        if (m := re.match(r"_blocks\.(\d+)\.", name)) and int(m[1]) < len(places):
            stage, repeat = places[int(m[1])]
            name = f"_blocks.{stage}.{repeat}.{name[m.end() :]}"
        renamed[name] = value
    return renamed


def _vit_names(weights: Weights, stem: str) -> Weights:
    table: tuple[tuple[str, str], ...] = ()
    if stem.startswith("patch_embed.proj"):
        table = _TIMM_VIT
    elif stem.startswith("embeddings."):
        table, weights = _TRANSFORMERS_VIT, _joined_qkv(weights)
    renamed = {}
    for name, value in weights.items():
        for old, new in table:
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


def _joined_qkv(weights: Weights) -> Weights:
    """transformers keeps query, key and value apart."""
    joined = dict(weights)
    for name in weights:
        if m := re.fullmatch(r"(encoder\.layer\.\d+)\.attention\.attention\.query\.(weight|bias)", name):
            parts = [f"{m[1]}.attention.attention.{part}.{m[2]}" for part in ("query", "key", "value")]
            if all(part in weights for part in parts):
                joined[f"{m[1]}.attn.qkv.{m[2]}"] = torch.cat([joined.pop(part) for part in parts])
    return joined


def _fill(weights: Weights, own: Mapping[str, Tensor]) -> None:
    """What other libraries do without: counters of batches, and the bias before a normalisation in MONAI's ResNet."""
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            weights.setdefault(name, value)
        elif name.endswith("downsample.0.bias") and name.replace(".bias", ".weight") in weights:
            weights.setdefault(name, torch.zeros_like(value))


def _interpolated(positions: Tensor, own: Tensor) -> Tensor:
    """Position embeddings (1, N, C) of one grid for another, as Dosovitskiy et al. (ICLR 2021, section 3.2); that of a
    class token goes."""
    count, wanted = positions.shape[1], math.isqrt(own.shape[1])
    if math.isqrt(count) ** 2 != count:
        positions = positions[:, 1:]
    side = math.isqrt(positions.shape[1])
    if side == wanted or side**2 != positions.shape[1]:
        return positions
    grid = positions.transpose(1, 2).unflatten(2, (side, side)).float()  # (1, C, side, side)
    grid = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False, antialias=side > wanted)
    return grid.flatten(2).transpose(1, 2).to(positions.dtype)
