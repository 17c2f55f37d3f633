"""Boxes in RAS millimetres seen from a grid of voxels: mirrored with it, or out of its view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vol3d.data.study import Study
from vol3d.types import Triple

_LEAST = 0.5
"""Share of what was in view of a box that must stay there for the box to be taught."""


def mirror_box(box: Mapping[str, Any], affine: NDArray[np.float64], width: int) -> tuple[list[float], list[float]]:
    """Lower and upper corner (RAS mm) of a box on a grid that is flipped along x.

    Args:
        affine: (4, 4) voxel index → RAS mm. width: the grid's voxels along x.
    """
    corners = _corners(box, affine)
    corners[:, 0] = width - 1 - corners[:, 0]
    turned = (corners @ affine.T)[:, :3]
    return turned.min(axis=0).tolist(), turned.max(axis=0).tolist()


def keep_in_view(study: Study, before: NDArray[np.float64], after: NDArray[np.float64], shape: Triple) -> Study:
    """The study without the boxes that a move of its grid took out of view: less than half is left of what was seen.

    A box that was outside before stays, to be refused by whoever reads it: no augmentation is to blame.

    Args:
        before, after: (4, 4) voxel index → RAS mm of the grid (x, y, z voxels). What of a box stays is seen in part.
    """
    seen = [(box, visible_share(box, before, shape), visible_share(box, after, shape)) for box in study.boxes]
    kept = [box for box, first, now in seen if first == 0 or now >= _LEAST * first]
    return study if len(kept) == len(study.boxes) else replace(study, boxes=kept)


def visible_share(box: Mapping[str, Any], affine: NDArray[np.float64], shape: Triple) -> float:
    """How much of a box, 0 to 1 of its volume, lies on the grid: of the grid's own box around its eight corners."""
    voxels = _corners(box, affine)[:, :3] + 0.5  # 0 is the grid's lower face
    low, high = voxels.min(axis=0), voxels.max(axis=0)
    inside = np.clip(high, 0, shape) - np.clip(low, 0, shape)
    return float(prod(inside / (high - low)))


def _corners(box: Mapping[str, Any], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The eight corners in voxels, (8, 4) with a last 1."""
    ends = zip(box["min_mm"], box["max_mm"], strict=True)
    return np.array([(*corner, 1.0) for corner in product(*ends)]) @ np.linalg.inv(affine).T
