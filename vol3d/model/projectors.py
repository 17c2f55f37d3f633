"""Projectors: an encoder's tokens → the language model's visual tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vol3d.model.interfaces import Features, Projector
from vol3d.model.positions import sincos_positions_3d
from vol3d.types import Tokens, Triple


class PerceiverProjector(Projector):
    """A fixed number of learned latents read the volume, however many tokens it has.

    Each layer lets the latents attend to the volume's tokens and to one another at once, then a feed-forward.

    Args:
        in_dim: width of the encoder's tokens. out_dim: width of the language model.
        num_latents: visual tokens given to the language model.
        depth: layers. num_heads: attention heads. inner_dim: width of the latents (out_dim when None).

    Shape:
        Features with tokens (batch, tokens, in_dim) → (batch, num_latents, out_dim).

    Source: the resampler of Flamingo (arXiv:2204.14198) as in RadFM (arXiv:2308.02463). Differs: 3D sine–cosine
    positions are added to the volume's tokens, and the output is normalised before the last linear map.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        num_latents: int = 64,
        depth: int = 2,
        num_heads: int = 8,
        inner_dim: int | None = None,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__(in_dim, out_dim)
        width = inner_dim or out_dim
        if width % num_heads:
            raise ValueError(f"the latents' width {width} is not a multiple of num_heads {num_heads}")
        self.num_latents = num_latents
        self.media = nn.Linear(in_dim, width)
        self.latents = nn.Parameter(torch.randn(num_latents, width) / math.sqrt(width))
        self.layers = nn.ModuleList(PerceiverLayer(width, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, out_dim)

    def num_tokens(self, grid_size: Triple) -> int:
        return self.num_latents

    def forward(self, features: Features) -> Tokens:
        media = self.media(features.tokens)
        media = media + sincos_positions_3d(features.grid_size, media.shape[-1], media.device).to(media.dtype)
        latents = self.latents.expand(len(media), -1, -1)
        for layer in self.layers:
            latents = layer(latents, media)
        return self.out(self.norm(latents))


class PerceiverLayer(nn.Module):
    """Latents attend to media and latents, then a feed-forward; both residual and pre-norm."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, latents: Tensor, media: Tensor) -> Tensor:
        normed = self.norm_latents(latents)
        both = torch.cat([self.norm_media(media), normed], dim=1)
        key, value = rearrange(self.key_value(both), "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        query = rearrange(self.query(normed), "b n (h d) -> b h n d", h=self.num_heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        latents = latents + self.mix(rearrange(mixed, "b h n d -> b n (h d)"))
        return latents + self.mlp(latents)


class SpatialPoolingProjector(Projector):
    """Average tokens over blocks of the grid, then a two-layer MLP.

    Args:
        pooling: block size along x, y, z.

    Shape:
        (batch, gx * gy * gz, in_dim) → (batch, gx // px * gy // py * gz // pz, out_dim).

    Raises:
        ValueError: the grid is not a multiple of the block.

    Source: M3D (arXiv:2404.00578), `pooling=(2, 2, 2)`.
    """

    def __init__(self, in_dim: int, out_dim: int, *, pooling: Sequence[int] = (2, 2, 2)) -> None:
        super().__init__(in_dim, out_dim)
        self.pooling = tuple(pooling)
        self.mlp = nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))

    def num_tokens(self, grid_size: Triple) -> int:
        for axis, (size, block) in enumerate(zip(grid_size, self.pooling, strict=True)):
            if size % block:
                raise ValueError(
                    f"{size} tokens along {'xyz'[axis]} cannot be pooled by {block}: give the projector a pooling "
                    f"that divides the token grid {tuple(grid_size)}"
                )
        return math.prod(size // block for size, block in zip(grid_size, self.pooling, strict=True))

    def forward(self, features: Features) -> Tokens:
        self.num_tokens(features.grid_size)
        (gx, gy, gz), (px, py, pz) = features.grid_size, self.pooling
        # A mean over block axes rather than avg_pool3d: the pooling op has no bf16 kernel on the CPU.
        blocks = features.tokens.reshape(-1, gx // px, px, gy // py, py, gz // pz, pz, self.in_dim)
        return self.mlp(blocks.mean(dim=(2, 4, 6)).flatten(1, 3))


class MLPProjector(Projector):
    """Each token through a two-layer MLP: as many visual tokens as the encoder has.

    Shape:
        (batch, tokens, in_dim) → (batch, tokens, out_dim).

    Source: LLaVA-1.5 (arXiv:2310.03744).
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.mlp = nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))

    def num_tokens(self, grid_size: Triple) -> int:
        return math.prod(grid_size)

    def forward(self, features: Features) -> Tokens:
        return self.mlp(features.tokens)
