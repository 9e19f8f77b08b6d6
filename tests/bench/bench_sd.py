"""Time and memory of the SD loss: blocked beside plain on a large batch, and beside pytorch-metric-learning's losses.

Run `python -m tests.bench.bench_sd`; it prints a Markdown table. The sides of a time are measured in turns within one
run and compared pair by pair, since machines are shared; each peak is the growth of the resident set of a process
of its own (Linux), over one forward and backward pass.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from medsd.sd.losses import SDLoss

FINDINGS, SIZE = 14, 128
Step = Callable[[], Tensor]


def make_batch(samples: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Random embeddings (B, 128) and labels (B, 14), about as sparse as those of chest radiographs."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(samples, SIZE, generator=generator).to(device).requires_grad_()
    return embeddings, (torch.rand(samples, FINDINGS, generator=generator) < 0.1).float().to(device)


def contenders(samples: int, device: str = "cpu") -> dict[str, Step]:
    """SDLoss and the peers of pytorch-metric-learning on one batch; MultiSupConLoss from its version 3.0 on."""
    from pytorch_metric_learning import losses

    embeddings, labels = make_batch(samples, device)
    classes = torch.unique(labels, dim=0, return_inverse=True)[1]
    found: dict[str, Step] = {
        "SDLoss": partial(SDLoss(), embeddings, labels),
        "SupConLoss": partial(losses.SupConLoss(temperature=0.1), embeddings, classes),
    }
    if hasattr(losses, "MultiSupConLoss"):
        found["MultiSupConLoss"] = partial(losses.MultiSupConLoss(temperature=0.1), embeddings, labels.bool())
    return found


def seconds_in_turns(
    steps: dict[str, Step], rounds: int, wait: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of one forward and backward pass, for each step in each round, after one round to warm up.

    `wait` returns when the device has done its work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step().backward()
            wait()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare_times(numerator: str, denominator: str, steps: dict[str, Step], rounds: int) -> tuple[float, float, float]:
    """Median milliseconds of both, and the median of their ratio over the rounds."""
    seconds = seconds_in_turns(steps, rounds)
    ratio = statistics.median(a / b for a, b in zip(seconds[numerator], seconds[denominator], strict=True))
    return 1e3 * statistics.median(seconds[numerator]), 1e3 * statistics.median(seconds[denominator]), ratio


def peak_growth_mb(blocked: bool, samples: int) -> float:
    """Growth of the peak resident set over one pass, in MB, measured in a fresh process."""
    command = [sys.executable, __file__, "--peak", "blocked" if blocked else "plain", "--batch", str(samples)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_own_peak(blocked: bool, samples: int) -> None:
    SDLoss(blocked=blocked)(*make_batch(64)).backward()  # loads what the first pass loads
    embeddings, labels = make_batch(samples)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present size, see proc(5)
    before = resident_mb("VmRSS")
    SDLoss(blocked=blocked)(embeddings, labels).backward()
    print(resident_mb("VmHWM") - before)


def resident_mb(field: str) -> float:
    """A size from /proc/self/status in MB; unlike getrusage's, this peak is not inherited from the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def blocked_against_plain(samples: int, rounds: int) -> tuple[float, float, float]:
    """Blocked and plain, in ms, and the ratio of the first to the second."""
    embeddings, labels = make_batch(samples)
    blocked, plain = SDLoss(blocked=True), SDLoss(blocked=False)
    steps = {"blocked": lambda: blocked(embeddings, labels), "plain": lambda: plain(embeddings, labels)}
    return compare_times("blocked", "plain", steps, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8192, help="the large batch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds at the large batch")
    parser.add_argument("--huge", type=int, default=65536, help="a batch that is only tried in blocks")
    parser.add_argument("--peak", choices=["blocked", "plain"], help="only print the peak of one pass, in MB")
    arguments = parser.parse_args()
    if arguments.peak:
        print_own_peak(arguments.peak == "blocked", arguments.batch)
        return

    print(f"forward and backward, {SIZE} dimensions, {FINDINGS} findings, {torch.get_num_threads()} threads\n")
    print("| batch | measured | A | B | ratio | wanted |\n|---|---|---|---|---|---|")
    large, huge = arguments.batch, arguments.huge
    print(f"| {huge} | peak, in blocks | {peak_growth_mb(True, huge):.0f} MB | – | – | < 2,000 MB |", flush=True)
    blocked_mb, plain_mb = peak_growth_mb(True, large), peak_growth_mb(False, large)
    ratio = blocked_mb / plain_mb
    print(f"| {large} | peak, blocked / plain | {blocked_mb:.0f} MB | {plain_mb:.0f} MB | {ratio:.3f} | < 0.25 |")
    a, b, ratio = blocked_against_plain(large, arguments.rounds)
    print(f"| {large} | time, blocked / plain | {a:.0f} ms | {b:.0f} ms | {ratio:.2f} | ≤ 1.3 |")
    for samples, wanted in ((128, "–"), (256, "–"), (1024, "≥ 1.5")):
        steps = contenders(samples)
        for peer in steps.keys() - {"SDLoss"}:
            a, b, ratio = compare_times(peer, "SDLoss", {name: steps[name] for name in (peer, "SDLoss")}, rounds=20)
            print(f"| {samples} | time, {peer} / SDLoss | {a:.1f} ms | {b:.1f} ms | {ratio:.2f} | {wanted} |")


if __name__ == "__main__":
    main()
