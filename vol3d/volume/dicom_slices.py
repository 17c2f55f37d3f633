"""DICOM slices → one grid: sorted by position along the normal, gaps measured, tilt straightened, HU a slice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from vol3d.types import Affine
from vol3d.volume.files import MAX_VOXELS, brief
from vol3d.volume.geometry import LPS_TO_RAS
from vol3d.volume.loaded import AIR, Loaded
from vol3d.volume.straighten import straighten

_TISSUE = (-500, 3000)
"""HU between gas and metal."""
_EVEN = 0.05
"""Share of a step that a slice may lie off the even grid; up to 0.2 while that is under 0.11 mm, because scanners
round positions to 0.1 mm. A missing slice is at least half a step."""


@dataclass(frozen=True)
class Slice:
    """One frame: where it lies (LPS mm) and what turns its stored values into HU, or another `unit`."""

    name: str
    frame: int
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    spacing: NDArray[np.float64]
    size: tuple[int, int]
    slope: float
    intercept: float
    padding: tuple[float, float] | None
    unit: str

    @classmethod
    def of(cls, frame: Dataset, index: int, name: str) -> Slice:
        """The slice that a (flattened) header describes.

        Raises:
            ValueError: position, orientation or pixel spacing is missing or absurd, or colour.
        """
        try:
            return cls._of(frame, index, name)
        except Exception as error:  # pydicom raises many kinds on values that are not what their tag says
            if isinstance(error, ValueError) and str(error).startswith(name):
                raise
            raise ValueError(f"{name}: broken DICOM header ({brief(error)}); copy or export it again") from error

    @classmethod
    def _of(cls, frame: Dataset, index: int, name: str) -> Slice:
        position, orientation = (
            _numbers(frame, "ImagePositionPatient", 3),
            _numbers(frame, "ImageOrientationPatient", 6),
        )
        spacing = _numbers(frame, "PixelSpacing", 2)
        for tag, value in (("ImagePositionPatient", position), ("ImageOrientationPatient", orientation)):
            if value is None:
                raise ValueError(f"{name}: no {tag}: the slice's place is unknown; get the original series")
        if spacing is None:
            raise ValueError(f"{name}: no PixelSpacing: the pixels' size in mm is unknown; get the original series")
        if spacing.min() < 0.01 or spacing.max() > 100:
            raise ValueError(f"{name}: PixelSpacing {spacing[0]:g}×{spacing[1]:g} mm: outside 0.01 to 100 mm")
        row, column = orientation[:3], orientation[3:]
        if not (np.allclose([row @ row, column @ column], 1, atol=1e-2) and abs(row @ column) < 1e-2):
            raise ValueError(
                f"{name}: ImageOrientationPatient {orientation.tolist()} is not two orthogonal unit vectors"
            )
        if int(frame.get("SamplesPerPixel") or 1) != 1:
            raise ValueError(f"{name}: {frame.SamplesPerPixel} values a pixel (colour): not a CT slice")
        size = int(frame.get("Columns") or 0), int(frame.get("Rows") or 0)
        if min(size) < 1 or size[0] * size[1] > 2**27:
            raise ValueError(f"{name}: header claims {size[0]}×{size[1]} pixels a slice")
        slope = _number(frame, "RescaleSlope", 1.0)
        if slope == 0:
            raise ValueError(f"{name}: RescaleSlope 0: every voxel would be the same; get the original series")
        return cls(name, index, position, orientation, spacing, size, slope, _number(frame, "RescaleIntercept", 0.0),
                   _padding(frame), str(frame.get("RescaleType") or "HU").upper())  # fmt: skip

    def hu(self, stored: NDArray[Any], *, ct: bool) -> NDArray[np.float32]:
        """Stored pixels (row, column) → HU, the scanner's padding → air."""
        values = stored.astype(np.float32) * np.float32(self.slope) + np.float32(self.intercept)
        if self.padding is not None and ct:
            values[(stored >= self.padding[0]) & (stored <= self.padding[1])] = AIR
        return values


def stack(
    slices: list[Slice],
    path: Path,
    pixels: Callable[[str], NDArray[Any]],
    *,
    irregular: Literal["resample"] | None = None,
    modality: str = "CT",
) -> Loaded:
    """Slices in any order → a volume (column, row, slice) on an even, orthogonal grid.

    Args:
        pixels: file name → stored values (frame, row, column).
    """
    if modality == "CT":
        _check_unit(slices)
    _check_alike(slices, path)
    first = slices[0]
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    normal /= np.linalg.norm(normal)
    slices = sorted(slices, key=lambda one: float(one.position @ normal))
    heights = np.array([one.position @ normal for one in slices])
    if len(slices) < 2:
        raise ValueError(f"{path}: 1 slice; a volume needs the whole series: give its folder")
    if len(slices) * first.size[0] * first.size[1] > MAX_VOXELS:
        raise ValueError(
            f"{path}: {len(slices)} slices of {first.size[0]}×{first.size[1]}: more than {MAX_VOXELS:.3g} voxels"
        )
    _check_duplicates(slices, heights, path)
    notes = _padding_in_tissue(slices) if modality == "CT" else []
    even = _check_even(slices, heights, path, irregular)
    array = _fill(slices, pixels, ct=modality == "CT")
    affine = _affine(slices, normal)
    loaded = Loaded(
        path, array, affine, modality=modality, rescaled=all(one.intercept != 0 for one in slices), notes=notes
    )
    if not even:
        loaded.voxels, loaded.affine = _to_even(loaded.values(array), affine, slices, heights, normal)
        gaps = np.diff(heights)
        notes.append(f"slices {gaps.min():.2f} to {gaps.max():.2f} mm apart, resampled to {np.median(gaps):.2f} mm")
    return _straight(loaded, normal)


def _number(frame: Dataset, name: str, default: float) -> float:
    value = frame.get(name)
    return default if value is None or value == "" else float(value)


def _numbers(frame: Dataset, name: str, count: int) -> NDArray[np.float64] | None:
    value = frame.get(name)
    if value is None or value == "" or len(value) != count:
        return None
    numbers = np.array([float(part) for part in value])
    return numbers if np.isfinite(numbers).all() else None


def _padding(frame: Dataset) -> tuple[float, float] | None:
    value = frame.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = frame.get("PixelPaddingRangeLimit")
    ends = [float(value), float(value if limit in (None, "") else limit)]
    if frame.get("PixelRepresentation") == 1:  # scanners write the padding of signed pixels unsigned: 63536 for −2000
        ends = [end - 2**16 if end >= 2**15 else end for end in ends]
    return min(ends), max(ends)


def _padding_in_tissue(slices: list[Slice]) -> list[str]:
    """A note where the padding is a value that tissue has too: then voxels inside the body became air."""
    ends = [end * one.slope + one.intercept for one in slices for end in one.padding or ()]
    inside = [hu for hu in ends if _TISSUE[0] < hu < _TISSUE[1]]
    if not inside:
        return []
    return [f"PixelPaddingValue is {inside[0]:.0f} HU, which tissue has too: all voxels of that value became air"]


def _check_unit(slices: list[Slice]) -> None:
    """Refuses a CT of other values than HU; an MR or PET image has a unit of its own ("normalized", "BQML")."""
    for one in slices:
        if one.unit not in ("HU", "US"):
            raise ValueError(f"{one.name}: values are {one.unit!r}, not HU (RescaleType); choose the HU series")


def _check_alike(slices: list[Slice], path: Path) -> None:
    """Refuses a series whose slices differ in size, spacing or orientation."""
    first = slices[0]
    for one in slices[1:]:
        for what, mine, other, close in (
            ("pixels", first.size, one.size, first.size == one.size),
            ("mm a pixel", first.spacing, one.spacing, np.allclose(first.spacing, one.spacing, rtol=1e-3)),
            ("orientation", first.orientation, one.orientation,
             np.allclose(first.orientation, one.orientation, atol=2e-3)),
        ):  # fmt: skip
            if not close:
                raise ValueError(
                    f"{path}: slices of two kinds in one series: {first.name} has {what} {_plain(mine)}, {one.name} "
                    f"has {_plain(other)}; move one kind to a folder of its own"
                )


def _plain(values: Any) -> str:
    return "×".join(f"{float(value):.4g}" for value in values)


def _check_duplicates(slices: list[Slice], heights: NDArray[np.float64], path: Path) -> None:
    gaps = np.diff(heights)
    step = np.median(gaps[gaps > 1e-3]) if (gaps > 1e-3).any() else 0.0
    twice = np.flatnonzero(gaps <= max(1e-3, 0.01 * step))
    if twice.size:
        at = int(twice[0])
        raise ValueError(
            f"{path}: {twice.size} duplicate slices: {slices[at].name} (frame {slices[at].frame}) and "
            f"{slices[at + 1].name} (frame {slices[at + 1].frame}) both lie at {heights[at]:.2f} mm along the normal; "
            "keep one copy, or one phase, in the folder"
        )


def _check_even(
    slices: list[Slice], heights: NDArray[np.float64], path: Path, irregular: Literal["resample"] | None
) -> bool:
    """Whether the slices lie on an even grid.

    Raises:
        ValueError: they do not, and nobody asked to resample them; says where and how wide the gaps are.
    """
    gaps = np.diff(heights)
    step = gaps.mean()
    allowed = max(_EVEN * step, min(0.2 * step, 0.11))
    if np.abs(heights - (heights[0] + step * np.arange(len(heights)))).max() <= allowed:
        return True
    if irregular == "resample":
        return False
    usual = float(np.median(gaps))
    wide = [int(at) for at in np.flatnonzero(np.abs(gaps - usual) > allowed)]
    missing = sum(max(round(gaps[at] / usual) - 1, 0) for at in wide)
    where = ", ".join(f"{gaps[at]:.2f} mm after {Path(slices[at].name).name}" for at in wide[:4])
    raise ValueError(
        f"{path}: slices usually {usual:.2f} mm apart, but {where}{', …' if len(wide) > 4 else ''} "
        f"({len(wide)} uneven gaps, about {missing} slices missing); get the whole series, or interpolate with "
        'irregular="resample"'
    )


def _fill(slices: list[Slice], pixels: Callable[[str], NDArray[Any]], *, ct: bool) -> NDArray[Any]:
    """HU of all slices; int16 when every value is a whole number that fits, float32 otherwise."""
    columns, rows = slices[0].size
    whole = all(float(one.slope).is_integer() and float(one.intercept).is_integer() for one in slices)
    volume = np.empty((len(slices), rows, columns), dtype=np.int16 if whole else np.float32)
    by_name: dict[str, list[tuple[int, Slice]]] = {}
    for index, one in enumerate(slices):
        by_name.setdefault(one.name, []).append((index, one))
    for name, frames in by_name.items():
        stored = pixels(name)
        for index, one in frames:
            values = one.hu(_frame(stored, one), ct=ct)
            if volume.dtype == np.int16 and (values.min() < -32768 or values.max() > 32767):
                volume = volume.astype(np.float32)
            volume[index] = values
    return volume.transpose(2, 1, 0)


def _frame(stored: NDArray[Any], one: Slice) -> NDArray[Any]:
    if one.frame >= len(stored) or stored.shape[1:] != one.size[::-1]:
        raise ValueError(
            f"{one.name}: header says frame {one.frame} of {one.size[1]}×{one.size[0]} pixels, decoded "
            f"{len(stored)} frames of {stored.shape[1]}×{stored.shape[2]}; copy or export it again"
        )
    return stored[one.frame]


def _affine(slices: list[Slice], normal: NDArray[np.float64]) -> Affine:
    """(column, row, slice) → RAS mm; the slice step is measured between first and last position."""
    first, last = slices[0], slices[-1]
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[:3] * first.spacing[1]
    affine[:3, 1] = first.orientation[3:] * first.spacing[0]
    affine[:3, 2] = (last.position - first.position) / (len(slices) - 1)
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine


def _to_even(
    array: NDArray[Any],
    affine: Affine,
    slices: list[Slice],
    heights: NDArray[np.float64],
    normal: NDArray[np.float64],
) -> tuple[NDArray[np.float32], Affine]:
    """Linear interpolation between neighbouring slices to the usual (median) distance."""
    step = float(np.median(np.diff(heights)))
    count = int(np.floor((heights[-1] - heights[0]) / step + 1e-3)) + 1
    at = np.interp(heights[0] + step * np.arange(count), heights, np.arange(len(heights)))
    low = np.minimum(at.astype(int), len(heights) - 2)
    share = (at - low).astype(np.float32)
    even = np.empty((count, array.shape[1], array.shape[0]), dtype=np.float32)
    for index in range(count):
        below, above = array[:, :, low[index]].T, array[:, :, low[index] + 1].T
        even[index] = below * (1 - share[index]) + above * share[index]
    result = affine.copy()
    total = (slices[-1].position - slices[0].position) / (heights[-1] - heights[0])
    result[:3, 2] = LPS_TO_RAS[:3, :3] @ total * step
    return even.transpose(2, 1, 0), result


def _straight(loaded: Loaded, normal: NDArray[np.float64]) -> Loaded:
    """An orthogonal grid: jitter below a tenth of a pixel is dropped, a tilted gantry's shear is resampled."""
    affine = loaded.affine
    across = LPS_TO_RAS[:3, :3] @ normal
    step = affine[:3, 2]
    drift = np.linalg.norm(step - across * (step @ across)) * (loaded.array.shape[2] - 1)
    if drift == 0:
        return loaded
    if drift < 0.1 * min(loaded.geometry.spacing[:2]):
        loaded.affine = affine.copy()
        loaded.affine[:3, 2] = across * (step @ across)
        return loaded
    return straighten(loaded)
