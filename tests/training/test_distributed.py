"""Two processes train as one with the whole batch."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from medsd.networks.fusion import StudyInputs, StudyModel, StudyOutputs
from medsd.settings import (
    AugmentSettings,
    ImageSettings,
    LossSettings,
    NetworkSettings,
    ObjectiveSettings,
    StageSettings,
    TrainingSettings,
    save_settings,
)
from medsd.training.contrast import Contrast
from medsd.training.distributed import JointBatchNorm, as_the_first, average_gradients, joint_mean, this_share
from medsd.training.engine import Stage
from medsd.training.loaders import Batch, StudyArrays, TrainingBatches
from medsd.training.objectives import Objective, finetuning_loss
from tests.runs import small_settings

STUDIES, SIZE, BATCH, EPOCHS = 40, 32, 10, 2  # 8 steps
STAGE = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 1e-3, "sd_weight": 0.5, "weight_averaging": 0.9}


class Exact(StudyModel):
    """Computes in double precision, so that the order of sums tips no ReLU and no sign of a vanishing gradient."""

    def forward(self, inputs: StudyInputs) -> StudyOutputs:
        return super().forward(replace(inputs, pixels=inputs.pixels.double()))

    def project(self, features: Tensor) -> Tensor:
        return super().project(features.double())


class Recorded(Stage):
    """Keeps the loss of each step."""

    def _step(self, batch: Batch, number: int) -> float:
        value = super()._step(batch, number)
        self.losses = [*getattr(self, "losses", []), value]
        return value


def train(folder: Path, accumulate: int) -> dict[str, torch.Tensor]:
    """Eight steps of cross-entropy and contrast, without dropout: its masks are drawn by process, not by sample."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (STUDIES, 3)).astype(np.float32)
    labels[rng.random(labels.shape) < 0.4] = np.nan  # so the processes know different numbers of labels
    pixels = rng.integers(0, 256, (STUDIES, SIZE, SIZE), dtype=np.uint8)
    arrays = StudyArrays(pixels, labels, np.ones(STUDIES, bool), np.zeros(STUDIES, bool))
    torch.manual_seed(0)
    image = ImageSettings(backbone="densenet-small", dropout=0.0)
    model = Exact(NetworkSettings(image=image, embedding=16, projection=8), 3, SIZE).double()
    settings = StageSettings(**STAGE, accumulate=accumulate)
    batches = TrainingBatches(
        arrays,
        np.arange(STUDIES),
        batch_size=BATCH,
        views=2,
        augment=AugmentSettings(),
        modality_dropout=0.0,
        seed=3,
        share=this_share(),
    )
    loss = finetuning_loss(Objective(ObjectiveSettings()), settings.sd_weight, Contrast(LossSettings(), labels))
    stage = Recorded("finetune", model, loss, batches, settings, TrainingSettings(device="cpu"), folder, seed=3)
    stage.run()
    return {"losses": torch.tensor(stage.losses), **stage.model.state_dict()}


def run_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    outcome = {"batch": train(Path(folder) / "whole", 1), "parts": {}, "small": small_sums(rank)}
    dist.barrier()
    outcome["parts"] = train(Path(folder) / "parts", 2)
    torch.save(outcome, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def small_sums(rank: int) -> dict[str, torch.Tensor]:
    """Batch normalisation, a mean, and gradients of rows that stand on one process or the other."""
    torch.manual_seed(0)
    rows = torch.randn(7, 3, 4, dtype=torch.float32)
    mine = (rows[:3] if rank == 0 else rows[3:]).clone().requires_grad_()
    norm = JointBatchNorm(3) if dist.is_initialized() else nn.BatchNorm1d(3)
    mine = rows.clone().requires_grad_() if not dist.is_initialized() else mine
    out = norm(mine)
    loss = joint_mean((out.exp() * out).sum(), torch.tensor(float(len(mine))))
    loss.backward()
    average_gradients(norm)
    told = as_the_first({"auroc": 0.5 + rank})
    assert mine.grad is not None and norm.weight.grad is not None
    world = 2 if dist.is_initialized() else 1
    place = slice(0, 3) if rank == 0 else slice(3, None)
    rest = {"loss": loss.detach(), "mean": norm.running_mean, "var": norm.running_var, "weight": norm.weight.grad}
    inputs = mine.grad / world if world == 2 else mine.grad[place]
    return {**rest, "inputs": inputs, "told": torch.tensor(told["auroc"] if world == 2 else 0.5)}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What each of two processes ends with."""
    folder = tmp_path_factory.mktemp("gloo")
    multiprocessing.set_forkserver_preload([__name__])  # PyTorch is imported once for both
    mp.start_processes(run_process, (str(folder),), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_have_the_losses_of_one_over_eight_steps(
    outcomes: list[dict[str, dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    expected = train(tmp_path, 1)
    assert len(expected["losses"]) == 8 and expected["losses"].std() > 0.01
    for found in outcomes:
        torch.testing.assert_close(found["batch"]["losses"], expected["losses"], rtol=0, atol=1e-4)
        for name, value in expected.items():
            torch.testing.assert_close(found["batch"][name], value, rtol=0, atol=2e-3, msg=name)


def test_two_processes_stay_equal_whether_the_batch_goes_whole_or_in_parts(
    outcomes: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    for way in ("batch", "parts"):
        for name, value in outcomes[0][way].items():
            assert torch.equal(value, outcomes[1][way][name]), name


@pytest.mark.parametrize("rank", [0, 1])
def test_normalisation_means_and_gradients_are_those_of_all_rows(
    outcomes: list[dict[str, dict[str, torch.Tensor]]], rank: int
) -> None:
    expected = small_sums(rank)
    for name, value in outcomes[rank]["small"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_run_under_torchrun_trains_in_two_processes_and_writes_once(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, "training.pretrain.epochs=1", "training.finetune.epochs=1")
    save_settings(settings, tmp_path / "phantom.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "medsd.cli", "finetune", str(tmp_path / "phantom.yaml")]
    environment = {**os.environ, "MEDSD_KEY": "a key for the tests of medsd"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finetune: done") == 1 and done.stderr.count("finetune: epoch 1 of 1") == 1
    assert json.loads((settings.run_folder / "history.json").read_text())["finetune"]["best_epoch"] == 0
    assert {path.stem for path in (settings.run_folder / "done").glob("*e.json")} == {"prepare", "finetune"}
