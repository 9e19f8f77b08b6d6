"""Augmentation: MONAI's changes, a batch at a time, each sample from its own seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.transforms import AdjustContrast, Affine, RandAffine
from monai.utils.type_conversion import convert_to_tensor

from medsd.settings import AugmentSettings
from medsd.training.augment import Augmentation, Change, coarsened, moved, recolour

SIZE = 48
QUIET = {"rotation_degrees": 0, "translation": 0, "zoom": 0, "contrast": 0, "noise": 0}


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    wave = 128 + 60 * np.sin(rows / 5) + 60 * np.cos(columns / 7)
    return np.stack([wave, wave.T, np.roll(wave, 9, 0), wave[::-1]]).astype(np.uint8)


def test_a_sample_does_not_depend_on_its_batch(images: npt.NDArray[np.uint8]) -> None:
    change = Augmentation(AugmentSettings(noise=0.1, erase=0.5), SIZE)
    whole, part = change(images, [4, 5, 6, 7]), change(images[2:], [6, 7])
    assert torch.equal(whole[2:], part) and whole.shape == (4, 1, SIZE, SIZE)
    assert not torch.equal(change(images[:1], [4]), change(images[:1], [5]))
    assert float(whole.min()) >= 0 and float(whole.max()) <= 1


def test_without_changes_an_image_stays_as_it_is(images: npt.NDArray[np.uint8]) -> None:
    same = Augmentation(AugmentSettings(**QUIET), SIZE)(images, range(4))
    np.testing.assert_allclose(same[:, 0].numpy() * 255, images, atol=1e-3)


@pytest.mark.parametrize("angle,shift,zoom", [(0.15, (2.0, -3.0), (1.1, 0.92)), (-0.1, (0.0, 4.0), (0.95, 1.0))])
def test_images_move_as_monai_moves_them(
    images: npt.NDArray[np.uint8], angle: float, shift: tuple[float, float], zoom: tuple[float, float]
) -> None:
    image = torch.from_numpy(images[0].astype(np.float32))[None]
    affine = Affine(rotate_params=angle, translate_params=shift, scale_params=zoom, padding_mode="zeros")
    expected = convert_to_tensor(affine(image)[0], track_meta=False)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # MONAI counts rows first
    across = np.array(zoom[::-1]), turn @ np.array(shift[::-1]) * 2 / SIZE
    matrix = np.concatenate([turn * across[0], across[1][:, None]], axis=1).astype(np.float32)
    places = (2 * torch.arange(SIZE) + 1) / SIZE - 1
    found = moved(image[None], torch.from_numpy(matrix)[None], places)[0]
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def test_moves_are_spread_as_monai_spreads_them(images: npt.NDArray[np.uint8]) -> None:
    settings = AugmentSettings(rotation_degrees=20, translation=0.1, zoom=0.2, contrast=0, noise=0)
    ours = Augmentation(settings, SIZE)(np.repeat(images[:1], 600, axis=0), range(600))[:, 0].numpy()
    theirs = RandAffine(
        prob=1.0, rotate_range=np.deg2rad(20), translate_range=(4.8, 4.8), scale_range=(0.2, 0.2), padding_mode="zeros"
    ).set_random_state(0)
    image = torch.from_numpy(images[:1].astype(np.float32) / 255)
    reference = np.stack([convert_to_tensor(theirs(image), track_meta=False)[0].numpy() for _ in range(600)])
    assert np.abs(ours.mean(0) - reference.mean(0)).mean() < 0.015
    assert np.abs(ours.std(0) - reference.std(0)).mean() < 0.015


def test_contrast_is_monais_and_brightness_a_factor() -> None:
    image = torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    expected = convert_to_tensor(AdjustContrast(1.3)(image), track_meta=False) * 0.9
    recolour(image, Change(np.zeros((2, 3), np.float32), gamma=1.3, brightness=0.9, noise=0, erased=None))
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_each_change_comes_at_its_rate_and_within_its_range() -> None:
    change, rng = Augmentation(AugmentSettings(contrast=0.3, noise=0.1, erase=0.4), SIZE), np.random.default_rng(0)
    drawn = [change.draw(rng) for _ in range(3000)]
    gammas = np.array([c.gamma for c in drawn])
    assert gammas.min() >= 0.8 and gammas.max() <= 1.3
    rates = [np.mean(gammas != 1), *(np.mean([getattr(c, name) != 1 for c in drawn]) for name in ("brightness",))]
    rates += [np.mean([c.noise > 0 for c in drawn]), np.mean([c.erased is not None for c in drawn])]
    assert rates == pytest.approx([0.5, 0.5, 0.3, 0.4], abs=0.04)
    sides = np.array([[s.stop - s.start for s in c.erased] for c in drawn if c.erased])
    assert sides.min() == SIZE // 8 and sides.max() == SIZE // 4


def test_mirrored_images_change_left_and_right(images: npt.NDArray[np.uint8]) -> None:
    always = Augmentation(AugmentSettings(**QUIET, mirror=1), SIZE)(images, range(4))
    np.testing.assert_allclose(always[:, 0].numpy() * 255, images[:, :, ::-1], atol=1e-3)
    rng, change = np.random.default_rng(0), Augmentation(AugmentSettings(mirror=0.3), SIZE)
    assert np.mean([change.draw(rng).mirrored for _ in range(2000)]) == pytest.approx(0.3, abs=0.04)


def _sharpness(images: torch.Tensor) -> torch.Tensor:
    return images.diff(dim=-1).square().mean(dim=(1, 2, 3))


def test_resolutions_are_spread_evenly_over_their_logarithm() -> None:
    rng, change = np.random.default_rng(0), Augmentation(AugmentSettings(resolution=12), SIZE)
    sides = [change.draw(rng).side for _ in range(2000)]
    assert set(sides) == set(range(12, SIZE + 1))
    assert np.mean(np.log(sides)) == pytest.approx(np.log(24), abs=0.03)  # type: ignore[arg-type]
    assert Augmentation(AugmentSettings(resolution=SIZE), SIZE).draw(rng).side is None, "nothing left to reduce"


def test_an_image_of_low_resolution_keeps_its_greys_and_loses_its_detail() -> None:
    noise = torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    blurred = coarsened(noise, SIZE // 4)
    assert float(blurred.mean()) == pytest.approx(float(noise.mean()), abs=0.01)
    assert float(_sharpness(blurred[None])) < 0.05 * float(_sharpness(noise[None]))
    torch.testing.assert_close(coarsened(torch.full((1, SIZE, SIZE), 0.4), 13), torch.full((1, SIZE, SIZE), 0.4))


def test_a_sharp_source_is_seen_at_every_resolution_down_to_that_of_a_coarse_one() -> None:
    sharp = torch.rand(200, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    coarse = _sharpness(torch.stack([coarsened(image, 12) for image in sharp]))
    change = Augmentation(AugmentSettings(**QUIET, resolution=12), SIZE)
    seen = _sharpness(change((sharp[:, 0] * 255).byte().numpy(), range(200)))
    assert float(seen.min()) < float(coarse.max()) < 0.2 * float(seen.median())
    assert float(seen.max()) > 0.8 * float(_sharpness(sharp).min())
