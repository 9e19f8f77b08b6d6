"""Names of weights: those of MONAI, torchvision, timm, transformers and torchxrayvision turned into medsd's own.

The first convolution shows where the backbone is in a file; what stands around it is left out.
"""

import logging
import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsd.files import packaged

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]
_NO_BACKBONE = re.compile(
    r"(classifier|fc|_fc|head|heads|head_dist|class_layers|class_token|fc_norm|pooler|cls_token|dist_token|mask_token"
    r"|embeddings\.cls_token|embeddings\.mask_token|decoder\w*|op_threshs)(\.|$)|.*relative_position_index$"
)


def fit_names(weights: Mapping[str, Tensor], encoder: nn.Module, backbone: str) -> Weights:
    """`weights` under the names of `encoder`: the backbone alone, three input channels summed to one, the positions of
    a ViT of another size interpolated. Unknown names stay."""
    family = backbone.partition("-")[0].rstrip("0123456789")
    own = encoder.state_dict()
    own_prefix, own_stem, _ = _find_stem(own, family, None)
    shape = own[own_prefix + own_stem].shape
    prefix, stem, names = _find_stem(weights, family, shape)
    if not stem:
        return dict(weights)  # of another network; the message will list them
    inner = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    inner = _joined_qkv({name: value for name, value in inner.items() if not _NO_BACKBONE.match(name)})
    left_out = len(weights) - len(inner)
    for pattern, new in names:
        inner = {re.sub(pattern, new, name): value for name, value in inner.items()}
    if family == "efficientnet":
        inner = _staged(inner, own)
    fitted = {own_prefix + name: value for name, value in inner.items()}
    _fill(fitted, own)
    first = own_prefix + own_stem
    if first in fitted and fitted[first].ndim == 4 and fitted[first].shape[1] == 3 != shape[1]:
        fitted[first] = fitted[first].sum(dim=1, keepdim=True)  # a grey image in each channel
    for name in fitted.keys() & own.keys():
        if name.endswith("position_embeddings"):
            fitted[name] = _interpolated(fitted[name], own[name])
    if left_out > 0:
        log.info("network.image.weights: %d tensors that do not belong to the backbone are left out", left_out)
    return fitted


def _find_stem(
    weights: Mapping[str, Tensor], family: str, shape: torch.Size | None
) -> tuple[str, str, list[tuple[str, str]]]:
    """The prefix of the first convolution's name, that name, and the substitutions of its layout; all empty if none."""
    for layout in packaged("medsd.networks", "names.yaml")[family]:
        stem = layout["first"]
        found = [
            name
            for name, value in weights.items()
            if (name == stem or name.endswith(f".{stem}"))
            and (shape is None or (value.shape[:1] == shape[:1] and value.shape[2:] == shape[2:]))
        ]
        if found:
            first = min(found, key=lambda name: (name.count("."), name))
            stem = stem.removeprefix("stages.")  # medsd's own name for the parts that others only number
            return first.removesuffix(stem), stem, layout.get("names", [])
    return "", "", []


def _staged(weights: Weights, own: Mapping[str, Tensor]) -> Weights:
    """EfficientNet's blocks numbered within stages, as in MONAI; the ImageNet files number them consecutively."""
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


def _joined_qkv(weights: Weights) -> Weights:
    """One tensor for query, key and value, which transformers' ViT keeps apart."""
    joined = dict(weights)
    for name in weights:
        if m := re.fullmatch(r"(encoder\.layer\.\d+)\.attention\.attention\.query\.(weight|bias)", name):
            parts = [f"{m[1]}.attention.attention.{part}.{m[2]}" for part in ("query", "key", "value")]
            if all(part in weights for part in parts):
                joined[f"{m[1]}.attn.qkv.{m[2]}"] = torch.cat([joined.pop(part) for part in parts])
    return joined


def _fill(weights: Weights, own: Mapping[str, Tensor]) -> None:
    """Add what other libraries lack: counters of batches, and the bias before a normalisation in MONAI's ResNet."""
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            weights.setdefault(name, value)
        elif name.endswith("downsample.0.bias") and name.replace(".bias", ".weight") in weights:
            weights.setdefault(name, torch.zeros_like(value))


def _interpolated(positions: Tensor, own: Tensor) -> Tensor:
    """Position embeddings (1, N, C) of one grid for another (Dosovitskiy et al., ICLR 2021, section 3.2), without that
    of a class token."""
    count, wanted = positions.shape[1], math.isqrt(own.shape[1])
    if math.isqrt(count) ** 2 != count:
        positions = positions[:, 1:]
    side = math.isqrt(positions.shape[1])
    if side == wanted or side**2 != positions.shape[1]:
        return positions
    grid = positions.transpose(1, 2).unflatten(2, (side, side)).float()  # (1, C, side, side)
    grid = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False, antialias=side > wanted)
    return grid.flatten(2).transpose(1, 2).to(positions.dtype)
