"""Pictures that the gate must tell from frontal chests, all of them generated: there are no real ones among the data.

`lateral_image` is the phantom's thorax put into voxels and seen from the side: spine behind, breastbone in front, the
heart low and in front, two diaphragms, arms raised. It is no lateral radiograph of a person, and what is measured on it
is an estimate for those. `hand_image`, `skull_image` and `noise_image` are drawings.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from scipy.special import expit

from medsd.studies.phantom import anatomy
from medsd.studies.phantom.anatomy import LEFT, RIGHT, Body, Distortion, build_body, sample_habitus
from medsd.studies.phantom.solids import Solid

Picture = npt.NDArray[np.floating]
Grid = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]
Generator = np.random.Generator

_CELL = 0.6  # cm
_X, _Y, _Z = (np.arange(*span, _CELL, dtype=np.float32) for span in ((-22, 22), (-24, 30), (-24, 24)))
_WATER, _LUNG = 0.205, 0.055  # 1/cm at 60 keV, as in medsd.studies.phantom.image
_DRAWN = 320


def lateral_image(index: int, size: int = 160) -> Picture:
    """A lateral radiograph (size, about size) in 0…1 of patient `index`; build, posture, exposure and framing vary."""
    rng = np.random.default_rng([5, index])
    habitus = sample_habitus(rng)
    body = build_body(habitus, Distortion(heart=rng.uniform(0.9, 1.35), inspiration=rng.uniform(-1, 3)))
    deep = rng.uniform(1.15, 1.5)  # the phantom's own thorax is flat
    y, z, x = np.meshgrid(_Y, _Z, _X, indexing="ij", sparse=True)
    grid = (x, y, z / np.float32(deep))
    trunk = np.zeros((len(_Y), len(_Z), len(_X)), dtype=bool)
    for part in body.trunk:
        if abs(part.centre[0]) < 18:  # the arms are raised
            trunk |= _inside(part, grid)
    density = _WATER * trunk.astype(np.float32)
    _add_arms(density, (x, y, z), body, rng)
    density[_lungs(body, grid, rng)] = _LUNG * rng.uniform(0.9, 1.6)
    _add_bones(density, grid, trunk, body)
    for points in _ribs(body, deep):
        density[points] = _WATER + 0.3 * habitus.bone
    path = density.sum(axis=2) * np.float32(_CELL) + rng.normal(0, 0.03, density.shape[:2]).astype(np.float32)
    outline: npt.NDArray[np.bool_] = np.any(trunk, axis=2)
    return _framed(_developed(path, outline, rng), outline, size, rng)


def _inside(solid: Solid, grid: Grid) -> npt.NDArray[np.bool_]:
    x, y, z = grid
    u, v = x - solid.centre[0], y - solid.centre[1]
    cosine, sine = np.cos(solid.roll), np.sin(solid.roll)
    p, q = (cosine * u + sine * v) / solid.radii[0], (cosine * v - sine * u) / solid.radii[1]
    s = solid.squareness
    outline = (1 - s) * (p**2 + q**2) + s * np.sqrt(p**4 + q**4)
    return np.asarray(outline + ((z - solid.centre[2]) / solid.radii[2]) ** 2 < 1)


def _add_arms(density: Picture, grid: Grid, body: Body, rng: Generator) -> None:
    x, y, z = grid
    height = rng.uniform(-13, -7)
    for side in (RIGHT, LEFT):
        tilt, radius = rng.uniform(0.5, 1.4), 3.6 + 0.4 * body.habitus.fat + rng.uniform(-0.5, 0.8)
        along = z * np.cos(tilt) - (y - height) * np.sin(tilt)
        across = z * np.sin(tilt) + (y - height) * np.cos(tilt)
        off = np.sqrt(across**2 + (x - side * 14.0 * body.habitus.width) ** 2)
        density[(along > -2) & (off < radius)] = _WATER
        density[(along > -2) & (off < 1.2)] = _WATER + 0.2


def _lungs(body: Body, grid: Grid, rng: Generator) -> npt.NDArray[np.bool_]:
    x, y, z = grid
    right, left = (_inside(body.lungs[side], grid) & ~_inside(body.domes[side], grid) for side in (RIGHT, LEFT))
    lungs = right | left
    slim, forward = rng.uniform(0.5, 0.7), rng.uniform(0.5, 1.5)
    for organ in (*body.heart, *body.vessels[1:]):
        a, b, c = organ.radii
        place = (organ.centre[0], organ.centre[1], organ.centre[2] + forward)
        lungs &= ~_inside(replace(organ, centre=place, radii=(a, b, c * slim)), grid)
    lungs &= ~((np.abs(x) < 1.8) & (z < -3.0))
    if rng.random() < 0.25:  # an effusion
        level = body.dome_top(RIGHT) + rng.uniform(-6, 1)
        lungs &= ~((y > level - 0.06 * rng.uniform() * z**2) & (x * rng.choice([-1, 1]) > 0))
    return lungs


def _add_bones(density: Picture, grid: Grid, trunk: npt.NDArray[np.bool_], body: Body) -> None:
    x, y, z = grid
    bone, height = body.habitus.bone, body.habitus.height
    for vertebra in body.spine:
        density[_inside(vertebra, grid)] = _WATER + 0.13 * bone
    processes = (np.abs(x) < 0.5) & (z < -6.5) & (z > -9.0) & (np.mod(y, 2.45) < 1.3) & trunk
    density[processes] = _WATER + 0.15
    sternum = (np.abs(x) < 2.0) & (np.abs(z - 8.4 - 0.06 * y) < 0.6) & (y > -9 * height) & (y < 8 * height)
    density[sternum] = _WATER + 0.16 * bone


def _ribs(body: Body, deep: float) -> list[tuple[Any, ...]]:
    """Voxels of each rib."""
    found = []
    for side in (RIGHT, LEFT):
        for number in range(1, 13):
            points, _ = anatomy.rib(body, number, side)
            fine = np.linspace(0, len(points) - 1, 160)
            px, py, pz = (np.interp(fine, np.arange(len(points)), points[:, axis]) for axis in range(3))
            places = (py, deep * pz, px)
            voxels = [((place - axis[0]) / _CELL).astype(int) for place, axis in zip(places, (_Y, _Z, _X), strict=True)]
            sizes = (len(_Y), len(_Z), len(_X))
            kept = np.all([(v >= 0) & (v < size) for v, size in zip(voxels, sizes, strict=True)], axis=0)
            found.append(tuple(voxel[kept] for voxel in voxels))
    return found


def _developed(path: Picture, inside: npt.NDArray[np.bool_], rng: Generator) -> Picture:
    """Scatter, equalisation and the picture's S-shaped curve."""
    light = np.exp(-path)
    light += rng.uniform(0.02, 0.15) * light[inside].mean()
    density = -np.log(np.maximum(light, 1e-5)).astype(np.float32)
    small = Image.fromarray(density).resize((6, 7), Image.Resampling.BOX)
    slow = np.asarray(small.resize(density.shape[::-1], Image.Resampling.BICUBIC))
    low, high = np.quantile(density[inside], [0.05, 0.92])
    density = density - rng.uniform(0, 0.4) * np.clip(slow - (low + high) / 2, low - high, high - low)
    low, high = np.quantile(density[inside], [rng.uniform(0.02, 0.1), rng.uniform(0.85, 0.97)])
    shown = (density - low) / (high - low) - rng.uniform(0.3, 0.6)
    return np.asarray(expit(rng.uniform(3, 5) * shown), dtype=np.float32)


def _framed(picture: Picture, inside: npt.NDArray[np.bool_], size: int, rng: Generator) -> Picture:
    """Facing either way, collimated, slightly tilted."""
    if rng.random() < 0.5:
        picture, inside = picture[:, ::-1], inside[:, ::-1]
    height, width = picture.shape
    body = np.flatnonzero(inside[height // 2])
    span = body[-1] - body[0]
    room, middle = span / rng.uniform(0.62, 1.02), (body[0] + body[-1]) / 2 + rng.normal(0, 0.04) * span
    top, tall = rng.uniform(0.05, 0.2), rng.uniform(0.68, 0.8)
    left, right = int(max(0, middle - room / 2)), int(min(width, middle + room / 2))
    picture = picture[int(top * height) : int((top + tall) * height), left:right]
    image = Image.fromarray((picture * 255).astype(np.uint8))
    image = image.rotate(float(rng.normal(0, 3)), resample=Image.Resampling.BILINEAR, fillcolor=0)
    columns = max(64, round(size * picture.shape[1] / picture.shape[0]))
    return np.asarray(image.resize((columns, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def hand_image(index: int) -> Picture:
    """A hand with five rays on a dark ground, (320, 320) in 0…1."""
    rng = np.random.default_rng([7, index])
    soft, bone = Image.new("L", (_DRAWN, _DRAWN)), Image.new("L", (_DRAWN, _DRAWN))
    flesh, bones = ImageDraw.Draw(soft), ImageDraw.Draw(bone)
    x, y = _DRAWN / 2 + rng.normal(0, 12), _DRAWN * 0.62 + rng.normal(0, 10)
    palm, side = _DRAWN * rng.uniform(0.17, 0.22), rng.choice([-1, 1])
    flesh.ellipse([x - palm, y - 1.1 * palm, x + palm, y + 1.2 * palm], fill=255)
    flesh.rectangle([x - 0.7 * palm, y, x + 0.7 * palm, _DRAWN], fill=255)
    for shift in (-0.35, 0.3):
        bones.line([(x + shift * palm, y + palm), (x + shift * palm, _DRAWN)], fill=255, width=int(0.35 * palm))
    for degrees, length in ((-55, 1.5), (-18, 2.2), (-4, 2.5), (9, 2.3), (24, 1.8)):
        angle = np.deg2rad(side * degrees + rng.normal(0, 4) - 90)
        reach = 1.15 * palm * length * np.array([np.cos(angle), np.sin(angle)])
        root = np.array([x, y + 0.4 * palm])
        flesh.line([*root, *(root + reach)], fill=255, width=int(0.42 * palm))
        for start, end in ((0.25, 0.52), (0.56, 0.78), (0.81, 0.97)):
            bones.line([*(root + start * reach), *(root + end * reach)], fill=255, width=int(0.17 * palm))
    parts = [np.asarray(p.filter(ImageFilter.GaussianBlur(r)), dtype=np.float32) for p, r in ((soft, 6), (bone, 2))]
    picture = 0.05 + 0.45 * (parts[0] + parts[1]) / 255 + rng.normal(0, 0.02, parts[0].shape)
    return np.clip(picture, 0, 1).astype(np.float32)


def skull_image(index: int) -> Picture:
    """A frontal skull with orbits and jaw on a dark ground, (320, 320) in 0…1."""
    rng = np.random.default_rng([8, index])
    y, x = np.mgrid[0:_DRAWN, 0:_DRAWN] / _DRAWN
    u, v = x - 0.5 - rng.normal(0, 0.02), y - 0.42 - rng.normal(0, 0.02)
    radius = (u / rng.uniform(0.27, 0.34)) ** 2 + (v / rng.uniform(0.33, 0.4)) ** 2
    picture = np.where(radius < 1, 0.55, 0.05) + 0.35 * np.exp(-(((np.sqrt(radius) - 0.95) / 0.05) ** 2))
    for side in (-1, 1):
        picture -= 0.2 * np.exp(-(((u - side * 0.12) / 0.07) ** 2 + ((v - 0.08) / 0.05) ** 2))
    picture -= 0.15 * np.exp(-((u / 0.03) ** 2 + ((v - 0.2) / 0.08) ** 2))
    picture = np.where((np.abs(u) < 0.17) & (v > 0.2) & (v < 0.48), np.maximum(picture, 0.6), picture)
    picture = np.where((np.abs(u) < 0.12) & (v > 0.4), np.maximum(picture, 0.45), picture)
    image = Image.fromarray((np.clip(picture + rng.normal(0, 0.02, picture.shape), 0, 1) * 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(2)).rotate(float(rng.normal(0, 4)))
    return np.asarray(image, dtype=np.float32) / 255


def noise_image(index: int) -> Picture:
    """Noise of one grain between a quarter of the picture and a pixel, (320, 320) in 0…1."""
    rng, grains = np.random.default_rng([9, index]), (4, 8, 16, 32, 64, 320)[index % 6]
    image = Image.fromarray((rng.random((grains, grains)) * 255).astype(np.uint8))
    return np.asarray(image.resize((_DRAWN, _DRAWN), Image.Resampling.BICUBIC), dtype=np.float32) / 255
