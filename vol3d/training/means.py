"""Numbers of an evaluation, weighted and added up over its batches and over all processes."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from vol3d.data.batch import Batch


class Means:
    """Weighted means, and counts, of named numbers. A name need not occur in every batch, nor in every process.

    Lightning's `sync_dist=True` waits for a number from every process, for ever when one of them had no label for a
    task.

    Example:
        >>> means = Means()
        >>> means.add("loss", 1.0, weight=3)
        >>> means.add("loss", 2.0, weight=1)
        >>> means.count("studies", 4)
        >>> means.take()
        {'loss': 1.25, 'studies': 4.0}
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float | None]] = {}

    def add(self, name: str, value: Any, weight: float | int) -> None:
        """`value`, a number or a tensor of one, counted `weight` times."""
        total, weights = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (total + float(value) * weight, weights + weight)

    def count(self, name: str, number: float | int) -> None:
        """What is added up, not averaged."""
        self.sums[name] = (self.sums.get(name, (0.0, None))[0] + number, None)

    def take(self) -> dict[str, float]:
        """Name → mean or count of everything in any process; then begin anew. Every process must call it."""
        every: list[Any] = [self.sums]
        if dist.is_initialized():
            every = [None] * dist.get_world_size()
            dist.all_gather_object(every, self.sums)
        self.sums, found = {}, {}
        for name in dict.fromkeys(name for sums in every for name in sums):
            parts = [sums[name] for sums in every if name in sums]
            weights = [weight for _, weight in parts if weight is not None]
            found[name] = sum(total for total, _ in parts) / (sum(weights) if weights else 1)
        return found


def first_visits(batch: Batch, index: int, loader: DataLoader[Any] | None) -> list[int]:
    """Which rows of a process's batch number `index` are not studies that its sampler repeats to fill the last batch.

    All of them where one process reads everything.
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.shuffle:
        return list(range(len(batch)))
    first, studies = index * (loader.batch_size or 1), len(sampler.dataset)
    return [row for row in range(len(batch)) if (first + row) * sampler.num_replicas + sampler.rank < studies]
