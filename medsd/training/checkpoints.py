"""Checkpoints as safetensors: tensors by name, the rest as JSON in the header. Reading one runs no code."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from medsd.errors import DataError
from medsd.files import replacing

_META = "medsd"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name ("model.…", "optimizer.…"), and the rest."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix`, without it."""
        return {name.removeprefix(f"{prefix}."): t for name, t in self.tensors.items() if name.startswith(f"{prefix}.")}


def save_checkpoint(path: Path, parts: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
    """Write atomically: an interrupted write leaves the older checkpoint in place."""
    tensors = {
        f"{part}.{name}": t.detach().cpu().contiguous().clone() for part, ts in parts.items() for name, t in ts.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        save_file(tensors, draft, metadata={_META: json.dumps(dict(meta))})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote; a missing or damaged file is a DataError."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get(_META, "{}"))
            return Checkpoint({name: file.get_tensor(name) for name in file.keys()}, meta)  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise DataError(f"{path}: no such checkpoint; run the step before") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{path}: damaged checkpoint ({type(error).__name__}); remove it and run the step again"
        ) from None


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments by parameter position and name, without learning rates, which the schedule sets."""
    state = optimizer.state_dict()["state"]
    return {f"{position}.{name}": value for position, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` took, each moment in the memory layout of its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        position, name = key.split(".", 1)
        if value.ndim:
            value = torch.empty_like(parameters[int(position)], dtype=value.dtype, device="cpu").copy_(value)
        state.setdefault(int(position), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load weights into `model`, or say that the file belongs to another network."""
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError:
        raise DataError(
            f"{path}: holds another network than the settings name; remove the run or restore the settings"
        ) from None
