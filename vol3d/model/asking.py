"""What may be asked of a study's masks, and how a user at a screen would ask: wordings, clicks, boxes, corrections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from numpy import ndarray
from torch import Tensor

from vol3d.data.batch import Batch, Sample, collate
from vol3d.model.mask_decoder import Prompts
from vol3d.model.places import boxes_to_mm, boxes_to_shares, to_shares
from vol3d.model.text_prompt import wordings
from vol3d.types import Spacing


@dataclass(frozen=True)
class Ask:
    """One thing to look for in one study.

    Args:
        name: of the label ("left kidney", "left pleural effusion").
        phrase: how it is asked for.
        label: its integer in the mask. finding: it stands in the finding mask, not in the organ mask.
        present: it fills at least one voxel of the grid.
    """

    name: str
    phrase: str
    label: int
    finding: bool
    present: bool


def asks_of(batch: Batch, row: int, names: frozenset[str] | None = None) -> list[Ask]:
    """Everything that the masks of a study answer, by the labels' plain names.

    Args:
        names: leave out what has another name.

    Raises:
        ValueError: a mask holds a label that the study does not name.
    """
    study, asks = batch.studies[row], []
    sources = ((batch.mask, study.mask_labels, False), (batch.finding_mask, study.finding_labels, True))
    for mask, labels, finding in sources:
        if mask is None or not labels or bool((mask[row, 0, 0, :1] < 0).any()):
            continue
        present = set(mask[row].unique().tolist()) - {0}
        if unnamed := sorted(present - set(labels.values())):
            field = "finding_labels" if finding else "mask_labels"
            raise ValueError(
                f"study {study.study!r}: its mask holds label {unnamed[0]}, {field} names "
                f"{sorted(labels.values())}: name every label, or set the others to 0"
            )
        asks += [
            Ask(name, wordings(name)[0], label, finding, label in present)
            for name, label in labels.items()
            if names is None or name in names
        ]
    return asks


def truth_of(batch: Batch, asks: list[list[Ask]]) -> Tensor:
    """Masks of what is asked for, (batch, prompts, x, y, z) float, empty where a study has fewer prompts."""
    count = max(map(len, asks))
    shape = batch.image.shape[2:]
    truth = torch.zeros(len(asks), count, *shape, device=batch.image.device)
    for row, wanted in enumerate(asks):
        for place, ask in enumerate(wanted):
            mask = batch.finding_mask if ask.finding else batch.mask
            truth[row, place] = mask[row] == ask.label
    return truth


def truths_of(
    sample: Sample, names: frozenset[str] | None = None
) -> Iterator[tuple[Ask, Bool[ndarray, "x y z"], Spacing]]:
    """Everything the masks of one study answer, with its mask on the grid and the grid's spacing in mm."""
    batch = collate([sample])
    low, middle, high = sample.affine[:3, :3].norm(dim=0).tolist()
    for ask in asks_of(batch, 0, names):
        mask = sample.finding_mask if ask.finding else sample.mask
        yield ask, (mask == ask.label).numpy(), (low, middle, high)


def draw_asks(asks: list[Ask], count: int, absent: float) -> list[Ask]:
    """Choose `count` of them, findings before organs and about a share `absent` that is not there, each in one of its
    wordings.

    The chances come from torch's generator, so that a seeded run asks the same.
    """
    groups = [[a for a in asks if a.present and a.finding], [a for a in asks if a.present and not a.finding]]
    groups = [[group[i] for i in torch.randperm(len(group)).tolist()] for group in groups]
    missing = [a for a in asks if not a.present]
    missing = [missing[i] for i in torch.randperm(len(missing)).tolist()]
    wanted = count - min(len(missing), round(absent * count))
    half = max(wanted - len(groups[1]), (wanted + 1) // 2)
    chosen = groups[0][:half]
    chosen += groups[1][: wanted - len(chosen)]
    chosen += missing[: count - len(chosen)]
    return [_worded(ask) for ask in chosen]


def _worded(ask: Ask) -> Ask:
    forms = wordings(ask.name)
    # Half of the time the plain name, which is what most users type.
    pick = 0 if torch.rand(()) < 0.5 else int(torch.randint(len(forms), ()))
    return Ask(ask.name, forms[pick], ask.label, ask.finding, ask.present)


def click_inside(region: Tensor, affine: Tensor, wanted: Tensor | None = None) -> Tensor:
    """A random voxel of each region (of the `wanted` ones), rather from its middle than from its border, in RAS mm.

    Shape:
        region (batch, prompts, x, y, z) bool, affine (batch, 4, 4), wanted (batch, prompts) bool → (batch, prompts, 1,
        3); any voxel where a region is empty, nought where none is wanted.
    """
    wanted = torch.ones_like(region[:, :, 0, 0, 0]) if wanted is None else wanted
    chosen = region[wanted].float()
    inner = F.avg_pool3d(chosen[:, None], 3, stride=1, padding=1)[:, 0] * chosen
    best = (inner.square() * torch.rand(chosen.shape, device=region.device)).flatten(1).argmax(1)
    voxel = torch.zeros(*region.shape[:2], 3, dtype=affine.dtype, device=region.device)
    voxel[wanted] = torch.stack(torch.unravel_index(best, region.shape[2:]), dim=-1).to(affine.dtype)
    return (voxel @ affine[:, :3, :3].transpose(1, 2) + affine[:, None, :3, 3])[:, :, None]


def mask_boxes(masks: Tensor) -> Tensor:
    """The box around each mask in shares of the grid, outer faces of its voxels; NaN for an empty one.

    Shape:
        (batch, prompts, x, y, z) bool → (batch, prompts, 6).
    """
    low, high = [], []
    for axis in range(3):
        others = [2 + other for other in range(3) if other != axis]
        line = masks.any(others[1]).any(others[0]) if others[1] > others[0] else masks.any(others[0]).any(others[1])
        size = line.shape[-1]
        low.append(line.float().argmax(-1) / size)
        high.append((size - line.flip(-1).float().argmax(-1)) / size)
    boxes = torch.stack([*low, *high], dim=-1)
    return torch.where(masks.flatten(2).any(-1, keepdim=True), boxes, torch.nan)


def simulate(prompts: Prompts, truth: Tensor, affine: Tensor, share: float) -> Prompts:
    """Turn a `share` of the prompts whose truth is not empty into a click, a box, or either beside the text."""
    some = truth.flatten(2).any(-1)
    chance = torch.rand(2, *some.shape, device=truth.device)
    shown = some & (chance[0] < share)
    boxed = shown & (chance[1] < 0.5)
    silent = shown & ((chance[1] * 4) % 1 < 0.5)
    shares = mask_boxes(truth > 0)
    jitter = 1 + 0.1 * (torch.rand_like(shares) - 0.5)
    middle, size = (shares[..., 3:] + shares[..., :3]) / 2, (shares[..., 3:] - shares[..., :3]) * jitter[..., :3]
    middle = middle + (jitter[..., 3:] - 1) * size
    boxes = boxes_to_mm(torch.cat([middle - size / 2, middle + size / 2], -1), affine, tuple(truth.shape[2:]))
    has_text = torch.ones_like(some) if prompts.has_text is None else prompts.has_text
    return Prompts(
        text=prompts.text,
        has_text=has_text & ~silent,
        points=click_inside(truth > 0, affine, shown & ~boxed),
        point_labels=torch.where(shown & ~boxed, 1, -1)[:, :, None],
        boxes=torch.where(boxed[..., None], boxes, torch.nan),
    )


def correct(prompts: Prompts, logits: Tensor, truth: Tensor, affine: Tensor) -> Prompts:
    """The next round of the same prompts: the mask so far, and a click into the larger of what is missing and what is
    too much."""
    said, meant = logits > 0, truth > 0
    missing, excess = meant & ~said, said & ~meant
    more = missing.flatten(2).sum(-1) >= excess.flatten(2).sum(-1)
    region = torch.where(more[..., None, None, None], missing, excess)
    click, label = click_inside(region, affine), torch.where(more, 1, 0)
    label = torch.where(region.flatten(2).any(-1), label, -1)[:, :, None]
    if prompts.points is not None:
        click, label = torch.cat([prompts.points, click], 2), torch.cat([prompts.point_labels, label], 2)
    # Now and then the words are left out, so that a mask and a click are enough.
    has_text = torch.ones_like(more) if prompts.has_text is None else prompts.has_text
    return Prompts(
        text=prompts.text,
        has_text=has_text & (torch.rand(more.shape, device=more.device) < 0.7),
        points=click,
        point_labels=label,
        boxes=prompts.boxes,
        mask=logits.detach().float().sigmoid(),
    )


def show(
    batch: Batch,
    count: int,
    points: Sequence[Sequence[float | int]] = (),
    negative_points: Sequence[Sequence[float | int]] = (),
    box: Sequence[float | int] | None = None,
    mask: Tensor | None = None,
) -> Prompts | None:
    """What a user shows, the same for each of `count` prompts of each study; None when nothing is shown.

    Raises:
        ValueError: a point or a box that is none or lies outside the volume, or a mask on another grid.
    """
    given = [*points, *negative_points]
    if not given and box is None and mask is None:
        return None
    if wrong := [point for point in given if np.shape(point) != (3,)]:
        raise ValueError(f"a point is {wrong[0]!r}: give a list of (x, y, z) in RAS millimetres")
    if box is not None and np.shape(box) != (6,):
        raise ValueError(f"the box is {box!r}: give (x1, y1, z1, x2, y2, z2) in RAS millimetres")
    studies, device, shown = len(batch), batch.image.device, Prompts()
    if given:
        numbers = [[float(value) for value in point] for point in given]
        every = torch.tensor(numbers, dtype=batch.affine.dtype, device=device)
        _check_inside(batch, every, "point")
        shown.points = every.expand(studies, count, -1, -1)
        labels = torch.tensor([1] * len(points) + [0] * len(negative_points), device=device)
        shown.point_labels = labels.expand(studies, count, -1)
    if box is not None:
        corners = torch.tensor(box, dtype=batch.affine.dtype, device=device)
        check_box(batch, 0, box, "box")
        shown.boxes = corners.expand(studies, count, -1)
    if mask is not None:
        if tuple(mask.shape) != tuple(batch.image.shape[2:]):
            raise ValueError(
                f"mask is {tuple(mask.shape)}, the grid is {tuple(batch.image.shape[2:])}: bring it there with "
                "grid.resample_mask(mask, like_volume=volume)[0]"
            )
        shown.mask = mask.to(device).float().expand(studies, count, -1, -1, -1)
    return shown


def _check_inside(batch: Batch, points: Tensor, what: str) -> None:
    """Points in RAS mm lie within every volume of the batch."""
    shares = to_shares(points.expand(len(batch), -1, -1), batch.affine, tuple(batch.image.shape[2:]))
    outside = ((shares < 0) | (shares > 1)).any(-1).nonzero()
    if len(outside):
        row, place = outside[0].tolist()
        raise ValueError(
            f"study {batch.studies[row].study!r}: {what} {[round(v, 1) for v in points[place].tolist()]} mm lies "
            f"outside the volume, which spans {_span(batch, row)}: give RAS millimetres (x grows to the right)"
        )


def check_box(batch: Batch, row: int, box: Sequence[float | int], name: str) -> None:
    """A box in RAS mm has its corners in order and meets the volume.

    Raises:
        ValueError: it does not; box and volume are told.
    """
    low, high = (list(map(float, end)) for end in (box[:3], box[3:]))
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise ValueError(f"box {name!r} runs from {low} to {high} mm: give the lower corner first")
    corners = torch.tensor([[low + high]], dtype=batch.affine.dtype, device=batch.affine.device)
    shares = boxes_to_shares(corners, batch.affine[row : row + 1], tuple(batch.image.shape[2:]))[0, 0]
    if (shares[3:] <= 0).any() or (shares[:3] >= 1).any():
        raise ValueError(
            f"study {batch.studies[row].study!r}: box {name!r} from {low} to {high} mm lies outside the volume, which "
            f"spans {_span(batch, row)}: give RAS millimetres (x grows to the right), or a grid that holds the box"
        )


def _span(batch: Batch, row: int) -> str:
    whole = torch.tensor([[[0.0, 0, 0, 1, 1, 1]]], device=batch.affine.device)
    ends = boxes_to_mm(whole, batch.affine[row : row + 1], tuple(batch.image.shape[2:]))[0, 0]
    low, high = ([round(value, 1) for value in end.tolist()] for end in ends.split(3))
    return f"{low} to {high} mm"
