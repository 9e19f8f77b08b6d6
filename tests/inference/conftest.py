"""Tiny bundles and a folder of invented films."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from medsd.bundle.layout import Bundle
from medsd.inference.predict import Predictor
from medsd.privacy import KeyedHasher
from tests.bundles import tiny_bundle


@pytest.fixture(scope="session")
def image_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "image")


@pytest.fixture(scope="session")
def fused_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "fused", fused=True)


@pytest.fixture(scope="session")
def predictor(image_bundle: Bundle) -> Predictor:
    return Predictor(image_bundle, provider="cpu")


@pytest.fixture(scope="session")
def fused(fused_bundle: Bundle) -> Predictor:
    return Predictor(fused_bundle, provider="cpu")


@pytest.fixture(scope="session")
def hasher() -> KeyedHasher:
    return KeyedHasher(b"a key for tests alone")


@pytest.fixture
def films(tmp_path: Path, chest: npt.NDArray[np.float64]) -> Path:
    """Seven PNG chests that differ, one file that is none, one hidden file."""
    folder = tmp_path / "films"
    (folder / "deeper").mkdir(parents=True)
    for number in range(7):
        shade = np.clip(chest * (0.6 + 0.06 * number), 0, 1)
        place = folder / "deeper" if number > 4 else folder
        Image.fromarray((shade * 255).astype(np.uint8)).save(place / f"film_{number}.png")
    (folder / "note.doc").write_bytes(b"no film at all")
    (folder / ".hidden.png").write_bytes(b"")
    return folder
