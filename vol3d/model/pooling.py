"""From the tokens of a volume to vectors of it: learned queries, over all tokens or over those of an organ."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class QueryPool(nn.Module):
    """Learned queries, each of which looks for something, and what each found.

    The mean of all tokens hides what is small. A query attends to the few tokens that answer it, and has a small
    network of its own for what it read there.

    Args:
        dim: width of the tokens. queries: how many. width: of each query's answer.

    Shape:
        tokens (batch, tokens, dim), allowed (batch, queries, tokens) bool or None → (batch, queries, width).

    Source: attention pooling with learned seeds (Set Transformer, arXiv:1810.00825); organ queries over an organ's
    tokens as in fVLM (arXiv:2501.14548).
    """

    def __init__(self, dim: int, *, queries: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(queries, dim) * dim**-0.5)
        self.key = nn.Linear(dim, dim, bias=False)
        self.inner = nn.Parameter(torch.randn(queries, dim, 2 * width) * dim**-0.5)
        self.inner_bias = nn.Parameter(torch.zeros(queries, 2 * width))
        self.outer = nn.Parameter(torch.randn(queries, 2 * width, width) * (2 * width) ** -0.5)

    def attention(self, tokens: Tensor) -> Tensor:
        """Logits of each query over the tokens (batch, queries, tokens)."""
        return self.query @ self.key(self.norm(tokens)).transpose(1, 2)

    def forward(self, tokens: Tensor, allowed: Tensor | None = None) -> Tensor:
        logits = self.attention(tokens)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
        found = logits.softmax(dim=-1) @ self.norm(tokens)
        hidden = torch.einsum("bqd,qdw->bqw", found, self.inner) + self.inner_bias
        return torch.einsum("bqw,qwv->bqv", nn.functional.gelu(hidden), self.outer)
