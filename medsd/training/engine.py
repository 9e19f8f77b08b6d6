"""One stage of training on MONAI's engine: schedule, averaging, checkpoints after each epoch, exact resume.

What a stage does between two epochs depends on nothing but its checkpoint: batches, augmentation and dropout are seeded
by (seed, epoch), the learning rate is a function of the step. So a run that was killed ends with the same numbers.
"""

from __future__ import annotations

import ctypes
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.handlers import TensorBoardStatsHandler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from medsd.errors import DataError, SettingsError
from medsd.networks.fusion import Outputs, StudyModel
from medsd.progress import Progress
from medsd.settings import StageSettings, TrainingSettings
from medsd.training.augment import sample_seed
from medsd.training.checkpoints import (
    load_checkpoint,
    optimizer_tensors,
    restore_model,
    restore_optimizer,
    save_checkpoint,
)
from medsd.training.layers import parameter_groups
from medsd.training.loaders import Batch, TrainingBatches

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h

Loss = Callable[[StudyModel, Outputs, Batch], Tensor]
# What to measure after an epoch, on the weights that would be published: figures by name, higher `key` is better.
Validate = Callable[[StudyModel], dict[str, float]]


@dataclass(frozen=True)
class StageResult:
    """What a stage leaves: the weights to go on with are already in the model.

    Attributes:
        history: one dict an epoch: loss, learning rate, seconds, validation figures.
        best_epoch: from 0, the epoch whose weights were kept.
        seconds: of training, over all sessions.
    """

    history: list[dict[str, float]]
    best_epoch: int
    seconds: float


class Stage:
    """A stage of training.

    Args:
        name: of the stage; its checkpoint is `<folder>/<name>.safetensors`.
        model: trained in place.
        loss: from the model, its outputs and the batch to a scalar.
        batches: of the stage.
        settings: of the stage.
        training: precision and device.
        folder: of the checkpoints and TensorBoard's events.
        seed: of the stage.
        validate: measured after each epoch; `key` chooses the best.
        key: which figure of `validate` is to be highest; None keeps the last epoch.
    """

    def __init__(
        self,
        name: str,
        model: StudyModel,
        loss: Loss,
        batches: TrainingBatches,
        settings: StageSettings,
        training: TrainingSettings,
        folder: Path,
        *,
        seed: int,
        validate: Validate | None = None,
        key: str | None = None,
    ) -> None:
        self.name, self.loss, self.batches, self.settings, self.seed = name, loss, batches, settings, seed
        self.validate, self.key, self.folder = validate, key, folder
        self.path = folder / f"{name}.safetensors"
        self.device = pick_device(training.device)
        self.precision = training.precision
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = AdamW(list(parameter_groups(model, settings)), weight_decay=settings.weight_decay)
        self.average: AveragedModel | None = None
        if settings.weight_averaging:
            average = get_ema_multi_avg_fn(settings.weight_averaging)
            self.average = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = -1
        self.seconds = 0.0

    def run(self) -> StageResult:
        """Train from the checkpoint, or from the start, to the last epoch; then load the weights that were chosen."""
        self._resume()
        if len(self.history) < self.settings.epochs:
            self._train()
        if self.best:
            restore_model(self.model, self.best, self.path)
        return StageResult(self.history, self.best_epoch, self.seconds)

    def _train(self) -> None:
        writer = SummaryWriter(
            str(self.folder / "tensorboard" / self.name), purge_step=len(self.history) * len(self.batches)
        )
        engine = SupervisedTrainer(
            device=self.device,
            max_epochs=self.settings.epochs,
            train_data_loader=self.batches,
            epoch_length=len(self.batches),
            network=self.model,
            optimizer=self.optimizer,
            loss_function=nn.Identity(),  # the stage's own loss is taken in `_step`
            iteration_update=self._step,
            train_handlers=[
                TensorBoardStatsHandler(writer, tag_name=f"{self.name}_loss", output_transform=lambda x: x)
            ],
            decollate=False,
        )
        engine.state.epoch = len(self.history)
        engine.state.iteration = len(self.history) * len(self.batches)
        # Elsewhere than on a terminal the line after each epoch is enough.
        progress = Progress(
            self.settings.epochs * len(self.batches),
            engine.state.iteration,
            name=self.name,
            unit="step",
            wanted=sys.stderr.isatty(),
        )
        losses: list[float] = []
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch, losses)
        engine.add_event_handler(Events.ITERATION_COMPLETED, _note_loss, losses, progress)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch, losses, writer)
        self.batches.set_epoch(len(self.history))  # the engine asks for the first batches before EPOCH_STARTED
        try:
            with progress:
                engine.run()
        finally:
            writer.close()

    def _start_epoch(self, engine: Engine, losses: list[float]) -> None:
        epoch = engine.state.epoch - 1
        losses.clear()
        self.batches.set_epoch(epoch)
        torch.manual_seed(sample_seed(self.seed, epoch))
        self._started = time.monotonic()

    def _step(self, engine: Engine, batch: Batch) -> float:
        """One step; returns the loss."""
        self.model.train()
        set_learning_rate(self.optimizer, self._rate(engine.state.iteration - 1))
        inputs = batch.inputs.to(self.device)
        lower = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with lower:
                outputs = self.model(inputs)
            loss = self.loss(self.model, outputs, batch)
            loss.backward()
        except torch.OutOfMemoryError:
            raise SettingsError(
                f"out of memory in {self.name}; lower training.{self.name}.batch_size or pixels.size"
            ) from None
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DataError(
                f"the loss of {self.name} is {value} in epoch {engine.state.epoch}, batch of manifest rows "
                f"{batch.rows[:8].tolist()} …; lower training.{self.name}.learning_rate"
            )
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return value

    def _rate(self, step: int) -> float:
        """Factor of the learning rate: linear warm-up, then a cosine to zero."""
        total = self.settings.epochs * len(self.batches)
        warm = max(1, round(self.settings.warmup * total))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    def _end_epoch(self, engine: Engine, losses: list[float], writer: SummaryWriter) -> None:
        epoch = engine.state.epoch - 1
        figures = {"loss": sum(losses) / len(losses)}
        if self.validate is not None:
            figures |= self.validate(self._published())
        self.seconds += time.monotonic() - self._started
        self.history.append(figures)
        if self._is_best():
            self.best_epoch = epoch
            self.best = {name: t.detach().clone() for name, t in self._published().state_dict().items()}
        for name, value in figures.items():
            writer.add_scalar(f"{self.name}/{name}", value, epoch)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        log.info("%s: epoch %d of %d  %s", self.name, epoch + 1, self.settings.epochs, shown)
        self._save()

    def _published(self) -> StudyModel:
        """The weights that would be kept now: the moving average where there is one."""
        model = self.model if self.average is None else self.average.module
        assert isinstance(model, StudyModel)
        return model

    def _is_best(self) -> bool:
        if self.key is None or self.best_epoch < 0:
            return True
        now, best = self.history[-1][self.key], self.history[self.best_epoch][self.key]
        return now > best or math.isnan(best)

    def _save(self) -> None:
        parts: dict[str, dict[str, Tensor]] = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "best": self.best,
        }
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        meta = {"history": self.history, "best_epoch": self.best_epoch, "seconds": self.seconds, "seed": self.seed}
        save_checkpoint(self.path, parts, meta)

    def _resume(self) -> None:
        if not self.path.exists():
            return
        checkpoint = load_checkpoint(self.path)
        restore_model(self.model, checkpoint.part("model"), self.path)
        restore_optimizer(self.optimizer, checkpoint.part("optimizer"))
        if self.average is not None:
            restore_model(self.average, checkpoint.part("average"), self.path)
        self.best = checkpoint.part("best")
        self.history = list(checkpoint.meta["history"])
        self.best_epoch = int(checkpoint.meta["best_epoch"])
        self.seconds = float(checkpoint.meta["seconds"])
        log.info("%s: goes on after epoch %d", self.name, len(self.history))


def keep_freed_memory() -> None:
    """Tell glibc to keep the memory that tensors free. By default it gives large blocks back to the system at once, and
    every step of training on a CPU pays for the page faults of getting them again: about half of its time."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


def pick_device(wanted: str) -> torch.device:
    """The device that the settings name; auto takes a GPU where there is one.

    Raises:
        SettingsError: cuda was asked for and is not there.
    """
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise SettingsError("training.device is 'cuda', but PyTorch sees no GPU; use 'auto', or see `medsd doctor`")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Scale each group's own learning rate by `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def _note_loss(engine: Engine, losses: list[float], progress: Progress) -> None:
    output = engine.state.output
    losses.append(float(output if not isinstance(output, Sequence) else output[0]))
    progress.advance(note=f"loss {losses[-1]:.3f}")
