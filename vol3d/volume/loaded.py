"""What a file reader hands over: the voxels as stored, and what turns them into HU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vol3d.types import Affine
from vol3d.volume.files import Unread
from vol3d.volume.geometry import Geometry, canonical_turn, turn

AIR = -1024
"""HU of what lies outside the scanner's field of view."""
PADDING_BELOW = -1500
"""Scanners mark voxels outside the field of view with −2000, −3024, …; kernel ringing does not reach −1500."""
_SAMPLES = 400_000
Voxels = NDArray[Any] | Unread


def accept_any(loaded: Loaded, sample: NDArray[Any]) -> None:
    """Any values will do."""


@dataclass
class Loaded:
    """A volume in the file's own order, nothing copied.

    Values are `array * slope + intercept`; in CT what is below −1500 is padding and becomes −1024.

    Shape:
        voxels: (i, j, k), the order of the file, whatever lies behind it in memory.
        affine: (4, 4) index (i, j, k) → RAS mm.

    Args:
        check: asked of a sample of the stored values once all have been read.
        rescaled: the file itself says that and how its values become HU (a DICOM rescale intercept).
        original: the file's own grid, when a tilted file was straightened.
    """

    path: Path
    voxels: Voxels
    affine: Affine
    slope: float = 1.0
    intercept: float = 0.0
    modality: str | None = None
    rescaled: bool = False
    labels: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    original: Geometry | None = None
    check: Callable[[Loaded, NDArray[Any]], None] = accept_any

    @property
    def unread(self) -> bool:
        """Whether the voxels are still in the file."""
        return isinstance(self.voxels, Unread)

    @property
    def array(self) -> NDArray[Any]:
        """All voxels."""
        if isinstance(self.voxels, Unread):
            array = self.voxels.read()
            self.check(self, thinned(array))
            self.voxels = array
        return self.voxels

    def ask(self, check: Callable[[Loaded, NDArray[Any]], None]) -> None:
        """Have the values checked by this too: now, or once they are read."""
        if not self.unread:
            check(self, thinned(self.array))
            return
        before = self.check

        def both(loaded: Loaded, sample: NDArray[Any]) -> None:
            before(loaded, sample)
            check(loaded, sample)

        self.check = both

    def slices(self) -> Iterator[NDArray[Any]]:
        """Unread voxels (i, j) for each k, in memory that the next one uses again. What they are checked for, the file
        for being whole and its values for being HU, is known after the last: until then nothing may be made of them.
        """
        if not isinstance(self.voxels, Unread):
            raise TypeError("voxels that have been read are in `array`")
        sample, stride = [], _stride(self.voxels.shape)
        for number, part in enumerate(self.voxels.slices()):
            if number % stride == 0:
                sample.append(part[::stride, ::stride].copy())
            yield part
        self.check(self, np.stack(sample, axis=2))

    @property
    def geometry(self) -> Geometry:
        """The grid in the file's own order."""
        return Geometry(self.affine, tuple(self.voxels.shape))

    @property
    def is_ct(self) -> bool:
        """Whether values are HU."""
        return self.modality == "CT"

    def canonical(self) -> NDArray[Any]:
        """The stored values as (x, y, z) RAS, a view."""
        return turn(self.array, *canonical_turn(self.affine))

    def values(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Stored values → HU (or the modality's own unit), float32, memory order kept, padding made air."""
        values = self.scaled(stored)
        if self.is_ct and values.size and values.min() < PADDING_BELOW:
            values[values < PADDING_BELOW] = AIR
        return values

    def scaled(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Stored values by slope and intercept alone, a copy."""
        values = np.array(stored, dtype=np.float32, order="K")
        if self.slope != 1.0:
            values *= np.float32(self.slope)
        if self.intercept != 0.0:
            values += np.float32(self.intercept)
        return values

    def meta(self) -> dict[str, Any]:
        """What travels with the tensor; nothing from the patient's tags."""
        geometry = self.original or self.geometry
        return {
            "filename": str(self.path),
            "original_affine": np.array(geometry.affine),
            "original_shape": geometry.shape,
            "spacing": self.geometry.canonical().spacing,
            "modality": self.modality,
            "notes": list(self.notes),
        }


def thinned(array: NDArray[Any]) -> NDArray[Any]:
    """Every n-th voxel along each axis (x, y, z), so that a look at the values costs milliseconds."""
    return array[(slice(None, None, _stride(array.shape)),) * array.ndim]


def _stride(shape: Sequence[int]) -> int:
    return max(1, round((prod(shape) / _SAMPLES) ** (1 / 3)))
