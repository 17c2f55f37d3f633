"""From one grid to any other in the same space: masks made elsewhere, and the check that two grids are one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vol3d.types import Triple
from vol3d.volume.geometry import Geometry, canonical_turn, turn
from vol3d.volume.label_maps import resample_nearest
from vol3d.volume.loaded import AIR
from vol3d.volume.resampling import Axis, resample_dense
from vol3d.volume.straighten import sample

if TYPE_CHECKING:
    from monai.data import MetaTensor

_SAME = 0.02
"""Voxels that the far end of an axis may be off before it counts as resampled."""


def resample(mask: MetaTensor, *, like: MetaTensor) -> MetaTensor:
    """A label map (1, x, y, z), or an image, on the grid of `like`.

    Integers: each voxel takes the label of the nearest voxel of the mask, 0 outside. Floats: trilinear; outside lies
    air, or the lowest value of an image that `.meta["modality"]` says is no CT.

    Raises:
        ValueError: the two lie in different places (both grids named).
    """
    own, target = Geometry.of(mask), Geometry.of(like)
    check_overlap(own, target)
    if own.is_close(target):
        return meta_tensor(mask.as_tensor().clone(), target, mask.meta)
    values = mask.as_tensor()
    beyond = outside(values, mask.meta.get("modality"))
    out = torch.stack([carry(channel, own, target, outside=beyond) for channel in values.numpy()])
    return meta_tensor(out, target, mask.meta)


def padding(modality: str | None, pad: int = AIR) -> int | None:
    """What lies outside a volume of this modality; None for its lowest value, since −1024 is air in HU only.

    Args:
        pad: another value than air is taken as it is, whatever the modality.
    """
    return pad if modality in (None, "CT") or pad != AIR else None


def outside(values: Tensor, modality: str | None, pad: int = AIR) -> float | int:
    """The same where the lowest value is known: `values` are the volume's."""
    known = padding(modality, pad)
    return values.min().item() if known is None else known


def check_same_grid(mask: MetaTensor, image: MetaTensor) -> None:
    """Refuses a mask that is not on the image's grid.

    Raises:
        ValueError: gives both grids and the remedy.
    """
    own, target = Geometry.of(mask), Geometry.of(image)
    if not own.is_close(target):
        raise ValueError(f"mask is {own}; image is {target}: resample it with vol3d.resample(mask, like=image)")


def carry(array: NDArray[Any], own: Geometry, target: Geometry, *, outside: float | int = 0) -> Tensor:
    """`array` (x, y, z) from its grid to any other: nearest for integers, trilinear for floats."""
    # Turned first, so that it lies along the target: the same voxels in another order give the same result.
    order, flips = canonical_turn(np.linalg.inv(target.affine) @ own.affine)
    array, own = turn(array, order, flips), own.turned(order, flips)
    # Rounded: a last bit too low would put a whole face of the array outside.
    matrix = np.round(np.linalg.inv(own.affine) @ target.affine, 9)
    axes = _parallel(matrix, own.shape, target.shape)
    if array.dtype.kind != "f":
        labels = array.astype(np.int16)
        if axes is not None:
            return resample_nearest(labels, axes)
        return torch.from_numpy(sample(labels, matrix, target.shape, linear=False, outside=0))
    values = array.astype(np.float32)
    if axes is not None:
        return resample_dense(torch.from_numpy(values), axes, kind="linear", outside=outside)
    return torch.from_numpy(sample(values, matrix, target.shape, linear=True, outside=outside))


def _parallel(matrix: NDArray[np.float64], source: Triple, target: Triple) -> tuple[Axis, Axis, Axis] | None:
    """The axes of a map between grids whose axes run the same way, None for any other map."""
    steps = np.diag(matrix)[:3]
    off = np.abs(matrix[:3, :3] - np.diag(steps)) @ np.array(target)
    if steps.min() <= 0 or off.max() > _SAME:
        return None
    reversed_axes = []
    for n, t, step, offset in zip(source, target, steps, matrix[:3, 3], strict=True):
        step = 1.0 if abs(step - 1) * t < _SAME else float(step)
        offset = float(np.round(offset)) if step == 1.0 and abs(offset - np.round(offset)) < _SAME else float(offset)
        reversed_axes.append(Axis(t, n, 1 / step, -offset / step, 0, n).reverse())
    return tuple(reversed_axes)


def check_overlap(own: Geometry, other: Geometry) -> None:
    """Refuses two grids without a voxel in common: one of them is in the wrong place."""
    (low, high), (other_low, other_high) = own.extent, other.extent
    if (np.maximum(low, other_low) >= np.minimum(high, other_high)).any():
        raise ValueError(f"mask is {own}; image is {other}: they do not overlap; check that they belong together")


def meta_tensor(values: Tensor, geometry: Geometry, meta: dict[str, Any]) -> MetaTensor:
    """Values (channels, x, y, z) with a grid, and what else `meta` says."""
    from monai.data import MetaTensor

    kept = {key: value for key, value in meta.items() if key not in ("affine", "spacing")}
    return MetaTensor(
        values, affine=torch.from_numpy(geometry.affine.copy()), meta={**kept, "spacing": geometry.spacing}
    )
