"""Bundles of medsd 0.1 carry other statistics: they are read as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.errors import BundleError
from medsd.inference import out_of_distribution
from medsd.inference.descriptors import thumbnails
from medsd.inference.early_distribution import EarlyReference
from medsd.preprocessing.pixels import to_pixels
from medsd.settings import PixelSpec

Films = npt.NDArray[np.uint8]
Arrays = dict[str, npt.NDArray[np.float32]]
Early = tuple[layout.OutOfDistribution, Arrays]


@pytest.fixture(scope="module")
def films(chest: npt.NDArray[np.float64]) -> Films:
    rng = np.random.default_rng(0)
    chests = [np.clip(chest * rng.uniform(0.5, 1) + rng.normal(0, 0.04, chest.shape), 0, 1) for _ in range(20)]
    return np.stack([to_pixels(one, PixelSpec(size=64)) for one in chests])


@pytest.fixture(scope="module")
def early(films: Films) -> Early:
    small = thumbnails(films)
    mean = small.mean(axis=0)
    arrays = {
        "template": mean / np.linalg.norm(mean),
        "mean": mean,
        "components": np.linalg.svd(small - mean)[2][:4],
        "embeddings": np.eye(6, 8, dtype=np.float32),
    }
    limits = {"look": 0.2, "residual": 0.4, "neighbours": 0.5}
    return layout.OutOfDistribution(neighbours=2, false_alarm_rate=0.01, limits=limits), arrays


def test_the_value_is_the_largest_ratio_to_a_limit(early: Early, films: Films) -> None:
    reference, small = EarlyReference.from_arrays(*early), thumbnails(films)
    centred = small - early[1]["mean"]
    left = np.linalg.norm(centred - centred @ early[1]["components"].T @ early[1]["components"], axis=1)
    expected = np.maximum((1 - small @ early[1]["template"]) / 0.2, left / 0.4)
    found = [verdict.value for verdict in reference.judge(films, None)]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_distance_is_the_mean_over_the_nearest(early: Early, films: Films) -> None:
    verdict = EarlyReference.from_arrays(*early).judge(films[:1], np.eye(1, 8, 7, dtype=np.float32))[0]
    assert verdict.value == pytest.approx(1 / 0.5)  # at right angles to every one
    assert (verdict.reason, verdict.far) == ("out_of_distribution", False)


def test_a_negative_is_told_from_a_stranger(early: Early, films: Films) -> None:
    reference = EarlyReference.from_arrays(*early)
    assert {verdict.reason for verdict in reference.judge(255 - films, None)} == {"inverted_look"}
    noise = np.random.default_rng(1).integers(0, 255, (1, 64, 64)).astype(np.uint8)
    verdict = reference.judge(noise, None)[0]
    assert (verdict.reason, verdict.far, verdict.firm) == ("out_of_distribution", True, False)


def test_a_bundle_without_checks_is_read_as_an_early_one(image_bundle: Bundle, early: Early, tmp_path: Path) -> None:
    description, arrays = early
    size = image_bundle.description.embedding_size
    out_of_distribution.save(
        tmp_path / layout.OUT_OF_DISTRIBUTION, arrays | {"embeddings": np.eye(6, size, dtype=np.float32)}
    )
    bundle = Bundle(tmp_path, image_bundle.description.model_copy(update={"out_of_distribution": description}))
    assert isinstance(out_of_distribution.load(bundle), EarlyReference)


@pytest.mark.parametrize(
    ("change", "said"), [({"mean": None}, "'mean' is missing"), ({"template": np.ones(9)}, "not 32 × 32")]
)
def test_arrays_that_do_not_fit_are_one_clear_error(
    early: Early, change: dict[str, npt.NDArray[np.float64] | None], said: str
) -> None:
    arrays = {name: value for name, value in (early[1] | change).items() if value is not None}
    with pytest.raises(BundleError, match=said):
        EarlyReference.from_arrays(early[0], arrays)
