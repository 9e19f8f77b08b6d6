"""What tells sources apart leaves the image features, and the network that is left is still one linear map longer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from medsd.networks.fusion import StudyModel
from medsd.settings import ImageSettings, NetworkSettings
from medsd.training.hide_sources import eraser, hide_sources
from medsd.training.loaders import StudyArrays, plain_batches

COUNT, SIZE = 96, 32
LABELS = np.tile(np.array([[0, 0], [1, 0], [np.nan, 1]], dtype=np.float32), (COUNT // 3, 1))
TABLE = pd.DataFrame({"source": np.repeat(["a", "b"], COUNT // 2), "view": "PA"})


def test_no_linear_classifier_tells_the_sources_of_images_with_equal_labels() -> None:
    rng = np.random.default_rng(0)
    second = (TABLE["source"] == "b").to_numpy()
    features = (
        rng.normal(size=(COUNT, 6)) + np.outer(second, rng.normal(size=6)) * 3 + np.nan_to_num(LABELS) @ np.ones((2, 6))
    )
    changed = features @ eraser(features, TABLE, LABELS).T
    for group in range(3):
        rows = np.arange(group, COUNT, 3)
        means = [
            values[rows][second[rows]].mean(0) - values[rows][~second[rows]].mean(0) for values in (features, changed)
        ]
        assert np.abs(means[1]).max() < 0.35 * np.abs(means[0]).max()
    normal = np.arange(0, COUNT, 3)  # the only group without a finding: nothing at all is left
    assert LogisticRegression().fit(changed[normal], second[normal]).coef_ == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("table", [TABLE.assign(source="a"), TABLE.assign(view=TABLE["source"])])
def test_without_images_to_compare_nothing_is_taken_out(table: pd.DataFrame) -> None:
    features = np.random.default_rng(0).normal(size=(COUNT, 6))
    assert eraser(features, table, LABELS) == pytest.approx(np.eye(6))


def test_the_map_becomes_part_of_the_network() -> None:
    torch.manual_seed(0)
    network = NetworkSettings(image=ImageSettings(backbone="densenet-small", weights="none"), embedding=16)
    model = StudyModel(network, 2, SIZE).eval()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 100, (COUNT, SIZE, SIZE)).astype(np.uint8)
    pixels[COUNT // 2 :] += 100
    arrays = StudyArrays(pixels, LABELS, np.ones(COUNT, dtype=bool), np.zeros(COUNT, dtype=bool))
    rows = np.arange(COUNT)

    def read() -> tuple[np.ndarray, torch.Tensor]:
        with torch.no_grad():
            said = [model(inputs) for inputs in plain_batches(arrays, rows)]
        for each in said:
            assert each.regions is not None
            torch.testing.assert_close(each.regions.mean(dim=(2, 3)), each.features)
            torch.testing.assert_close(model.classifier(each.features), each.logits)
        return torch.cat([each.features for each in said]).double().numpy(), torch.cat([each.logits for each in said])

    before, _ = read()
    matrix = eraser(before, TABLE, LABELS)
    hide_sources(model, arrays, TABLE, rows)
    after, _ = read()
    expected = before @ matrix.T + before.mean(0) - matrix @ before.mean(0)
    assert np.abs(after - expected).max() < 1e-4 * np.abs(before).max()
    assert np.abs(before - after).max() > 1e-3 * np.abs(before).max(), "brightness told the sources"
