"""Support devices as they lie on an image: leads, pacemaker, lines, port, tracheal and gastric tubes, drain, wires."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from medsd.studies.phantom.anatomy import Points
from medsd.studies.phantom.disease import Lesion
from medsd.studies.phantom.lungs import lung_point
from medsd.studies.phantom.signs import PhantomScene
from medsd.studies.phantom.solids import Tubes

METAL, PLASTIC, STRIPE = 9.0, 0.45, 3.2  # attenuation in 1/cm, of metal in a form thin enough to let some light through


def _curve(knots: Sequence[Sequence[float]], steps: int = 40) -> Points:
    """A smooth curve (steps, 3) through `knots` in cm (Catmull-Rom)."""
    k = np.asarray(knots, dtype=np.float64)
    k = np.vstack([2 * k[0] - k[1], k, 2 * k[-1] - k[-2]])
    t = np.linspace(0, len(k) - 3 - 1e-9, steps)
    i = t.astype(int)
    f = (t - i)[:, None]
    a, b, c, d = k[i], k[i + 1], k[i + 2], k[i + 3]
    return 0.5 * (2 * b + (c - a) * f + (2 * a - 5 * b + 4 * c - d) * f**2 + (3 * b - 3 * c + d - a) * f**3)


def _lay(scene: PhantomScene, points: Points, radius: npt.ArrayLike, density: float, core: float = 0.0) -> None:
    scene.devices.append((Tubes.along(scene.projection, points, radius), density, core))
    scene.note_points("Support Devices", scene.projection.points(points))


def _line(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """Central venous line from the neck or from under the collar bone to the lower vena cava superior."""
    h, pull, side = scene.body.habitus.height, scene.body.distortion.pull, lesion.side
    tip = [-2.1 + pull, rng.uniform(0.5, 4.5), 1]
    if rng.random() < 0.5:
        knots = [[side * 5.5, -19 * h, 2], [side * 4.2, -14 * h, 2], [side * 2.6, -9.5 * h, 2]]
    else:
        knots = [[side * 11, -5 * h, 6], [side * 8, -8.2 * h, 5], [side * 4, -8.8 * h, 3]]
    if side > 0:
        knots += [[1.0 + pull, -7 * h, 2]]
    _lay(scene, _curve([*knots, [-2.2 + pull, -5 * h, 1], tip]), 0.11, STRIPE)


def _port(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """A chamber under the skin of the chest with a line to the vena cava."""
    h, pull, side = scene.body.habitus.height, scene.body.distortion.pull, lesion.side
    x, y = side * rng.uniform(8, 9.5), rng.uniform(-4.5, -2.5) * h
    ring = np.linspace(0, 2 * np.pi, 25)
    _lay(scene, np.stack([x + 1.0 * np.cos(ring), y + 1.15 * np.sin(ring), 9 + 0 * ring], axis=1), 0.22, 3.0)
    scene.plates.append((np.array([x, y, 9.0, 0.9, 1.0]), 0.5))
    middle = [[1.0 + pull, -7 * h, 2]] if side > 0 else []
    knots = [[x, y, 9], [side * 8.3, -6.5 * h, 7], [side * 5.5, -9.4 * h, 4], [side * 3, -8.6 * h, 2], *middle]
    knots += [[-2.2 + pull, -4 * h, 1], [-2.1 + pull, rng.uniform(1, 4), 1]]
    _lay(scene, _curve(knots, 50), 0.1, STRIPE)


def _pacemaker(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """A can below the collar bone, leads to the right ventricle and, in most, to the right atrium."""
    h, pull, side = scene.body.habitus.height, scene.body.distortion.pull, lesion.side
    heart = scene.body.heart[0]
    x, y = side * rng.uniform(9, 10.5), rng.uniform(-6, -3.5) * h
    scene.plates.append((np.array([x, y, 9.0, rng.uniform(2.0, 2.5), rng.uniform(1.8, 2.3)]), 3.2))
    scene.note_points("Support Devices", scene.projection.points([[x - 2, y - 2, 9], [x + 2, y + 2, 9]]))
    entry = [[x - side * 1.6, y - 1.2, 8], [side * 6.5, -8.3 * h, 5], [side * 3, -8.2 * h, 3]]
    entry += [[0.8 + pull, -6.8 * h, 2]] if side > 0 else []
    cava = [[-2.1 + pull, -4 * h, 1], [-2.6 + pull, 2.5, 2]]
    apex = [heart.centre[0] + 4.0, heart.centre[1] + 3.4, 4]
    chambers = [[-1.8 + pull, heart.centre[1] + 1, 3], [0.8 + pull, heart.centre[1] + 3.4, 4]]
    _lay(scene, _curve([*entry, *cava, *chambers, apex], 60), 0.085, METAL)
    _lay(scene, np.array([apex, [apex[0] + 0.9, apex[1] + 0.15, 4]]), 0.14, METAL)
    if rng.random() < 0.7:
        hook = [[-2.4 + pull, heart.centre[1] - 1.6, 3], [-1.4 + pull, heart.centre[1] - 2.2, 4]]
        _lay(scene, _curve([*entry, *cava, *hook], 50), 0.085, METAL)


def _tracheal_tube(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """A wide tube in the windpipe with an opaque stripe, its tip some cm above the carina."""
    tip, pull = -rng.uniform(1.8, 6.5), scene.body.distortion.pull
    path = _curve([[0.3, -21, 0], [0.2, -14, 0], [0.1 + 0.4 * pull, -8, 0], [-0.1 + 0.6 * pull, tip, 0]])
    _lay(scene, path, 0.46, PLASTIC, 0.72)
    _lay(scene, path + np.array([0.3, 0, 0]), 0.07, 2 * STRIPE)


def _gastric_tube(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """A thin tube down the gullet through the diaphragm into the stomach."""
    pull = scene.body.distortion.pull
    gullet = [[-0.5, -21, -2], [-0.3, -8, -3], [0.4 + 0.6 * pull, 2, -3], [1.0 + 0.6 * pull, 10, -2]]
    stomach = [[3.2, 15.5, 0], [6.0, 19.0, 2], [5.2, 24, 3]]
    _lay(scene, _curve(gullet + stomach, 50), 0.12, STRIPE)


def _drain(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """A chest tube from the side wall up towards the apex, with its opaque line."""
    side, body = lesion.side, scene.body
    enter = rng.uniform(3, 8)
    wall = float(body.wall(side, enter))
    inner = [lung_point(body, side, s, t) for s, t in ((0.75, 0.52), (0.55, 0.3), (0.45, rng.uniform(0.1, 0.22)))]
    path = _curve([[wall + side * 5.0, enter + 4.5, 1], [wall + side * 0.3, enter + 0.8, 1], *inner], 50)
    _lay(scene, path, 0.36, PLASTIC, 0.65)
    _lay(scene, path + np.array([side * 0.2, 0, 0]), 0.07, 2 * STRIPE)


def _leads(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """Three or more stick-on electrodes and their wires, which leave over the shoulders or the flank."""
    w, h = scene.body.habitus.width, scene.body.habitus.height
    spots = [(-9.5 * w, -7 * h), (9.5 * w, -7 * h), (11.5 * w, 11 * h), (-11 * w, 11 * h), (2.0, 2.0)]
    away = [(-8, -24), (9, -24), (22, 22), (-22, 18), (7, -24)]
    for n in range(int(rng.integers(3, 6))):
        x, y = np.array(spots[n]) + rng.normal(0, 1.1, 2)
        scene.plates.append((np.array([x, y, 10.5, 0.5, 0.5]), 1.6))
        scene.plates.append((np.array([x, y, 10.5, 1.15, 1.15]), 0.22))
        middle = (np.array([x, y]) + away[n]) / 2 + rng.normal(0, 2.0, 2)
        _lay(scene, _curve([[x, y, 11], [*middle, 11], [*away[n], 11]]), 0.075, 0.6 * METAL)


def _wires(scene: PhantomScene, lesion: Lesion, rng: np.random.Generator) -> None:
    """Sternal wires after open heart surgery: a row of twisted loops in the midline."""
    turn = np.linspace(0, 2 * np.pi, 19)
    for n in range(int(rng.integers(5, 8))):
        y = -6.0 + 2.7 * n + rng.normal(0, 0.2)
        x = rng.normal(0, 0.15)
        loop = np.stack([x + 1.15 * np.cos(turn), y + 0.5 * np.sin(turn) + 0.15 * np.cos(turn), 8.5 + 0 * turn], axis=1)
        _lay(scene, loop, 0.06, METAL)
        _lay(scene, np.array([[x, y + 0.4, 8.5], [x + rng.normal(0, 0.2), y + 1.0, 8.5]]), 0.1, METAL)


DEVICES: dict[str, Callable[[PhantomScene, Lesion, np.random.Generator], None]] = {
    "line": _line,
    "port": _port,
    "pacemaker": _pacemaker,
    "tracheal tube": _tracheal_tube,
    "gastric tube": _gastric_tube,
    "drain": _drain,
    "leads": _leads,
    "wires": _wires,
}
