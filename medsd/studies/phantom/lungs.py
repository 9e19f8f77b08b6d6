"""The air in the lungs and the vessel tree in it: the part of the image in which most findings show."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsd.studies.phantom.anatomy import LEFT, RIGHT, Body, Points
from medsd.studies.phantom.solids import Array, Projection, Tubes, hull, overlap

Window = tuple[slice, slice]


@dataclass
class LungView:
    """One lung on the image, through the window that holds it; all arrays (h, w)."""

    side: int  # −1 right, 1 left
    window: Window
    u: Array  # (1, w)
    v: Array  # (h, 1)
    depth: Array  # cm of the whole lung along the ray, as if diaphragm and heart were not there
    air: Array  # cm of aerated lung along the ray, what the diaphragm, the heart and the great vessels leave
    filled: Array = field(init=False)  # share 0…1 of the air replaced by water (fluid, pus, airless lung)
    gas: Array = field(init=False)  # share 0…1 of the air that is free gas without lung in it

    def __post_init__(self) -> None:
        self.filled = np.zeros_like(self.air)
        self.gas = np.zeros_like(self.air)

    def fill(self, share: Array) -> None:
        """Replace `share` of what is still air with water."""
        self.filled = 1 - (1 - self.filled) * (1 - np.clip(share, 0, 1))


def view_lungs(body: Body, projection: Projection) -> dict[int, LungView]:
    """Both lungs on the image, minus what lies in them, by inclusion and exclusion of the intervals along each ray."""
    occupants = [projection.solid(solid) for solid in (*body.heart, *body.vessels)]
    views = {}
    for side, lung in body.lungs.items():
        solid, window, u, v = projection.place(lung)
        whole = solid.interval(u, v)
        dome = projection.solid(body.domes[side]).interval(u, v)
        middle = hull(*(occupant.interval(u, v) for occupant in occupants))
        depth = overlap(whole)
        taken = overlap(whole, dome) + overlap(whole, middle) - overlap(whole, dome, middle)
        views[side] = LungView(side, window, u, v, depth, np.maximum(depth - taken, 0))
    return views


def lung_point(body: Body, side: int, s: float, t: float) -> tuple[float, float, float]:
    """Patient coordinates in cm of the place (s, t) of a lung: s from hilum to wall, t from apex to diaphragm."""
    lung = body.lungs[side]
    apex = lung.centre[1] - lung.radii[1]
    y = apex + t * (body.dome_top(side) - apex)
    inner = side * 2.6 + body.distortion.pull
    return inner + s * (float(body.wall(side, y)) - inner), y, 0.0


def smooth_noise(rng: np.random.Generator, projection: Projection, window: Window, cell_cm: float) -> Array:
    """Noise of mean 0 and deviation near 1 whose blobs are about `cell_cm` wide, (h, w) of `window`."""
    cells = int(np.ceil(projection.field / cell_cm)) + 2
    grid = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    scale = projection.pixel / cell_cm
    rows, columns = window
    box = (columns.start * scale, rows.start * scale, columns.stop * scale, rows.stop * scale)
    shape = (columns.stop - columns.start, rows.stop - rows.start)
    return np.asarray(grid.resize(shape, Image.Resampling.BICUBIC, box=box), dtype=np.float32) * np.float32(1.35)


def hilum(body: Body, side: int) -> npt.NDArray[np.float64]:
    """Where the vessels enter a lung, (3,) in cm; the left hilum lies a centimetre higher."""
    return np.array([side * 2.7 + body.distortion.pull, (1.7 if side == RIGHT else 0.6) * body.habitus.height, 0.0])


def vessel_tree(body: Body, projection: Projection, *, upper: float = 1.0, wet: float = 1.0) -> Tubes:
    """Arteries and veins of both lungs as tubes on the image, thinning and forking from the hilum outwards.

    `upper` widens the vessels above the hilum, which congestion does; `wet` widens all.
    """
    parts = []
    for side in (RIGHT, LEFT):
        rng = np.random.default_rng([body.habitus.vessel_seed, side + 1])
        start, end, radius, weight = _grow(body, side, rng)
        above = end[:, 1] < hilum(body, side)[1] - 0.5
        radius = radius * wet * np.where(above, upper, 1.0)
        parts.append(_hilar_artery(body, projection, side, wet))
        parts.append(Tubes.straight(projection.points(start), projection.points(end), radius, weight))
    return Tubes.join(parts)


def _hilar_artery(body: Body, projection: Projection, side: int, wet: float) -> Tubes:
    """The lower lobe's artery, which gives the hilum its body, and the arch of the upper one."""
    root = hilum(body, side)
    lower = root + np.array([[0.0, -0.9, 0], [side * 1.0, 0.3, 0], [side * 1.5, 2.2, 0], [side * 1.7, 4.4, 0]])
    upper = root + np.array([[0.0, -0.4, 0], [side * 0.9, -1.6, 0], [side * 1.5, -3.2, 0]])
    down = Tubes.along(projection, lower, wet * np.array([0.6, 0.72, 0.6, 0.4]), 1.1)
    return Tubes.join([down, Tubes.along(projection, upper, wet * np.array([0.5, 0.5, 0.28]), 1.0)])


def _grow(body: Body, side: int, rng: np.random.Generator) -> tuple[Points, Points, Points, Points]:
    """Let tips walk outwards from the hilum and fork, all tips of a step at once."""
    root = hilum(body, side)
    # Angles from the horizontal, outwards; the lower lobe has the widest vessels, and a vein runs with each artery.
    angle = np.deg2rad(np.repeat([-80, -62, -45, -28, -8, 14, 30, 46, 58, 68, 78, 86], 2)) + rng.normal(0, 0.16, 24)
    radius = np.repeat([0.26, 0.30, 0.28, 0.26, 0.25, 0.30, 0.36, 0.44, 0.50, 0.48, 0.40, 0.30], 2)
    radius = radius * rng.uniform(0.55, 1.15, 24)
    tip = root + np.stack([0.5 * rng.normal(0, 1, 24), 1.6 * np.sin(angle), np.zeros(24)], axis=1)
    bend = rng.normal(0, 0.045, 24)
    kept: list[tuple[Points, Points, Points, Points]] = []
    for _ in range(34):
        angle = angle + bend + rng.normal(0, 0.09, len(angle))
        step = 0.6 * np.stack([side * np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=1)
        end = tip + step
        kept.append((tip, end, radius, rng.uniform(1.4, 2.2, len(radius))))
        tip, radius = end, radius * 0.965
        fork = rng.random(len(radius)) < 0.15
        turn = rng.uniform(0.35, 0.85, fork.sum()) * rng.choice([-1, 1], fork.sum())
        child = radius[fork] * rng.uniform(0.55, 0.85, fork.sum())
        tip = np.concatenate([tip, tip[fork]])
        angle = np.concatenate([angle, angle[fork] + turn])
        bend = np.concatenate([bend, rng.normal(0, 0.045, fork.sum())])
        radius = np.concatenate([radius * np.where(fork, 0.93, 1.0), child])
        alive = (radius > 0.04) & _inside(body, side, tip)
        tip, angle, bend, radius = tip[alive], angle[alive], bend[alive], radius[alive]
        if not len(radius):
            break
    return tuple(np.concatenate(columns) for columns in zip(*kept, strict=True))  # type: ignore[return-value]


def _inside(body: Body, side: int, points: Points) -> npt.NDArray[np.bool_]:
    reach = side * (body.wall(side, points[:, 1]) - points[:, 0])
    apex = body.lungs[side].centre[1] - body.lungs[side].radii[1]
    x, y = side * points[:, 0], points[:, 1]
    return (reach > 0.7) & (x > 0.8) & (y > apex + 0.8) & (y < body.dome_top(side) + 3.5)
