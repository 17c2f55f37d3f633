"""Fewer visual tokens at inference: a budget, shared among regions, spent on the tokens that matter most."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from vol3d.model.interfaces import Features, Projector
from vol3d.model.projectors import blocks_of, in_order
from vol3d.types import Triple

REGIONS = (2, 2, 2)


@runtime_checkable
class Scores(Protocol):
    """A projector that knows how much each of its tokens matters."""

    def scores(self, features: Features) -> Tensor:
        """Shape: (batch, visual tokens)."""
        ...


def budget(keep: float | int, tokens: int) -> int:
    """How many of `tokens` to keep: a share (0, 1] as a float, a number as an int.

    Raises:
        ValueError: nothing or more than there is would be kept.
    """
    count = max(1, round(keep * tokens)) if isinstance(keep, float) else keep
    if not 0 < count <= tokens or (isinstance(keep, float) and keep <= 0):
        raise ValueError(f"keep={keep} of {tokens} visual tokens: give a share above 0 and up to 1.0, or 1 to {tokens}")
    return count


def kept_tokens(features: Features, visual: Tensor, keep: float | int, projector: object = None) -> Tensor:
    """Which visual tokens to keep, in their order.

    On a grid, the budget is shared among 2 × 2 × 2 regions in proportion to the attention that the encoder's first
    block pays them, so that no part of the body is lost whole; within a region those tokens are kept that the last
    block looks at most (`Features.attention`). Where an encoder does not say, both go by the projector's own scores,
    else by the likeness to the pooled token, else by how little a token resembles the mean of the visual tokens.
    Latents lie on no grid and no attention to them is known: of them the most unlike one another are kept.

    Shape:
        visual (batch, tokens, width) → indices (batch, kept), ascending.

    Source: HiRED (arXiv:2408.10945), where regions are the tiles of a 2D image; for latents the max–min diversity of
    DivPrune (arXiv:2503.02175). Differs: 3D regions; encoders without a CLS token; what is kept keeps its position.
    """
    count, tokens = budget(keep, visual.shape[1]), visual.shape[1]
    if count == tokens:
        return torch.arange(tokens, device=visual.device).expand(len(visual), -1)
    grid = _grid_of(features.grid_size, tokens, projector)
    if grid is None and not isinstance(projector, Scores):
        return most_diverse(visual, count)
    early, late = _attended(features, visual, grid, projector)
    regions = torch.zeros(tokens, dtype=torch.long) if grid is None else _regions(grid)
    if grid is not None and (order := getattr(projector, "order", "xyz")) != "xyz":
        regions = in_order(regions[None, :, None], grid, order).flatten()
    regions = regions.to(visual.device)
    rows = zip(early.float(), late.float(), strict=True)
    return torch.stack([_choose(scores, _shares(mass, regions, count), regions) for mass, scores in rows])


def _attended(features: Features, visual: Tensor, grid: Triple | None, projector: object) -> tuple[Tensor, Tensor]:
    """What the budget is shared by, and what the tokens of a region are ranked by, each (batch, visual tokens)."""
    if isinstance(projector, Scores):
        scores = projector.scores(features)
        return scores, scores
    if features.attention is not None:
        found = features.attention.unbind(dim=1)
    elif features.pooled is not None:
        found = (pooled_attention(features),) * 2
    else:
        return distinctness(visual), distinctness(visual)
    early, late = (
        in_order(_to_blocks(scores, features.grid_size, grid).unsqueeze(-1), grid, getattr(projector, "order", "xyz"))
        for scores in found
    )
    return early.squeeze(-1), late.squeeze(-1)


def pooled_attention(features: Features) -> Tensor:
    """Likeness of the pooled token to the tokens, as shares: (batch, tokens), summing to 1."""
    logits = (features.tokens.float() @ features.pooled.float().unsqueeze(-1)).squeeze(-1)
    return (logits / math.sqrt(features.tokens.shape[-1])).softmax(dim=-1)


def distinctness(visual: Tensor) -> Tensor:
    """How far each token lies from the mean of the row's tokens, as 1 − cosine: (batch, tokens), not negative."""
    visual = visual.float()
    return 1 - F.cosine_similarity(visual, visual.mean(dim=1, keepdim=True), dim=-1)


def most_diverse(visual: Tensor, count: int) -> Tensor:
    """The token least like all others, then again and again the one farthest from those chosen, by 1 − cosine.

    Shape:
        (batch, tokens, width) → indices (batch, count), ascending.
    """
    units = F.normalize(visual.float(), dim=-1)
    apart = 1 - units @ units.transpose(1, 2)
    rows = torch.arange(len(apart), device=apart.device)
    chosen = [apart.sum(dim=2).argmax(dim=1)]
    nearest = apart[rows, chosen[0]]
    while len(chosen) < count:
        nearest[rows, chosen[-1]] = -1.0
        chosen.append(nearest.argmax(dim=1))
        nearest = torch.minimum(nearest, apart[rows, chosen[-1]])
    return torch.stack(chosen, dim=1).sort(dim=1).values


def _grid_of(grid: Triple, tokens: int, projector: object) -> Triple | None:
    """The grid of the visual tokens when they are the encoder's, whole or pooled by blocks; None for latents.

    As many latents as a pooled grid has cells are latents still: only the projector knows. Its tokens lie on a grid
    when a volume of twice the size costs eight times as many.
    """
    if not isinstance(projector, Projector):
        return grid if math.prod(grid) == tokens else None
    x, y, z = grid
    try:
        scales = projector.num_tokens((2 * x, 2 * y, 2 * z)) == 8 * tokens
    except ValueError:  # made for one grid alone
        return None
    block = getattr(projector, "pooling", None) or getattr(projector, "block", None) or (1, 1, 1)
    return blocks_of(grid, block) if scales else None


def _to_blocks(scores: Tensor, grid: Triple, small: Triple) -> Tensor:
    (gx, gy, gz), (sx, sy, sz) = grid, small
    cells = scores.reshape(-1, sx, gx // sx, sy, gy // sy, sz, gz // sz)
    return cells.sum(dim=(2, 4, 6)).flatten(1)


def _regions(grid: Triple) -> Tensor:
    """Number of the region each token lies in, x-major."""
    axes = [torch.arange(size) * min(parts, size) // size for size, parts in zip(grid, REGIONS, strict=True)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return ((x * REGIONS[1] + y) * REGIONS[2] + z).flatten()


def _shares(mass: Tensor, regions: Tensor, count: int) -> Tensor:
    """How many of `count` tokens each region may keep: in proportion to its part of `mass`, no more than it has."""
    size = torch.bincount(regions)
    parts = torch.zeros(len(size), device=mass.device).index_add(0, regions, mass)
    wish = count * parts / parts.sum().clamp_min(1e-12)
    share = torch.minimum(wish.floor().long(), size)
    # What rounding and full regions leave over goes where most is still wanted.
    while (left := count - int(share.sum())) > 0:
        open_wish = torch.where(share < size, wish - share, -math.inf)
        share[open_wish.topk(min(left, int((share < size).sum()))).indices] += 1
    return share


def _choose(scores: Tensor, share: Tensor, regions: Tensor) -> Tensor:
    """Each region's best tokens, as many as it may keep."""
    chosen = []
    for region, number in enumerate(share.tolist()):
        members = (regions == region).nonzero().squeeze(-1)
        chosen.append(members[scores[members].topk(number).indices])
    return torch.cat(chosen).sort().values
