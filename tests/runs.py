"""The phantom configuration made small."""

from __future__ import annotations

from pathlib import Path

from medsd.settings import Settings, load_settings

PHANTOM = Path(__file__).parents[1] / "configs" / "phantom.yaml"
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
    "evaluation.minimum_positives=3",
    "bundle.parity_studies=6",
)


def small_settings(folder: Path, *more: str) -> Settings:
    """The phantom configuration made small; `folder` holds its studies and its runs."""
    return load_settings(PHANTOM, [f"output={folder / 'runs'}", f"data.root={folder / 'studies'}", *SMALL, *more])
