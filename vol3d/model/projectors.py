"""Projectors: an encoder's tokens → the language model's visual tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from vol3d.model.interfaces import Features, Projector
from vol3d.model.mixer import MixerProjector
from vol3d.model.perceiver import PerceiverLayer, PerceiverProjector, RadFMProjector
from vol3d.types import Tokens, Triple

__all__ = [
    "AttentionPoolingProjector",
    "LinearProjector",
    "MLPProjector",
    "MixerProjector",
    "PerceiverLayer",
    "PerceiverProjector",
    "PixelShuffleProjector",
    "RadFMProjector",
    "SpatialPoolingProjector",
]


class SpatialPoolingProjector(Projector):
    """Average tokens over blocks of the grid, then a two-layer MLP.

    Args:
        pooling: block size along x, y, z.
        order: axes of the output tokens, slowest first: a language model remembers in which order it learned them.

    Shape:
        (batch, gx * gy * gz, in_dim) → (batch, gx // px * gy // py * gz // pz, out_dim).

    Raises:
        ValueError: the grid is not a multiple of the block.

    Source: M3D (arXiv:2404.00578), `pooling=(2, 2, 2), order="zyx"`.
    """

    def __init__(self, in_dim: int, out_dim: int, *, pooling: Sequence[int] = (2, 2, 2), order: str = "xyz") -> None:
        super().__init__(in_dim, out_dim)
        self.pooling, self.order = tuple(pooling), check_order(order)
        self.mlp = nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))

    def num_tokens(self, grid_size: Triple) -> int:
        return math.prod(blocks_of(grid_size, self.pooling))

    def forward(self, features: Features) -> Tokens:
        (px, py, pz), blocks = self.pooling, blocks_of(features.grid_size, self.pooling)
        gx, gy, gz = blocks
        # A mean over block axes rather than avg_pool3d: the pooling op has no bf16 kernel on the CPU.
        cells = features.tokens.reshape(-1, gx, px, gy, py, gz, pz, self.in_dim)
        return self.mlp(in_order(cells.mean(dim=(2, 4, 6)).flatten(1, 3), blocks, self.order))


class PixelShuffleProjector(Projector):
    """Tokens of a block of the grid are put side by side, and a two-layer MLP maps the wide token.

    Nothing is averaged away: the block's tokens keep their places in the wide one.

    Args:
        block: tokens along x, y, z that become one.

    Shape:
        (batch, gx * gy * gz, in_dim) → (batch, gx // bx * gy // by * gz // bz, out_dim).

    Raises:
        ValueError: the grid is not a multiple of the block.

    Source: InternVL 1.5's pixel shuffle (arXiv:2404.16821), in 3D.
    """

    def __init__(self, in_dim: int, out_dim: int, *, block: Sequence[int] = (2, 2, 2)) -> None:
        super().__init__(in_dim, out_dim)
        self.block = tuple(block)
        width = in_dim * math.prod(self.block)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))

    def num_tokens(self, grid_size: Triple) -> int:
        return math.prod(blocks_of(grid_size, self.block, "block"))

    def forward(self, features: Features) -> Tokens:
        (bx, by, bz), (gx, gy, gz) = self.block, blocks_of(features.grid_size, self.block, "block")
        wide = rearrange(
            features.tokens, "b (gx bx gy by gz bz) c -> b (gx gy gz) (bx by bz c)",
            gx=gx, bx=bx, gy=gy, by=by, gz=gz, bz=bz,
        )  # fmt: skip
        return self.mlp(wide)


class AttentionPoolingProjector(Projector):
    """Learned queries look at the volume once; a two-layer MLP maps what they saw.

    Args:
        num_queries: visual tokens given to the language model.
        inner_dim: width of the queries (in_dim when None). num_heads: attention heads.

    Shape:
        (batch, tokens, in_dim) → (batch, num_queries, out_dim).

    Source: CoCa's attentional pooler (arXiv:2205.01917) as in CT-CHAT (arXiv:2403.17834), 256 queries.
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, num_queries: int = 256, num_heads: int = 8, inner_dim: int | None = None
    ) -> None:
        super().__init__(in_dim, out_dim)
        width = inner_dim or in_dim
        if width % num_heads:
            raise ValueError(f"the queries' width {width} is not a multiple of num_heads {num_heads}")
        self.query = nn.Parameter(torch.randn(num_queries, width))
        self.norm_query, self.norm_media = nn.LayerNorm(width), nn.LayerNorm(in_dim)
        self.attention = nn.MultiheadAttention(width, num_heads, kdim=in_dim, vdim=in_dim, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))

    def num_tokens(self, grid_size: Triple) -> int:
        return len(self.query)

    def forward(self, features: Features) -> Tokens:
        media = self.norm_media(features.tokens)
        query = self.norm_query(self.query).to(media.dtype).expand(len(media), -1, -1)
        seen, _ = self.attention(query, media, media, need_weights=False)
        return self.mlp(self.norm(seen))


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


class LinearProjector(Projector):
    """Each token through one linear map.

    Args:
        order: axes of the output tokens, slowest first: a language model remembers in which order it learned them.

    Shape:
        (batch, tokens, in_dim) → (batch, tokens, out_dim).

    Source: Merlin's report model (arXiv:2406.06512), 490 tokens of 2048 with `order="zxy"`.
    """

    def __init__(self, in_dim: int, out_dim: int, *, order: str = "xyz") -> None:
        super().__init__(in_dim, out_dim)
        self.order = check_order(order)
        self.linear = nn.Linear(in_dim, out_dim)

    def num_tokens(self, grid_size: Triple) -> int:
        return math.prod(grid_size)

    def forward(self, features: Features) -> Tokens:
        return in_order(self.linear(features.tokens), features.grid_size, self.order)


def blocks_of(grid_size: Triple, block: Triple, name: str = "pooling") -> Triple:
    """Blocks along x, y, z; `name` is what their maker calls their size.

    Raises:
        ValueError: the grid is not a multiple of the block.
    """
    for axis, (size, step) in enumerate(zip(grid_size, block, strict=True)):
        if size % step:
            raise ValueError(
                f"{size} tokens along {'xyz'[axis]} cannot be pooled by {step}: give the projector a {name} "
                f"that divides the token grid {tuple(grid_size)}"
            )
    x, y, z = (size // step for size, step in zip(grid_size, block, strict=True))
    return (x, y, z)


def check_order(order: str) -> str:
    """An order of the axes such as "zyx", checked."""
    if sorted(order) != ["x", "y", "z"]:
        raise ValueError(f"order {order!r}: name x, y and z once each, the slowest axis first")
    return order


def in_order(tokens: Tensor, grid_size: Triple, order: str) -> Tensor:
    """Tokens (batch, x y z, width) with the axes of the grid in another order."""
    if order == "xyz":
        return tokens
    x, y, z = grid_size
    return rearrange(tokens, f"b (x y z) c -> b ({' '.join(order)}) c", x=x, y=y, z=z)
