"""The smooth border behind a label's voxels, so that whole numbers survive a coarser grid and the way back.

A label map holds a border to half a voxel, but voxels side by side hold it far better: one smooth surface fits them
all. It is found by blurring as much as the voxels allow: a strong blur where it puts no voxel on the other side, a
weaker one where it would (a thin process, a corner), none where nothing else will do (a lesion of one voxel). The
level of each blur is chosen so that the volume stays what it was, which is why a ball does not shrink.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vol3d.types import Spacing

TO_COARSE = (3.5, 2.5, 1.7, 1.0, 0.6)
TO_THIN = (1.7, 1.0, 0.6)
TO_FINE = (5.0, 3.5, 2.5, 1.7, 1.0, 0.6)
"""Blurs that are tried, strongest first: standard deviations in mm; to thinner slices little, lest caps shrink."""
_SLOPE = float(np.sqrt(2 * np.pi))
"""A blurred flat border rises by 1 / (_SLOPE · sigma) a millimetre."""


def border_depth(voxels: NDArray[np.bool_], spacing: Spacing, sigmas: Sequence[float]) -> NDArray[np.float32]:
    """Millimetres inside the smooth border (negative: outside), true near it; every voxel keeps its side.

    Linear interpolation of it between voxels gives the border on any other grid: it is where the depth is 0.

    Args:
        spacing: mm between voxels.
        sigmas: mm, strongest first.
    """
    share = voxels.astype(np.float32)
    count = int(voxels.sum())
    if count in (0, voxels.size):
        return (share - 0.5) * np.float32(min(spacing))
    depth: NDArray[np.float32] | None = None
    for sigma in (*sigmas, 0.0):
        if depth is not None:
            weight = _disputed(depth, voxels)
            if weight is None:
                return depth
        new = _blurred(share, count, spacing, sigma) if sigma else (share - 0.5) * np.float32(min(spacing))
        depth = new if depth is None else depth + (new - depth) * weight
    return depth


def _blurred(share: NDArray[np.float32], count: int, spacing: Spacing, sigma: float) -> NDArray[np.float32]:
    """Millimetres inside the level of the blurred voxels that holds as many voxels as there were."""
    blurred = ndimage.gaussian_filter(share, [sigma / step for step in spacing], truncate=3.0, mode="nearest")
    around = np.partition(blurred.ravel(), (-count - 1, -count))
    level = (around[-count] + around[-count - 1]) / 2
    return (blurred - level) * np.float32(sigma * _SLOPE)


def _disputed(depth: NDArray[np.float32], voxels: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """1 around voxels that `depth` puts on the wrong side, fading to 0 over two voxels; None: there are none."""
    wrong = (depth > 0) != voxels
    if not wrong.any():
        return None
    return ndimage.uniform_filter(ndimage.maximum_filter(wrong.astype(np.float32), 3), 3)
