"""Sequence packing: several studies' rows in one, none of which sees another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vol3d.model.tokens import IGNORE


@dataclass
class Packed:
    """Rows laid end to end.

    Shape:
        input_ids, labels, position_ids: (packed rows, length). Positions begin at 0 with each study, which is how
        the decoder knows where one ends: attention is causal and block-diagonal, and no padding mask is needed.
        order: the studies in the order their tokens now stand in.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    order: list[int]


def pack(rows: Sequence[Sequence[int]], starts: Sequence[int], capacity: int, *, fill: int) -> Packed:
    """Put rows of ids into as few rows of at most `capacity` tokens as first-fit-decreasing finds.

    Args:
        starts: where each row's supervised tokens begin. fill: id written after the last study of a row.

    Raises:
        ValueError: a row longer than the capacity.
    """
    if longest := max((len(row) for row in rows if len(row) > capacity), default=0):
        raise ValueError(f"a row of {longest} tokens does not fit into packed rows of {capacity}: raise pack")
    bins: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda index: -len(rows[index])):
        room = (held for held in bins if sum(len(rows[i]) for i in held) + len(rows[index]) <= capacity)
        held = next(room, None)
        if held is None:
            bins.append([index])
        else:
            held.append(index)
    length = max(sum(len(rows[index]) for index in held) for held in bins)
    ids = torch.full((len(bins), length), fill)
    labels, positions = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for place, held in enumerate(bins):
        at = 0
        for index in held:
            row = torch.tensor(rows[index])
            ids[place, at : at + len(row)] = row
            # The first token of a study is never a target: what stands before it belongs to another.
            first = max(1, starts[index])
            labels[place, at + first : at + len(row)] = row[first:]
            positions[place, at : at + len(row)] = torch.arange(len(row))
            at += len(row)
        # What is left is a study of its own that nobody reads.
        positions[place, at:] = torch.arange(length - at)
    return Packed(ids, labels, positions, [index for held in bins for index in held])
