"""Checkpoints: exact, atomic, and no pickle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from medsd.errors import DataError
from medsd.training.checkpoints import (
    load_checkpoint,
    optimizer_tensors,
    restore_model,
    restore_optimizer,
    save_checkpoint,
)


def _trained(steps: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.linspace(0, 1, 12).reshape(3, 4)).square().sum().backward()
        optimizer.step()


def _fresh() -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    model, optimizer = _fresh()
    _trained(3, model, optimizer)
    save_checkpoint(
        tmp_path / "c.safetensors", {"m": model.state_dict(), "o": optimizer_tensors(optimizer)}, {"epoch": 3}
    )
    _trained(4, model, optimizer)
    other, other_optimizer = _fresh()
    checkpoint = load_checkpoint(tmp_path / "c.safetensors")
    restore_model(other, checkpoint.part("m"), tmp_path)
    restore_optimizer(other_optimizer, checkpoint.part("o"))
    _trained(4, other, other_optimizer)
    assert torch.equal(model.weight, other.weight) and checkpoint.meta == {"epoch": 3}


def test_a_failed_write_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"m": {"x": torch.ones(2)}}, {"epoch": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medsd.training.checkpoints.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, {"m": {"x": torch.zeros(2)}}, {"epoch": 2})
    assert load_checkpoint(path).meta == {"epoch": 1}


def test_damaged_missing_and_foreign_checkpoints_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle?")
    with pytest.raises(DataError, match="damaged checkpoint"):
        load_checkpoint(tmp_path / "bad.safetensors")
    with pytest.raises(DataError, match="another network"):
        restore_model(nn.Linear(4, 3), nn.Linear(4, 2).state_dict(), tmp_path)
