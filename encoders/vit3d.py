"""ViT3D: a vision transformer over the patches of a volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vol3d.model.interfaces import Encoder, Features
from vol3d.model.positions import RotaryPositions3D, sincos_positions_3d
from vol3d.types import Affines, Triple, Volumes

Positions = Literal["learned", "sincos", "rotary"]


class ViT3D(Encoder):
    """Vision transformer for volumes of any grid.

    Patches become tokens by one linear map (`stem="linear"`) or by a stack of stride-2 convolutions
    (`stem="conv"`), which learns far faster from few studies and gives finer feature maps to a mask head.
    Attention is torch's scaled_dot_product_attention.

    Args:
        in_channels: HU windows a volume comes with.
        patch_size: voxels a token covers along x, y, z; powers of two for the conv stem.
        grid_size: tokens along x, y, z that learned positions are made for; another grid is interpolated.
        embed_dim, depth, num_heads, mlp_ratio: the transformer's.
        positions: learned (one vector a token), sincos (fixed), or rotary (relative, inside attention).
        cls_token: prepend a token, without position, whose output is `Features.pooled`.
        stem: "linear" or "conv".
        qkv_bias: bias of the query, key and value maps (M3D has none).
        checkpointing: recompute blocks in the backward pass; less memory, same result.

    Shape:
        image: (batch, in_channels, x, y, z) → tokens (batch, gx * gy * gz, embed_dim).

    Raises:
        ValueError: the image's size is not a multiple of the patch size, or its channels are not in_channels.

    Source: Dosovitskiy et al. 2021 (arXiv:2010.11929); conv stem after Xiao et al. 2021 (arXiv:2106.14881), here
    in 3D with GroupNorm. M3D (arXiv:2404.00578) is `patch_size=(16, 16, 4)` in this axis order with learned
    positions, a CLS token and no qkv bias.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        patch_size: Sequence[int] = (16, 16, 8),
        grid_size: Sequence[int] | None = None,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        positions: Positions = "sincos",
        cls_token: bool = False,
        stem: Literal["linear", "conv"] = "linear",
        qkv_bias: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        if positions == "learned" and grid_size is None:
            raise ValueError("learned positions need grid_size, the tokens along x, y, z they are made for")
        self.embed_dim, self.in_channels, self.patch_size = embed_dim, in_channels, tuple(patch_size)
        self.positions, self.checkpointing = positions, checkpointing
        self.learned_grid = tuple(grid_size) if grid_size is not None else None
        self.stem = (ConvStem if stem == "conv" else LinearStem)(in_channels, self.patch_size, embed_dim)
        if positions == "learned":
            self.position_embeddings = nn.Parameter(0.02 * torch.randn(1, math.prod(grid_size), embed_dim))
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, embed_dim)) if cls_token else None
        self.rotary = RotaryPositions3D(embed_dim // num_heads) if positions == "rotary" else None
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, qkv_bias) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, image: Volumes, affine: Affines | None = None) -> Features:
        self.check_channels(image)
        grid_size = self.grid_size(tuple(image.shape[2:]))
        tokens, scales = self.stem(image)
        tokens = self._add_positions(tokens, grid_size)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        angles = None if self.rotary is None else self.rotary(grid_size, self.cls_token is not None, tokens.device)
        for block in self.blocks:
            if self.checkpointing and self.training:
                tokens = checkpoint(block, tokens, angles, use_reentrant=False)
            else:
                tokens = block(tokens, angles)
        tokens = self.norm(tokens)
        pooled = None
        if self.cls_token is not None:
            pooled, tokens = tokens[:, 0], tokens[:, 1:]
        return Features(tokens, grid_size, self.token_affine(affine), pooled, scales)

    def _add_positions(self, tokens: Tensor, grid_size: Triple) -> Tensor:
        if self.positions == "sincos":
            return tokens + sincos_positions_3d(grid_size, self.embed_dim, tokens.device).to(tokens.dtype)
        if self.positions == "learned":
            return tokens + self._learned_positions(grid_size)
        return tokens

    def _learned_positions(self, grid_size: Triple) -> Tensor:
        if grid_size == self.learned_grid:
            return self.position_embeddings
        x, y, z = self.learned_grid
        grid = rearrange(self.position_embeddings, "1 (x y z) c -> 1 c x y z", x=x, y=y, z=z)
        grid = F.interpolate(grid, size=grid_size, mode="trilinear", align_corners=False)
        return rearrange(grid, "1 c x y z -> 1 (x y z) c")


class LinearStem(nn.Module):
    """Non-overlapping patches through one linear map (as a convolution whose stride is its kernel)."""

    def __init__(self, in_channels: int, patch_size: Triple, embed_dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv3d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.projection(image).flatten(2).transpose(1, 2), ()


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


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool) -> None:
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(embed_dim)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.out = nn.Linear(embed_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, hidden), nn.GELU(), nn.Linear(hidden, embed_dim))

    def forward(self, tokens: Tensor, angles: Tensor | None = None) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens), angles)
        return tokens + self.mlp(self.norm2(tokens))

    def attention(self, tokens: Tensor, angles: Tensor | None) -> Tensor:
        qkv = rearrange(self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        query, key, value = qkv.unbind(0)
        if angles is not None:
            query, key = RotaryPositions3D.rotate(query, angles), RotaryPositions3D.rotate(key, angles)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))


VIT3D_CONFIGS: dict[str, dict[str, Any]] = {
    "vit3d-tiny": {"patch_size": (8, 8, 4), "embed_dim": 192, "depth": 4, "num_heads": 3, "stem": "conv"},
    "vit3d-small": {"patch_size": (16, 16, 8), "embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit3d-base": {"patch_size": (16, 16, 8), "embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit3d-large": {"patch_size": (16, 16, 8), "embed_dim": 1024, "depth": 24, "num_heads": 16},
}
