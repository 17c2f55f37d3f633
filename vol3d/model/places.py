"""Places in RAS millimetres and in shares of the grid: 0 at its lower face, 1 at its upper face."""

from __future__ import annotations

import torch
from torch import Tensor

from vol3d.types import Affines, Triple


def to_shares(points: Tensor, affine: Affines, shape: Triple) -> Tensor:
    """RAS mm (batch, points, 3) → shares of the grid: 0 at its lower face, 1 at its upper face."""
    voxels = apply_affine(torch.linalg.inv(affine), points.to(affine.dtype))
    return (voxels + 0.5) / torch.tensor(shape, dtype=affine.dtype, device=affine.device)


def boxes_to_shares(boxes: Tensor, affine: Affines, shape: Triple) -> Tensor:
    """Boxes (batch, boxes, 6) in RAS mm → the boxes of the grid around their eight corners, in shares."""
    shares = to_shares(_eight(boxes).flatten(1, 2), affine, shape).unflatten(1, (-1, 8))
    return torch.cat([shares.amin(2), shares.amax(2)], dim=-1)


def boxes_to_mm(shares: Tensor, affine: Affines, shape: Triple) -> Tensor:
    """The way back: boxes of the grid in shares → boxes around their corners in RAS mm."""
    size = torch.tensor(shape, dtype=affine.dtype, device=affine.device)
    corners = _eight(shares.to(affine.dtype)) * size - 0.5
    points = apply_affine(affine, corners.flatten(1, 2)).unflatten(1, (-1, 8))
    return torch.cat([points.amin(2), points.amax(2)], dim=-1)


def _eight(boxes: Tensor) -> Tensor:
    """(batch, boxes, 6) → their corners (batch, boxes, 8, 3)."""
    ends = boxes.unflatten(-1, (2, 3))
    chosen = torch.tensor([[i >> axis & 1 for axis in range(3)] for i in range(8)], device=boxes.device)
    return torch.stack([ends[..., chosen[:, axis], axis] for axis in range(3)], dim=-1)


def apply_affine(affine: Tensor, points: Tensor) -> Tensor:
    """Affines (batch, 4, 4) on points (batch, points, 3)."""
    return points @ affine[:, :3, :3].transpose(1, 2) + affine[:, None, :3, 3]
