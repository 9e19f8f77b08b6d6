"""One step of training: the passes forward and back, whole or in parts, in the wanted precision, by all processes.

Dropout is seeded by the stage's seed and the step, so that training can go on after any step.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from medsd.errors import DataError, SettingsError
from medsd.networks.fusion import StudyInputs, StudyModel, StudyOutputs
from medsd.sd.gather import world_size
from medsd.settings import StageSettings
from medsd.training.augment import sample_seed
from medsd.training.distributed import average_gradients, this_share
from medsd.training.loaders import Batch

Loss = Callable[[StudyModel, StudyOutputs, Batch], Tensor]
# MONAI's modules that repeat, and hold most of what a pass keeps.
_BLOCKS = ("MBConvBlock", "_DenseLayer", "ResNetBlock", "ResNetBottleneck", "TransformerBlock")
_LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainingStep:
    """Takes steps of a stage: updates the weights of the model and returns the loss.

    With `settings.accumulate` = n the batch goes through the network in n parts, in about 1/n of the memory, while the
    loss still sees all of it: features are computed without a graph, the loss gives their gradients, then each part is
    computed again and receives its gradients (gradient caching, Gao et al., RepL4NLP 2021). That costs a third more
    time. Only batch normalisation differs, for its statistics are those of a part.

    The network computes in `precision` (float32, bfloat16 or float16), the loss in float32.
    """

    def __init__(
        self,
        name: str,
        model: StudyModel,
        loss: Loss,
        optimizer: Optimizer,
        settings: StageSettings,
        precision: str,
        seed: int,
        learned: nn.Module | None = None,
    ) -> None:
        self.name, self.model, self.loss, self.optimizer = name, model, loss, optimizer
        self.settings, self.seed = settings, seed
        self.device = next(model.parameters()).device
        self.low = _low_precision(precision, self.device)
        # Gradients in float16 vanish unless they are scaled; the scaler finds the factor (Micikevicius et al. 2018).
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.low is torch.float16)
        self.whole = _ModelAndLoss(self, learned or nn.Module())
        self._pass: nn.Module = self.whole
        if world_size() > 1 and settings.accumulate == 1:
            # Parameters without part in a loss (the classifier, in pretraining) are found anew in each step.
            self._pass = DistributedDataParallel(self.whole, broadcast_buffers=False, find_unused_parameters=True)

    def __call__(self, batch: Batch, number: int) -> float:
        """Take the step `number` of the stage, from 0; returns the loss.

        Raises:
            SettingsError: out of memory; the message says which setting to lower.
            DataError: the loss is not finite; the message names the batch.
        """
        self.optimizer.zero_grad(set_to_none=True)
        try:
            value = self._gradients(batch, number)
        except RuntimeError as error:  # PyTorch has a type of its own on GPUs only
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise SettingsError(
                f"out of memory in {self.name}; raise training.{self.name}.accumulate, set "
                f"training.activation_checkpointing, or lower training.{self.name}.batch_size or pixels.size"
            ) from None
        if not math.isfinite(value):
            raise DataError(
                f"the loss of {self.name} is {value} in step {number + 1}, batch of manifest rows "
                f"{batch.rows[:8].tolist()} …; lower training.{self.name}.learning_rate"
            )
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.whole.parameters(), self.settings.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value

    def _gradients(self, batch: Batch, number: int) -> float:
        inputs = batch.inputs.to(self.device)
        if self.settings.accumulate > 1:
            loss = self._in_parts(inputs, batch, number)
            average_gradients(self.whole)
            return loss
        self._seed(number)
        loss = self._pass(inputs, batch)
        self.scaler.scale(loss).backward()
        return float(loss.detach())

    def _in_parts(self, inputs: StudyInputs, batch: Batch, number: int) -> float:
        parts = _parts(inputs, self.settings.accumulate)
        with torch.no_grad(), unchanged_statistics(self.model):
            pieces = [self._outputs(part, number, place) for place, part in enumerate(parts)]
        whole = _joined(pieces)
        loss = self.loss(self.model, whole, batch)
        self.scaler.scale(loss).backward()
        start = 0
        for place, part in enumerate(parts):
            outputs = self._outputs(part, number, place)
            end = start + len(outputs.logits)
            wanted = [(getattr(outputs, name), value.grad) for name, value in _tensors(whole) if value.grad is not None]
            torch.autograd.backward([mine for mine, _ in wanted], [grad[start:end] for _, grad in wanted])
            start = end
        return float(loss.detach())

    def _outputs(self, inputs: StudyInputs, number: int, place: int) -> StudyOutputs:
        self._seed(number, place)
        with self.lower():
            return self.model(inputs)

    def lower(self) -> AbstractContextManager[object]:
        """The context in which the network computes."""
        return nullcontext() if self.low is None else torch.autocast(self.device.type, self.low)

    def _seed(self, number: int, place: int = 0) -> None:
        torch.manual_seed(sample_seed(self.seed, number, this_share().rank, place))


class _ModelAndLoss(nn.Module):
    """Network and loss as one module, as DistributedDataParallel needs them."""

    def __init__(self, step: TrainingStep, learned: nn.Module) -> None:
        super().__init__()
        self.model, self.learned = step.model, learned
        self._step = step

    def forward(self, inputs: StudyInputs, batch: Batch) -> Tensor:
        with self._step.lower():
            outputs = self.model(inputs)
        return self._step.loss(self.model, outputs, batch)


@contextmanager
def unchanged_statistics(module: nn.Module) -> Iterator[None]:
    """Passes in here leave the running statistics of batch normalisation unchanged."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count


@contextmanager
def recomputed_activations(model: StudyModel) -> Iterator[None]:
    """Keep only the input of each block of the image encoder, and compute the rest again in the pass back.

    The numbers are those of training without it (Chen et al. 2016, arXiv 1604.06174).
    """
    modules = [] if model.image is None else model.image.modules()
    blocks = [module for module in modules if type(module).__name__ in _BLOCKS]
    for block in blocks:
        block.forward = partial(_computed_again, block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _computed_again(block: nn.Module, forward: Callable[..., Tensor], inputs: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(inputs)
    result: Tensor = checkpoint(
        forward, inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), unchanged_statistics(block))
    )
    return result


def _low_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The lower precision of the network; SettingsError where the device does not have it."""
    if precision == "float16" and device.type != "cuda":
        raise SettingsError("training.precision is 'float16', which needs a GPU; use 'bfloat16' or 'float32' on a CPU")
    on_gpu = precision == "bfloat16" and device.type == "cuda"
    if on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise SettingsError("training.precision is 'bfloat16', which this GPU does not have; use 'float16'")
    return _LOW.get(precision)


def _parts(inputs: StudyInputs, count: int) -> list[StudyInputs]:
    """A batch in `count` parts, or fewer where it is small."""
    columns = [[(name, part) for part in value.chunk(count)] for name, value in _tensors(inputs)]
    return [dataclasses.replace(inputs, **dict(part)) for part in zip(*columns, strict=True)]


def _joined(pieces: list[StudyOutputs]) -> StudyOutputs:
    """Outputs of the parts as those of the batch, leaves that take a gradient."""
    names = [name for name, _ in _tensors(pieces[0])]
    whole = {name: torch.cat([getattr(piece, name) for piece in pieces]).requires_grad_() for name in names}
    return dataclasses.replace(pieces[0], **whole)


def _tensors(record: StudyInputs | StudyOutputs) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in vars(record).items() if isinstance(value, Tensor)]
