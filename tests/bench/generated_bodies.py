"""Radiographs of a hand and of a skull, generated: parts of another body for which no real films are at hand.

Each is a projection: path lengths of X-rays through soft tissue, cortical and spongy bone and air, then scatter, the
film's S-shaped curve, quantum noise, collimation and framing. Build, pose, exposure and framing are drawn at random.
They are no radiographs of people; what is measured on them is an estimate for those.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.special import expit

Film = npt.NDArray[np.float32]
Map = npt.NDArray[np.float64]
Point = tuple[float, float]
Generator = np.random.Generator

SIDE = 320  # pixels of the field, before framing
_SOFT, _CORTEX, _SPONGE = 0.2, 0.75, 0.34  # 1/cm at 55 to 70 kV, effective
# Roots (x, y) of the rays of a right hand, palm down, in cm from the wrist, and lengths of metacarpal and phalanges.
_RAYS = (
    ((-2.3, 1.6), -46.0, (4.4, 3.1, 2.3)),  # the thumb has two phalanges
    ((-1.6, 2.6), -12.0, (6.4, 3.9, 2.3, 1.7)),
    ((-0.5, 2.8), -3.0, (6.2, 4.3, 2.8, 1.8)),
    ((0.5, 2.6), 5.0, (5.5, 4.0, 2.6, 1.8)),
    ((1.5, 2.3), 14.0, (5.1, 3.1, 1.9, 1.6)),
)
# Carpal bones: centre and radii in cm, from the wrist.
_CARPALS = (
    (-1.6, 0.5, 0.75, 1.0),
    (-0.4, 0.4, 0.75, 0.7),
    (0.7, 0.4, 0.65, 0.65),
    (1.1, 0.9, 0.45, 0.5),
    (-2.0, 1.6, 0.6, 0.5),
    (-1.2, 1.8, 0.5, 0.5),
    (-0.2, 1.6, 0.65, 0.95),
    (0.9, 1.7, 0.65, 0.7),
)


class _Field:
    """A plane of `SIDE` pixels a side on which path lengths are added up.

    Args:
        span: cm from edge to edge.
        centre: what lies in its middle, cm; y grows downwards.
        turn: degrees that the body is turned in its plane.
        squeeze: breadth of the body against its usual one.
    """

    def __init__(self, span: float, centre: Point, turn: float = 0.0, squeeze: float = 1.0) -> None:
        y, x = (np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) - 0.5) * span
        cosine, sine = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
        self.x = (cosine * x + sine * y) / squeeze + centre[0]
        self.y = cosine * y - sine * x + centre[1]

    def ellipsoid(self, x: float, y: float, a: float, b: float, depth: float, turn: float = 0.0) -> Map:
        """Path in cm through an ellipsoid with the half-axes `a`, `b` in the plane and `depth` across it."""
        cosine, sine = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
        u, v = self.x - x, self.y - y
        p, q = (cosine * u + sine * v) / a, (cosine * v - sine * u) / b
        return 2 * depth * np.sqrt(np.maximum(0, 1 - p**2 - q**2))

    def rod(self, start: Point, end: Point, first: float, last: float, waist: float = 0.0) -> Map:
        """Path through a round rod of the radii `first` and `last`, slimmer by `waist` (0…1) in its middle."""
        along, length = self._along(start, end)
        t = np.clip(along / length, 0, 1)
        radius = (first + (last - first) * t) * (1 - waist * np.sin(np.pi * t))
        nearest_x, nearest_y = start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])
        off = (self.x - nearest_x) ** 2 + (self.y - nearest_y) ** 2
        return 2 * np.sqrt(np.maximum(0, radius**2 - off))

    def _along(self, start: Point, end: Point) -> tuple[Map, float]:
        direction = np.array(end) - np.array(start)
        length = float(np.hypot(*direction))
        return ((self.x - start[0]) * direction[0] + (self.y - start[1]) * direction[1]) / length, length


def hand(index: int, seed: int = 1) -> Film:
    """A hand (H, W) in 0…1, seen from its back; some are left hands, some lie askew or have bent fingers."""
    rng = np.random.default_rng([seed, 11, index])
    size, spread = rng.uniform(0.85, 1.15), rng.uniform(0.5, 1.5)
    field = _Field(rng.uniform(20, 26), (rng.normal(0, 0.7), rng.uniform(-8.5, -5)), rng.normal(0, 8))
    soft = np.maximum(
        field.ellipsoid(0, -4.3 * size, 4.1 * size, 5.2 * size, rng.uniform(1.1, 1.5)),
        field.rod((0, -1.0), (rng.normal(0, 0.6), 16), 2.7 * size, 3.3 * size),
    )
    bones, marrow = _forearm(field, size, rng), np.zeros_like(soft)
    for x, y, a, b in _CARPALS:
        place = (x * size, -y * size)
        bones += field.ellipsoid(*place, a * size, b * size, 0.6, rng.normal(0, 12))
        marrow += field.ellipsoid(*place, 0.85 * a * size, 0.85 * b * size, 0.5)
    for root, degrees, lengths in _RAYS:
        flesh, bone, hollow = _ray(field, root, degrees * spread + rng.normal(0, 3), lengths, size, rng)
        soft, bones, marrow = np.maximum(soft, flesh), bones + bone, marrow + hollow
    film = _exposed(_SOFT * soft + (_CORTEX - _SOFT) * bones - (_CORTEX - _SPONGE) * marrow, rng)
    return _framed(film if rng.random() < 0.5 else film[:, ::-1], rng)


def _forearm(field: _Field, size: float, rng: Generator) -> Map:
    """Cortical path of radius and ulna."""
    radius = field.rod((-1.1 * size, 0.5), (-1.0 * size, 16), 1.15 * size, 0.7 * size, 0.15)
    ulna = field.rod((1.4 * size, rng.uniform(0.4, 0.9)), (1.2 * size, 16), 0.65 * size, 0.7 * size, 0.1)
    hollow = field.rod((-1.1 * size, 0.7), (-1.0 * size, 16), 0.95 * size, 0.45 * size, 0.15)
    return np.maximum(radius, 0) + ulna - 0.7 * hollow


def _ray(
    field: _Field, root: Point, degrees: float, lengths: tuple[float, ...], size: float, rng: Generator
) -> tuple[Map, Map, Map]:
    """Paths through flesh, bone and marrow of one metacarpal with its phalanges."""
    flesh, bone, marrow = (np.zeros_like(field.x) for _ in range(3))
    place, bend = np.array([root[0] * size, -root[1] * size]), rng.normal(0, 3)
    foreshortening = rng.uniform(0.85, 1.0)
    for number, length in enumerate(lengths):
        angle = np.deg2rad(degrees + number * bend - 90)
        reach = size * length * foreshortening * np.array([np.cos(angle), np.sin(angle)])
        start, end = place + 0.06 * reach, place + 0.94 * reach
        wide = size * (0.62, 0.52, 0.42, 0.34)[number] * rng.uniform(0.92, 1.08)
        ends = ((start[0], start[1]), (end[0], end[1]))
        bone += field.rod(*ends, wide, 0.86 * wide, 0.35)
        marrow += field.rod(*ends, 0.72 * wide, 0.62 * wide, 0.4)
        if number:
            tip = (float(place[0] + 1.05 * reach[0]), float(place[1] + 1.05 * reach[1]))
            flesh = np.maximum(flesh, field.rod(ends[0], tip, 1.9 * wide, 1.75 * wide))
        place = place + reach
    return flesh, bone, marrow


def skull(index: int, seed: int = 1) -> Film:
    """A skull (H, W) in 0…1, from the front or, every second one, from the side."""
    rng = np.random.default_rng([seed, 12, index])
    return _side_skull(rng) if index % 2 else _front_skull(rng)


def _front_skull(rng: Generator) -> Film:
    """Vault, orbits, petrous ridges, nose and sinuses, teeth, mandible, neck."""
    field = _Field(
        rng.uniform(23, 30), (rng.normal(0, 0.8), rng.uniform(1, 5)), rng.normal(0, 4), rng.uniform(0.92, 1.1)
    )
    wall, low = rng.uniform(0.5, 0.9), rng.uniform(7.5, 9)
    soft = np.maximum(field.ellipsoid(0, 0, 7.8, 10.2, 9), field.rod((0, 6), (0, 24), 6, 6.5))
    soft = np.maximum(soft, field.ellipsoid(0, 7, 6.3, 6.8, 6.5))
    bone = field.ellipsoid(0, -0.8, 7.3, 9, 8.8) - field.ellipsoid(0, -0.8, 7.3 - wall, 9 - wall, 8.8 - wall)
    dense = np.zeros_like(bone)
    for side in (-1, 1):
        orbit = field.ellipsoid(side * 3.2, 3.0, 2.0, 1.8, 1.2)
        rim = field.ellipsoid(side * 3.2, 3.0, 2.5, 2.2, 1.1) - field.ellipsoid(side * 3.2, 3.0, 2.0, 1.8, 1.0)
        dense += 0.5 * np.maximum(rim, 0) - 0.3 * orbit
        dense += 0.5 * field.rod((side * 1.2, 4.4), (side * 5.6, 3.4 + rng.normal(0, 0.3)), 0.6, 0.9)
        dense += 0.7 * field.rod((side * 4.9, 5.5), (side * 4.3, low + 1.5), 1.0, 0.9)
        dense += 0.7 * field.rod((side * 4.3, low + 1.5), (side * 0.9, low + 4.2), 0.9, 1.1)
        soft -= 0.5 * field.ellipsoid(side * 2.4, 6.3, 1.3, 1.4, 1.5)  # maxillary sinus
    dense += 0.6 * field.ellipsoid(0, low + 4.2, 2.4, 1.2, 0.9) + 0.35 * field.ellipsoid(0, 7.2, 3.3, 2.6, 1.8)
    soft -= 0.6 * (field.ellipsoid(0, 5.4, 1.0, 2.2, 2.2) + field.ellipsoid(0, 0.9, 1.6, 0.9, 0.8))
    dense += _teeth(field, 0.0, low + 0.9, 2.7, rng) + _neck_bones(field, 0.0, low + 5, rng)
    return _framed(_exposed(_SOFT * soft + _SPONGE * bone + 0.45 * _CORTEX * dense, rng), rng)


def _side_skull(rng: Generator) -> Film:
    """Vault, base, face with sinuses, jaws, upper spine; facing either way."""
    field = _Field(rng.uniform(25, 32), (rng.normal(-0.8, 0.8), rng.uniform(2, 5)), rng.normal(0, 7))
    wall = rng.uniform(0.5, 0.9)
    soft = np.maximum(field.ellipsoid(0, 0, 10, 8.2, 7.5), field.rod((2.5, 5), (3.5, 24), 5.5, 6.5))
    soft = np.maximum(soft, field.ellipsoid(-6.3, 6, 4.2, 6.4, 5.5))
    bone = field.ellipsoid(0, -0.4, 9.4, 7.4, 7) - field.ellipsoid(0, -0.4, 9.4 - wall, 7.4 - wall, 7 - wall)
    dense = 0.6 * field.rod((-7.5, 2.2), (-1.0, 3.9), 0.4, 0.8) + 0.9 * field.ellipsoid(2.2, 5.2, 2.3, 1.4, 1.8, 20)
    dense += 0.4 * field.ellipsoid(-6.6, 6.0, 2.4, 2.6, 2.2) + _neck_bones(field, 2.8, 7.2, rng)
    chin = (-8.2 + rng.normal(0, 0.4), 12.4)
    dense += 0.55 * field.rod((-0.6, 5.8), (-1.9, 10.4), 0.9, 1.1) + 0.55 * field.rod((-1.9, 10.4), chin, 1.1, 1.4)
    dense += _teeth(field, -6.6, 9.6, 1.9, rng)
    soft -= 0.6 * (field.ellipsoid(-6.0, 5.2, 1.6, 1.5, 2) + field.ellipsoid(-8.7, 0.8, 0.5, 1.1, 1.2))
    soft -= 0.8 * field.rod((-1.4, 8.5), (-0.6, 22), 0.8, 0.9)  # pharynx and windpipe
    film = _exposed(_SOFT * soft + _SPONGE * bone + 0.45 * _CORTEX * dense, rng)
    return _framed(film if rng.random() < 0.5 else film[:, ::-1], rng)


def _teeth(field: _Field, x: float, y: float, half: float, rng: Generator) -> Map:
    """Two rows of teeth around (x, y)."""
    rows = np.zeros_like(field.x)
    for tooth in np.linspace(-half, half, 9):
        for jaw in (-1, 1):
            rows += field.ellipsoid(x + tooth, y + jaw * rng.uniform(0.8, 1.0), 0.3, 0.95, 0.5, rng.normal(0, 4))
    return rows


def _neck_bones(field: _Field, x: float, y: float, rng: Generator) -> Map:
    """The cervical vertebrae from `y` downwards."""
    bones, lean = np.zeros_like(field.x), rng.normal(0, 0.12)
    for number in range(7):
        place = x + lean * number, y + 1.75 * number
        bones += 0.8 * field.ellipsoid(*place, 1.35, 0.72, 1.2) + 0.25 * field.ellipsoid(*place, 2.4, 0.5, 0.8)
    return bones


def _exposed(path: Map, rng: Generator) -> Film:
    """The film of a map of ∫μ ds: scatter, quantum noise, latitude and the S-shaped curve; bone is bright."""
    light = np.exp(-np.maximum(path, 0))
    coarse = Image.fromarray(light.astype(np.float32)).resize((8, 8), Image.Resampling.BOX)
    blurred = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    light = light + rng.uniform(0.05, 0.25) * blurred
    light = light * (1 + rng.normal(0, 1, light.shape) * rng.uniform(0.01, 0.04) / np.sqrt(np.maximum(light, 1e-3)))
    density = -np.log(np.maximum(light, 1e-4))
    low, high = np.quantile(density, [0.02, rng.uniform(0.985, 0.999)])
    shown = (density - low) / max(high - low, 1e-6)
    slope, middle = rng.uniform(2.5, 5), rng.uniform(0.3, 0.5)
    ends = expit(slope * (np.array([0.0, 1.0]) - middle))
    film = (expit(slope * (shown - middle)) - ends[0]) / (ends[1] - ends[0])
    return np.asarray(np.clip(film, 0, 1) * rng.uniform(0.8, 1), dtype=np.float32)


def _framed(film: Film, rng: Generator) -> Film:
    """Cut to the field that was exposed; in one of three, black shutters stay in the picture."""
    cuts = rng.integers(0, SIDE // 10, 4)
    if rng.random() < 1 / 3:
        kept = np.zeros_like(film)
        inner = (slice(cuts[0], SIDE - cuts[1]), slice(cuts[2], SIDE - cuts[3]))
        kept[inner] = film[inner]
        return kept
    return np.ascontiguousarray(film[cuts[0] : SIDE - cuts[1], cuts[2] : SIDE - cuts[3]])
