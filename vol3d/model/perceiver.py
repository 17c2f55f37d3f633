"""Perceivers: learned latents read a volume, however many tokens it has."""

from __future__ import annotations

import math

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
        head_dim: width of a head (inner_dim // num_heads when None).
        positions: add 3D sine–cosine positions to the volume's tokens.
        project_media: a linear map of the volume's tokens to inner_dim first; needed unless they are as wide.
        mlp_bias: biases in the feed-forward.

    Shape:
        Features with tokens (batch, tokens, in_dim) → (batch, num_latents, out_dim).

    Source: the resampler of Flamingo (arXiv:2204.14198). Differs: 3D sine–cosine positions are added to the volume's
    tokens. `RadFMProjector` is the one of RadFM, to the weight.
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
        head_dim: int | None = None,
        positions: bool = True,
        project_media: bool = True,
        mlp_bias: bool = True,
    ) -> None:
        super().__init__(in_dim, out_dim)
        width = inner_dim or out_dim
        if head_dim is None and width % num_heads:
            raise ValueError(f"the latents' width {width} is not a multiple of num_heads {num_heads}")
        if not project_media and width != in_dim:
            raise ValueError(f"project_media=False needs tokens as wide as the latents: {in_dim} against {width}")
        self.num_latents, self.positions = num_latents, positions
        self.media = nn.Linear(in_dim, width) if project_media else nn.Identity()
        self.latents = nn.Parameter(torch.randn(num_latents, width) / math.sqrt(width))
        self.layers = nn.ModuleList(
            PerceiverLayer(width, num_heads, mlp_ratio, head_dim, mlp_bias=mlp_bias) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, out_dim)

    def num_tokens(self, grid_size: Triple) -> int:
        return self.num_latents

    def forward(self, features: Features) -> Tokens:
        media = self.media(features.tokens)
        if self.positions:
            media = media + sincos_positions_3d(features.grid_size, media.shape[-1], media.device).to(media.dtype)
        latents = self.latents.expand(len(media), -1, -1)
        for layer in self.layers:
            latents = layer(latents, media)
        return self.out(self.norm(latents))


class PerceiverLayer(nn.Module):
    """Latents attend to media and latents, then a feed-forward; both residual and pre-norm."""

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float, head_dim: int | None = None, *, mlp_bias: bool = True
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * (head_dim or width // num_heads)
        self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * inner, bias=False)
        self.mix = nn.Linear(inner, width, bias=False)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden, bias=mlp_bias),
            nn.GELU(),
            nn.Linear(hidden, width, bias=mlp_bias),
        )

    def forward(self, latents: Tensor, media: Tensor) -> Tensor:
        normed = self.norm_latents(latents)
        both = torch.cat([self.norm_media(media), normed], dim=1)
        key, value = rearrange(self.key_value(both), "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        query = rearrange(self.query(normed), "b n (h d) -> b h n d", h=self.num_heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        latents = latents + self.mix(rearrange(mixed, "b h n d -> b n (h d)"))
        return latents + self.mlp(latents)


class RadFMProjector(PerceiverProjector):
    """RadFM's resampler and the linear map after it; `vol3d convert radfm` writes its weights.

    Shape:
        (batch, tokens, in_dim) → (batch, num_latents, out_dim). RadFM: in_dim 768, out_dim 5120; 37,802,496 parameters
        before the last linear map.

    Source: RadFM (arXiv:2308.02463).
    """

    def __init__(self, in_dim: int, out_dim: int, *, num_latents: int = 32, depth: int = 6, num_heads: int = 8) -> None:
        super().__init__(
            in_dim, out_dim, num_latents=num_latents, depth=depth, num_heads=num_heads, head_dim=64, inner_dim=in_dim,
            positions=False, project_media=False, mlp_bias=False,
        )  # fmt: skip
