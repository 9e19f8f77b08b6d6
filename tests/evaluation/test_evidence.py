"""Evidence maps against boxes: the three figures by hand, differences on the same images, what is too few."""

from typing import NamedTuple

import numpy as np
import pytest

from medsd.errors import DataError
from medsd.evaluation.evidence import box_mask, centre_prior, judge, usual_place
from medsd.metrics.intervals import IntervalOptions
from medsd.studies.boxes import Box

SETTINGS = IntervalOptions(resamples=100, minimum_positives=5)
SIDE = 16


class Boxed(NamedTuple):
    findings: np.ndarray
    patients: np.ndarray
    boxes: list[list[Box]]


def boxed(count: int = 40, seed: int = 0) -> Boxed:
    """Images with one box each, of a fifth of the side, of two findings in turn; two images a patient."""
    corners = np.random.default_rng(seed).uniform(0, 0.8, (count, 2))
    boxes = [[Box(f"s{n}", "Mass", x, y, x + 0.2, y + 0.2)] for n, (x, y) in enumerate(corners)]
    names = np.array(["Mass", "Nodule"] * (count // 2))
    return Boxed(names, np.repeat([f"p{n}" for n in range(count // 2)], 2), boxes)


def right_maps(images: Boxed) -> np.ndarray:
    return np.stack([box_mask(boxes, SIDE) for boxes in images.boxes]).astype(np.float32)


def test_maps_of_the_boxes_themselves_point_into_them_and_their_opposite_never() -> None:
    images = boxed()
    maps = right_maps(images)
    report = judge({"right": maps, "wrong": -maps, "centre": centre_prior(len(maps))}, *images, SETTINGS)
    right, wrong, centre = report.methods
    assert right.pointing.value == 1 and right.inside.value > 0.8 and right.overlap.value > 0.6
    assert wrong.pointing.value == 0 and wrong.lead is not None and wrong.lead.value == 1
    assert 0 < centre.pointing.value < 0.3 and centre.lead is not None and centre.lead.low > 0.5


def test_the_mean_is_over_findings_not_images() -> None:
    images = boxed(20)
    names = np.array(["Mass"] * 15 + ["Nodule"] * 5)
    maps = right_maps(images)
    maps[:15] *= -1  # Mass is never found, Nodule always
    report = judge({"one": maps}, names, *images[1:], SETTINGS)
    assert report.methods[0].pointing.value == pytest.approx(0.5)
    assert {each.name: each.images for each in report.methods[0].findings} == {"Mass": 15, "Nodule": 5}


def test_a_finding_with_too_few_images_is_shown_but_not_in_the_mean() -> None:
    images = boxed(20)
    names = np.array(["Mass"] * 17 + ["Nodule"] * 3)
    report = judge({"one": right_maps(images)}, names, *images[1:], SETTINGS)
    assert report.over == 1 and len(report.methods[0].findings) == 2
    with pytest.raises(DataError, match="no finding has 30 images with a box"):
        judge({"one": right_maps(images)}, *images, IntervalOptions(resamples=100, minimum_positives=30))


def test_a_flat_map_points_by_chance_and_has_no_mass() -> None:
    images = boxed()
    flat = judge({"flat": np.zeros((40, 4, 4))}, *images, SETTINGS).methods[0]
    area = np.mean([box_mask(boxes).mean() for boxes in images.boxes])
    assert flat.pointing.value == pytest.approx(area, abs=1e-9) and flat.inside.value == flat.overlap.value == 0


def test_the_usual_place_knows_where_boxes_of_the_finding_lay() -> None:
    low = [[Box("t", "Effusion", 0.1, 0.8, 0.3, 0.95)]] * 3
    heat = usual_place(np.array(["Effusion", "Mass"]), {"Effusion": low}, SIDE)
    assert heat[0].max() == 1 and heat[0].argmax() // SIDE >= 12
    np.testing.assert_array_equal(heat[1], centre_prior(1, SIDE)[0])


def test_a_box_smaller_than_the_grid_has_one_point() -> None:
    assert box_mask([Box("s", "Nodule", 0.501, 0.501, 0.502, 0.502)], 8).sum() == 1
