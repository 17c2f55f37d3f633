"""Transformer blocks in which a prompt's few tokens and the volume's many read each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TwoWayBlock(nn.Module):
    """A prompt's tokens read each other and the volume, the volume's tokens read the prompt."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(5))
        self.among, self.look, self.told = (Attention(dim, num_heads) for _ in range(3))
        self.mlp = mlp(dim, dim)

    def forward(self, queries: Tensor, tokens: Tensor, positions: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        own = self.norms[0](queries)
        queries = queries + self.among(own, own, own, keep)
        seen = self.norms[1](tokens)
        queries = queries + self.look(self.norms[2](queries), seen + positions, seen)
        queries = queries + self.mlp(self.norms[3](queries))
        said = self.norms[4](queries)
        return queries, tokens + self.told(seen + positions, said, said, keep)


class Attention(nn.Module):
    """Multi-head attention; `keep` (rows, keys) says which keys may be read."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None) -> Tensor:
        parts = ((self.query, query), (self.key, key), (self.value, value))
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer, x in parts)
        # One side is always a handful of prompt tokens, for which a fused kernel is slower than two products.
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if keep is not None:
            scores = scores.masked_fill(~keep[:, None, None], -torch.inf)
        return self.out((scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2))


def mlp(dim: int, out: int) -> nn.Sequential:
    """Two layers, the hidden one as wide as the first."""
    return nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, out))
