"""Sheared grids (a tilted gantry) → orthogonal ones, which is what every network and viewer assumes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vol3d.types import Affine, Triple
from vol3d.volume.files import MAX_VOXELS
from vol3d.volume.loaded import AIR, Loaded


def straighten(loaded: Loaded, *, labels: bool = False) -> Loaded:
    """The same volume on an orthogonal grid that holds all of it.

    The first axis keeps its direction, the second its plane, the third becomes their normal. Linear interpolation,
    nearest for label maps; what lies outside the scanned volume becomes air (0 for labels). `loaded.original` keeps
    the file's own grid and a note says what was done.
    """
    original = loaded.geometry
    affine, shape = orthogonal_grid(loaded.affine, original.shape)
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise ValueError(f"{loaded.path}: axes {original.shear_degrees:.0f}° off a right angle: its affine is wrong")
    values = loaded.array if labels else loaded.values(loaded.array)
    array = sample(values, np.linalg.inv(loaded.affine) @ affine, shape,
                   linear=not labels, outside=AIR if loaded.is_ct and not labels else 0)  # fmt: skip
    note = f"axes {original.shear_degrees:.1f}° off a right angle (gantry tilt): resampled"
    return replace(
        loaded,
        voxels=array,
        affine=affine,
        slope=1.0 if not labels else loaded.slope,
        intercept=0.0 if not labels else loaded.intercept,
        notes=[*loaded.notes, note],
        original=loaded.original or original,
    )


def orthogonal_grid(affine: Affine, shape: Triple) -> tuple[Affine, Triple]:
    """An orthogonal grid around a sheared one, with the sheared one's distances along its own normals."""
    direction, triangle = np.linalg.qr(affine[:3, :3])
    signs = np.sign(np.diag(triangle))
    linear = direction * signs * np.abs(np.diag(triangle))
    corners = np.stack(np.meshgrid(*[(0, size - 1) for size in shape], indexing="ij"), -1).reshape(-1, 3)
    places = (corners @ affine[:3, :3].T) @ np.linalg.inv(linear).T
    low, high = np.floor(places.min(0) + 1e-3), np.ceil(places.max(0) - 1e-3)
    result = np.eye(4)
    result[:3, :3] = linear
    result[:3, 3] = affine[:3, 3] + linear @ low
    return result, tuple(int(size) for size in high - low + 1)


def sample(
    array: NDArray[np.generic], matrix: Affine, shape: Triple, *, linear: bool, outside: float | int
) -> NDArray[np.generic]:
    """`array` read at `matrix @ (i, j, k, 1)` for every voxel of a grid of `shape`, for any matrix.

    The slow, general way (scipy); grids with parallel axes take the separable one in `resampling`.
    """
    kept = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return ndimage.affine_transform(
        np.asarray(kept), matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=1 if linear else 0,
        mode="grid-constant" if not linear else "constant", cval=outside, prefilter=False,
    )  # fmt: skip
