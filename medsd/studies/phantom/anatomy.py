"""One patient's thorax as solids and tubes, before any finding is drawn.

Start at `build_body`. Sizes follow adults on a radiograph at 180 cm: inner thorax 26 to 31 cm wide, heart 11 to 14 cm,
ribs 11 mm high.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medsd.studies.phantom.solids import Points, Solid

RIGHT, LEFT = -1, 1  # the patient's sides, as signs of x


@dataclass(frozen=True)
class Habitus:
    """What a patient keeps from image to image; lengths are factors of an average adult's unless a unit is named."""

    sex: str
    age: int
    width: float
    height: float
    fat: float  # cm of soft tissue around the thorax
    breast: float  # cm, 0 in men
    heart: float
    knob: float
    rib_drop: float  # cm that a posterior rib falls on its way to the side
    rib_radius: float  # cm
    dome: tuple[float, float]  # cm, right and left: height of the diaphragm against the average
    scoliosis: float  # cm
    shoulder_drop: float  # cm
    bone: float  # density against a healthy adult's
    vessel_seed: int


def sample_habitus(rng: np.random.Generator) -> Habitus:
    """Draw a patient, 18 to 95 years old."""
    sex = "F" if rng.random() < 0.47 else "M"
    age = int(np.clip(rng.normal(59, 18), 18, 95))
    woman = sex == "F"
    return Habitus(
        sex=sex,
        age=age,
        width=float(np.clip(rng.normal(0.94 if woman else 1.03, 0.05), 0.82, 1.16)),
        height=float(np.clip(rng.normal(0.95 if woman else 1.03, 0.05), 0.82, 1.15)),
        fat=float(np.clip(rng.gamma(4.0, 0.55), 0.8, 5.0)),
        breast=float(rng.uniform(1.2, 4.2)) if woman else 0.0,
        heart=float(np.clip(rng.normal(0.97 + 0.0012 * (age - 50), 0.045), 0.85, 1.07)),
        knob=float(np.clip(rng.normal(0.85 + 0.006 * (age - 40), 0.12), 0.6, 1.4)),
        rib_drop=float(rng.uniform(1.6, 4.2)),
        rib_radius=float(rng.uniform(0.5, 0.62) * (0.94 if woman else 1.04)),
        dome=(float(rng.normal(0, 0.8)), float(rng.normal(0, 0.8))),
        scoliosis=float(rng.normal(0, 0.35)),
        shoulder_drop=float(rng.uniform(-1.5, 2.5)),
        bone=float(np.clip(rng.normal(1.08 - 0.004 * max(age - 50, 0) * (1.5 if woman else 1), 0.1), 0.6, 1.3)),
        vessel_seed=int(rng.integers(2**31)),
    )


@dataclass(frozen=True)
class Distortion:
    """What findings and posture do to the shape of the thorax; cm unless told."""

    heart: float = 1.0  # factor on the heart's width
    lift: tuple[float, float] = (0.0, 0.0)  # the right and the left dome stand higher
    pull: float = 0.0  # the mediastinum lies towards the patient's left
    inspiration: float = 0.0  # both domes stand higher for want of a deep breath
    lordotic: float = 0.0  # what lies in front is thrown upwards


@dataclass(frozen=True)
class Body:
    """Solids of one image, in patient coordinates (cm)."""

    habitus: Habitus
    distortion: Distortion
    trunk: tuple[Solid, ...]
    lungs: dict[int, Solid]
    domes: dict[int, Solid]
    heart: tuple[Solid, ...]
    vessels: tuple[Solid, ...]  # aorta, pulmonary trunk, vena cava, mediastinum
    spine: tuple[Solid, ...]
    extra: tuple[tuple[Solid, float], ...]  # soft tissue laid over the rest, with a factor

    def dome_top(self, side: int) -> float:
        """y in cm of the highest point of the diaphragm on `side`."""
        dome = self.domes[side]
        return dome.centre[1] - dome.radii[1]

    def wall(self, side: int, y: float | Points) -> Points:
        """x in cm of the chest wall's inner side at the heights `y`."""
        heights, reach = self._walls[side]
        return np.interp(np.asarray(y, dtype=np.float64), heights, reach)

    @cached_property
    def _walls(self) -> dict[int, tuple[Points, Points]]:
        walls = {}
        for side, lung in self.lungs.items():
            border = lung.border()
            ends = border[[int(np.argmin(border[:, 1])), int(np.argmax(border[:, 1]))]]  # the highest, the lowest point
            middle = np.interp(border[:, 1], ends[:, 1], ends[:, 0])
            outer = border[side * (border[:, 0] - middle) >= 0]
            order = np.argsort(outer[:, 1])
            walls[side] = (outer[order, 1], outer[order, 0])
        return walls


def build_body(habitus: Habitus, distortion: Distortion) -> Body:
    w, h = habitus.width, habitus.height
    up = distortion.lordotic
    lungs = {
        side: Solid((side * 7.35 * w, 8.2 * h, 0.0), (7.8 * w, 21.2 * h, 8.6), side * -0.095, 0.24)
        for side in (RIGHT, LEFT)
    }
    tops = {side: (side * 7.2 * w, _dome_top(habitus, distortion, side) + 9.5, 0.5) for side in (RIGHT, LEFT)}
    domes = {side: Solid(top, (9.8 * w, 9.5, 12.0), side * 0.06) for side, top in tops.items()}
    heart, vessels = _heart(habitus, distortion, up), _great_vessels(habitus, distortion)
    extra = _soft_tissue(habitus, up)
    return Body(habitus, distortion, _trunk(habitus), lungs, domes, heart, vessels, _spine(habitus), extra)


def _dome_top(habitus: Habitus, distortion: Distortion, side: int) -> float:
    """y in cm of the highest point of the diaphragm; the left dome stands a finger lower."""
    which, level = (0, 10.4) if side == RIGHT else (1, 11.6)
    return level * habitus.height - distortion.lift[which] - habitus.dome[which] - distortion.inspiration


def _trunk(habitus: Habitus) -> tuple[Solid, ...]:
    w, h, fat, drop = habitus.width, habitus.height, habitus.fat, habitus.shoulder_drop
    arm = (4.0 + 0.45 * fat, 15.0, 4.6 + 0.3 * fat)
    side_parts = [
        part
        for s in (RIGHT, LEFT)
        for part in (
            Solid((s * 11.5 * w, -9.0 * h + drop, -1.0), (9.5 * w, 5.4 + 0.3 * fat, 4.6 + 0.3 * fat), s * 0.32),
            Solid((s * (20.2 * w + 0.75 * fat), 3.0 * h + drop, -1.0), arm, s * -0.14),
            Solid((s * 7.0 * w, -13.5 * h + 0.5 * drop, -1.5), (8.0, 4.4 + 0.2 * fat, 4.6), s * 0.55),  # trapezius
        )
    ]
    return (
        Solid((0, 11.0 * h, 0), (16.1 * w + fat, 29.0 * h, 10.4 + 0.5 * fat), 0, 0.45),
        Solid((0, 30.0 * h, 0.5), (14.8 * w + fat, 22.0 * h, 11.2 + 0.6 * fat), 0, 0.5),  # abdomen
        Solid((0, -20.0 * h, -1.0), (5.4 + 0.2 * fat, 14.0, 5.8 + 0.2 * fat), 0, 0.3),
        *side_parts,
    )


def _heart(habitus: Habitus, distortion: Distortion, up: float) -> tuple[Solid, ...]:
    k, pull = habitus.heart * distortion.heart, distortion.pull
    tall = 1 + 0.6 * (k - 1)  # a large heart widens more than it rises
    # The heart rests on the left dome; 5.9 cm is half the height of its tilted outline.
    base = _dome_top(habitus, distortion, LEFT) + 1.2 - 5.9 * tall - 0.4 * up
    return (
        # Left ventricle: the long axis runs down and to the left.
        Solid((1.9 * k + pull, base, 2.2), (7.4 * k, 5.0 * tall, 6.6), 0.62, 0.15),
        # Right atrium: the border right of the spine.
        Solid((-1.0 * k + pull, base + 0.5, 1.5), (3.5 * k, 4.7 * tall, 6.0), 0.10, 0.1),
        # Left atrium and its appendage, the waist below the pulmonary trunk.
        Solid((1.2 * k + pull, base - 4.4 * tall, 0.5), (3.1 * k, 3.8 * tall, 5.5), -0.25, 0.1),
        # Apical fat between the heart and the diaphragm.
        Solid((3.4 * k + pull, base + 5.6 * tall, 3.0), (4.2 * k, 2.0, 6.0), -0.1, 0.1),
    )


def _great_vessels(habitus: Habitus, distortion: Distortion) -> tuple[Solid, ...]:
    h, pull, knob = habitus.height, distortion.pull, habitus.knob
    return (
        Solid((0.0 + 0.85 * pull, 0.0, 0.0), (2.05, 26.0 * h, 9.5), 0.0, 0.4),  # what lies before and beside the spine
        Solid((-1.7 + pull, -4.6 * h, 1.0), (1.55, 8.5, 5.0), 0.05, 0.3),  # superior vena cava
        Solid((1.7 + pull, -8.5 * h, 1.0), (1.3, 6.0, 5.0), 0.16, 0.2),  # left subclavian artery
        Solid((-2.1 + pull, -10.0 * h, 1.0), (1.4, 5.0, 5.0), -0.2, 0.2),  # right brachiocephalic vein
        Solid((1.7 + pull, -3.0 * h, -0.8), (1.95 * knob, 2.1 * knob, 6.2), 0.0, 0.2),  # aortic knob
        Solid((1.6 + 0.8 * pull, 0.9 * h, 0.8), (2.2, 2.9, 5.6), 0.2, 0.0),  # pulmonary trunk
        Solid((-1.0 + pull, -0.5, 3.0), (1.9 + 0.45 * knob, 5.2, 5.0), 0.1, 0.2),  # ascending aorta
    )


def descending_aorta(body: Body) -> tuple[Points, Points]:
    """Centre line (N, 3) and radius (N,) in cm: left of the spine from the knob to the diaphragm."""
    t = np.linspace(0, 1, 12)
    pull, knob = body.distortion.pull, body.habitus.knob
    x = 2.3 * knob + 0.6 * pull - 2.0 * t**1.6 + 0.3 * body.habitus.scoliosis
    line = np.stack([x, -3 * body.habitus.height + 20 * t, np.full_like(t, -4.5)], axis=1)
    return line, np.full_like(t, 1.0 + 0.3 * knob)


def _spine(habitus: Habitus) -> tuple[Solid, ...]:
    levels = np.arange(-9, 12)
    return tuple(
        Solid(
            (habitus.scoliosis * float(np.sin(0.16 * k)), (2.45 + 0.02 * k) * k * habitus.height, -5.0),
            (1.55 + 0.025 * (k + 9), 1.06 * habitus.height, 1.9),
            0.02 * habitus.scoliosis * k,
            0.9,
        )
        for k in levels.tolist()
    )


def _soft_tissue(habitus: Habitus, up: float) -> tuple[tuple[Solid, float], ...]:
    w, h = habitus.width, habitus.height
    if not habitus.breast:  # the pectoral folds
        return tuple(
            (Solid((s * 9.5 * w, -2.5 * h - up, 8.0), (6.0 * w, 6.5, 0.55), s * -0.5, 0.2), 1.0) for s in (RIGHT, LEFT)
        )
    b = habitus.breast
    x, y, radii = 8.0 * w + 0.3 * b, 7.2 * h + 1.2 * b - up, (4.6 + 0.8 * b, 3.6 + 1.0 * b, 1.1 * b)
    return tuple((Solid((s * x, y, 9.0), radii, s * 0.25, 0.2), 1.0) for s in (RIGHT, LEFT))


def rib(body: Body, number: int, side: int) -> tuple[Points, Points]:
    """Centre line (N, 3) and radius (N,) in cm of the bony rib `number` (1…12) on `side`, back to front."""
    habitus = body.habitus
    h = habitus.height
    root = (-11.2 + 2.26 * (number - 1)) * h
    first = number == 1
    drop = habitus.rib_drop * (0.5 if first else 0.8 if number == 2 else 1.0) + 0.05 * number
    reach = 0.80 if first else 0.84 if number < 10 else (0.7, 0.5, 0.36)[number - 10]
    angle = np.linspace(0.08, np.pi * reach, 22)
    half = max(abs(float(body.wall(side, root + 0.8 * drop))), 6.4 * habitus.width) + 0.2
    # From the transverse process out to the side and round to the cartilage, which the image does not show.
    turn = angle / np.pi
    x = side * (1.6 + (half - 1.6) * np.sin(angle) ** (0.8 if number < 11 else 1.0))
    z = -7.6 * np.cos(angle) * (0.6 if first else 1.0)
    fall = (3.4 + 0.5 * min(number, 8)) * (0.55 if first else 1.0)
    y = root - 0.5 * np.sin(np.pi * np.clip(turn / 0.4, 0, 1)) + drop * np.clip(turn / 0.5, 0, 1) ** 1.5
    y = y + fall * h * np.clip((turn - 0.38) / 0.62, 0, 1) ** 1.2
    y = y - body.distortion.lordotic * np.clip(z / 7.6, -0.3, 1)
    radius = habitus.rib_radius * (0.82 + 0.25 * np.clip(turn / 0.4, 0, 1)) * (0.95 if first else 1.05)
    return np.stack([x, y, z], axis=1), radius


def clavicle(body: Body, side: int) -> tuple[Points, Points]:
    """Centre line (N, 3) and radius (N,) in cm of the collar bone, from the breastbone outwards."""
    habitus = body.habitus
    t = np.linspace(0, 1, 14)
    x = side * (1.9 + 13.8 * habitus.width * t)
    y = -8.6 * habitus.height - 2.4 * t + (habitus.shoulder_drop + 0.4) * t + 0.9 * np.sin(2 * np.pi * t)
    y = y - body.distortion.lordotic
    z = 7.0 - 6.0 * t
    radius = 0.60 + 0.28 * np.abs(2 * t - 1) ** 3
    return np.stack([x, y, z], axis=1), radius * (0.9 if habitus.sex == "F" else 1.02)


def humerus(body: Body, side: int) -> tuple[Points, Points]:
    """Centre line (N, 3) and radius (N,) in cm of the upper arm's shaft."""
    habitus = body.habitus
    t = np.linspace(0.0, 1, 8)
    x = side * (17.2 * habitus.width + 0.3 * habitus.fat + 3.6 * t)
    y = -6.6 * habitus.height + habitus.shoulder_drop + 24 * t
    return np.stack([x, y, np.full_like(t, -1.0)], axis=1), 1.15 + 0.55 * (1 - t) ** 6


def scapula(body: Body, side: int, *, retracted: float) -> tuple[list[Solid], list[tuple[Points, float]]]:
    """The blade as thin solids and its borders as tubes with their radius; `retracted` in cm moves it off the lungs."""
    habitus = body.habitus
    x0, y0 = side * (11.6 * habitus.width + retracted), -4.0 * habitus.height + habitus.shoulder_drop
    blade = Solid((x0, y0, -8.0), (3.3, 7.2, 0.32), side * 0.28, 0.1)
    glenoid = Solid((x0 + side * 3.9, y0 - 4.0, -5.0), (1.0, 1.9, 1.0), side * -0.1)
    head = Solid((side * (17.0 * habitus.width + 0.3 * habitus.fat), y0 - 4.2, -1.5), (2.25, 2.35, 2.2))
    tip, angle = (x0 - side * 0.7, y0 + 7.3), (x0 - side * 1.2, y0 - 6.6)
    below_glenoid, upper = [x0 + side * 3.6, y0 - 3.2, -7], [x0 + side * 2.4, y0 + 2, -8]
    lateral = np.array([below_glenoid, upper, [tip[0] + side * 0.4, tip[1] - 0.6, -8], [*tip, -8]])
    medial = np.array([[*tip, -8], [x0 - side * 3.2, y0 + 1.5, -8], [x0 - side * 3.2, y0 - 4, -8], [*angle, -8]])
    medial_end, middle = [x0 - side * 3.0, y0 - 2.6, -8], [x0 + side * 1.0, y0 - 5.2, -8]
    spine = np.array([medial_end, middle, [x0 + side * 4.2, y0 - 6.6, -6]])
    acromion = np.array([[x0 + side * 3.2, y0 - 6.3, -6], [x0 + side * 5.6, y0 - 6.9, -3]])
    return [blade, glenoid, head], [(lateral, 0.42), (medial, 0.2), (spine, 0.42), (acromion, 0.4)]
