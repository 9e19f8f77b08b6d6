"""Throughput of training against a bare PyTorch loop, and what memory a step takes.

Run `python -m tests.bench.bench_training`; it prints Markdown tables. The stage is `configs/phantom.yaml`'s: its
network, batch, augmentation, loader and engine, on made-up pixels and notes. The bare loop has the same network, loss,
optimiser and clipping, and its batches ready in memory. Both take their turns within one run and are compared round by
round, since machines are shared; the first steps, in which loader and allocator warm up, are left out.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.optim import AdamW

from medsd.networks.fusion import StudyModel
from medsd.settings import Settings, load_settings
from medsd.training.contrast import Contrast
from medsd.training.engine import Stage
from medsd.training.loaders import Batch, StudyArrays
from medsd.training.memory import keep_freed_memory
from medsd.training.stages import stage_batches
from medsd.training.step import Loss

ROOT = Path(__file__).parents[2]
WARM = 2  # steps that are not counted


def phantom_settings(*more: str) -> Settings:
    return load_settings(ROOT / "configs" / "phantom.yaml", more)


def phantom_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(ROOT / "models" / "phantom" / "tokenizer.json"))


def made_up(settings: Settings, studies: int) -> StudyArrays:
    """Noise and random tokens: what they show changes nothing in the time they take."""
    rng, side = np.random.default_rng(0), settings.pixels.size
    labels = (rng.random((studies, 8)) < 0.2).astype(np.float32)
    given, pixels = np.ones(studies, bool), rng.integers(0, 256, (studies, side, side), dtype=np.uint8)
    if settings.network.note is None:
        return StudyArrays(pixels, labels, given, ~given)
    length = settings.network.note.max_tokens
    ids = rng.integers(5, phantom_tokenizer().get_vocab_size(), (studies, length))
    mask = (np.arange(length) < rng.integers(20, length, (studies, 1))).astype(np.int8)
    return StudyArrays(pixels, labels, given, given, ids * mask, mask)


def new_model(settings: Settings) -> StudyModel:
    torch.manual_seed(0)
    return StudyModel(settings.network, 8, settings.pixels.size, phantom_tokenizer())


class Timed(Stage):
    """Notes when each step ends."""

    def _step(self, batch: Batch, number: int) -> float:
        value = super()._step(batch, number)
        self.ends = [*getattr(self, "ends", []), time.perf_counter()]
        return value


def staged_seconds(settings: Settings, arrays: StudyArrays, loss: Loss) -> float:
    """Seconds of a step of medsd's stage."""
    stage = settings.training.pretrain.model_copy(update={"epochs": 1})
    batches = stage_batches(settings, stage, arrays, np.arange(len(arrays)), views=2, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        timed = Timed("pretrain", new_model(settings), loss, batches, stage, settings.training, Path(folder), seed=0)
        timed.run()
    return (timed.ends[-1] - timed.ends[WARM - 1]) / (len(timed.ends) - WARM)


def bare_seconds(settings: Settings, batches: Sequence[Batch], loss: Loss) -> float:
    """Seconds of a step of a plain loop."""
    model = new_model(settings).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer, ends = AdamW(model.parameters(), lr=1e-3), []
    for batch in batches:
        optimizer.zero_grad()
        loss(model, model(batch.inputs), batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ends.append(time.perf_counter())
    return (ends[-1] - ends[WARM - 1]) / (len(ends) - WARM)


def throughput(rounds: int, steps: int) -> None:
    settings = phantom_settings()
    stage = settings.training.pretrain
    arrays = made_up(settings, stage.batch_size * steps)
    loss = Contrast(settings.loss, arrays.labels)
    ready = list(stage_batches(settings, stage, arrays, np.arange(len(arrays)), views=2, seed=0))
    pairs = [(bare_seconds(settings, ready, loss), staged_seconds(settings, arrays, loss)) for _ in range(rounds)]
    bare, staged = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(bare / staged for bare, staged in pairs)
    print("| training of configs/phantom.yaml | bare loop | medsd | bare / medsd | wanted |\n|---|---|---|---|---|")
    print(
        f"| a step of {stage.batch_size} studies, 2 views, {torch.get_num_threads()} threads "
        f"| {bare:.2f} s | {staged:.2f} s | {ratio:.3f} | ≥ 0.9 |"
    )


MEMORY = {
    "as it is": (),
    "accumulate: 4": ("training.pretrain.accumulate=4",),
    "activation_checkpointing": ("training.activation_checkpointing=true",),
}


def print_own_step(overrides: Sequence[str]) -> None:
    """Peak of the resident set over a step in MB, and its seconds, in this process."""
    settings = phantom_settings("network.note=null", "loss.cross_modal_weight=0", *overrides)
    arrays = made_up(settings, settings.training.pretrain.batch_size * 3)
    seconds = staged_seconds(settings, arrays, Contrast(settings.loss, arrays.labels))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024, seconds)


def memory(network: Sequence[str]) -> None:
    print(f"\n| a step of {' '.join(network)} | peak | seconds |\n|---|---|---|")
    for name, overrides in MEMORY.items():
        command = [sys.executable, "-m", "tests.bench.bench_training", "--own-step", *network, *overrides]
        out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()
        print(f"| {name} | {float(out[0]) / 1024:.1f} GB | {float(out[1]):.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of a round")
    parser.add_argument("--memory", nargs="*", help="settings of the step whose memory is measured, instead")
    parser.add_argument("--own-step", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.own_step is not None:
        print_own_step(arguments.own_step)
    elif arguments.memory is not None:
        memory(arguments.memory or ["network.image.backbone=efficientnet-lite0", "pixels.size=192"])
    else:
        throughput(arguments.rounds, arguments.steps)


if __name__ == "__main__":
    main()
