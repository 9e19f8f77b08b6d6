"""Closed-form path lengths against counting small steps along the ray."""

import numpy as np
import pytest

from medsd.studies.phantom.anatomy import Distortion, build_body, sample_habitus
from medsd.studies.phantom.lungs import view_lungs
from medsd.studies.phantom.solids import Projection, Solid, Tubes, hull, overlap, tube_paths

STEP = 0.002
Z = np.arange(-15, 15, STEP)
PARALLEL = Projection(96, field=30.0, source_distance=1e9)


def _inside(solid: Solid, u: float, v: float) -> np.ndarray:
    """Which of `Z` lie in `solid` on the ray at (u, v), from the definition of the solid."""
    cosine, sine = np.cos(solid.roll), np.sin(solid.roll)
    du, dv = u - solid.centre[0], v - solid.centre[1]
    p, q = (cosine * du + sine * dv) / solid.radii[0], (cosine * dv - sine * du) / solid.radii[1]
    rho2 = (1 - solid.squareness) * (p**2 + q**2) + solid.squareness * np.sqrt(p**4 + q**4)
    middle = solid.centre[2]
    return ((Z - middle) / solid.radii[2]) ** 2 + rho2 <= 1


@pytest.mark.parametrize("squareness", [0.0, 0.4, 1.0])
def test_path_through_a_solid_equals_counted_steps(squareness: float) -> None:
    solid = Solid((1.0, -2.0, 0.5), (6.0, 9.0, 5.0), roll=0.4, squareness=squareness)
    near, far = solid.interval(PARALLEL.u, PARALLEL.v)
    lengths = overlap((near, far))
    rng = np.random.default_rng(0)
    for row, column in rng.integers(0, 96, (60, 2)):
        counted = _inside(solid, PARALLEL.u[0, column], PARALLEL.v[row, 0]).sum() * STEP
        assert lengths[row, column] == pytest.approx(counted, abs=3 * STEP)


def test_a_sphere_has_the_volume_of_a_sphere() -> None:
    half = Solid((0, 0, 0), (5, 5, 5)).half_depth(PARALLEL.u, PARALLEL.v)
    assert 2 * half.sum() * PARALLEL.pixel**2 == pytest.approx(4 / 3 * np.pi * 125, rel=0.01)


def test_a_slanted_tube_is_crossed_over_its_chord_divided_by_the_sine() -> None:
    start, end = np.array([-9.0, -6.0, -4.0]), np.array([9.0, 6.0, 4.0])
    path = tube_paths(PARALLEL, Tubes.along(PARALLEL, np.stack([start, end]), 1.4))
    axis = (end - start) / np.linalg.norm(end - start)
    for row, column in ((48, 48), (50, 47), (40, 35), (52, 50), (60, 40)):
        ray = np.stack([np.full_like(Z, PARALLEL.u[0, column]), np.full_like(Z, PARALLEL.v[row, 0]), Z], axis=1)
        distance = np.linalg.norm(np.cross(ray - start, axis), axis=1)
        assert path[row, column] == pytest.approx((distance <= 1.4).sum() * STEP, abs=0.02)


def test_a_hollow_tube_lacks_the_path_through_its_core() -> None:
    tubes = Tubes.along(PARALLEL, [[-9, 0, 0], [9, 0, 0]], 2.0)
    core = Tubes.along(PARALLEL, [[-9, 0, 0], [9, 0, 0]], 1.0)
    hollow = tube_paths(PARALLEL, tubes, core=0.5)
    np.testing.assert_allclose(hollow, tube_paths(PARALLEL, tubes) - tube_paths(PARALLEL, core), atol=0.02)


def test_cutting_a_tube_into_pieces_changes_nothing() -> None:
    whole = tube_paths(PARALLEL, Tubes.along(PARALLEL, [[-8, -3, 0], [8, 3, 0]], 0.8))
    t = np.linspace(0, 1, 14)[:, None]
    cut = tube_paths(PARALLEL, Tubes.along(PARALLEL, np.array([-8, -3, 0]) + t * np.array([16, 6, 0]), 0.8))
    np.testing.assert_allclose(cut, whole, atol=1e-3)


def test_a_bent_tube_neither_gapes_nor_doubles_at_its_bends() -> None:
    turn = np.linspace(0, np.pi, 9)
    arc = np.stack([8 * np.cos(turn), 8 * np.sin(turn) - 4, 0 * turn], axis=1)
    path = tube_paths(PARALLEL, Tubes.along(PARALLEL, arc, 1.5))
    volume = np.pi * 1.5**2 * np.hypot(*np.diff(arc[:, :2], axis=0).T).sum()
    assert path.max() < 1.02 * 3.0
    assert path.sum() * PARALLEL.pixel**2 == pytest.approx(volume, rel=0.02)
    radius = np.hypot(PARALLEL.u, PARALLEL.v + 4)
    assert path[(abs(radius - 7.9) < 0.4) & (PARALLEL.v > -3)].min() > 0.9 * 3.0


def test_a_tube_thinner_than_a_pixel_keeps_its_shadow() -> None:
    thin = tube_paths(PARALLEL, Tubes.along(PARALLEL, [[-8, -2, 0], [8, 3, 0]], 0.05))
    length = np.hypot(16, 5)
    assert thin.sum() * PARALLEL.pixel**2 == pytest.approx(np.pi * 0.05**2 * length, rel=0.03)


def test_tubes_that_leave_the_image_are_cut_at_its_border() -> None:
    path = tube_paths(PARALLEL, Tubes.along(PARALLEL, [[10, 10, 0], [40, 40, 0]], 0.5))
    assert path.shape == (96, 96)
    assert path[:60, :60].max() == 0 and path[-5:, -5:].max() > 0


def test_what_lies_far_from_the_image_is_magnified_more() -> None:
    erect, bedside = Projection(64, view="PA"), Projection(64, view="AP", source_distance=110)
    heart = Solid((2, 6, 3), (7, 5, 6))
    assert 1.0 < erect.solid(heart).radii[0] / 7 < 1.08 < bedside.solid(heart).radii[0] / 7 < 1.25
    assert erect.magnification(10) < erect.magnification(-10)


def test_air_in_a_lung_equals_counted_steps_outside_diaphragm_and_heart() -> None:
    body = build_body(sample_habitus(np.random.default_rng(5)), Distortion())
    projection = Projection(64)
    view = view_lungs(body, projection)[1]
    lung, dome = projection.solid(body.lungs[1]), projection.solid(body.domes[1])
    middle = [projection.solid(solid) for solid in (*body.heart, *body.vessels)]
    spans = hull(*(solid.interval(view.u, view.v) for solid in middle))
    for row, column in np.random.default_rng(1).integers(0, min(view.air.shape), (40, 2)):
        u, v = view.u[0, column], view.v[row, 0]
        taken = _inside(dome, u, v) | ((spans[0][row, column] <= Z) & (spans[1][row, column] >= Z))
        counted = (_inside(lung, u, v) & ~taken).sum() * STEP
        assert view.air[row, column] == pytest.approx(counted, abs=6 * STEP)
