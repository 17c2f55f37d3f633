"""Positions of tokens on a 3D grid: fixed sine–cosine vectors, rotary angles, waves of any coordinate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vol3d.types import Triple

BANDS = 6
"""Frequencies a coordinate is written in; the finest wave is 1/32 of the grid long."""


def grid_coordinates(grid_size: Triple, device: torch.device | str = "cpu") -> Tensor:
    """Integer coordinates (tokens, 3) in the x-major order of `Features.tokens`."""
    axes = [torch.arange(size, device=device, dtype=torch.float32) for size in grid_size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def waves(shares: Tensor) -> Tensor:
    """Coordinates in shares of the grid (…, 3) → sines and cosines (…, 6 · BANDS)."""
    frequencies = math.pi * 2.0 ** torch.arange(BANDS, device=shares.device, dtype=shares.dtype)
    angles = (shares[..., None] * frequencies).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_positions_3d(grid_size: Triple, embed_dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Sine and cosine of each coordinate at geometric frequencies, a third of the channels an axis.

    Channels left over by the division by six stay zero.

    Shape:
        returns (tokens, embed_dim) float32.

    Source: the 1D form of Vaswani et al. 2017 (arXiv:1706.03762), once an axis.
    """
    bands = embed_dim // 6
    if bands == 0:
        raise ValueError(f"embed_dim {embed_dim} is below 6, the least that sine and cosine of x, y, z need")
    frequencies = 10000.0 ** (-torch.arange(bands, device=device, dtype=torch.float32) / bands)
    angles = grid_coordinates(grid_size, device)[:, :, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return torch.nn.functional.pad(waves, (0, embed_dim - waves.shape[1]))


class RotaryPositions3D(torch.nn.Module):
    """Rotary angles for tokens on a 3D grid: a third of each head's channel pairs turns with each axis.

    Source: Su et al. 2021 (arXiv:2104.09864), axial form; left-over pairs are not turned.
    """

    def __init__(self, head_dim: int, base: float = 100.0) -> None:
        super().__init__()
        if head_dim < 6:
            raise ValueError(f"head_dim {head_dim} is below 6, the least that rotary positions in 3D need")
        self.head_dim, self.base = head_dim, base

    def forward(self, grid_size: Triple, cls_token: bool, device: torch.device) -> Tensor:
        """Angles (tokens, head_dim // 2); a CLS token in front is not turned."""
        bands = self.head_dim // 6
        frequencies = self.base ** (-torch.arange(bands, device=device, dtype=torch.float32) / bands)
        angles = (grid_coordinates(grid_size, device)[:, :, None] * frequencies).flatten(1)
        angles = torch.nn.functional.pad(angles, (0, self.head_dim // 2 - angles.shape[1]))
        return torch.nn.functional.pad(angles, (0, 0, 1, 0)) if cls_token else angles

    @staticmethod
    def rotate(heads: Tensor, angles: Tensor) -> Tensor:
        """Turn (…, tokens, head_dim) by angles (tokens, head_dim // 2)."""
        first, second = heads.float().chunk(2, dim=-1)
        if first.shape[-1] != second.shape[-1]:
            raise ValueError(f"head_dim {heads.shape[-1]} is odd; rotary positions turn pairs")
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(heads.dtype)
