"""Ensemble: several encoders read the volume, one stream of tokens comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vol3d.encoders.recompute import Recomputing
from vol3d.model.interfaces import Encoder, Features
from vol3d.model.positions import grid_coordinates
from vol3d.types import Affines, Triple, Volumes


class Ensemble(Recomputing):
    """Queries on a common grid gather what each member saw.

    Every member's tokens are normalised, mapped to one width and marked with their member and their place; a query
    for each cell of the common grid then attends to all of them.

    Args:
        members: names for `vol3d.encoders.create`, or {"name": …, argument: value} with arguments of its own.
        embed_dim, depth, num_heads, mlp_ratio: of the gathering layers.
        patch_size: voxels a query stands for along x, y, z; the largest of the members' when None.
        in_channels: HU windows a volume comes with; every member must take as many.
        checkpointing: recompute the members' and the gathering layers in the backward pass.
        preset: name of the Grid; the first member's when None.

    Shape:
        image: (batch, in_channels, x, y, z), a multiple of every member's patch → tokens (batch, gx * gy * gz,
        embed_dim), pooled their mean, scales of the first member that has them.

    Source: BRAVE (arXiv:2404.07204). Differs: the queries lie on a grid, so that projectors and mask heads that need
    one still work.
    """

    def __init__(
        self,
        *,
        members: Sequence[str | Mapping[str, Any]],
        embed_dim: int = 768,
        depth: int = 2,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        patch_size: Sequence[int] | None = None,
        in_channels: int = 1,
        checkpointing: bool = False,
        preset: str | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        built = [_build(member, in_channels) for member in members]
        self.in_channels, self.embed_dim = in_channels, embed_dim
        self.patch_size = tuple(
            patch_size or (max(sizes) for sizes in zip(*(m.patch_size for m in built), strict=True))
        )
        self.members = nn.ModuleList(built)
        self.preset = preset or built[0].preset
        self.media = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(member.embed_dim), nn.Linear(member.embed_dim, embed_dim)) for member in built
        )
        self.marks = nn.Parameter(0.02 * torch.randn(len(built), embed_dim))
        self.query = nn.Parameter(0.02 * torch.randn(embed_dim))
        self.layers = nn.ModuleList(GatherLayer(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        self.checkpointing = checkpointing

    def pass_on(self, value: bool) -> None:
        for member in self.members:
            member.checkpointing = value

    @property
    def smallest_shape(self) -> Triple:
        shapes = [super().smallest_shape, *(member.smallest_shape for member in self.members)]
        return tuple(math.lcm(*sizes) for sizes in zip(*shapes, strict=True))

    def forward(self, image: Volumes, affine: Affines | None = None) -> Features:
        self.check_channels(image)
        shape = tuple(image.shape[2:])
        grid_size = self.grid_size(shape)
        media, scales = [], ()
        for member, project, mark in zip(self.members, self.media, self.marks, strict=True):
            seen = member(image)
            places = self._places(seen.grid_size, shape, image.device)
            media.append(project(seen.tokens) + mark + places)
            scales = scales or seen.scales
        together = torch.cat(media, dim=1)
        tokens = (self.query + self._places(grid_size, shape, image.device)).expand(len(image), -1, -1)
        for layer in self.layers:
            tokens = self.run(layer, tokens, together)
        tokens = self.norm(tokens)
        return Features(tokens, grid_size, self.token_affine(affine), tokens.mean(1), scales)

    def _places(self, grid_size: Triple, shape: Triple, device: torch.device) -> Tensor:
        """Sine and cosine of where each token's centre lies, in cells of the common grid: comparable among members."""
        cells = torch.tensor([s / g / p for s, g, p in zip(shape, grid_size, self.patch_size, strict=True)])
        coordinates = (grid_coordinates(grid_size, device) + 0.5) * cells.to(device)
        bands = self.embed_dim // 6
        frequencies = 10000.0 ** (-torch.arange(bands, device=device, dtype=torch.float32) / bands)
        angles = coordinates[:, :, None] * frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
        return F.pad(waves, (0, self.embed_dim - waves.shape[1]))


class GatherLayer(nn.Module):
    """Queries attend to media, then a feed-forward; both residual and pre-norm."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.num_heads = num_heads
        self.norm, self.norm_media = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key_value = nn.Linear(embed_dim, 2 * embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(embed_dim), nn.Linear(embed_dim, hidden), nn.GELU(), nn.Linear(hidden, embed_dim)
        )

    def forward(self, tokens: Tensor, media: Tensor) -> Tensor:
        query = rearrange(self.query(self.norm(tokens)), "b n (h d) -> b h n d", h=self.num_heads)
        key_value = self.key_value(self.norm_media(media))
        key, value = rearrange(key_value, "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        return tokens + self.mlp(tokens)


def _build(member: str | Mapping[str, Any], in_channels: int) -> Encoder:
    from vol3d.encoders import create

    arguments = {"name": member} if isinstance(member, str) else dict(member)
    if "name" not in arguments:
        raise ValueError(f"member {arguments}: give each member a name that vol3d.encoders.names() lists")
    encoder = create(arguments.pop("name"), **{"in_channels": in_channels, **arguments})
    if encoder.in_channels != in_channels:
        raise ValueError(f"a member takes {encoder.in_channels} channels, the ensemble {in_channels}: they must agree")
    return encoder


ENSEMBLE_CONFIGS: dict[str, dict[str, Any]] = {
    "ensemble-merlin-vit3d": {
        "members": ({"name": "merlin-report"}, {"name": "vit3d-base"}), "patch_size": (32, 32, 16), "preset": "merlin",
    },
}  # fmt: skip
