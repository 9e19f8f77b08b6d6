"""One stage of training: schedule, averaging, early stopping, checkpoints, exact resume at any step.

Batches and augmentation are seeded by (seed, epoch, row), dropout by (seed, step), and the learning rate is a function
of the step, so a run that was killed anywhere ends with the same numbers. The loop is plain Python, because an engine
of ignite or MONAI has counters of its own, which a resume in the middle of an epoch would have to keep in line.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW
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
from medsd.training.memory import give_back_freed_memory
from medsd.training.schedule import warm_cosine
from medsd.training.step import Loss, TrainingStep, recomputed_activations

log = logging.getLogger(__name__)

# Attributes of a stage that its checkpoint keeps beside the tensors.
_KEPT = ("history", "best_epoch", "seconds", "seed", "done", "loss_sum")
KEY, FALLBACK = "validation_auroc", "validation_loss"  # what chooses the epoch; where the first is NaN, the second

# Called with a stage after each of its epochs; see `watched`.
Watch = Callable[["Stage"], None]
_watches: ContextVar[tuple[Watch, ...]] = ContextVar("watches", default=())
Record = Callable[[str, float, int], None]  # a figure by name, its value, and the step or epoch
# Measures the weights that would be published: figures by name, `KEY` and `FALLBACK` among them.
Validate = Callable[[StudyModel], dict[str, float]]


@dataclass(frozen=True)
class StageResult:
    """The outcome of a stage; the chosen weights are already in the model."""

    history: list[dict[str, float]]  # of each epoch: loss and validation figures
    best_epoch: int  # from 0, the epoch whose weights were kept
    seconds: float  # of training, over all sessions


class Stage:
    """A stage of training; its checkpoint is `<folder>/<name>.safetensors`.

    Args:
        model: trained in place.
        validate: measured after each epoch, of which the best is kept; None keeps the last.
        learned: the part of the loss whose parameters are learned too, if there is one.
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
        learned: nn.Module | None = None,
    ) -> None:
        self.name, self.batches, self.settings, self.training, self.seed = name, batches, settings, training, seed
        self.validate, self.folder = validate, folder
        self.path = folder / f"{name}.safetensors"
        device = pick_device(training.device)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        join_batch_norm(self.model, device)
        self.learned = (learned or nn.Module()).to(device)
        groups = list(parameter_groups(model, settings))
        if own := list(self.learned.parameters()):
            rate = settings.learning_rate
            groups.append({"params": own, "lr": rate, "base_lr": rate, "weight_decay": 0.0})
        self.optimizer = AdamW(groups, weight_decay=settings.weight_decay)
        self.step = TrainingStep(
            name, self.model, loss, self.optimizer, settings, training.precision, seed, self.learned
        )
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
        epochs, start = self.settings.epochs, len(self.history) * len(self.batches) + self.done
        # Where there is no terminal, the line after each epoch is enough.
        shown = sys.stderr.isatty() and is_first()
        progress = Progress(epochs * len(self.batches), start, name=self.name, unit="step", wanted=shown)
        memory = recomputed_activations(self.model) if self.training.activation_checkpointing else nullcontext()
        self._started = self._saved = time.monotonic()
        with progress, _recorder(self.folder / "tensorboard" / self.name, start) as record, memory:
            while not self._is_over():
                self._train_epoch(progress, record)
                self._end_epoch(record)
        if len(self.history) < epochs:
            log.info("%s: no better in %d epochs, stops", self.name, self.settings.patience)
        wait_for_all()  # the other processes may read what the first has written

    def _train_epoch(self, progress: Progress, record: Record) -> None:
        start = len(self.history) * len(self.batches)
        self.batches.set_epoch(len(self.history), self.done)
        for batch in self.batches:
            value = self._step(batch, start + self.done)
            self.done, self.loss_sum = self.done + 1, self.loss_sum + value
            record(f"{self.name}_loss", value, start + self.done)
            progress.advance(note=f"loss {value:.3f}")
            every = self.training.checkpoint_every
            # The end of an epoch follows its last step and has a checkpoint of its own.
            if every and time.monotonic() - self._saved >= every and self.done < len(self.batches):
                self._save()

    def _step(self, batch: Batch, number: int) -> float:
        """Take step `number` of the stage, from 0; returns the loss."""
        self.model.train()
        factor = warm_cosine(number, self.settings.epochs * len(self.batches), self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        value = self.step(batch, number)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return value

    def _end_epoch(self, record: Record) -> None:
        epoch = len(self.history)
        figures = {"loss": self.loss_sum / self.done}
        if self.validate is not None:
            figures |= as_the_first(self.validate(self._published()))
        self.history.append(figures)
        self.done, self.loss_sum = 0, 0.0
        if self.validate is not None and math.isnan(figures[KEY]) and epoch == 0:
            log.warning(
                "%s: validation auroc cannot be computed, for want of positives and negatives; the epoch with the "
                "lowest validation loss is kept",
                self.name,
            )
        kept = self.best_epoch if self.validate is not None else -1
        if kept < 0 or merit(figures) > merit(self.history[kept]):
            self.best_epoch = epoch
            self.best = {name: t.detach().clone() for name, t in self._published().state_dict().items()}
        for name, value in figures.items():
            record(f"{self.name}/{name}", value, epoch)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        log.info("%s: epoch %d of %d  %s", self.name, epoch + 1, self.settings.epochs, shown)
        self._save()
        if is_first():
            for watch in _watches.get():
                watch(self)

    def _published(self) -> StudyModel:
        """The weights that would be kept now: the moving average where there is one."""
        model = self.model if self.average is None else self.average.module
        assert isinstance(model, StudyModel)
        return model

    def _save(self) -> None:
        now = time.monotonic()
        self.seconds, self._started, self._saved = self.seconds + now - self._started, now, now
        if not is_first():
            return
        parts = {name: module.state_dict() for name, module in self._modules().items()}
        parts |= {"optimizer": optimizer_tensors(self.optimizer), "best": self.best}
        meta = {name: getattr(self, name) for name in _KEPT} | {"scaler": self.step.scaler.state_dict()}
        save_checkpoint(self.path, parts, meta)

    def _resume(self) -> None:
        if not self.path.exists():
            return
        checkpoint = load_checkpoint(self.path)
        for name, module in self._modules().items():
            restore_model(module, checkpoint.part(name), self.path)
        restore_optimizer(self.optimizer, checkpoint.part("optimizer"))
        self.best = checkpoint.part("best")
        for name in _KEPT:
            setattr(self, name, checkpoint.meta[name])
        if scaler := checkpoint.meta["scaler"]:
            self.step.scaler.load_state_dict(scaler)
        log.info("%s: goes on after epoch %d, step %d", self.name, len(self.history), self.done)

    def _modules(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps, by its part's name."""
        modules = {"model": self.model, "learned": self.learned, "average": self.average}
        return {name: module for name, module in modules.items() if module is not None}


def merit(figures: Mapping[str, float]) -> tuple[int, float]:
    """The merit of an epoch with these figures: the highest `KEY`; where it is NaN, the lowest `FALLBACK`."""
    if not math.isnan(figures[KEY]):
        return 2, figures[KEY]
    return (0, 0.0) if math.isnan(figures[FALLBACK]) else (1, -figures[FALLBACK])


class EndedEarly(Exception):
    """Raised by a `Watch` to end the training; its pipeline step does not count as done."""


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Call `watch` with every stage that trains in here, after each epoch, once its checkpoint is written."""
    before = _watches.set((*_watches.get(), watch))
    try:
        yield
    finally:
        _watches.reset(before)


@contextmanager
def _recorder(folder: Path, start: int) -> Iterator[Record]:
    """Writes TensorBoard's events from step `start` on; in other processes than the first, nothing."""
    if not is_first():
        yield lambda name, value, number: None
        return
    with SummaryWriter(str(folder), purge_step=start) as writer:
        yield writer.add_scalar


def pick_device(wanted: str) -> torch.device:
    """The device that the settings name, auto for a GPU if there is one; SettingsError for a cuda that is missing."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise SettingsError("training.device is 'cuda', but PyTorch sees no GPU; use 'auto', or see `medsd doctor`")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")
