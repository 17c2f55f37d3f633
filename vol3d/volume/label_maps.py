"""Label maps between grids: every voxel takes the label with the largest share, never a mixture of two numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from vol3d.volume.resampling import Axis, resample_dense

_SMOOTHING = 0.7
_SMALL = 64


def resample_nearest(labels: NDArray[np.generic], axes: tuple[Axis, Axis, Axis]) -> Tensor:
    """Labels (x, y, z) on the axes' grid, each from the nearest voxel, 0 outside."""
    index = [axis.taps("nearest").index[0] for axis in axes]
    out = torch.zeros(tuple(axis.size for axis in axes), dtype=torch.int16)
    if all(axis.stop > axis.start for axis in axes):
        part = np.ascontiguousarray(labels[np.ix_(*index)]).astype(np.int16)
        out[tuple(slice(axis.start, axis.stop) for axis in axes)] = torch.from_numpy(part)
    return out


def resample_labels(labels: NDArray[np.generic], axes: tuple[Axis, Axis, Axis], *, smooth: bool = False) -> Tensor:
    """Labels (x, y, z) on the axes' grid by trilinear vote, int16, 0 outside.

    The vote keeps borders within a fraction of a voxel where nearest is off by up to half a source voxel.

    Args:
        smooth: towards a finer grid, round off the steps of the coarse voxels; connected parts under 64 coarse
            voxels are left as they are, so that no small lesion is lost.
    """
    if all(axis.whole for axis in axes):
        return resample_nearest(labels, axes)
    sigma = [_SMOOTHING * float(np.sqrt(max(0.0, 1 - axis.step**2))) if smooth else 0.0 for axis in axes]
    numbers, compact = _numbered(labels)
    background = np.ones(labels.shape, dtype=np.float32)
    shares: list[tuple[int, tuple[slice, ...], NDArray[np.float32]]] = []
    for number, place in zip(numbers, ndimage.find_objects(compact, max_label=len(numbers)), strict=True):
        wide = tuple(slice(max(0, s.start - 4), min(n, s.stop + 4)) for s, n in zip(place, labels.shape, strict=True))
        shares.append((number, wide, _soft(labels[wide] == number, sigma)))
        background[wide] -= shares[-1][2]
    best = resample_dense(torch.from_numpy(background), axes, kind="linear", outside=1.0)
    winner = torch.zeros(best.shape, dtype=torch.int16)
    for number, wide, soft in shares:
        local, target = zip(*[_crop(axis, part) for axis, part in zip(axes, wide, strict=True)], strict=True)
        share = resample_dense(torch.from_numpy(soft), local, kind="linear")
        ahead = (share >= best[target] - 1e-4) & (share > 0)
        best[target] = torch.where(ahead, share, best[target])
        winner[target] = torch.where(ahead, torch.tensor(number, dtype=torch.int16), winner[target])
    return winner


def _numbered(labels: NDArray[np.generic]) -> tuple[list[int], NDArray[np.int32]]:
    """The labels that occur, and the map with them renumbered 1, 2, …"""
    low = int(labels.min())
    counts = np.bincount((labels.astype(np.int32) - low).ravel(order="K"))
    numbers = [int(index) + low for index in np.flatnonzero(counts) if index + low != 0]
    table = np.zeros(len(counts), dtype=np.int32)
    table[[number - low for number in numbers]] = np.arange(1, len(numbers) + 1)
    return numbers, table[labels.astype(np.int32) - low]


def _crop(axis: Axis, part: slice) -> tuple[Axis, slice]:
    """`axis` restricted to a part of its source: the local axis, and the output voxels that it covers."""
    low = max(axis.start, int(np.ceil((part.start - 0.5 - axis.offset) / axis.step)))
    high = min(axis.stop, int(np.floor((part.stop - 0.5 - axis.offset) / axis.step)) + 1)
    high = max(high, low)
    offset = axis.offset + low * axis.step - part.start
    return replace(
        axis, source=part.stop - part.start, size=high - low, offset=offset, start=0, stop=high - low
    ), slice(low, high)


def _soft(voxels: NDArray[np.bool_], sigma: list[float]) -> NDArray[np.float32]:
    """Share of each voxel that belongs to a structure whose steps are rounded off."""
    share = voxels.astype(np.float32)
    if not any(sigma):
        return share
    smooth = ndimage.gaussian_filter(share, sigma, truncate=2.5, mode="nearest")
    parts, count = ndimage.label(voxels, structure=np.ones((3, 3, 3)))
    small = np.flatnonzero(np.bincount(parts.ravel(), minlength=count + 1) < _SMALL)
    small = small[small > 0]
    return np.where(np.isin(parts, small), np.float32(1), smooth) if small.size else smooth
