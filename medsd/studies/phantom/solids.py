"""Closed-form path lengths of X-rays through simple solids: the geometry beneath the synthetic thorax.

Start at `Projection`, which carries solids and tubes of the patient onto the image; `Solid.half_depth` and `tube_paths`
then give the length of tissue that each pixel's ray crosses. Each solid is magnified by the factor of its own depth and
then crossed by parallel rays (weak perspective), which is what keeps every length a closed form.

Patient axes in cm: x towards the patient's left (right in the image), y towards the feet, z towards the front; the
origin lies in the midline at the level of the carina, midway between front and back.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Solid:
    """An ellipsoid, rolled in the plane of the image and squared at its outline if wanted.

    With (p, q) the image coordinates in the solid's own axes over its radii a and b, the outline function is
    ρ² = (1 − s)(p² + q²) + s √(p⁴ + q⁴) and the solid is |z − z_c| ≤ c √(1 − ρ²); s = 0 is the ellipsoid.
    """

    centre: tuple[float, float, float]  # x, y, z in cm
    radii: tuple[float, float, float]  # a, b in the plane of the image and c along the ray, in cm
    roll: float = 0.0  # radians, clockwise as seen on the image
    squareness: float = 0.0  # s in 0…1, from an ellipse to a rounded rectangle

    def outline(self, u: Array, v: Array) -> Array:
        """ρ² at image coordinates `u` (1, W) and `v` (H, 1) in cm → (H, W); 1 on the outline, less inside."""
        du, dv = u - np.float32(self.centre[0]), v - np.float32(self.centre[1])
        if self.roll:
            cosine, sine = np.float32(np.cos(self.roll)), np.float32(np.sin(self.roll))
            du, dv = cosine * du + sine * dv, cosine * dv - sine * du
        p, q = du / np.float32(self.radii[0]), dv / np.float32(self.radii[1])
        p2, q2 = p * p, q * q
        ellipse = p2 + q2
        if not self.squareness:
            return ellipse
        s = np.float32(self.squareness)
        return (1 - s) * ellipse + s * np.sqrt(p2 * p2 + q2 * q2)

    def border(self) -> Points:
        """Points (240, 2) in cm on the outline, clockwise as seen on the image from its own p axis on."""
        turn = np.linspace(0, 2 * np.pi, 240)
        p, q = np.cos(turn), np.sin(turn)
        rho = np.sqrt(1 - self.squareness + self.squareness * np.sqrt(p**4 + q**4))
        p, q = self.radii[0] * p / rho, self.radii[1] * q / rho
        cosine, sine = np.cos(self.roll), np.sin(self.roll)
        return np.stack([self.centre[0] + cosine * p - sine * q, self.centre[1] + sine * p + cosine * q], axis=1)

    def half_depth(self, u: Array, v: Array) -> Array:
        """Half the path length in cm of the ray at each (u, v) → (H, W) float32, 0 where the ray misses."""
        inside = np.maximum(1 - self.outline(u, v), 0)
        return np.float32(self.radii[2]) * np.sqrt(inside)

    def interval(self, u: Array, v: Array) -> tuple[Array, Array]:
        """Where along z the ray enters and leaves, (H, W) each in cm; an empty interval where it misses."""
        half = self.half_depth(u, v)
        missed = half <= 0
        near, far = self.centre[2] - half, self.centre[2] + half
        near[missed], far[missed] = np.inf, -np.inf
        return near, far


def overlap(*intervals: tuple[Array, Array]) -> Array:
    """Length in cm that all intervals of a ray have in common, (H, W), 0 where there is none."""
    nears, fars = zip(*intervals, strict=True)
    near, far = np.maximum.reduce(nears), np.minimum.reduce(fars)
    return np.where(far > near, far - near, np.float32(0))


def hull(*intervals: tuple[Array, Array]) -> tuple[Array, Array]:
    """The interval that spans all given ones: their union, where they touch each other along the ray."""
    nears, fars = zip(*intervals, strict=True)
    return np.minimum.reduce(nears), np.maximum.reduce(fars)


@dataclass(frozen=True)
class Projection:
    """How the patient stands between source and detector; lengths in cm."""

    size: int  # pixels along each side of the square image
    field: float = 42.0  # side of the image
    view: str = "PA"  # the chest touches the detector, or "AP": the back does
    source_distance: float = 180.0  # to the detector
    shift: tuple[float, float] = (0.0, 0.0)  # image coordinates of the patient's origin, from the middle of the image
    roll: float = 0.0  # of the patient on the image, in radians

    @cached_property
    def pixel(self) -> float:
        """Side of a pixel in cm."""
        return self.field / self.size

    @cached_property
    def u(self) -> Array:
        """Image coordinates of the pixel columns, (1, W) in cm."""
        return ((np.arange(self.size, dtype=np.float32) + 0.5) * self.pixel - self.field / 2)[None, :]

    @cached_property
    def v(self) -> Array:
        """Image coordinates of the pixel rows, (H, 1) in cm."""
        return self.u.reshape(-1, 1)

    def magnification(self, z: npt.ArrayLike) -> Points:
        """How much larger than life something at depth `z` is drawn: what lies far from the detector grows."""
        depth = np.asarray(z, dtype=np.float64)
        gap = 12.0 - depth if self.view == "PA" else 13.0 + depth
        return self.source_distance / (self.source_distance - gap)

    def points(self, points: npt.ArrayLike) -> Points:
        """Image coordinates (N, 2) in cm of points (N, 3) of the patient."""
        xyz = np.asarray(points, dtype=np.float64).reshape(-1, 3)
        xy = xyz[:, :2] * self.magnification(xyz[:, 2])[:, None]
        cosine, sine = np.cos(self.roll), np.sin(self.roll)
        return xy @ np.array([[cosine, sine], [-sine, cosine]]) + np.array(self.shift)

    def solid(self, solid: Solid) -> Solid:
        """`solid` as it lies on the image: magnified, shifted and turned; depths stay true."""
        factor = float(self.magnification(solid.centre[2]))
        u, v = self.points(solid.centre)[0]
        a, b, c = solid.radii
        centre, radii = (float(u), float(v), solid.centre[2]), (a * factor, b * factor, c)
        return replace(solid, centre=centre, radii=radii, roll=solid.roll + self.roll)

    def place(self, solid: Solid) -> tuple[Solid, tuple[slice, slice], Array, Array]:
        """`solid` on the image, the rows and columns that it can touch, and the u (1, w) and v (h, 1) of these."""
        placed = self.solid(solid)
        (u, v, _), (a, b, _) = placed.centre, placed.radii
        cosine, sine = np.cos(placed.roll), np.sin(placed.roll)
        # A squared outline reaches past the ellipse only towards its corners.
        corner = 2 ** (0.25 * placed.squareness)
        rows = self._span(v, np.hypot(a * sine, b * cosine) * corner)
        columns = self._span(u, np.hypot(a * cosine, b * sine) * corner)
        return placed, (rows, columns), self.u[:, columns], self.v[rows]

    def _span(self, middle: float, half: float) -> slice:
        first = int(np.floor((middle - half + self.field / 2) / self.pixel))
        last = int(np.ceil((middle + half + self.field / 2) / self.pixel)) + 1
        return slice(min(max(first, 0), self.size), min(max(last, 0), self.size))

    def fractions(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A box (u0, v0, u1, v1) in image cm as fractions (x0, y0, x1, y1) of the picture, cut at its borders."""
        x0, y0, x1, y1 = (min(max(value / self.field + 0.5, 0.0), 1.0) for value in box)
        return x0, y0, x1, y1


@dataclass(frozen=True)
class Tubes:
    """N straight pieces of tube on the image, in cm."""

    start: Points  # (N, 2) image coordinates
    end: Points
    radius: Points  # (N,)
    weight: Points  # (N,) factor on the path length: 1/sin of the angle between axis and ray, or a share
    # (N, 2, 2) unit normals of the cuts at start and end; where a tube bends they lie halfway between two pieces, so
    # that these neither gape nor overlap.
    faces: Points

    @classmethod
    def straight(cls, start: Points, end: Points, radius: Points, weight: Points) -> Self:
        """Pieces that do not follow on each other, cut at right angles."""
        return cls(start, end, radius, weight, np.repeat(_unit(end - start)[:, None], 2, axis=1))

    @classmethod
    def along(
        cls,
        projection: Projection,
        points: npt.ArrayLike,
        radius: npt.ArrayLike,
        weight: npt.ArrayLike = 1.0,
        *,
        longest: float = 2.5,
    ) -> Self:
        """The tube through `points` (N, 3) of the patient; `radius` in cm and `weight` one number or one a point.

        A tube seen end on is as deep as it is long, not infinitely deep: `longest` bounds the stretch.
        """
        xyz = np.asarray(points, dtype=np.float64)
        placed = projection.points(xyz)
        radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), len(xyz)) * projection.magnification(xyz[:, 2])
        step = np.diff(xyz, axis=0)
        across = np.hypot(step[:, 0], step[:, 1])
        stretch = np.sqrt((step**2).sum(axis=1)) / np.maximum(across, 1e-6)
        share = np.broadcast_to(np.asarray(weight, dtype=np.float64), len(xyz))
        share = (share[:-1] + share[1:]) / 2 * np.minimum(stretch, longest)
        axis = _unit(np.diff(placed, axis=0))
        between = _unit(np.vstack([axis[:1], axis[:-1] + axis[1:], axis[-1:]]))
        faces = np.stack([between[:-1], between[1:]], axis=1)
        return cls(placed[:-1], placed[1:], (radii[:-1] + radii[1:]) / 2, share, faces)

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))


def _unit(vectors: Points) -> Points:
    """Rows of `vectors` (N, 2) at unit length."""
    return vectors / np.maximum(np.hypot(vectors[:, 0], vectors[:, 1]), 1e-9)[:, None]


def tube_paths(projection: Projection, tubes: Tubes, *, core: float = 0.0, hollow: float = 1.0) -> Array:
    """Path length in cm through straight pieces of tube at every pixel, pieces adding up.

    A ray at distance d from the axis of a tube of radius r crosses 2 √(r² − d²) / sin θ of it. Tubes thinner than a
    pixel are widened to one and thinned in proportion, so that their cross section, and with it their shadow, stays.

    `core` is the radius of the core as a share of the tube's, `hollow` the share of the path through it that is left
    out: 1 for a pipe, less for spongy bone in cortex.
    """
    pixel, size = projection.pixel, projection.size
    total = np.zeros(size * size, dtype=np.float64)
    pieces = _cut_to_patches(tubes, pixel)
    drawn = np.maximum(pieces.radius, 0.75 * pixel)
    # Slanted faces reach past the ends.
    slant = np.abs(np.einsum("nfi,ni->nf", pieces.faces, _unit(pieces.end - pieces.start))).min(axis=1)
    overhang = 1 + 0.7 * np.sqrt(np.maximum(1 - slant**2, 0))
    half_px = np.hypot(*(pieces.end - pieces.start).T) / (2 * pixel) + overhang * drawn / pixel
    needed = 2 * np.ceil(half_px + 1).astype(np.int64)
    needed = np.where(needed > 16, -(-needed // 6) * 6, needed)  # few sizes, so that many pieces share a step
    for patch in np.unique(needed).tolist():
        _add_patches(total, pieces, np.flatnonzero(needed == patch), patch, projection, (core, hollow))
    return total.reshape(size, size).astype(np.float32)


def _cut_to_patches(tubes: Tubes, pixel: float) -> Tubes:
    """Cut long pieces, so that a square patch around each is mostly tube."""
    length = np.hypot(*(tubes.end - tubes.start).T)
    parts = np.maximum(1, np.ceil(length / np.maximum(3 * tubes.radius, 4 * pixel))).astype(np.int64)
    index = np.repeat(np.arange(len(parts)), parts)
    order = np.arange(len(index)) - np.repeat(np.cumsum(parts) - parts, parts)
    step = ((tubes.end - tubes.start) / parts[:, None])[index]
    start = tubes.start[index] + step * order[:, None]
    faces = np.repeat(_unit(step)[:, None], 2, axis=1)
    first, last = order == 0, order == parts[index] - 1
    faces[first, 0], faces[last, 1] = tubes.faces[index[first], 0], tubes.faces[index[last], 1]
    return Tubes(start, start + step, tubes.radius[index], tubes.weight[index], faces)


def _add_patches(
    total: Points,
    pieces: Tubes,
    index: npt.NDArray[np.int64],
    patch: int,
    projection: Projection,
    core: tuple[float, float],
) -> None:
    """Add the pieces at `index` to the flat image, each through a square patch of `patch` pixels around its middle."""
    pixel, size = projection.pixel, projection.size
    start = ((pieces.start[index] + projection.field / 2) / pixel - 0.5).astype(np.float32)  # pixel coordinates
    end = ((pieces.end[index] + projection.field / 2) / pixel - 0.5).astype(np.float32)
    radius = (pieces.radius[index] / pixel).astype(np.float32)
    corner = np.floor((start + end) / 2).astype(np.int32) - patch // 2 + 1
    axis = end - start
    length = np.maximum(np.hypot(axis[:, 0], axis[:, 1]), 1e-6)
    axis /= length[:, None]
    steps = np.arange(patch, dtype=np.float32)
    x = (corner[:, 0, None] - start[:, 0, None] + steps)[:, None, :]  # (n, 1, P)
    y = (corner[:, 1, None] - start[:, 1, None] + steps)[:, :, None]  # (n, P, 1)
    squared = np.square(x * axis[:, 1, None, None] - y * axis[:, 0, None, None])  # (n, P, P)
    # Soft ends of one pixel: neighbouring pieces of a tube add up to exactly the whole.
    first, last = np.moveaxis(pieces.faces[index].astype(np.float32), 1, 0)[..., None, None]
    past_start = x * first[:, 0] + (y * first[:, 1] + np.float32(0.5))
    share = np.minimum(np.maximum(past_start, 0, out=past_start), 1, out=past_start)
    reach = np.einsum("ni,ni->n", end - start, last[..., 0, 0])[:, None, None] - np.float32(0.5)
    past_end = x * last[:, 0] + (y * last[:, 1] - reach)
    share -= np.minimum(np.maximum(past_end, 0, out=past_end), 1, out=past_end)
    np.maximum(share, 0, out=share)
    drawn = np.maximum(radius, 0.75)
    scale = (radius / drawn) ** 2 * pieces.weight[index].astype(np.float32)
    path = np.sqrt(np.maximum(np.square(drawn)[:, None, None] - squared, 0))
    if core[0]:
        path -= np.float32(core[1]) * np.sqrt(np.maximum(np.square(core[0] * drawn)[:, None, None] - squared, 0))
    path *= share
    path *= (2 * pixel * scale)[:, None, None]
    columns = corner[:, 0, None, None] + np.arange(patch, dtype=np.int32)
    rows = corner[:, 1, None, None] + np.arange(patch, dtype=np.int32)[:, None]
    flat = rows * size + columns
    hit = (path > 0) & (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size)
    total += np.bincount(flat[hit], weights=path[hit], minlength=size * size)
