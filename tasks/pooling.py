"""From tokens to one number a label: the pooling that study-level tasks share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vol3d.model.interfaces import Features

Pooling = Literal["attention", "mean", "pooled"]


class PooledLogits(nn.Module):
    """`outputs` logits of a study, from its tokens.

    Args:
        pooling: "attention", each output looks where its own learned query points; "mean" of all tokens; "pooled",
            the encoder's own study vector, such as a CLS token.

    Shape: Features of (batch, tokens, embed_dim) → (batch, outputs), float32.

    Source: attention pooling a label as in Ilse et al. (arXiv:1802.04712) and Query2Label (arXiv:2107.10834), with one
    head and without layers of its own, so that 1,692 codes cost two matrices.
    """

    def __init__(self, embed_dim: int, outputs: int, pooling: Pooling = "attention") -> None:
        super().__init__()
        self.pooling = pooling
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, outputs)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        if pooling == "attention":
            self.query = nn.Linear(embed_dim, outputs, bias=False)
            nn.init.normal_(self.query.weight, std=0.02)

    def forward(self, features: Features) -> Tensor:
        if self.pooling == "pooled":
            if features.pooled is None:
                raise ValueError(
                    'pooling is "pooled", but the encoder gives tokens only and no study vector: use "attention" or '
                    '"mean"'
                )
            return self.head(self.norm(features.pooled)).float()
        tokens = self.norm(features.tokens)
        if self.pooling == "mean":
            return self.head(tokens.mean(dim=1)).float()
        # What each token says, weighted by where the query looks: the pooled vectors themselves are never needed.
        said = torch.nn.functional.linear(tokens, self.head.weight).float()
        return (self.query(tokens).float().softmax(dim=1) * said).sum(dim=1) + self.head.bias.float()
