"""A stage: when it stops, what it keeps, who is told, its hold on memory; runs are tested in test_run and others."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from medsd.networks.fusion import StudyModel
from medsd.settings import AugmentSettings, ImageSettings, NetworkSettings, StageSettings, TrainingSettings
from medsd.training.checkpoints import load_checkpoint
from medsd.training.engine import EndedEarly, Stage, merit, watched
from medsd.training.loaders import StudyArrays, TrainingBatches

COUNT, SIZE = 12, 32  # two steps an epoch
GROWING = {"init_scale": 256.0, "growth_interval": 3}  # doubles after every third step


class Scripted(Stage):
    """A stage whose validation figures are given; it remembers the weights that each of them was for."""

    def __init__(
        self, folder: Path, aurocs: Sequence[float] = (), losses: Sequence[float] = (), **settings: int
    ) -> None:
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 2, (COUNT, 3)).astype(np.float32)
        pixels = rng.integers(0, 256, (COUNT, SIZE, SIZE), dtype=np.uint8)
        arrays = StudyArrays(pixels, labels, np.ones(COUNT, bool), np.zeros(COUNT, bool))
        torch.manual_seed(0)
        network = NetworkSettings(image=ImageSettings(backbone="densenet-small"), embedding=16, projection=8)
        batches = TrainingBatches(
            arrays, np.arange(COUNT), batch_size=6, views=1, augment=AugmentSettings(), modality_dropout=0.0, seed=1
        )
        self.seen: list[dict[str, torch.Tensor]] = []
        self.aurocs, self.losses = aurocs, losses
        super().__init__(
            "finetune",
            StudyModel(network, 3, SIZE),
            lambda model, outputs, batch: (outputs.logits - batch.labels).square().mean(),
            batches,
            StageSettings(batch_size=6, **settings),
            TrainingSettings(device="cpu"),
            folder,
            seed=1,
            validate=self.told if aurocs else None,
        )

    def told(self, model: StudyModel) -> dict[str, float]:
        self.seen.append({name: value.clone() for name, value in model.state_dict().items()})
        told = len(self.seen) - 1
        return {
            "validation_auroc": self.aurocs[told],
            "validation_loss": self.losses[told] if self.losses else float("nan"),
        }


def test_training_stops_when_patience_is_over_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    stage = Scripted(tmp_path, [0.5, 0.7, 0.6, 0.7, 0.9], epochs=5, patience=2)
    result = stage.run()
    assert [figures["validation_auroc"] for figures in result.history] == [
        0.5,
        0.7,
        0.6,
        0.7,
    ] and result.best_epoch == 1
    for name, value in stage.model.state_dict().items():
        assert torch.equal(value, stage.seen[1][name]), name
    again = Scripted(tmp_path, [], epochs=5, patience=2)  # would have no figure to tell if it trained on
    assert len(again.run().history) == 4
    assert all(torch.equal(value, stage.seen[1][name]) for name, value in again.model.state_dict().items())


def test_where_the_auroc_cannot_be_computed_the_lowest_loss_is_kept_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    nan = float("nan")
    stage = Scripted(tmp_path, [nan] * 5, [nan, 0.4, 0.3, 0.5, 0.6], epochs=5, patience=2)
    result = stage.run()
    assert result.best_epoch == 2 and len(result.history) == 5
    assert all(torch.equal(value, stage.seen[2][name]) for name, value in stage.model.state_dict().items())
    told = [record.getMessage() for record in caplog.records if "cannot be computed" in record.getMessage()]
    assert len(told) == 1 and "lowest validation loss is kept" in told[0]


def test_an_auroc_that_can_be_computed_is_better_than_one_that_cannot() -> None:
    nan = float("nan")
    ranked = [(0.9, nan), (0.2, 0.1), (nan, 0.3), (nan, 0.8), (nan, nan)]
    merits = [merit({"validation_auroc": auroc, "validation_loss": loss}) for auroc, loss in ranked]
    assert merits == sorted(merits, reverse=True) and len(set(merits)) == 5


def test_without_patience_every_epoch_is_trained(tmp_path: Path) -> None:
    result = Scripted(tmp_path, [0.9, 0.5, 0.4, 0.3], epochs=4).run()
    assert len(result.history) == 4 and result.best_epoch == 0


def test_who_watches_is_told_of_every_epoch_and_may_end_the_training(tmp_path: Path) -> None:
    told: list[int] = []

    def watch(stage: Stage) -> None:
        told.append(len(stage.history))
        assert load_checkpoint(stage.path).meta["history"] == stage.history
        if len(told) == 2:
            raise EndedEarly

    with pytest.raises(EndedEarly), watched(watch):
        Scripted(tmp_path, epochs=4).run()
    assert told == [1, 2]
    assert len(Scripted(tmp_path, epochs=4).run().history) == 4 and told == [1, 2]


def _scaled(folder: Path) -> Scripted:
    """With the scaler of float16, which works on a CPU too; the float16 itself does not."""
    stage = Scripted(folder, epochs=2)
    stage.step.scaler = torch.amp.GradScaler("cpu", **GROWING)
    return stage


def test_the_scaler_of_float16_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole = _scaled(tmp_path / "whole")
    whole.run()
    expected = whole.step.scaler.state_dict()
    assert expected["scale"] == 512.0 and expected["_growth_tracker"] == 1  # four steps
    with pytest.raises(EndedEarly), watched(_stop):
        _scaled(tmp_path / "parts").run()
    assert load_checkpoint(tmp_path / "parts" / "finetune.safetensors").meta["scaler"]["_growth_tracker"] == 2
    parts = _scaled(tmp_path / "parts")
    parts.run()
    assert parts.step.scaler.state_dict() == expected
    for name, value in parts.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


def _stop(stage: Stage) -> None:
    raise EndedEarly


def test_what_a_stage_freed_is_given_back_to_the_system() -> None:
    """In a process of its own: what glibc is told holds for the rest of a process."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc keeps freed memory and gives it back when asked")
    code = (
        "import torch\nfrom pathlib import Path\n"
        "from medsd.training.memory import give_back_freed_memory, keep_freed_memory\n"
        "held = lambda: int(Path('/proc/self/statm').read_text().split()[1])\n"
        "keep_freed_memory()\ntensors = [torch.ones(500, 500) for _ in range(300)]\ndel tensors\nkept = held()\n"
        "give_back_freed_memory()\nprint((kept - held()) * 4096 > 150e6)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
