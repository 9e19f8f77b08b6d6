"""How each finding shows on the image: the signs a radiologist looks for, drawn where they are looked for.

`SIGNS` has what draws each finding but support devices, which are drawn by `medsd.studies.phantom.devices`. It replaces
air by water or by free gas in the lung views of a `PhantomScene`, lays thin lines of water over the lungs, and records
the box of the sign. Signs follow Hansell et al., Fleischner Society glossary of terms for
thoracic imaging, Radiology 246 (2008): meniscus, silhouette, air bronchogram, septal lines.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from medsd.studies.phantom.anatomy import Body, Points
from medsd.studies.phantom.disease import Lesion
from medsd.studies.phantom.lungs import LungView, hilum, lung_point, smooth_noise
from medsd.studies.phantom.solids import Array, Projection, Tubes

Box = tuple[float, float, float, float]  # u0, v0, u1, v1 in image cm


@dataclass
class PhantomScene:
    projection: Projection
    body: Body
    views: dict[int, LungView]  # by side
    open_sides: frozenset[int]  # with free air in the pleura
    water: list[Tubes] = field(default_factory=list)  # thin lines of soft tissue in the lungs
    air: list[Tubes] = field(default_factory=list)  # thin air-filled tubes inside soft tissue
    devices: list[tuple[Tubes, float, float]] = field(default_factory=list)  # with attenuation (1/cm) and hollow share
    plates: list[tuple[Points, float]] = field(default_factory=list)  # (x, y, z, a, b) in cm, with attenuation
    boxes: dict[str, Box] = field(default_factory=dict)  # where each finding was drawn
    excess: Array = field(init=False)  # (H, W) attenuation that disease adds to clear lung

    def __post_init__(self) -> None:
        self.excess = np.zeros((self.projection.size, self.projection.size), dtype=np.float32)

    def note(self, finding: str, box: Box) -> None:
        """Widen the box of `finding` so that it holds `box` too."""
        old = self.boxes.get(finding, box)
        self.boxes[finding] = (min(old[0], box[0]), min(old[1], box[1]), max(old[2], box[2]), max(old[3], box[3]))

    def note_mask(self, finding: str, view: LungView, share: Array) -> None:
        """Note the box around where `share` of the air, if there is air, is more than a fifth of its maximum."""
        visible = share * view.air
        mask = visible > 0.2 * max(float(visible.max()), 1e-6)
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            u, v = view.u.ravel(), view.v.ravel()
            self.note(finding, (float(u[columns[0]]), float(v[rows[0]]), float(u[columns[-1]]), float(v[rows[-1]])))

    def note_points(self, finding: str, points: Points) -> None:
        """Note the box around image points (N, 2)."""
        low, high = points.min(axis=0) - 0.6, points.max(axis=0) + 0.6
        self.note(finding, (float(low[0]), float(low[1]), float(high[0]), float(high[1])))


def _soft_step(x: Array) -> Array:
    """0 below 0, 1 above 1, smooth between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _cardiomegaly(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """The heart itself was enlarged when the body was built; here only its box."""
    for solid in scene.body.heart[:2]:
        heart = scene.projection.solid(solid)
        (u, v, _), (a, b, _) = heart.centre, heart.radii
        cosine, sine = np.cos(heart.roll), np.sin(heart.roll)
        half_u, half_v = float(np.hypot(a * cosine, b * sine)), float(np.hypot(a * sine, b * cosine))
        scene.note(lesion.finding, (u - half_u, v - half_v, u + half_u, v + half_v))


def _effusion(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """Upright: the angle is blunted and the fluid climbs the wall in a meniscus. Lying: a veil, denser below."""
    view, side, body = scene.views[lesion.side], lesion.side, scene.body
    floor = body.dome_top(side)
    wall_x = float(body.wall(side, floor))
    wall = np.float32(abs(wall_x - side * 1.0))
    (u_wall, v_floor), (u_mid, _) = scene.projection.points([[wall_x, floor, 0], [side * 1.0, floor, 0]])
    inward = np.abs(view.u - np.float32(u_wall)) / np.float32(abs(u_wall - u_mid))  # 0 at the wall, 1 at the midline
    amount = lesion.severity
    if lesion.kind == "veil":
        height = np.float32(8 + 9 * amount)
        depth = _soft_step((view.v - np.float32(v_floor + 3) + height) / height)
        base = _soft_step((view.v - np.float32(v_floor - 1.0)) / np.float32(3))
        share: Array = depth * (np.float32(0.12 + 0.38 * amount) + np.float32(0.5) * base)
    else:
        level = np.float32(v_floor + 3.6 - (1.5 + 10.5 * amount**1.3))
        climb = np.float32(2.2 + 2.8 * amount) * np.exp(-inward * wall / np.float32(2.2))  # up the side wall
        climb += np.float32(1.3) * np.exp(-(1 - np.minimum(inward, 1)) * wall / np.float32(1.2))  # and the mediastinum
        # Under free air the fluid lies level.
        surface = level - climb.astype(np.float32) * (lesion.side not in scene.open_sides)
        above: Array = (view.v - surface) / np.float32(1.3 + 0.8 * amount)
        share = np.float32(0.93) * _soft_step(above + np.float32(0.5))
    scene.note_mask(lesion.finding, view, share)
    view.fill(share)


def _edema(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """Haze around both hila, wide upper vessels (drawn with the tree), septal lines at the bases, thick fissure."""
    amount = lesion.severity
    for side, view in scene.views.items():
        centre = scene.projection.points([hilum(scene.body, side) + np.array([side * 2.2, 1.5, 0])])[0]
        reach_u, reach_v = 4.2 + 2.8 * amount, 6.0 + 3.0 * amount
        du = (view.u - np.float32(centre[0])) / np.float32(reach_u)
        dv = (view.v - np.float32(centre[1])) / np.float32(reach_v)
        distance = np.square(du) + np.square(dv)
        coarse = smooth_noise(rng, scene.projection, view.window, 2.4)
        mottle = coarse + np.float32(0.5) * smooth_noise(rng, scene.projection, view.window, 0.7)
        share = np.float32(0.10 + 0.38 * amount) * np.exp(-distance) * (1 + np.float32(0.2) * mottle)
        share = np.clip(share + np.float32(0.05 * amount), 0, 0.8)
        scene.note_mask(lesion.finding, view, share)
        view.fill(share)
        _septal_lines(scene, side, amount, rng)


def _septal_lines(scene: PhantomScene, side: int, amount: float, rng: np.random.Generator) -> None:
    """Kerley B: short lines square to the pleura at the base; Kerley A: longer ones towards the hilum."""
    for _ in range(int(4 + 11 * amount)):
        x, y, _ = lung_point(scene.body, side, 0.96, rng.uniform(0.66, 1.02))
        length = rng.uniform(1.0, 2.0)
        line = np.array([[x, y, 0], [x - side * length, y + rng.uniform(-0.15, 0.15), 0]])
        scene.water.append(Tubes.along(scene.projection, line, 0.06, 6.0))
    for _ in range(int(5 * amount)):
        x, y, _ = lung_point(scene.body, side, rng.uniform(0.35, 0.6), rng.uniform(0.25, 0.5))
        line = np.array([[x, y, 0], [x - side * rng.uniform(1.5, 2.5), y + rng.uniform(1.5, 3.0), 0]])
        scene.water.append(Tubes.along(scene.projection, line, 0.05, 5.0))


def _consolidation(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """Airspace filled in a patch or a lobe with ragged borders, air-filled bronchi showing through."""
    view, amount, (s, t) = scene.views[lesion.side], lesion.severity, lesion.where
    centre = scene.projection.points([lung_point(scene.body, lesion.side, s, t)])[0]
    radius = (2.5 + 2.3 * amount) * (1.35 if lesion.kind == "lobar" else 1.0)
    du = (view.u - np.float32(centre[0])) / np.float32(1.15 * radius)
    dv = (view.v - np.float32(centre[1])) / np.float32(radius)
    distance = np.sqrt(du * du + dv * dv)
    ragged = 0.17 * smooth_noise(rng, scene.projection, view.window, 2.2)
    ragged = ragged + 0.07 * smooth_noise(rng, scene.projection, view.window, 0.8)
    edge = np.float32(0.9 if lesion.kind == "patch" else 0.5)
    share = _soft_step((np.float32(1.15) + ragged - distance) / edge)
    if lesion.kind == "lobar":  # a fissure cuts it off on one side
        fissure = (dv + np.float32(0.15) * du * lesion.side) * (1 if t < 0.5 else -1)
        share = share * _soft_step((np.float32(0.45) - fissure) / np.float32(0.12))
    mottle = smooth_noise(rng, scene.projection, view.window, 1.0)
    share = share * np.clip(np.float32(0.34 + 0.42 * amount) * (1 + np.float32(0.06) * mottle), 0, 0.92)
    scene.note_mask(lesion.finding, view, share)
    view.fill(share)
    _air_bronchogram(scene, lesion, radius, rng)


def _air_bronchogram(scene: PhantomScene, lesion: Lesion, radius: float, rng: np.random.Generator) -> None:
    root = hilum(scene.body, lesion.side)[:2]
    x, y, _ = lung_point(scene.body, lesion.side, *lesion.where)
    for _ in range(int(2 + 3 * lesion.severity)):
        target = np.array([x, y]) + rng.normal(0, 0.45 * radius, 2)
        along = np.linspace(0.45, 1.0, 6)[:, None]
        path = root + (target - root) * along
        points, thickness = np.hstack([path, np.zeros((6, 1))]), np.linspace(0.20, 0.1, 6)
        scene.air.append(Tubes.along(scene.projection, points, thickness, 0.6 * lesion.severity))


def _atelectasis(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """Plates: thin bands above a high dome. Lobes: a wedge on the mediastinum; dome and mediastinum have moved."""
    (_plate if lesion.kind == "plate" else _lobe)(scene, lesion, rng)


def _plate(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    for number in range(1 + int(2.6 * lesion.severity)):
        x, y, _ = lung_point(scene.body, lesion.side, rng.uniform(0.25, 0.55), rng.uniform(0.80, 0.95) - 0.06 * number)
        length, slope = rng.uniform(3.0, 6.5), rng.uniform(-0.35, 0.1)
        t = np.linspace(0, 1, 9)
        across = x + lesion.side * length * (t - 0.3)
        down = y + lesion.side * slope * length * (t - 0.5) + 0.35 * np.sin(np.pi * t)
        points = np.stack([across, down, 0 * t], axis=1)
        thick = (0.13 + 0.2 * lesion.severity) * np.sin(np.pi * (0.12 + 0.76 * t))
        scene.water.append(Tubes.along(scene.projection, points, thick, 4.5))
        scene.note_points(lesion.finding, scene.projection.points(points))


def _lobe(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    view, side, amount = scene.views[lesion.side], lesion.side, lesion.severity
    upper = lesion.kind == "upper"
    hx, hy, _ = hilum(scene.body, side)
    # The lobe's free border runs from a point on the hilum to one on the apex or the dome.
    _, far, _ = lung_point(scene.body, side, 0.5, 0.04 if upper else 1.12)
    width = 4.6 - 1.2 * amount if upper else 5.2 - 1.0 * amount
    near_point, far_point = scene.projection.points([[hx + side * 0.7, hy, 0], [hx + side * width, far, 0]])
    ramp = (view.v - np.float32(near_point[1])) / np.float32(far_point[1] - near_point[1])
    border = np.float32(near_point[0]) + np.float32(far_point[0] - near_point[0]) * np.clip(ramp, -0.3, 1.3)
    inside = _soft_step((border - view.u) * side / np.float32(0.7) + 0.5) * _soft_step((ramp + np.float32(0.1)) / 0.25)
    share = np.float32(0.46 + 0.4 * amount) * inside
    scene.note_mask(lesion.finding, view, share)
    view.fill(share)


def _mass(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """A rounded opacity of 3 cm and more, lobulated or spiculated."""
    view, amount = scene.views[lesion.side], lesion.severity
    x, y, _ = lung_point(scene.body, lesion.side, *lesion.where)
    centre = scene.projection.points([[x, y, 0]])[0]
    radius = 1.4 + 1.9 * amount
    du, dv = view.u - np.float32(centre[0]), view.v - np.float32(centre[1])
    angle = np.arctan2(dv, du)
    wobble = sum(
        np.float32(rng.normal(0, 0.045 / n**0.5)) * np.cos(n * angle + np.float32(rng.uniform(0, 6.3)))
        for n in (2, 3, 4, 5, 7)
    )
    rho = np.sqrt(du * du + dv * dv) / (np.float32(radius) * (1 + wobble))
    # A sphere of water in lung of depth `depth` fills 2 √(r² − d²) of it; the rim of a real one is a little softer.
    chord = np.sqrt(np.clip(1 - rho * rho, 0, 1)) * np.float32(2 * radius)
    share = np.clip(chord * np.float32(1.35 + 0.15 * amount) / np.maximum(view.depth, 2.0), 0, 0.9)
    scene.note_mask(lesion.finding, view, share)
    view.fill(share)
    for turn in rng.uniform(0, 2 * np.pi, int(rng.integers(0, 14))):  # spicules
        ray = np.array([np.cos(turn), np.sin(turn), 0.0])
        line = np.array([x, y, 0.0]) + ray * np.array([[0.9 * radius], [radius * rng.uniform(1.15, 1.5)]])
        scene.water.append(Tubes.along(scene.projection, line, 0.06, 3.0))


def _pneumothorax(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """The lung has come off the wall: a thin pleural line, and beyond it black without vessels."""
    view, side, amount, body = scene.views[lesion.side], lesion.side, lesion.severity, scene.body
    lung = body.lungs[side]
    gap = 0.9 + 3.6 * amount if lesion.kind == "apical" else 5.0 + 3.5 * amount
    # The visceral pleura: an outline like the lung's own, smaller, resting on hilum and diaphragm.
    down, inwards = 1.1 * gap, 0.6 * gap
    pleura = replace(
        lung,
        centre=(lung.centre[0] - side * inwards / 2, lung.centre[1] + down / 2, 0.0),
        radii=(lung.radii[0] - inwards / 2 - 0.25, lung.radii[1] - down / 2 - 0.15, lung.radii[2]),
        roll=lung.roll + rng.normal(0, 0.015),
    )
    seen = scene.projection.solid(pleura)
    rho = np.sqrt(seen.outline(view.u, view.v))
    gas = _soft_step((rho - 1) * np.float32(min(seen.radii[0], 12)) / 0.25 + 0.5)
    # Towards the hilum the lung stays where it was; over its apex the air reaches the mediastinum.
    medial = _soft_step(
        ((view.u - np.float32(seen.centre[0])) * np.float32(side / seen.radii[0]) + np.float32(0.7)) * 2
    )
    over = _soft_step((np.float32(seen.centre[1] - seen.radii[1] + 1.5) - view.v) / np.float32(2.0))
    gas = gas * np.maximum(medial, over)
    scene.note_mask(lesion.finding, view, gas)
    view.gas = np.maximum(view.gas, gas)
    view.fill(np.float32(0.05 + 0.16 * amount) * (1 - gas))
    points = np.hstack([pleura.border(), np.zeros((240, 1))])
    points = points if side > 0 else np.roll(points, 120, axis=0)[:-1]
    outer = side * (points[:, 0] - pleura.centre[0]) > -0.45 * pleura.radii[0]
    inside = side * (body.wall(side, points[:, 1]) - points[:, 0]) > 0.1
    kept = np.flatnonzero(outer & inside & (points[:, 1] < body.dome_top(side) + 2.0))
    for run in np.split(points[kept], np.flatnonzero(np.diff(kept) > 1) + 1):
        if len(run) > 3:
            scene.water.append(Tubes.along(scene.projection, run, 0.07, 5.5))


SIGNS: dict[str, Callable[[PhantomScene, Lesion, np.random.Generator], None]] = {
    "Atelectasis": _atelectasis,
    "Cardiomegaly": _cardiomegaly,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Effusion": _effusion,
    "Mass": _mass,
    "Pneumothorax": _pneumothorax,
}
