"""One stage of training on MONAI's engine: schedule, averaging, early stopping, checkpoints, exact resume at any step.

What a step does depends on nothing but the checkpoint before it: batches and augmentation are seeded by (seed, epoch,
row), dropout by (seed, step), the learning rate is a function of the step. So a run that was killed, wherever, ends
with the same numbers. With several processes each takes its share of every batch and the first one writes.
"""

from __future__ import annotations

import ctypes
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
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

from medsd.errors import SettingsError
from medsd.networks.fusion import StudyModel
from medsd.progress import Progress
from medsd.settings import StageSettings, TrainingSettings
from medsd.training.checkpoints import (
    load_checkpoint,
    optimizer_tensors,
    restore_model,
    restore_optimizer,
    save_checkpoint,
)
from medsd.training.distributed import as_the_first, is_first, join_batch_norm, wait_for_all
from medsd.training.layers import parameter_groups
from medsd.training.loaders import Batch, TrainingBatches
from medsd.training.step import Loss, Step, recomputed_activations

log = logging.getLogger(__name__)

# Of a stage, in its checkpoint beside the tensors.
_KEPT = ("history", "best_epoch", "seconds", "seed", "done", "loss_sum")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h

# Told of a stage after each of its epochs; see `watched`.
Watch = Callable[["Stage"], None]
_watches: ContextVar[tuple[Watch, ...]] = ContextVar("watches", default=())
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
        fallback: which is to be lowest where `key` cannot be computed (NaN).
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
        fallback: str = "loss",
    ) -> None:
        self.name, self.batches, self.settings, self.training, self.seed = name, batches, settings, training, seed
        self.validate, self.key, self.fallback, self.folder = validate, key, fallback, folder
        self.path = folder / f"{name}.safetensors"
        self.device = pick_device(training.device)
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        join_batch_norm(self.model, self.device)
        self.optimizer = AdamW(list(parameter_groups(model, settings)), weight_decay=settings.weight_decay)
        self.step = Step(name, self.model, loss, self.optimizer, settings, training.precision, seed)
        self.average: AveragedModel | None = None
        if settings.weight_averaging:
            average = get_ema_multi_avg_fn(settings.weight_averaging)
            self.average = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = -1
        self.seconds = 0.0
        self.done, self.loss_sum = 0, 0.0  # steps of the present epoch, and the sum of their losses

    def run(self) -> StageResult:
        """Train from the checkpoint, or from the start, to the last epoch; then load the weights that were chosen."""
        self._resume()
        if not self._is_over():
            self._train()
        if self.best:
            restore_model(self.model, self.best, self.path)
        return StageResult(self.history, self.best_epoch, self.seconds)

    def _is_over(self) -> bool:
        """Whether all epochs are done, or the last `patience` of them brought nothing."""
        since = len(self.history) - 1 - self.best_epoch
        return len(self.history) >= self.settings.epochs or bool(0 < self.settings.patience <= since)

    def _train(self) -> None:
        give_back_freed_memory()
        start = len(self.history) * len(self.batches) + self.done
        engine = SupervisedTrainer(
            device=self.device,
            max_epochs=self.settings.epochs,
            train_data_loader=self.batches,
            epoch_length=len(self.batches),
            network=self.model,
            optimizer=self.optimizer,
            loss_function=nn.Identity(),  # the stage's own loss is taken in `_step`
            iteration_update=self._step,
            decollate=False,
        )
        engine.state.epoch, engine.state.iteration = len(self.history), start
        # Elsewhere than on a terminal the line after each epoch is enough.
        progress = Progress(
            self.settings.epochs * len(self.batches),
            start,
            name=self.name,
            unit="step",
            wanted=sys.stderr.isatty() and is_first(),
        )
        self._started = self._saved = time.monotonic()
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_step, progress)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        # The engine asks for the first batches before EPOCH_STARTED.
        self.batches.set_epoch(len(self.history), self.done)
        memory = recomputed_activations(self.model) if self.training.activation_checkpointing else nullcontext()
        with progress, recorded(self, engine), memory:
            engine.run()
        wait_for_all()  # what the first has written the others may read

    def _start_epoch(self, engine: Engine) -> None:
        self.batches.set_epoch(engine.state.epoch - 1, self.done)

    def _step(self, engine: Engine, batch: Batch) -> float:
        """One step; returns the loss."""
        number = engine.state.iteration - 1
        self.model.train()
        set_learning_rate(self.optimizer, self._rate(number))
        value = self.step(batch, number)
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

    def _end_step(self, engine: Engine, progress: Progress) -> None:
        value = float(engine.state.output)
        self.done, self.loss_sum = self.done + 1, self.loss_sum + value
        progress.advance(note=f"loss {value:.3f}")
        every = self.training.checkpoint_every
        # After the last step of an epoch comes its end, with a checkpoint of its own.
        if every and time.monotonic() - self._saved >= every and self.done < len(self.batches):
            self._save()

    def _end_epoch(self, engine: Engine) -> None:
        epoch = engine.state.epoch - 1
        figures = {"loss": self.loss_sum / self.done}
        if self.validate is not None:
            figures |= as_the_first(self.validate(self._published()))
        self.history.append(figures)
        self.done, self.loss_sum = 0, 0.0
        if self.key and math.isnan(figures[self.key]) and epoch == 0:
            log.warning(
                "%s: %s cannot be computed, for want of positives and negatives; the epoch with the lowest %s is kept",
                self.name,
                self.key.replace("_", " "),
                self.fallback.replace("_", " "),
            )
        if self._is_best():
            self.best_epoch = epoch
            self.best = {name: t.detach().clone() for name, t in self._published().state_dict().items()}
        engine.state.metrics.update(figures)  # for the handlers that record them
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        log.info("%s: epoch %d of %d  %s", self.name, epoch + 1, self.settings.epochs, shown)
        self._save()
        if is_first():
            for watch in _watches.get():
                watch(self)
        if self._is_over() and epoch + 1 < self.settings.epochs:
            log.info("%s: no better in %d epochs, stops", self.name, self.settings.patience)
            engine.terminate()

    def _published(self) -> StudyModel:
        """The weights that would be kept now: the moving average where there is one."""
        model = self.model if self.average is None else self.average.module
        assert isinstance(model, StudyModel)
        return model

    def _is_best(self) -> bool:
        if self.key is None or self.best_epoch < 0:
            return True
        now, best = (merit(self.history[epoch], self.key, self.fallback) for epoch in (-1, self.best_epoch))
        return now > best

    def _save(self) -> None:
        now = time.monotonic()
        self.seconds, self._started, self._saved = self.seconds + now - self._started, now, now
        if not is_first():
            return
        parts: dict[str, dict[str, Tensor]] = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "best": self.best,
        }
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        meta = {name: getattr(self, name) for name in _KEPT} | {"scaler": self.step.scaler.state_dict()}
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
        for name in _KEPT:
            setattr(self, name, checkpoint.meta.get(name, getattr(self, name)))  # older ones end with an epoch
        if scaler := checkpoint.meta.get("scaler"):
            self.step.scaler.load_state_dict(scaler)
        log.info("%s: goes on after epoch %d, step %d", self.name, len(self.history), self.done)


def merit(figures: Mapping[str, float], key: str, fallback: str) -> tuple[int, float]:
    """How good the figures of an epoch are, to be compared: the higher the better.

    Args:
        figures: of the epoch.
        key: is to be high. Where it is NaN, the fallback decides, and every epoch with a figure is better.
        fallback: is to be low; an epoch where it is NaN too is the worst.
    """
    if not math.isnan(figures[key]):
        return 2, figures[key]
    return (0, 0.0) if math.isnan(figures[fallback]) else (1, -figures[fallback])


class EndedEarly(Exception):
    """Raised by a `Watch` that has seen enough: the training ends, and its step is not done."""


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Tell `watch` of every stage that trains in here, after each epoch, once its checkpoint is written."""
    before = _watches.set((*_watches.get(), watch))
    try:
        yield
    finally:
        _watches.reset(before)


@contextmanager
def recorded(stage: Stage, engine: Engine) -> Iterator[None]:
    """Write the loss of each step and the figures of each epoch to TensorBoard."""
    if not is_first():
        yield
        return
    writer = SummaryWriter(str(stage.folder / "tensorboard" / stage.name), purge_step=engine.state.iteration)
    TensorBoardStatsHandler(
        writer,
        tag_name=f"{stage.name}_loss",
        output_transform=lambda value: value,
        epoch_event_writer=lambda engine, writer: _write_figures(stage, engine, writer),
    ).attach(engine)
    try:
        yield
    finally:
        writer.close()


def _write_figures(stage: Stage, engine: Engine, writer: SummaryWriter) -> None:
    for name, value in engine.state.metrics.items():
        writer.add_scalar(f"{stage.name}/{name}", value, engine.state.epoch - 1)


def keep_freed_memory() -> None:
    """Tell glibc to keep the memory that tensors free. By default it gives large blocks back to the system at once, and
    every step of training on a CPU pays for the page faults of getting them again: about half of its time."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


def give_back_freed_memory() -> None:
    """Give back what an earlier stage freed, before loaders fork: they would go on holding it when it is used again."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


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
