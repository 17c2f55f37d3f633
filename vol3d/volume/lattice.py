"""Where a grid's samples lie in a volume: from its first voxel on, cropped or padded around the centre."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vol3d.types import Triple
from vol3d.volume.geometry import Geometry
from vol3d.volume.resampling import Axis

Axes = tuple[Axis, Axis, Axis]
Box = tuple[Triple, Triple]
_SLAB = 16
_SAME = 0.02
"""Voxels that the far end of an axis may be off before it counts as resampled."""


def lattice(
    source: Geometry, spacing: Sequence[float | int] | None, shape: Sequence[int] | None, box: Box | None = None
) -> tuple[Axes, Geometry]:
    """The three axes of a grid over `source` (or over a box of its voxels: first voxel, size), and its place."""
    first, size = box or ((0, 0, 0), source.shape)
    axes = tuple(
        _axis(source.shape[a], first[a], size[a], source.spacing[a],
              None if spacing is None else float(spacing[a]), None if shape is None else int(shape[a]))
        for a in range(3)
    )  # fmt: skip
    affine = source.affine.copy()
    affine[:3, :3] *= [axis.step for axis in axes]
    affine[:3, 3] = source.to_mm([axis.offset for axis in axes])
    return axes, Geometry(affine, tuple(axis.size for axis in axes))


def foreground(values: NDArray[Any], convert: Callable[[NDArray[Any]], NDArray[Any]] = np.asarray) -> Box | None:
    """First voxel and size of the part above the volume's minimum; None when all voxels are alike.

    Args:
        convert: stored values → HU, a slab at a time, so that no float copy of the volume is held.
    """
    slabs = list(_slabs(values))
    lowest = min(convert(values[slab]).min() for slab in slabs)
    filled = [np.zeros(size, dtype=bool) for size in values.shape]
    for slab in slabs:
        above = convert(values[slab]) > lowest
        for axis, others in enumerate(((1, 2), (0, 2), (0, 1))):
            filled[axis][slab[axis]] |= above.any(axis=others)
    ends = [np.flatnonzero(axis) for axis in filled]
    if ends[0].size == 0:
        return None
    return tuple(int(end[0]) for end in ends), tuple(int(end[-1]) - int(end[0]) + 1 for end in ends)


def _slabs(values: NDArray[Any]) -> Iterator[tuple[slice, ...]]:
    """The volume in slabs across its slowest axis in memory."""
    slowest = max(range(3), key=lambda axis: abs(values.strides[axis]))
    for first in range(0, values.shape[slowest], _SLAB):
        yield tuple(slice(first, first + _SLAB) if axis == slowest else slice(None) for axis in range(3))


def _axis(source: int, first: int, size: int, have: float, want: float | None, shape: int | None) -> Axis:
    """One axis of the lattice over the source voxels [first, first + size)."""
    if want is None:
        if shape is None or shape == size:
            return Axis(source, size, 1.0, float(first), 0, size)
        step = size / shape  # the extent is kept: outer faces fall together
        return Axis(source, shape, step, first + (step - 1) / 2, 0, shape)
    step = want / have
    if abs(step - 1) * size < _SAME:
        step = 1.0
    length = int(np.round((size - 1) / step + 1))
    if shape is None:
        return Axis(source, length, step, float(first), 0, length)
    if length >= shape:
        start = length // 2 - shape // 2
        return Axis(source, shape, step, first + start * step, 0, shape)
    before = (shape - length) // 2
    return Axis(source, shape, step, first - before * step, before, before + length)
