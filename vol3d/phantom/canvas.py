"""A voxel grid in patient millimetres, and the soft-edged solids that anatomy is painted with.

Every solid is an implicit function evaluated inside its own bounding box only. The pose rotates about the
long axis alone, so that x and y stay 2D arrays and z a 1D one: a quadric then costs one 3D addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np

FIELD_OF_VIEW_MM = (400.0, 400.0, 416.0)
"""Extent of every phantom, whatever its shape: two shapes are two samplings of the same patient."""

Number = float | int | np.floating
Point = tuple[Number, Number, Number]
Box = tuple[slice, slice, slice]


def stream(seed: int, name: str) -> np.random.Generator:
    """The random stream of one named part of one patient: no part's draws can move another's."""
    return np.random.default_rng((seed, crc32(name.encode())))


def lattice(rng: np.random.Generator, cell: Number) -> np.ndarray:
    """Random values on nodes `cell` mm apart over the whole field of view, for `Canvas.spread`."""
    return rng.standard_normal([int(np.ceil(fov / cell)) + 3 for fov in FIELD_OF_VIEW_MM], dtype=np.float32)


@dataclass(frozen=True)
class Pose:
    """How the patient lies in the scanner: patient mm = R(-angle) (world mm - shift) / scale."""

    angle: Number = 0.0
    shift: Point = (0.0, 0.0, 0.0)
    scale: Point = (1.0, 1.0, 1.0)


@dataclass
class Patch:
    """A painted region: its voxel box and, inside it, how much of each voxel it covers (0 to 1)."""

    box: Box
    cover: np.ndarray

    def __and__(self, cover: np.ndarray | Number) -> Patch:
        return Patch(self.box, self.cover * cover)


def near(mask: np.ndarray) -> np.ndarray:
    """A boolean mask grown by two voxels along the axes."""
    for _ in range(2):
        grown = mask.copy()
        for axis in range(3):
            source, target = mask.swapaxes(0, axis), grown.swapaxes(0, axis)
            target[1:] |= source[:-1]
            target[:-1] |= source[1:]
        mask = grown
    return mask


def trim(patch: Patch) -> Patch:
    """The patch without the faint tails that lie more than two voxels outside its mask."""
    return patch & near(_solid(patch.cover))


def _solid(cover: np.ndarray) -> np.ndarray:
    top = float(cover.max(initial=0.0))
    return cover >= min(0.5, 0.6 * top) if top > 0 else np.zeros(cover.shape, bool)


class Canvas:
    """HU and organ labels on one grid, drawn in patient coordinates (mm; x right, y anterior, z superior).

    Args:
        shape: voxels along x, y, z; the spacing is FIELD_OF_VIEW_MM / shape.
        pose: patient to world.
    """

    def __init__(self, shape: tuple[int, int, int], pose: Pose) -> None:
        self.shape = shape
        self.pose = pose
        self.spacing = tuple(fov / n for fov, n in zip(FIELD_OF_VIEW_MM, shape, strict=True))
        x, y, z = (
            ((np.arange(n) + 0.5) * h - fov / 2 - shift).astype(np.float32)
            for n, h, fov, shift in zip(shape, self.spacing, FIELD_OF_VIEW_MM, pose.shift, strict=True)
        )
        c, s = np.float32(np.cos(pose.angle)), np.float32(np.sin(pose.angle))
        self.x = (c * x[:, None] + s * y[None, :]) / np.float32(pose.scale[0])
        self.y = (c * y[None, :] - s * x[:, None]) / np.float32(pose.scale[1])
        self.z = z / np.float32(pose.scale[2])
        self.step = tuple(h / scale for h, scale in zip(self.spacing, pose.scale, strict=True))
        self.hu = np.full(shape, -1000.0, np.float32)
        self.organs = np.zeros(shape, np.int16)

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64: voxel index → RAS mm, the centre of the field of view at the origin."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = [h / 2 - fov / 2 for h, fov in zip(self.spacing, FIELD_OF_VIEW_MM, strict=True)]
        return affine

    def box(self, low: Point, high: Point) -> Box:
        """Voxel slices that cover the patient box `low`..`high` (mm), clipped to the grid."""
        angle, shift, scale = self.pose.angle, self.pose.shift, self.pose.scale
        c, s = np.cos(angle), np.sin(angle)
        px, py = (low[0] + high[0]) / 2 * scale[0], (low[1] + high[1]) / 2 * scale[1]
        ex, ey = (high[0] - low[0]) / 2 * scale[0], (high[1] - low[1]) / 2 * scale[1]
        wx, wy = c * px - s * py, s * px + c * py
        rx, ry = abs(c) * ex + abs(s) * ey, abs(s) * ex + abs(c) * ey
        bounds = ((wx - rx, wx + rx), (wy - ry, wy + ry), (low[2] * scale[2], high[2] * scale[2]))
        slices = []
        for (lo, hi), h, n, fov, t in zip(bounds, self.spacing, self.shape, FIELD_OF_VIEW_MM, shift, strict=True):
            start = int(np.ceil((lo + t + fov / 2) / h - 0.5))
            stop = int(np.floor((hi + t + fov / 2) / h - 0.5)) + 1
            start, stop = min(max(start, 0), n), min(max(stop, 0), n)
            slices.append(slice(start, max(start, stop)))
        return tuple(slices)

    def axes(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Patient coordinates in a box, ready to broadcast: (i, j, 1), (i, j, 1), (1, 1, k)."""
        return self.x[box[:2]][:, :, None], self.y[box[:2]][:, :, None], self.z[box[2]][None, None, :]

    def edge(self, distance: np.ndarray, *, direction: int | None = None) -> np.ndarray:
        """Coverage of voxels at a signed depth (mm, positive inside) under a surface: a ramp one voxel wide."""
        width = max(self.step[:2]) if direction is None else self.step[direction]
        cover = distance / np.float32(width)
        cover += np.float32(0.5)
        return np.clip(cover, 0, 1, out=cover)

    def ellipsoid(
        self, centre: Point, radii: Point, *, angle: Number = 0.0, lean: tuple[Number, Number] = (0.0, 0.0)
    ) -> Patch:
        """An ellipsoid turned by `angle` (radians, in the axial plane) and leaning by dx/dz, dy/dz.

        One thinner than a voxel is drawn a voxel wide and fainter, as a scanner would show it.
        """
        wide = [max(r, 0.5 * h) for r, h in zip(radii, self.step, strict=True)]
        faint = np.float32(np.prod(np.divide(radii, wide)))
        sharp = min(r / h for r, h in zip(wide, self.step, strict=True))
        reach = 1 + 0.5 / sharp
        ca, sa = np.cos(angle), np.sin(angle)
        cz = wide[2] * reach
        ex = reach * np.hypot(wide[0] * ca, wide[1] * sa) + abs(lean[0]) * cz
        ey = reach * np.hypot(wide[0] * sa, wide[1] * ca) + abs(lean[1]) * cz
        box = self.box(
            (centre[0] - ex, centre[1] - ey, centre[2] - cz), (centre[0] + ex, centre[1] + ey, centre[2] + cz)
        )
        x, y, z = self.axes(box)
        x, y, z = x - np.float32(centre[0]), y - np.float32(centre[1]), z - np.float32(centre[2])
        if lean[0]:
            x = x - np.float32(lean[0]) * z
        if lean[1]:
            y = y - np.float32(lean[1]) * z
        u = x * np.float32(ca / wide[0]) + y * np.float32(sa / wide[0])
        v = y * np.float32(ca / wide[1]) - x * np.float32(sa / wide[1])
        cover = (u * u + v * v) + np.square(z * np.float32(1 / wide[2]))
        np.sqrt(cover, out=cover)
        cover *= np.float32(-sharp)
        cover += np.float32(sharp + 0.5)
        np.clip(cover, 0, 1, out=cover)
        if faint < 1:
            cover *= faint
        return Patch(box, cover)

    def tube(self, heights: list, xs: list, ys: list, radii: list | Number) -> Patch:
        """A roughly vertical vessel: axial discs whose centre and radius are interpolated along z."""
        radii = radii if isinstance(radii, list) else [radii] * len(heights)
        margin = max(radii) + self.step[0]
        box = self.box(
            (min(xs) - margin, min(ys) - margin, heights[0] - self.step[2] / 2),
            (max(xs) + margin, max(ys) + margin, heights[-1] + self.step[2] / 2),
        )
        x, y, z = self.axes(box)
        line = z[0, 0]
        radius = np.interp(line, heights, radii).astype(np.float32)
        cover = np.square(x - np.interp(line, heights, xs).astype(np.float32))
        cover += np.square(y - np.interp(line, heights, ys).astype(np.float32))
        np.sqrt(cover, out=cover)
        np.subtract(radius, cover, out=cover)
        cover = self.edge(cover)
        ends = np.minimum(line - heights[0], heights[-1] - line) / np.float32(self.step[2]) + np.float32(0.5)
        cover *= np.clip(ends, 0, 1)
        return Patch(box, cover)

    def capsule(self, start: Point, end: Point, radius: Number, end_radius: Number | None = None) -> Patch:
        """A straight rod with round ends, tapering from `radius` to `end_radius` (mm)."""
        end_radius = radius if end_radius is None else end_radius
        margin = [max(radius, end_radius) + 0.5 * h for h in self.step]
        low = tuple(min(a, b) - m for a, b, m in zip(start, end, margin, strict=True))
        high = tuple(max(a, b) + m for a, b, m in zip(start, end, margin, strict=True))
        box = self.box(low, high)
        x, y, z = self.axes(box)
        dx, dy, dz = (np.float32(b - a) for a, b in zip(start, end, strict=True))
        x, y, z = x - np.float32(start[0]), y - np.float32(start[1]), z - np.float32(start[2])
        length = dx * dx + dy * dy + dz * dz
        t = np.clip(((x * dx + y * dy) + z * dz) / length, 0, 1)
        distance = np.square(x - t * dx)
        distance += np.square(y - t * dy)
        distance += np.square(z - t * dz)
        np.sqrt(distance, out=distance)
        half = np.float32(0.5 * min(self.step))
        wide = np.maximum(np.float32(radius) + t * np.float32(end_radius - radius), half)
        faint = np.float32(min(1.0, (min(radius, end_radius) / half) ** 2))
        cover = self.edge(wide - distance)
        if faint < 1:
            cover *= faint
        return Patch(box, cover)

    def paint(self, patch: Patch, value: Number | np.ndarray, label: int | None = None) -> None:
        """Blend `value` (HU) over the patch; voxels covered by half or more take the organ `label`."""
        view = self.hu[patch.box]
        view += patch.cover * (np.float32(value) - view if np.isscalar(value) else value - view)
        if label is not None:
            np.copyto(self.organs[patch.box], label, where=patch.cover >= 0.5)

    def mask(self, patch: Patch) -> np.ndarray:
        """Boolean volume of the voxels that a patch covers by half (or, when smaller than a voxel, most)."""
        mask = np.zeros(self.shape, bool)
        mask[patch.box] = _solid(patch.cover)
        return mask

    def field(self, rng: np.random.Generator, box: Box, cell: Number) -> np.ndarray:
        """A smooth random field (mean 0, about unit variance) with features of `cell` mm, inside a box."""
        return self.spread(lattice(rng, cell), box, cell)

    def spread(self, values: np.ndarray, box: Box, cell: Number) -> np.ndarray:
        """Interpolate a lattice of random values inside a box.

        The values hang on the patient's seed and on the place, not on the grid or the box.
        """
        for axis in range(3):
            index = (np.arange(box[axis].start or 0, box[axis].stop) + 0.5) * self.spacing[axis] / cell
            first = int(index[0]) if len(index) else 0
            nodes = np.arange(first, min(int(index[-1]) + 4 if len(index) else 1, values.shape[axis]))
            weights = np.maximum(0, 1 - np.abs(index[:, None] - nodes + 0.5) / 1.5)
            weights *= weights
            weights /= np.sqrt(np.square(weights).sum(1, keepdims=True)) + 1e-9
            near = values.take(nodes, axis=axis)
            values = np.moveaxis(np.tensordot(weights.astype(np.float32), near, axes=(1, axis)), 0, axis)
        return np.ascontiguousarray(values)
