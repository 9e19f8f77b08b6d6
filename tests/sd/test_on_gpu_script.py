"""The script for a GPU, on the CPU with small sizes: its rows, and that a wrong number is a status of 1."""

from __future__ import annotations

import pytest
import torch

from medsd.sd.losses import SDLoss
from tests.gpu import measure_sd

SMALL = ["--device", "cpu", "--samples", "24", "--parity", "24", "--steps", "2", "--side", "32"]


def test_every_step_runs_on_a_cpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    learned = {torch.float32: [3.0, 2.0], torch.bfloat16: [3.0, 2.05], torch.float16: [3.0, 2.0]}
    assert all(len(measure_sd.train("cpu", dtype, 2, 32, batch=4)) == 2 for dtype in (torch.float32, torch.bfloat16))
    monkeypatch.setattr(measure_sd, "train", lambda device, dtype, steps, side: learned[dtype])
    assert measure_sd.main(SMALL) == 0
    table = capsys.readouterr().out
    for part in (
        "float16, in blocks",
        "24 samples, SupConLoss",
        "0.95 of the fall of float32",
        "compiled beside eager",
    ):
        assert part in table
    assert "MISSED" not in table


def test_a_missed_limit_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SDLoss(temperature=0.11)
    monkeypatch.setattr(measure_sd, "LOSSES", ["sd"])
    monkeypatch.setattr(measure_sd, "measure", lambda given: iter([measure_sd.parity("cpu", torch.float32, True, 24)]))
    assert measure_sd.main(SMALL) == 0
    build = measure_sd._build
    monkeypatch.setattr(measure_sd, "_build", lambda name, blocked: wrong if blocked else build(name, blocked))
    assert measure_sd.main(SMALL) == 1 and "MISSED" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        measure_sd.main([])
    assert stopped.value.code == 2 and "no GPU" in capsys.readouterr().err
