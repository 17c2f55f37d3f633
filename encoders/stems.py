"""How a volume's patches become tokens: stems, and positions learned along each axis."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vol3d.types import Affines, Triple


class LinearStem(nn.Module):
    """Non-overlapping patches through one linear map (as a convolution whose stride is its kernel)."""

    def __init__(self, in_channels: int, patch_size: Triple, embed_dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv3d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.projection(image).flatten(2).transpose(1, 2), ()


class NormedStem(nn.Module):
    """LayerNorm of the patch, a linear map, LayerNorm of the token.

    Made for three channels and given one, it computes what three equal channels would give, without the copies: the
    mean and variance are the same, and the maps of the three add up.
    """

    def __init__(self, in_channels: int, patch_size: Triple, embed_dim: int, made_for: int | None = None) -> None:
        super().__init__()
        self.patch_size, self.in_channels, self.made_for = patch_size, in_channels, made_for or in_channels
        check_folding(in_channels, self.made_for)
        width = self.made_for * math.prod(patch_size)
        self.norm_patch = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        px, py, pz = self.patch_size
        patches = rearrange(
            image, "b c (gx px) (gy py) (gz pz) -> b (gx gy gz) (c px py pz)", px=px, py=py, pz=pz
        )  # fmt: skip
        if self.in_channels == self.made_for:
            return self.norm(self.projection(self.norm_patch(patches))), ()
        normed = F.layer_norm(patches, patches.shape[-1:], eps=self.norm_patch.eps)
        weight = self.projection.weight * self.norm_patch.weight
        weight = weight.unflatten(1, (self.made_for, -1)).sum(1)
        bias = self.projection(self.norm_patch.bias)
        return self.norm(F.linear(normed, weight, bias)), ()


class ConvStem(nn.Module):
    """Stride-2 stages down to one token a patch; the maps before the last are kept as `scales`.

    The first stage is one convolution, because its map is large; each later one ends in a residual convolution.
    """

    def __init__(self, in_channels: int, patch_size: Triple, embed_dim: int) -> None:
        super().__init__()
        if any(size & (size - 1) for size in patch_size):
            raise ValueError(f"the conv stem halves: patch_size {patch_size} must be powers of two")
        levels = int(math.log2(max(patch_size)))
        stages, channels = [], in_channels
        for level in range(levels):
            # A short axis (thick slices) is halved last, when the voxels have become isotropic.
            later = levels - level - 1
            stride = tuple(2 if int(math.log2(size)) > later else 1 for size in patch_size)
            width = max(16, embed_dim >> later)
            stages.append(ConvStage(channels, width, stride, refine=level > 0))
            channels = width
        self.stages = nn.ModuleList(stages)
        self.projection = nn.Conv3d(channels, embed_dim, kernel_size=1)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        maps = []
        image = image.contiguous(memory_format=torch.channels_last_3d)  # twice as fast on a CPU
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return self.projection(image).flatten(2).transpose(1, 2), tuple(maps[:-1])


class ConvStage(nn.Module):
    """A strided convolution, and a residual one on what is left."""

    def __init__(self, channels: int, width: int, stride: Triple, *, refine: bool) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv3d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(math.gcd(8, width), width),
            nn.GELU(),
        )
        self.refine = None
        if refine:
            conv = nn.Conv3d(width, width, kernel_size=3, padding=1, bias=False)
            self.refine = nn.Sequential(conv, nn.GroupNorm(math.gcd(8, width), width), nn.GELU())

    def forward(self, image: Tensor) -> Tensor:
        image = self.down(image)
        return image if self.refine is None else image + self.refine(image)


class AxialPositions(nn.Module):
    """A learned table an axis, a third of the channels each.

    A grid of n tokens reads its table of N entries at N // n · (i + 1) − 1, so that a coarse grid meets entries
    spread over the whole table.

    Source: RadFM (arXiv:2308.02463), whose channels come in the order rows (y), columns (x), slices (z).
    """

    def __init__(self, grid_size: Triple, embed_dim: int) -> None:
        super().__init__()
        if embed_dim % 3:
            raise ValueError(f"axial positions share the channels among three axes: {embed_dim} is not a multiple of 3")
        tables = (nn.Parameter(torch.rand(size, embed_dim // 3)) for size in grid_size)
        self.x, self.y, self.z = tables

    def forward(self, grid_size: Triple) -> Tensor:
        """Positions (tokens, embed_dim)."""
        read = []
        for axis, (table, size) in enumerate(zip((self.x, self.y, self.z), grid_size, strict=True)):
            if size > len(table):
                raise ValueError(
                    f"the grid has {size} tokens along {'xyz'[axis]}, the learned positions end at {len(table)}: use "
                    "a smaller Grid, or build the encoder with a larger grid_size"
                )
            read.append(table[len(table) // size - 1 :: len(table) // size][:size])
        x, y, z = read
        x = x[:, None, None].expand(*grid_size, -1)
        y = y[None, :, None].expand(*grid_size, -1)
        z = z[None, None].expand(*grid_size, -1)
        return torch.cat([y, x, z], dim=-1).flatten(0, 2)


def check_folding(in_channels: int, made_for: int) -> None:
    """A kernel made for several channels takes as many, or one that stands for all of them."""
    if in_channels not in (1, made_for):
        raise ValueError(
            f"the stem is made for {made_for} channels and in_channels is {in_channels}: choose 1 (one channel that "
            f"stands for all {made_for}) or {made_for}"
        )


def strided_affine(affine: Affines | None, stride: Triple) -> Affines | None:
    """Affine of a map made by odd kernels with symmetric padding: they look around voxel stride · index, so that
    there is no half-patch shift."""
    if affine is None:
        return None
    scaled = affine.clone()
    scaled[:, :3, :3] = affine[:, :3, :3] * torch.tensor(stride, dtype=affine.dtype, device=affine.device)
    return scaled
