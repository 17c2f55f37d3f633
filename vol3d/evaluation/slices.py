"""Three pictures of a volume the way a radiologist expects them.

Radiological display: the patient's right is on the left side of the axial and the coronal picture, anterior is at
the top of the axial and on the left of the sagittal one, superior is at the top of the coronal and sagittal ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

from vol3d.types import Spacing, Triple

WINDOWS: dict[str, tuple[float, float]] = {
    "soft tissue": (-160.0, 240.0),
    "lung": (-1350.0, 150.0),
    "bone": (-450.0, 1050.0),
}
"""HU shown as black and as white."""

_IN_LUNG = ("nodule", "pneumothorax", "consolidation", "emphysema", "atelectasis", "ground", "lung", "bronch")
_IN_BONE = ("fracture", "bone", "scoliosis", "osteo", "sclero")


class Slices(NamedTuple):
    """Axial, coronal and sagittal picture, rows × columns, at one pixel size."""

    axial: ndarray
    coronal: ndarray
    sagittal: ndarray


def slices(
    hu: Shaped[ndarray, "x y z"],
    spacing: Spacing,
    window: tuple[float, float] = WINDOWS["soft tissue"],
    at: Triple | Bool[ndarray, ...] | None = None,
) -> Slices:
    """Axial, coronal and sagittal uint8 pictures through one voxel.

    Args:
        hu: volume in RAS order, HU.
        spacing: mm along x, y, z; the pictures have square pixels of the smallest spacing.
        window: HU shown as black and as white.
        at: voxel index, or a mask through whose middle to cut; default: the middle of the volume.

    Raises:
        ValueError: the voxel lies outside the volume, or the mask has another shape.
    """
    low, high = window
    shown = [np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1) for plane in _planes(hu, at)]
    sizes = _sizes(hu.shape, spacing)
    return Slices(
        *(_resize(np.round(255 * plane).astype(np.uint8), size) for plane, size in zip(shown, sizes, strict=True))
    )


def mask_slices(
    mask: Shaped[ndarray, "x y z"], spacing: Spacing, at: Triple | Bool[ndarray, ...] | None = None
) -> Slices:
    """The same three planes of a mask, as boolean pictures that lie on those of `slices`."""
    planes = [(plane > 0).astype(np.uint8) * 255 for plane in _planes(mask, at)]
    sizes = _sizes(mask.shape, spacing)
    return Slices(*(_resize(plane, size) > 127 for plane, size in zip(planes, sizes, strict=True)))


def middle(mask: Bool[ndarray, "x y z"]) -> Triple:
    """The voxel of the mask nearest to its centre of mass (the middle of the volume when the mask is empty)."""
    inside = np.argwhere(mask)
    if not len(inside):
        x, y, z = (size // 2 for size in mask.shape)
    else:
        x, y, z = inside[((inside - inside.mean(0)) ** 2).sum(1).argmin()].tolist()
    return x, y, z


def window_for(keys: set[str] | frozenset[str]) -> str:
    """Name of the window in which the first finding with one of its own is best seen; "soft tissue" otherwise."""
    for key in sorted(keys):
        for name, words in (("lung", _IN_LUNG), ("bone", _IN_BONE)):
            if any(word in key for word in words):
                return name
    return "soft tissue"


def _planes(volume: ndarray, at: Triple | ndarray | None) -> tuple[ndarray, ndarray, ndarray]:
    i, j, k = _index(volume.shape, at)
    axial, coronal, sagittal = volume[::-1, ::-1, k], volume[::-1, j, ::-1], volume[i, ::-1, ::-1]
    return axial.T, coronal.T, sagittal.T


def _index(shape: tuple[int, ...], at: Triple | ndarray | None) -> Triple:
    if at is None:
        return shape[0] // 2, shape[1] // 2, shape[2] // 2
    if isinstance(at, ndarray):
        if at.shape != shape:
            raise ValueError(
                f"mask is {at.shape} voxels, volume is {shape}: resample it with vol3d.resample(mask, like=volume)"
            )
        return middle(at)
    if not all(0 <= index < size for index, size in zip(at, shape, strict=True)):
        raise ValueError(f"voxel {tuple(at)} lies outside the volume of {shape} voxels")
    return at


def _sizes(shape: tuple[int, ...], spacing: Spacing) -> list[tuple[int, int]]:
    """Rows and columns of the three pictures with square pixels of the smallest spacing."""
    x, y, z = (max(1, round(size * step / min(spacing))) for size, step in zip(shape, spacing, strict=True))
    return [(y, x), (z, x), (z, y)]


def _resize(plane: ndarray, size: tuple[int, int]) -> ndarray:
    from PIL import Image

    if plane.shape == size:
        return np.ascontiguousarray(plane)
    picture = Image.fromarray(np.ascontiguousarray(plane)).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture)
