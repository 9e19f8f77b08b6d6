"""From a body and its lesions to an image: attenuation along each ray, scatter, quantum noise, development.

Beer and Lambert: a ray that crosses tissues of attenuation μ over lengths t leaves exp(−Σ μ t) of itself. The
coefficients are those near 60 keV, the effective energy of a chest image at 120 kV (NIST XCOM), rounded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from medsd.studies.phantom import anatomy, devices, signs
from medsd.studies.phantom.anatomy import LEFT, RIGHT, Body
from medsd.studies.phantom.disease import Condition
from medsd.studies.phantom.lungs import hilum, smooth_noise, vessel_tree, view_lungs
from medsd.studies.phantom.signs import PhantomScene
from medsd.studies.phantom.solids import Array, Projection, Solid, Tubes, tube_paths

WATER, LUNG, CORTEX = 0.205, 0.055, 0.55  # 1/cm; bone as the excess over water
Stream = Callable[[str], np.random.Generator]


@dataclass(frozen=True)
class Exposure:
    """How the image was taken and developed."""

    photons: float  # quanta a pixel of a 320-pixel image where nothing stands in the way
    scatter: float  # scattered over primary light
    equalise: float  # share of the slow changes of density that development keeps
    detail: float  # gain on fine structure
    centre: float  # of the S-shaped curve from density to brightness
    contrast: float
    marker: str  # "L", "R" or "" (burned in)
    collimation: list[float]  # cm of unexposed border at the left, top, right and bottom


def sample_projection(rng: np.random.Generator, body: Body, *, bedside: bool, size: int) -> Projection:
    """Draw how the patient stands: PA at 180 cm from the image, or AP at 100 to 130 cm at the bedside."""
    width = 42.0 * (0.45 + 0.55 * body.habitus.width) + 0.4 * body.habitus.fat
    field = width * rng.uniform(0.99, 1.12) if bedside else width * rng.uniform(0.93, 1.04)
    distance = float(rng.uniform(100, 130)) if bedside else 180.0
    spread, (down, spread_down), turn = (1.0, (-2.5, 1.2), 0.035) if bedside else (0.6, (-2.8, 0.9), 0.014)
    shift = float(rng.normal(0, spread)), float(rng.normal(down, spread_down))
    return Projection(size, field, "AP" if bedside else "PA", distance, shift, roll=float(rng.normal(0, turn)))


def sample_exposure(rng: np.random.Generator, *, bedside: bool) -> Exposure:
    """Draw kilovolts, grid, development and markers."""
    borders = rng.uniform(0.2, 2.2, 4) * (rng.random(4) < (0.3 if bedside else 0.12))
    return Exposure(
        photons=float(np.exp(rng.uniform(np.log(1.2e4), np.log(9e4)))) * (0.6 if bedside else 1.0),
        scatter=float(rng.uniform(0.05, 0.12) if bedside else rng.uniform(0.02, 0.06)),
        equalise=float(rng.uniform(0.72, 0.95)),
        detail=float(rng.uniform(0.25, 0.9)),
        centre=float(np.clip(rng.normal(0.24, 0.10), 0.0, 0.45)),
        contrast=float(rng.uniform(3.2, 4.8)),
        marker=str(rng.choice(["L", "R", ""], p=[0.5, 0.25, 0.25])),
        collimation=borders.tolist(),
    )


def draw_scene(body: Body, projection: Projection, condition: Condition) -> PhantomScene:
    """Lay all lesions of `condition` over the lungs of `body`."""
    free_air = frozenset(item.side for item in condition.lesions if item.finding == "Pneumothorax")
    scene = PhantomScene(projection, body, view_lungs(body, projection), open_sides=free_air)
    for lesion in condition.lesions:
        if lesion.finding == "Support Devices":
            devices.DEVICES[lesion.kind](scene, lesion, np.random.default_rng([lesion.seed, 13]))
        else:
            signs.SIGNS[lesion.finding](scene, lesion, np.random.default_rng([lesion.seed, 11]))
    return scene


def attenuation(scene: PhantomScene, condition: Condition, stream: Stream) -> Array:
    """Σ μ t of every ray, float32 (H, W)."""
    wet = max((item.severity for item in condition.lesions if item.finding == "Edema"), default=0.0)
    projection, body = scene.projection, scene.body
    total = np.float32(WATER) * _soft_tissue(scene)
    tree = vessel_tree(body, projection, upper=1.0 + 0.55 * bool(wet) + 0.3 * wet, wet=1.0 + 0.15 * wet)
    vessels = tube_paths(projection, tree)
    vessels += 0.8 * tube_paths(projection, Tubes.along(projection, *anatomy.descending_aorta(body)))
    if scene.water:
        vessels = vessels + tube_paths(projection, Tubes.join(scene.water))
    for view in scene.views.values():
        _add_lung(total, scene, view, vessels, stream(f"texture {view.side}"))
    total += _airways(scene)
    total += _bones(scene, stream("bones"))
    _add_devices(total, scene)
    return np.maximum(total, 0)


def _soft_tissue(scene: PhantomScene) -> Array:
    """cm of soft tissue as if there were no air: the trunk's parts melt into each other."""
    projection, body = scene.projection, scene.body
    fourth = np.zeros((projection.size, projection.size), dtype=np.float32)
    for part in body.trunk:
        solid, window, u, v = projection.place(part)
        half = solid.half_depth(u, v)
        half *= half
        half *= half
        fourth[window] += half
    total = 2 * np.sqrt(np.sqrt(fourth))
    for part, share in body.extra:
        solid, window, u, v = projection.place(part)
        total[window] += np.float32(share) * solid.half_depth(u, v)
    return total


def _add_lung(
    total: Array, scene: PhantomScene, view: signs.LungView, vessels: Array, rng: np.random.Generator
) -> None:
    """Put air, its vessels and what disease made of it in the place of soft tissue."""
    texture = 1 + 0.035 * smooth_noise(rng, scene.projection, view.window, 0.35)
    texture += 0.04 * smooth_noise(rng, scene.projection, view.window, 1.6)
    aerated = np.float32(LUNG) * texture * (1 - view.gas)
    tissue = aerated + (np.float32(WATER) - aerated) * view.filled
    total[view.window] += (tissue - np.float32(WATER)) * view.air
    scene.excess[view.window] += (tissue - np.float32(LUNG)) * view.air
    # Vessels show against air only: fluid and the heart in front drown them, free gas has none.
    seen = np.minimum(view.air / np.maximum(0.5 * view.depth, 1.0), 1) ** 3 * (1 - view.filled) * (1 - view.gas)
    total[view.window] += np.float32(WATER - LUNG) * vessels[view.window] * seen


def _airways(scene: PhantomScene) -> Array:
    """Windpipe and main bronchi, the stomach's bubble, air in bronchi within consolidation; all negative."""
    projection, body = scene.projection, scene.body
    pull, h = body.distortion.pull, body.habitus.height
    carina = [0.75 * pull, -0.9, -0.5]
    trachea = [[0, -22, 0.5], [0, -13 * h, 0.5], [0.5 * pull - 0.2, -6 * h, 0], carina]
    tubes = [Tubes.along(projection, trachea, [0.9, 0.9, 0.85, 0.7], [1.3, 1.3, 1.3, 0.8])]
    for side in (RIGHT, LEFT):
        end = hilum(body, side)
        x, y = carina[0] + side * 0.15, carina[1]
        bronchus = [[x, y - 0.9], [x + side * 0.35, y], [(x + end[0]) / 2, (y + end[1]) / 2], [*end[:2]]]
        bronchus = [[*point, -0.5] for point in bronchus]
        tubes.append(Tubes.along(projection, bronchus, [0.5, 0.62, 0.58, 0.45], [0.3, 0.9, 1.2, 0.9]))
    path = tube_paths(projection, Tubes.join(tubes))
    if scene.air:
        path = path + 0.8 * tube_paths(projection, Tubes.join(scene.air))
    middle = (5.6 * body.habitus.width, body.dome_top(LEFT) + 3.0, 2.0)
    bubble, window, u, v = projection.place(Solid(middle, (2.9, 1.5, 2.4 + body.habitus.dome[1] * 0.5), 0.15, 0.1))
    path[window] += 1.2 * bubble.half_depth(u, v)
    return np.float32(-WATER) * path


def _bones(scene: PhantomScene, rng: np.random.Generator) -> Array:
    """Excess attenuation of bone over the soft tissue in its place."""
    body, projection = scene.body, scene.projection
    cage = []
    for side in (RIGHT, LEFT):
        for number in range(1, 13):
            points, radius = anatomy.rib(body, number, side)
            weight = (0.62 if number < 9 else 0.4) * _fading(len(radius), 5)
            cage.append(Tubes.along(projection, points, radius, weight, longest=1.25))
        cage.append(Tubes.along(projection, *anatomy.clavicle(body, side), 0.72 - 0.45 * np.linspace(-1, 1, 14) ** 4))
        cage.append(Tubes.along(projection, *anatomy.humerus(body, side), 0.75 * _fading(8, 4)[::-1]))
    retracted = abs(rng.normal(1.6, 0.8)) if projection.view == "PA" else abs(rng.normal(0.2, 0.4))
    plates: list[tuple[Solid, float]] = [(vertebra, 0.05) for vertebra in body.spine]
    for side in (RIGHT, LEFT):
        blades, borders = anatomy.scapula(body, side, retracted=retracted)
        cage += [Tubes.along(projection, points, radius, 0.9) for points, radius in borders]
        plates += [(blades[0], 0.35), (blades[1], 0.16), (blades[2], 0.12)]
    total = np.float32(CORTEX) * tube_paths(projection, Tubes.join(cage), core=0.76, hollow=0.72)
    for plate, density in plates:
        solid, window, u, v = projection.place(plate)
        inside = np.clip(1 - solid.outline(u, v), 0, 1)
        # Cortex makes the rim as bright as the middle: √ for the sphere's chord, and a shell that saturates at once.
        shell = np.minimum(inside * 6, 1)
        total[window] += np.float32(density * plate.radii[2]) * (0.9 * np.sqrt(inside) + 0.7 * shell)
    return total * np.float32(body.habitus.bone)


def _fading(steps: int, last: int) -> npt.NDArray[np.float64]:
    """1 along a tube, falling towards nothing over its `last` points."""
    return np.minimum(1.0, np.arange(steps, 0, -1) / last)


def _add_devices(total: Array, scene: PhantomScene) -> None:
    projection = scene.projection
    for tubes, density, core in scene.devices:
        total += np.float32(density) * tube_paths(projection, tubes, core=core)
    for (x, y, z, a, b), density in scene.plates:
        solid, window, u, v = projection.place(Solid((x, y, z), (a, b, 1.0), 0.0, 0.35))
        inside = np.clip(1 - solid.outline(u, v), 0, 1)
        total[window] += np.float32(density) * np.minimum(inside * 5, 1)


def blur(image: Array, cells: int) -> Array:
    """`image` smoothed over about `cells` pixels, by averaging down and interpolating up."""
    size = image.shape[0]
    small = max(size // cells, 4)
    reduced = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
    return np.asarray(reduced.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def develop(scene: PhantomScene, total: Array, exposure: Exposure, rng: np.random.Generator) -> Array:
    """The image (H, W) in 0…1, bright where little light came through, from Σ μ t."""
    projection = scene.projection
    size, cm = projection.size, 1 / projection.pixel
    light = np.exp(-total)
    light += np.float32(exposure.scatter) * np.maximum(blur(light, round(3.0 * cm)), 0)
    quanta = np.float32(exposure.photons * (320 / size) ** 2) * light
    noise = rng.standard_normal((size, size), dtype=np.float32)
    density = -np.log(np.maximum(light * (1 + noise / np.sqrt(quanta + 1)), np.float32(1e-5)))
    slow = blur(density, round(9.0 * cm))
    density = density + np.float32(exposure.detail) * (density - blur(density, max(round(0.7 * cm), 2)))
    low, high = _levels(scene, density)
    density = density - np.float32(1 - exposure.equalise) * np.clip(slow - (low + high) / 2, low - high, high - low)
    low, high = _levels(scene, density)
    shown = (density - low) / max(1.12 * (high - low), 0.3) - np.float32(exposure.centre)
    image = (1 + np.tanh(np.float32(exposure.contrast / 2) * shown)) / 2  # a sigmoid that cannot overflow
    floor = (1 - math.tanh(exposure.contrast * 1.1 / 2)) / 2
    image = np.clip((image - floor) / (1 - 1.4 * floor), 0, 1).astype(np.float32)
    left, top, right, bottom = (round(border / projection.pixel) for border in exposure.collimation)
    image[:top], image[size - bottom :], image[:, :left], image[:, size - right :] = 0.02, 0.02, 0.02, 0.02
    _mark(image, projection, exposure.marker)
    return image


def _levels(scene: PhantomScene, density: Array) -> tuple[float, float]:
    """Densities of clear lung and of the mediastinum, which development spreads over the image's range.

    They are those of the patient without the disease: one exposes for the chest, and a white lung stays white.
    """
    size = scene.projection.size
    density = density - scene.excess
    middle = density[size // 5 : -size // 6 : 3, size // 5 : -size // 5 : 3]
    low, high = np.quantile(middle, [0.04, 0.97])
    return float(low), float(high)


_LETTERS = {  # x0, y0, x1, y1 of each stroke
    "L": [(0.2, 0.0, 0.2, 1.0), (0.2, 1.0, 0.8, 1.0)],
    "R": [
        (0.2, 0.0, 0.2, 1.0), (0.2, 0.0, 0.7, 0.05), (0.7, 0.05, 0.75, 0.4), (0.75, 0.4, 0.2, 0.5),
        (0.45, 0.5, 0.8, 1.0),
    ],
}  # fmt: skip


def _mark(image: Array, projection: Projection, marker: str) -> None:
    """Burn the side's letter into the upper corner of that side."""
    if not marker:
        return
    cm = 1 / projection.pixel
    scale = 4
    side = round(1.7 * cm)
    picture = Image.new("L", (side * scale, side * scale))
    draw = ImageDraw.Draw(picture)
    for stroke in _LETTERS[marker]:
        line = [(x * 0.8 + 0.1) * side * scale for x in stroke]
        draw.line(line, fill=255, width=max(round(0.22 * cm * scale), 1))
    letter = np.asarray(picture.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255
    row = round(0.07 * projection.size)
    column = round((0.90 if marker == "L" else 0.06) * projection.size)
    place = image[row : row + side, column : column + side]
    np.maximum(place, 0.97 * letter[: place.shape[0], : place.shape[1]], out=place)
