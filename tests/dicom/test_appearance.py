"""Views from the picture: frontal images pass, and what is no upright frontal chest is told."""

from pathlib import Path

import numpy as np
import pytest

from medsd.dicom.appearance import Appearance, grey_ranks, look_concerns
from medsd.dicom.gate import GatePolicy, admit
from medsd.studies.phantom import generate_study
from tests.dicom.drawings import hand_image, lateral_image, noise_image, skull_image


def reasons(pixels: np.ndarray, policy: GatePolicy | None = None, view: str = "") -> list[str]:
    return [item.reason for item in look_concerns(pixels.astype(np.float32), policy or GatePolicy(), view=view)]


def test_generated_laterals_look_lateral_and_generated_frontals_do_not() -> None:
    assert np.mean([Appearance.of(lateral_image(index)).lateral for index in range(1000, 1040)]) > 0.9
    assert not any(reasons(generate_study(index, size=128).pixels) for index in range(8))


def test_real_frontal_images_are_hardly_ever_warned_about(data_root: Path) -> None:
    paths = sorted((data_root / "nih_cxr" / "images").iterdir())[::15]
    paths += sorted((data_root / "covid_pairs" / "images").iterdir())[::3]
    warned = [path.name for path in paths if admit(path).reason]
    assert len(paths) > 150
    assert len(warned) <= 0.02 * len(paths), warned


def test_real_images_rotated_or_upside_down_look_like_no_upright_chest(data_root: Path) -> None:
    images = [admit(path).radiograph for path in sorted((data_root / "nih_cxr" / "images").iterdir())[::60]]
    for turn in (1, 2, 3):
        told = [Appearance.of(np.ascontiguousarray(np.rot90(image.pixels, turn))).no_chest for image in images if image]
        assert np.mean(told) > 0.8


def test_a_real_lateral_thorax_looks_lateral_though_it_is_a_dogs(data_root: Path) -> None:
    policy = GatePolicy(not_human="accept", view="accept")
    image = admit(data_root / "dicom" / "dx_thorax_animal.dcm", policy).radiograph
    assert image is not None
    assert all(Appearance.of(np.ascontiguousarray(np.rot90(image.pixels, turn))).lateral for turn in (1, 3))


def test_noise_and_skulls_are_told_but_hands_are_not() -> None:
    assert all(reasons(noise_image(index)) == ["not_a_chest"] for index in range(12))
    assert np.mean([bool(reasons(skull_image(index))) for index in range(12)]) > 0.7
    assert not any(reasons(hand_image(index)) for index in range(6))  # a limit that the documents name


def test_a_header_that_names_the_view_is_believed() -> None:
    image = lateral_image(1000)
    assert reasons(image) == ["view"]
    assert reasons(image, view="PA") == reasons(image, view="FRONTAL") == []


@pytest.mark.parametrize(("action", "said"), [("accept", []), ("warn", ["view"]), ("refuse", ["view"])])
def test_what_the_policy_accepts_is_not_looked_for(action: str, said: list[str]) -> None:
    policy = GatePolicy.model_validate({"lateral_look": action})
    assert reasons(lateral_image(1000), policy) == said
    assert all(policy.action(item) == action for item in look_concerns(lateral_image(1000), policy))


def test_exposure_does_not_change_what_an_image_looks_like() -> None:
    image = lateral_image(1001).astype(np.float32)
    here, there = Appearance.of(image), Appearance.of(image**1.5)
    assert there.laterality == pytest.approx(here.laterality, abs=0.02)


def test_ranks_are_normalised_and_ordered() -> None:
    ranks = grey_ranks(np.arange(64 * 64, dtype=np.float32).reshape(64, 64))
    assert ranks.shape == (16, 16)
    assert np.all(np.diff(ranks.ravel()) > 0)
    assert ranks.mean() == pytest.approx(0, abs=1e-6) and np.mean(ranks**2) == pytest.approx(1, abs=1e-5)
