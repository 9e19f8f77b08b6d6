"""The settings of the encoders: what docs/guides/encoders.md shows can be written as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from medsd.errors import SettingsError
from medsd.settings import Settings, load_settings
from medsd.settings.network import Backbone

CONFIGS = Path(__file__).parents[2] / "configs"
PAGE = (CONFIGS.parent / "docs" / "guides" / "encoders.md").read_text(encoding="utf-8")


def _with(*overrides: str) -> Settings:
    return load_settings(CONFIGS / "phantom.yaml", overrides)


def test_the_command_of_the_page_is_understood() -> None:
    overrides = re.findall(r"--set (\S+)", PAGE)
    settings = _with(*overrides)
    assert len(overrides) == 4 and str(settings.network.image.weights) == "xrv:xrv-all.pt"
    assert settings.training.finetune.objective.name == "asl" and settings.training.finetune.layer_decay == 0.7


def test_every_note_model_of_the_page_is_a_value() -> None:
    names = re.findall(
        r"^\| `([\w-]+|hub:\S+)` \|", PAGE[PAGE.index("## Note encoders") : PAGE.index("## Objectives")], re.M
    )
    assert {"small-bert", "minilm"} <= set(names) and sum(name.startswith("hub:") for name in names) == 4
    for name in names:
        note = _with(f"network.note.model={name}").network.note
        assert note is not None and str(note.model) == name


def test_every_backbone_is_on_the_page() -> None:
    for name in get_args(Backbone):
        shown = "`efficientnet-b0` … `-b3`" if re.fullmatch(r"efficientnet-b[0-3]", name) else f"`{name}`"
        assert shown in PAGE, name


def test_a_stride_that_cannot_be_is_named() -> None:
    with pytest.raises(SettingsError, match=r"stride: needs window"):
        _with("network.note.stride=4")
    with pytest.raises(SettingsError, match=r"stride: 7 would leave out text between windows of 8 tokens"):
        _with("network.note.window=8", "network.note.stride=7")
    with pytest.raises(SettingsError, match=r"'network\.image\.backbone'"):
        _with("network.image.backbone=resnet19")
