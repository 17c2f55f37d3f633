"""New tokens for a language model: rows of their own beside its tables, so that nothing else of them moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ExtendedEmbedding(nn.Module):
    """An embedding table and the rows of the new tokens.

    Shape:
        ids (…) → (…, width).
    """

    def __init__(self, base: nn.Embedding, ids: list[int], rows: nn.Parameter) -> None:
        super().__init__()
        self.base, self.rows = base, rows
        self.embedding_dim, self.num_embeddings = base.embedding_dim, max(base.num_embeddings, max(ids) + 1)
        self.register_buffer("ids", torch.tensor(ids), persistent=False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        same = ids.unsqueeze(-1) == self.ids
        new = same.any(dim=-1)
        rows = self.rows * getattr(self.base, "embed_scale", 1.0)
        known = self.base(ids.masked_fill(new, 0))
        return torch.where(new.unsqueeze(-1), F.embedding(same.int().argmax(dim=-1), rows).to(known.dtype), known)


class ExtendedHead(nn.Module):
    """A head and the rows of the new tokens; ids between both tables can never be written.

    Shape:
        (…, width) → (…, vocabulary with the new tokens).
    """

    def __init__(self, base: nn.Linear, ids: list[int], rows: nn.Parameter) -> None:
        super().__init__()
        self.base, self.rows = base, rows
        self.in_features, self.out_features = base.in_features, max(base.out_features, max(ids) + 1)
        self.register_buffer("ids", torch.tensor(ids), persistent=False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.base(hidden)
        room = self.out_features - logits.shape[-1]
        logits = F.pad(logits, (0, room), value=torch.finfo(logits.dtype).min)
        return logits.index_copy(-1, self.ids, F.linear(hidden, self.rows.to(hidden.dtype)).to(logits.dtype))


def extend(model: PreTrainedModel, ids: list[int]) -> None:
    """Give the tokens `ids` trainable rows, in the embedding table and in the head; the tables stay as they are.

    New rows begin as the mean of the old ones; a model that ties its tables ties the new rows too.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        rows = nn.Parameter(table.weight.mean(dim=0, keepdim=True).repeat(len(ids), 1).float())
        tied = head.weight is table.weight
        out = rows if tied else nn.Parameter(head.weight.mean(dim=0, keepdim=True).repeat(len(ids), 1).float())
    model.set_input_embeddings(ExtendedEmbedding(table, ids, rows).to(table.weight.device))
    model.set_output_embeddings(ExtendedHead(head, ids, out).to(head.weight.device))
