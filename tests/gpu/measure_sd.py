"""The SD loss on a GPU: the numbers of the CPU in every precision, speed and memory beside pytorch-metric-learning, an
encoder trained in half precision, and torch.compile.

Run `python -m tests.gpu.measure_sd`; it is made for less than eight minutes, prints a Markdown table and ends with
status 1 if a limit is missed. With `--device cpu` and small sizes it is tested. It has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from medsd.networks.image import image_encoder
from medsd.sd.losses import ContrastiveLoss, SDLoss
from medsd.sd.rivals import LOSSES, loss_by_name
from medsd.settings import ImageSettings
from tests.bench.bench_sd import FINDINGS, SIZE, Step, contenders, make_batch, seconds_in_turns

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
# Of a gradient's largest entry. In half precision each part of a loss rounds its gradient, and ws-MulSupCon has five.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2.5e-3}
Row = tuple[str, str, str, bool]  # what was measured, what was found, the limit, whether it was kept


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--samples", type=int, nargs="+", default=[1024, 4096, 16384], help="batches to time")
    parser.add_argument("--parity", type=int, default=512, help="samples of the batch whose numbers are compared")
    parser.add_argument("--steps", type=int, default=100, help="training steps in each precision")
    parser.add_argument("--side", type=int, default=128, help="side of the images")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU: torch.cuda.is_available() is false; --device cpu goes through the same steps")
    torch.set_float32_matmul_precision("highest")
    name = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}\n\n| measured | found | limit | |\n|---|---|---|---|")
    kept = True
    for what, found, limit, holds in measure(given):
        print(f"| {what} | {found} | {limit} | {'' if holds else 'MISSED'} |", flush=True)
        kept = kept and holds
    return 0 if kept else 1


def measure(given: argparse.Namespace) -> Iterator[Row]:
    """All rows of the table, as they are measured."""
    for dtype in PRECISIONS:
        for blocked in (False, True):
            yield parity(given.device, dtype, blocked, given.parity)
    for samples in given.samples:
        yield from speed(given.device, samples)
    yield from precisions(given.device, given.steps, given.side)
    yield from compiled(given.device, given.samples[0])


def parity(device: str, dtype: torch.dtype, blocked: bool, samples: int) -> Row:
    """The largest difference of value or gradient from the CPU's double precision, over all losses."""
    embeddings, labels = make_batch(samples)
    embeddings = (embeddings.detach() / SIZE**0.5).to(dtype)
    labels = labels.masked_fill(torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.2, torch.nan)
    worst, of = 0.0, ""
    for name in LOSSES:
        exact = _value_and_gradient(_build(name, False).double(), embeddings.double(), labels)
        with torch.autocast(device, torch.bfloat16 if dtype is torch.float32 else dtype):
            found = _value_and_gradient(_build(name, blocked).to(device), embeddings.to(device), labels.to(device))
        for one, other in zip(found, exact, strict=True):
            difference = float((one.cpu().double() - other).abs().max() / other.abs().max().clamp(min=1e-12))
            worst, of = max((worst, of), (difference, name))
    what = f"{len(LOSSES)} losses, {_short(dtype)}, {'in blocks' if blocked else 'plain'}: difference from the CPU"
    return what, f"{worst:.1e} ({of})", f"{LIMITS[dtype]:.1e}", worst <= LIMITS[dtype]


def _build(name: str, blocked: bool) -> ContrastiveLoss:
    torch.manual_seed(0)
    return loss_by_name(
        name, blocked=blocked, **({"findings": FINDINGS, "embedding_size": SIZE} if name == "msc" else {})
    )


def _value_and_gradient(loss: Callable[..., Tensor], embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    embeddings = embeddings.detach().requires_grad_()
    value = loss(embeddings, labels)
    return value.detach(), torch.autograd.grad(value, embeddings)[0]


def speed(device: str, samples: int, rounds: int = 10) -> Iterator[Row]:
    """Time and peak memory of one forward and backward pass of each loss on a batch."""
    for name, step in contenders(samples, device).items():
        what = f"{samples} samples, {name}: forward and backward"
        try:
            seconds = seconds_in_turns({name: step}, rounds, _wait(device))[name]
            yield what, f"{1e3 * statistics.median(seconds):.2f} ms, {_peak_mb(device, step)}", "–", True
        except torch.OutOfMemoryError:
            yield what, "out of memory", "–", name != "SDLoss"


def _wait(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def _peak_mb(device: str, step: Step) -> str:
    if device != "cuda":
        return "memory not measured"
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step().backward()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**20:.0f} MB"


def precisions(device: str, steps: int, side: int) -> Iterator[Row]:
    """Where training with SD ends in each precision, beside float32; the loss must come down by as much."""
    curves = {dtype: train(device, dtype, steps, side) for dtype in PRECISIONS}
    part = max(1, steps // 10)
    fall = {dtype: sum(curve[:part]) / part - sum(curve[-part:]) / part for dtype, curve in curves.items()}
    for dtype, curve in curves.items():
        share = fall[dtype] / fall[torch.float32]
        text = f"loss {curve[0]:.3f} → {sum(curve[-part:]) / part:.3f}, {share:.2f} of the fall of float32"
        yield f"{steps} training steps in {_short(dtype)}", text, "0.9 to 1.1", 0.9 <= share <= 1.1


def train(device: str, dtype: torch.dtype, steps: int, side: int, batch: int = 64) -> list[float]:
    """The losses of an encoder that learns from images in which each finding is a pattern of its own."""
    torch.manual_seed(0)
    encoder = image_encoder(ImageSettings(), side)
    network = nn.Sequential(encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(encoder.width, SIZE)).to(device)
    loss, optimiser = SDLoss(), torch.optim.AdamW(network.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
    source = torch.Generator().manual_seed(0)
    patterns, curve = torch.rand(FINDINGS, side, side, generator=source), []
    for _ in range(steps):
        labels = (torch.rand(batch, FINDINGS, generator=source) < 0.2).float()
        pixels = torch.einsum("bf,fhw->bhw", labels, patterns) / 4
        pixels = (pixels + 0.1 * torch.rand(pixels.shape, generator=source))[:, None].clamp(0, 1).to(device)
        with torch.autocast(device, dtype, enabled=dtype is not torch.float32):
            value = loss(network(pixels), labels.to(device))
        scaler.scale(value).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        curve.append(float(value.detach()))
    return curve


def compiled(device: str, samples: int) -> Iterator[Row]:
    """Value, gradient and time of the loss with torch.compile and without."""
    embeddings, labels = (each.detach().to(device) for each in make_batch(samples))
    backend = "inductor" if device == "cuda" else "aot_eager"
    ways = {way: SDLoss(blocked=False) for way in ("eager", "compiled")}
    ways["compiled"].compile(fullgraph=True, backend=backend)
    results = {way: _value_and_gradient(loss, embeddings, labels) for way, loss in ways.items()}
    difference = max(
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(results["compiled"], results["eager"], strict=True)
    )
    yield f"{samples} samples: compiled beside eager", f"{difference:.1e}", "1e-04", difference <= 1e-4
    embeddings.requires_grad_()
    steps: dict[str, Step] = {way: partial(loss, embeddings, labels) for way, loss in ways.items()}
    seconds = seconds_in_turns(steps, 10, _wait(device))
    shown = ", ".join(f"{way} {1e3 * statistics.median(each):.2f} ms" for way, each in seconds.items())
    yield f"{samples} samples: forward and backward", shown, "–", True


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())
