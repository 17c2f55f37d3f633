"""What may be asked of a study's boxes, for training and scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.asking import check_box
from vol3d.model.text_prompt import wordings


@dataclass(frozen=True)
class BoxAsk:
    """One thing to find in one study.

    Args:
        name: the label. phrase: how it is asked for.
        box: (x1, y1, z1, x2, y2, z2) in RAS mm around all boxes of that label; None when it is absent.
    """

    name: str
    phrase: str
    box: tuple[float | int, ...] | None


def hulls(boxes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float | int, ...]]:
    """Label → the box around all boxes of that label: the answer to a phrase that means several."""
    found: dict[str, tuple[float | int, ...]] = {}
    for box in boxes:
        low, high = list(map(float, box["min_mm"])), list(map(float, box["max_mm"]))
        if box["label"] in found:
            old = found[box["label"]]
            low, high = list(map(min, low, old[:3])), list(map(max, high, old[3:]))
        found[box["label"]] = (*low, *high)
    return found


def absent_of(study: Study) -> list[str]:
    """Labels without a box that `labels_known` says are absent; what neither names is unknown."""
    labels = {box["label"] for box in study.boxes}
    absent = [name for name, known in study.labels_known.items() if known == 0 and name not in labels]
    # "effusion" is absent when neither side has one; asking for it would only repeat the sides.
    return [name for name in absent if name in study.finding_labels or not study.finding_labels]


def boxes_of(batch: Batch, row: int, names: Sequence[str] | None = None) -> list[BoxAsk]:
    """What a study's boxes answer: labels that have one, and names that `labels_known` or a box-less finding mask says
    are absent.

    Args:
        names: leave out what has another name.

    Raises:
        ValueError: a box outside the volume.
    """
    study = batch.studies[row]
    if not study.boxes and not study.labels_known:
        return []
    for box in study.boxes:  # each, since the box around several may hide one that the grid does not hold
        check_box(batch, row, [*box["min_mm"], *box["max_mm"]], box["label"])
    asks = [BoxAsk(name, wordings(name)[0], box) for name, box in hulls(study.boxes).items()]
    asks += [BoxAsk(name, wordings(name)[0], None) for name in absent_of(study)]
    return [ask for ask in asks if names is None or ask.name in names]


def draw_boxes(asks: Sequence[BoxAsk], count: int, absent: float) -> list[BoxAsk]:
    """Choose at most `count`, about a share `absent` of them not there, each in one of its wordings."""
    there = [ask for ask in asks if ask.box is not None]
    missing = [ask for ask in asks if ask.box is None]
    there, missing = ([group[i] for i in torch.randperm(len(group)).tolist()] for group in (there, missing))
    few = min(len(missing), max(round(absent * count), count - len(there)))
    chosen = [*there[: count - few], *missing[:few]]
    return [replace(ask, phrase=_worded(ask.name)) for ask in chosen]


def _worded(name: str) -> str:
    forms = wordings(name)
    return forms[0] if torch.rand(()) < 0.5 else forms[int(torch.randint(len(forms), ()))]


def stack_boxes(asks: Sequence[Sequence[BoxAsk]], batch: Batch) -> tuple[Tensor, Tensor]:
    """Which places hold a prompt (batch, prompts), and their boxes (batch, prompts, 6) in RAS mm, NaN for none."""
    count, device = max(map(len, asks)), batch.affine.device
    boxes = torch.full((len(asks), count, 6), torch.nan, dtype=batch.affine.dtype, device=device)
    asked = torch.zeros(len(asks), count, device=device)
    for row, some in enumerate(asks):
        asked[row, : len(some)] = 1
        for place, ask in enumerate(some):
            if ask.box is not None:
                boxes[row, place] = torch.tensor(ask.box, dtype=boxes.dtype)
    return asked, boxes


def masks_of(asks: Sequence[Sequence[BoxAsk]], batch: Batch) -> tuple[Tensor, Tensor]:
    """Masks (batch, prompts, x, y, z) of what has a box or is absent, and which of them the finding mask knows."""
    count, device = max(map(len, asks)), batch.image.device
    masks = torch.zeros(len(asks), count, *batch.image.shape[2:], device=device)
    known = torch.zeros(len(asks), count, device=device)
    if batch.finding_mask is None:
        return masks, known
    for row, some in enumerate(asks):
        labels = batch.studies[row].finding_labels
        for place, ask in enumerate(some):
            if ask.name in labels and bool((batch.finding_mask[row, 0, 0, :1] >= 0).all()):
                masks[row, place] = batch.finding_mask[row] == labels[ask.name]
                known[row, place] = 1
    return masks, known


def main_parts(masks: Tensor, share: float = 0.05) -> Tensor:
    """The masks without their crumbs: connected parts smaller than a `share` of the largest. One stray voxel moves the
    face of a box as far as it lies away.

    Shape:
        (batch, prompts, x, y, z) bool, the same out.
    """
    from scipy import ndimage

    kept = masks.cpu().numpy().copy()
    for mask in kept.reshape(-1, *kept.shape[2:]):
        parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
        if count > 1:
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            mask &= (sizes >= share * sizes.max())[parts]
    return torch.from_numpy(kept).to(masks.device)


def jitter_boxes(boxes: Tensor, share: float = 0.1) -> Tensor:
    """The boxes moved and stretched by up to half a `share` of their size, as a hand would draw them."""
    low, high = boxes.split(3, dim=-1)
    size, chance = high - low, torch.rand_like(boxes) - 0.5
    return torch.cat([low + share * chance[..., :3] * size, high + share * chance[..., 3:] * size], dim=-1)
