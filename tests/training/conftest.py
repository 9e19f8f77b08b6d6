"""A small run on phantoms, trained once for all tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsd.settings import Settings, load_settings
from medsd.training.folder import Run
from medsd.training.run import run_steps

PHANTOM = Path(__file__).parents[2] / "configs" / "phantom.yaml"
SMALL = (
    "data.count=60",
    "data.image_size=64",
    "pixels.size=32",
    "network.note.layers=1",
    "network.note.hidden=32",
    "network.note.max_tokens=24",
    "network.embedding=16",
    "network.projection=16",
    "loss.cross_modal_weight=0",
    "training.finetune.modality_weight=0",
    "training.pretrain.epochs=2",
    "training.pretrain.batch_size=8",
    "training.finetune.epochs=2",
    "training.finetune.batch_size=8",
    "training.threads=1",
    "training.workers=0",
    "evaluation.bootstrap=50",
    "evaluation.few=3",
    "bundle.parity_studies=6",
)


def small_settings(folder: Path, *more: str) -> Settings:
    """The phantom configuration made small; `folder` holds its studies and its runs."""
    return load_settings(PHANTOM, [f"output={folder / 'runs'}", f"data.root={folder / 'studies'}", *SMALL, *more])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, monkeypatch_session: pytest.MonkeyPatch) -> Run:
    """A run with every step done."""
    monkeypatch_session.setenv("MEDSD_KEY", "a key for the tests of medsd")
    return run_steps(small_settings(tmp_path_factory.mktemp("phantom")))


@pytest.fixture(scope="session")
def monkeypatch_session() -> pytest.MonkeyPatch:
    """A monkeypatch that lasts as long as the run."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch
