"""Where voxels lie in the patient: index → RAS millimetres, in float64, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vol3d.types import Affine, Spacing, Triple

if TYPE_CHECKING:
    from monai.data import MetaTensor

Points = NDArray[Any] | Sequence[Any]
Flips = tuple[bool, bool, bool]
_CODES = (("L", "R"), ("P", "A"), ("I", "S"))
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM, NRRD and MetaImage count millimetres to the Left and Posterior; vol3d to the Right and Anterior."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid of voxels in space.

    Args:
        affine: (4, 4) voxel index (i, j, k) of a voxel's centre → RAS mm. Copied, float64, read-only.
        shape: voxels along the three axes.

    Raises:
        ValueError: the affine is singular or not finite, or an axis has no voxel.
    """

    affine: Affine
    shape: Triple

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise ValueError(f"affine is not an invertible 4×4 matrix:\n{affine}")
        shape = tuple(int(size) for size in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape {shape} is not three positive sizes")
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def of(cls, volume: MetaTensor) -> Geometry:
        """The grid a volume (channels, x, y, z) lies on."""
        return cls(affine_of(volume), tuple(volume.shape[-3:]))

    @property
    def spacing(self) -> Spacing:
        """Millimetres between voxel centres along each axis."""
        return tuple(float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def origin(self) -> tuple[float, float, float]:
        """RAS mm of the centre of voxel (0, 0, 0)."""
        return tuple(float(value) for value in self.affine[:3, 3])

    @property
    def direction(self) -> NDArray[np.float64]:
        """(3, 3) unit vectors of the axes, one a column."""
        return self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def axcodes(self) -> str:
        """Towards which side each axis grows, as three letters, "RAS" after reading."""
        axes, signs = closest_axes(self.affine)
        return "".join(_CODES[axis][sign > 0] for axis, sign in zip(axes, signs, strict=True))

    @property
    def shear_degrees(self) -> float:
        """How far the worst pair of axes is from a right angle."""
        cosines = np.abs((self.direction.T @ self.direction)[np.triu_indices(3, 1)])
        return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))

    def to_mm(self, index: Points) -> NDArray[np.float64]:
        """Voxel indices (..., 3) → RAS mm (..., 3)."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, mm: Points) -> NDArray[np.float64]:
        """RAS mm (..., 3) → voxel indices (..., 3), fractional."""
        return (np.asarray(mm, dtype=np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def canonical(self) -> Geometry:
        """The same voxels, axes permuted and flipped to the closest RAS."""
        return self.turned(*canonical_turn(self.affine))

    def turned(self, order: Triple, flips: Flips) -> Geometry:
        """The same voxels as seen by `turn(array, order, flips)`."""
        signs = np.where(flips, -1.0, 1.0)
        first = np.zeros(3)
        first[list(order)] = [self.shape[axis] - 1 if flip else 0 for axis, flip in zip(order, flips, strict=True)]
        affine = np.eye(4)
        affine[:3, :3] = self.affine[:3, list(order)] * signs
        affine[:3, 3] = self.to_mm(first)
        return Geometry(affine, tuple(self.shape[axis] for axis in order))

    def box(self, mask: NDArray[Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """The RAS box around the non-zero voxels of `mask` (x, y, z), outer faces of voxels: (min_mm, max_mm).

        Raises:
            ValueError: the mask is empty or has another shape.
        """
        if tuple(mask.shape) != self.shape:
            raise ValueError(f"mask is {tuple(mask.shape)}, the grid is {self.shape}: resample it first")
        filled = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
        if filled[0].size == 0:
            raise ValueError("mask is empty: there is no box around nothing")
        low = [axis[0] - 0.5 for axis in filled]
        high = [axis[-1] + 0.5 for axis in filled]
        corners = self.to_mm(np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3))
        return tuple(map(float, corners.min(0))), tuple(map(float, corners.max(0)))

    @property
    def extent(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The RAS box around all voxels, outer faces: (min_mm, max_mm)."""
        corners = np.stack(np.meshgrid(*[(-0.5, size - 0.5) for size in self.shape], indexing="ij"), -1)
        places = self.to_mm(corners.reshape(-1, 3))
        return places.min(0), places.max(0)

    def is_close(self, other: Geometry, *, tolerance: float = 0.05) -> bool:
        """Same shape, and no corner further off than `tolerance` of the smallest voxel edge."""
        if self.shape != other.shape:
            return False
        corners = np.stack(np.meshgrid(*[(0, size - 1) for size in self.shape], indexing="ij"), -1).reshape(-1, 3)
        return bool(np.abs(self.to_mm(corners) - other.to_mm(corners)).max() <= tolerance * min(self.spacing))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Geometry) and self.is_close(other, tolerance=1e-4)

    __hash__ = None

    def __str__(self) -> str:
        size = "×".join(map(str, self.shape))
        spacing = "×".join(f"{step:.4g}" for step in self.spacing)
        origin = ", ".join(f"{value:.1f}" for value in self.origin)
        return f"{size} voxels of {spacing} mm, {self.axcodes}, first voxel at ({origin}) mm"


def affine_of(volume: MetaTensor) -> NDArray[np.float64]:
    """The affine a volume carries, as a float64 array.

    Raises:
        ValueError: a plain tensor, which has lost its geometry, or a path.
    """
    affine = getattr(volume, "affine", None)
    if affine is None:
        what = f"plain tensor of shape {tuple(volume.shape)}" if hasattr(volume, "shape") else type(volume).__name__
        raise ValueError(
            f"a {what} has no affine: pass the MetaTensor that vol3d.read returns, or MetaTensor(tensor, affine=…)"
        )
    tensor = affine.as_tensor() if hasattr(affine, "as_tensor") else affine
    return np.array(tensor.cpu().numpy() if hasattr(tensor, "cpu") else tensor, dtype=np.float64)


def closest_axes(affine: NDArray[np.float64]) -> tuple[Triple, Triple]:
    """For each voxel axis the patient axis (0 x, 1 y, 2 z) it runs along, and its sign; each axis is used once."""
    from scipy.optimize import linear_sum_assignment

    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if (np.abs(direction) > 0.9).sum() == 3:  # the common case needs no assignment
        axes = np.abs(direction).argmax(axis=0)
    else:
        _, axes = linear_sum_assignment(-np.abs(direction.T))
    signs = [1 if direction[axis, column] > 0 else -1 for column, axis in enumerate(axes)]
    return tuple(int(axis) for axis in axes), tuple(signs)


def canonical_turn(affine: NDArray[np.float64], codes: str = "RAS") -> tuple[Triple, Flips]:
    """How to turn an array to the closest RAS (or "LPS", …): transpose by `order`, then flip the axes marked."""
    axes, signs = closest_axes(affine)
    order = tuple(axes.index(axis) for axis in range(3))
    flips = tuple((signs[axis] > 0) != (code in "RAS") for axis, code in zip(order, codes, strict=True))
    return order, flips


def turn(array: NDArray[Any], order: Triple, flips: Flips) -> NDArray[Any]:
    """A view of `array` with axes permuted, then flipped (no copy)."""
    return array.transpose(order)[tuple(slice(None, None, -1 if flip else None) for flip in flips)]


def turn_back(array: NDArray[Any], order: Triple, flips: Flips) -> NDArray[Any]:
    """Undoes `turn` (no copy)."""
    flipped = array[tuple(slice(None, None, -1 if flip else None) for flip in flips)]
    return flipped.transpose(tuple(int(axis) for axis in np.argsort(order)))
