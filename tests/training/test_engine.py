"""The engine's hold on memory; its training is tested by the runs (test_run, test_step, test_distributed)."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest


def test_what_a_stage_freed_is_given_back_to_the_system() -> None:
    """In a process of its own: what glibc is told holds for the rest of a process."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc keeps freed memory and gives it back when asked")
    code = (
        "import torch\nfrom pathlib import Path\n"
        "from medsd.training.engine import give_back_freed_memory, keep_freed_memory\n"
        "held = lambda: int(Path('/proc/self/statm').read_text().split()[1])\n"
        "keep_freed_memory()\ntensors = [torch.ones(500, 500) for _ in range(300)]\ndel tensors\nkept = held()\n"
        "give_back_freed_memory()\nprint((kept - held()) * 4096 > 150e6)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
