"""What a file reader hands over: the voxels as stored, and what turns them into HU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vol3d.types import Affine
from vol3d.volume.geometry import Geometry, canonical_turn, turn

AIR = -1024
"""HU of what lies outside the scanner's field of view."""
PADDING_BELOW = -1500
"""Scanners mark voxels outside the field of view with −2000, −3024, …; kernel ringing does not reach −1500."""


@dataclass
class Loaded:
    """A volume in the file's own order, nothing copied.

    Values are `array * slope + intercept`; in CT what is below −1500 is padding and becomes −1024.

    Shape:
        array: (i, j, k), the order of the file, whatever lies behind it in memory.
        affine: (4, 4) index (i, j, k) → RAS mm.

    Args:
        rescaled: the file itself says that and how its values become HU (a DICOM rescale intercept).
        original: the file's own grid, when a tilted file was straightened.
    """

    path: Path
    array: NDArray[Any]
    affine: Affine
    slope: float = 1.0
    intercept: float = 0.0
    modality: str | None = None
    rescaled: bool = False
    labels: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    original: Geometry | None = None

    @property
    def geometry(self) -> Geometry:
        """The grid in the file's own order."""
        return Geometry(self.affine, tuple(self.array.shape))

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
