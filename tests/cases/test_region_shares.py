"""Maps of the similarity: what each place of a image adds to a cosine adds up to it."""

from dataclasses import replace

import numpy as np
import pytest

from medsd.cases.explain import box_embedding, region_shares
from medsd.errors import DataError
from medsd.inference.predict import Predictor
from medsd.inference.prediction import Prediction
from medsd.preprocessing.pixels import box_weights
from medsd.settings import PixelSpec
from tests.bundles import GRID, tiny_bundle


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.kron(rng.random((8, 8)), np.ones((16, 16))) for _ in range(2)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Predictor:
    return Predictor(tiny_bundle(tmp_path_factory.mktemp("b")), provider="cpu")


def test_the_shares_of_all_places_add_up_to_the_cosine(reader, images):
    first, second = reader(images[0]), reader(images[1])
    shares = region_shares(first, second.embedding)
    assert shares.shape == (GRID, GRID)
    assert shares.mean() == pytest.approx(float(first.embedding @ second.embedding), abs=1e-5)
    assert region_shares(first, first.embedding).mean() == pytest.approx(1, abs=1e-5)
    assert np.ptp(shares) > 0.1


def test_what_one_place_shows_moves_its_own_share_alone_before_the_length_is_taken(reader, images):
    changed = images[0].copy()
    changed[:16, :16] = 1 - changed[:16, :16]
    before, after = reader(images[0]).regions, reader(changed).regions
    ratio = np.median(after[:, 1:, 1:] / before[:, 1:, 1:])  # the length divides every place alike
    np.testing.assert_allclose(after[:, 1:, 1:], ratio * before[:, 1:, 1:], atol=1e-3 * np.abs(before).max())
    assert np.abs(after[:, 0, 0] - ratio * before[:, 0, 0]).max() > 0.1 * np.abs(before).max()


def test_beside_a_note_the_image_adds_its_part(tmp_path, images):
    reader = Predictor(tiny_bundle(tmp_path, fused=True), provider="cpu")
    alone, both = reader(images[0]), reader(images[0], "short of breath")
    other = reader(images[1]).embedding
    assert region_shares(alone, other).mean() == pytest.approx(float(alone.embedding @ other), abs=1e-5)
    assert abs(region_shares(both, other).mean() - float(both.embedding @ other)) > 1e-3
    with pytest.raises(DataError, match="there is no image"):
        region_shares(reader(None, "short of breath"), other)


def test_a_prediction_that_does_not_say_it_gives_a_sentence(findings):
    with pytest.raises(DataError, match="refused"):
        region_shares(Prediction(findings, "refused"), np.zeros(16, np.float32))
    with pytest.raises(DataError, match=r"\(3,\)"):
        region_shares(Prediction(findings, "scored", regions=np.zeros((16, 2, 2), np.float32)), np.zeros(3))


CUTS = ((0, 0.3, 0.55, 1), (0, 0.1, 0.72, 1))  # of the width and of the height
TILES = [(*corner, *end) for corner, end in (
    ((CUTS[0][x], CUTS[1][y]), (CUTS[0][x + 1], CUTS[1][y + 1])) for x in range(3) for y in range(3)
)]  # fmt: skip


def test_the_parts_of_boxes_that_tile_the_image_add_up_to_the_cosine(reader, images):
    first, other = reader(images[0]), reader(images[1]).embedding
    parts = [float(box_embedding(first, box) @ other) for box in TILES]
    assert sum(parts) == pytest.approx(float(first.embedding @ other), abs=1e-5) and np.ptp(parts) > 0.01
    assert box_embedding(first, (0, 0, 1, 1)) @ other == pytest.approx(sum(parts), abs=1e-6)
    cell = (1 / GRID, 2 / GRID, 2 / GRID, 3 / GRID)  # the second column, the third row
    share = region_shares(first, other)[2, 1] / GRID**2
    assert box_embedding(first, cell) @ other == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("shape", [(180, 120), (120, 180)])
def test_boxes_share_the_cells_that_the_image_fills(fit, shape):
    spec, grid = PixelSpec(size=96, fit=fit), (6, 8)
    whole = box_weights((0, 0, 1, 1), shape, grid, spec)
    np.testing.assert_allclose(sum(box_weights(box, shape, grid, spec) for box in TILES), whole, atol=1e-6)
    assert whole.sum() == pytest.approx(grid[0] * grid[1] * (2 / 3 if fit == "pad" else 1), abs=1e-4)
    left = box_weights((0, 0, 0.5, 1), shape, grid, spec)
    np.testing.assert_allclose(left, whole - left[:, ::-1], atol=1e-6)
    edge = box_weights((0, 0, 0.1, 0.1), shape, grid, spec)
    assert (edge.sum() == 0) == (fit == "crop")  # the corner is cut away


def test_a_box_that_says_nothing_gives_a_sentence(reader, images, findings):
    with pytest.raises(DataError, match="no area"):
        box_embedding(reader(images[0]), (0.4, 0.4, 0.4, 0.9))
    with pytest.raises(DataError, match="refused"):
        box_embedding(Prediction(findings, "refused"), (0, 0, 1, 1))
    with pytest.raises(DataError, match="no image"):
        box_embedding(replace(reader(images[0]), regions=None), (0, 0, 1, 1))
