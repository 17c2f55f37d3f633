"""The chances of many processes: each draws for itself, and a resumed run goes on with the draws of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vol3d.training.contrastive import place

Chances = dict[str, Tensor]
"""Device type → state of torch's generator."""


def draw_apart() -> None:
    """From here on each process draws prompts and dropout for itself; the first goes on as it would alone.

    A seed gives every process the same chances, which building equal weights needs. In training they would then hide,
    drop and ask the same, and many processes would see little more of it than one.
    """
    rank, _ = place()
    if rank:
        torch.manual_seed(torch.initial_seed() + rank)


def chances() -> list[Chances]:
    """The states of torch's generators in every process; all must call it."""
    own = {"cpu": torch.get_rng_state()}
    own |= {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    every: list[Any] = [own]
    if place()[1] > 1:
        every *= place()[1]
        dist.all_gather_object(every, own)
    return every


def set_chances(states: Sequence[Chances]) -> None:
    """This process's states; one more process than there were begins with chances that follow from the first's."""
    rank, _ = place()
    own = states[min(rank, len(states) - 1)]
    torch.set_rng_state(own["cpu"].cpu())
    if "cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"].cpu())
    if rank >= len(states):
        torch.manual_seed(int(torch.randint(2**62, ())) + rank)
