"""Features of a frozen encoder, kept in memory so that each study is encoded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from vol3d.data.batch import Batch
from vol3d.model.interfaces import Features


class FeatureCache:
    """Remembers features by study name while the encoder is frozen.

    Only for images that are the same at every visit (no augmentation), and without the finer maps (`scales`), which
    are many times larger than the tokens. When `limit_gb` is reached the studies beyond it are encoded again.

    Args:
        limit_gb: memory the kept tokens may take, in GB (10^9 bytes).
    """

    def __init__(self, limit_gb: float) -> None:
        self.limit = self.room = limit_gb * 1e9
        self.kept: dict[str, Features] = {}

    def clear(self) -> None:
        self.room = self.limit
        self.kept.clear()

    @torch.no_grad()
    def __call__(self, batch: Batch, encode: Callable[[Batch], Features]) -> Features:
        """The batch's features: kept ones where there are, the rest encoded and kept."""
        new = [row for row, study in enumerate(batch.studies) if study.study not in self.kept]
        fresh: dict[int, Features] = {}
        if new:
            encoded = encode(batch.select(new))
            for place, row in enumerate(new):
                fresh[row] = replace(encoded, scales=())[[place]]
                self._keep(batch.studies[row].study, fresh[row])
        rows = [fresh[row] if row in fresh else self.kept[study.study] for row, study in enumerate(batch.studies)]
        return _join(rows, batch.image.device)

    def _keep(self, study: str, features: Features) -> None:
        size = _size(features)
        if size <= self.room:
            self.room -= size
            self.kept[study] = features


def _size(features: Features) -> int:
    return features.tokens.numel() * features.tokens.element_size()


def _join(rows: list[Features], device: torch.device) -> Features:
    def cat(name: str) -> torch.Tensor | None:
        parts = [getattr(row, name) for row in rows]
        return None if parts[0] is None else torch.cat([part.to(device) for part in parts])

    return Features(cat("tokens"), rows[0].grid_size, cat("affine"), cat("pooled"))
