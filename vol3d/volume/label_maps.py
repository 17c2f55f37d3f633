"""Label maps between grids: every voxel takes the label with the largest share, never a mixture of two numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from vol3d.types import Spacing
from vol3d.volume.label_fields import TO_COARSE, TO_FINE, TO_THIN, border_depth
from vol3d.volume.resampling import Axis, resample_dense

Axes = tuple[Axis, Axis, Axis]
_LARGE = 60_000
"""Cubic millimetres."""
_ROUNDS, _STEP, _ENOUGH = 8, 2.0, 0.985
"""Of the search for the grid's voxels: its length at most, how far a round goes, the Dice that ends it."""
_TIE = 1e-4


def resample_nearest(labels: NDArray[np.generic], axes: Axes) -> Tensor:
    """Labels (x, y, z) on the axes' grid, each from the nearest voxel, 0 outside."""
    index = [axis.taps("nearest").index[0] for axis in axes]
    out = torch.zeros(tuple(axis.size for axis in axes), dtype=torch.int16)
    if all(axis.stop > axis.start for axis in axes):
        part = np.ascontiguousarray(labels[np.ix_(*index)]).astype(np.int16)
        out[tuple(slice(axis.start, axis.stop) for axis in axes)] = torch.from_numpy(part)
    return out


def resample_labels(
    labels: NDArray[np.generic],
    axes: Axes,
    *,
    spacing: Spacing | None = None,
    back: bool = False,
) -> Tensor:
    """Labels (x, y, z) on the axes' grid by trilinear vote, int16, 0 outside.

    The vote keeps borders within a fraction of a voxel where nearest is off by up to half a source voxel.

    Args:
        spacing: of `labels`, in mm. With it the vote is on each label's smooth border (`label_fields.border_depth`)
            where that gains: on the way to a coarser grid for structures under 60 ml, whose voxels there are chosen
            so that the way back gives the label again, and on the way back.
        back: this is the way back from a grid, which is smoothed more.
    """
    if all(axis.whole for axis in axes):
        return resample_nearest(labels, axes)
    smooth = spacing is not None and _gains(axes, back=back)
    total = torch.zeros(tuple(axis.size for axis in axes))
    best, winner = torch.zeros_like(total), torch.zeros(total.shape, dtype=torch.int16)
    for number, place in _places(labels):
        wide = tuple(slice(max(0, s.start - 4), min(n, s.stop + 4)) for s, n in zip(place, labels.shape, strict=True))
        local, target = zip(*[_crop(axis, part) for axis, part in zip(axes, wide, strict=True)], strict=True)
        share = _share(labels[wide], number, local, spacing if smooth else None, back=back)
        ahead = (share >= best[target] - _TIE) & (share > 0)
        best[target] = torch.where(ahead, share, best[target])
        winner[target] = torch.where(ahead, torch.tensor(number, dtype=torch.int16), winner[target])
        total[target] += share
    return winner.masked_fill_(best < 1 - total - _TIE, 0)


def _gains(axes: Axes, *, back: bool) -> bool:
    """Whether a smooth border tells more than the voxels: a grid that is finer already holds them as they are."""
    return any(axis.step < 1 if back else axis.step > 1 for axis in axes)


def _share(labels: NDArray[np.generic], number: int, axes: Axes, spacing: Spacing | None, *, back: bool) -> Tensor:
    """How much of each voxel of the axes' grid one label fills, 0 to 1."""
    voxels = labels == number
    if spacing is None or (not back and voxels.sum() * np.prod(spacing) > _LARGE):
        return resample_dense(torch.from_numpy(voxels.astype(np.float32)), axes, kind="linear")
    others = (labels != number) & (labels != 0)
    inside = _carried(voxels, axes, spacing, TO_FINE) if back else _returning(voxels, others, axes, spacing)
    # Sharp, so that a gap of one voxel between two organs stays; not a step, so that touching organs stay in touch.
    return (0.5 + inside / (0.5 * min(spacing))).clamp_(0, 1)


def _carried(voxels: NDArray[np.bool_], axes: Axes, spacing: Spacing, sigmas: Sequence[float]) -> Tensor:
    """Millimetres inside the smooth border, on the axes' grid."""
    depth = torch.from_numpy(border_depth(voxels, spacing, sigmas))
    return resample_dense(depth, axes, kind="linear", outside=-max(spacing))


def _returning(voxels: NDArray[np.bool_], others: NDArray[np.bool_], axes: Axes, spacing: Spacing) -> Tensor:
    """As `_carried`, to a coarser grid, with the voxels near the border settled by the way back.

    Many sets of coarse voxels fit a border equally well; what comes back wrong is laid onto the depth they were taken
    from until hardly anything is. Source: iterative back-projection (Irani and Peleg, 1991), here of a border.

    Args:
        others: where other labels are: there the border stays, lest touching organs part.
    """
    inside = _carried(voxels, axes, spacing, TO_THIN if any(axis.step < 1 for axis in axes) else TO_COARSE)
    back = tuple(axis.reverse() for axis in axes)
    if not _gains(back, back=True) or not inside.numel():
        return inside
    coarse = tuple(size * axis.step for size, axis in zip(spacing, axes, strict=True))
    alone = resample_dense(torch.from_numpy(others.astype(np.float32)), axes, kind="average") == 0
    wanted, best, found = torch.from_numpy(voxels), -1.0, inside
    for _ in range(_ROUNDS):
        returned = _carried((inside > 0).numpy(), back, coarse, TO_FINE)
        there = returned > 0
        dice = float(2 * (there & wanted).sum() / (there.sum() + wanted.sum()))
        if dice > best:
            best, found = dice, inside
        if dice >= _ENOUGH:
            break
        wrong = (wanted.float() - there.float()) * (returned.abs() + 0.1 * min(spacing))
        inside = inside + _STEP * alone * resample_dense(wrong, axes, kind="average")
    return found


def _places(labels: NDArray[np.generic]) -> list[tuple[int, tuple[slice, ...]]]:
    """The labels that occur, 0 apart, in their order, and the box of each; looked for as they lie in memory."""
    order = np.argsort([-abs(stride) for stride in labels.strides], kind="stable")
    laid, back = labels.transpose(order), np.argsort(order)
    laid = laid.view(np.uint8) if laid.dtype == bool else laid
    low = int(laid.min())
    shift = 1 - low if low < 0 else 0  # scipy looks for 1 and more
    laid = laid.astype(np.int64) + shift if shift else laid
    found = enumerate(ndimage.find_objects(laid, max_label=int(laid.max())), start=1 - shift)
    return [(number, tuple(place[axis] for axis in back)) for number, place in found if place is not None and number]


def _crop(axis: Axis, part: slice) -> tuple[Axis, slice]:
    """`axis` restricted to a part of its source: the local axis, and the output voxels that it covers."""
    low = max(axis.start, int(np.ceil((part.start - 0.5 - axis.offset) / axis.step)))
    high = min(axis.stop, int(np.floor((part.stop - 0.5 - axis.offset) / axis.step)) + 1)
    high = max(high, low)
    offset = axis.offset + low * axis.step - part.start
    return replace(
        axis, source=part.stop - part.start, size=high - low, offset=offset, start=0, stop=high - low
    ), slice(low, high)
