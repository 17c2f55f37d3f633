"""Losses that several tasks share: masks (Dice and cross-entropy) and boxes (L1 and generalised IoU)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vol3d.types import Spacing


def dice_loss(
    logits: Float[Tensor, "*masks x y z"], target: Float[Tensor, "*masks x y z"], *, smooth: float = 1.0
) -> Float[Tensor, "*masks"]:
    """1 − soft Dice of each mask, (2Σpt + s) / (Σp + Σt + s).

    The smoothing stands above and below the line, so that an empty truth has a loss of 0 when nothing is said and
    rises to 1 with every voxel that is. (With it below the line only, a mask that is rightly empty still costs 1.)

    Args:
        logits: before the sigmoid. target: 0 to 1.
        smooth: s, in voxels.
    """
    truth = target.float().flatten(-3)
    both, said, _, _ = _MaskSums.apply(logits.float().flatten(-3), truth)
    return 1 - (2 * both + smooth) / (said + truth.sum(-1) + smooth)


def mask_loss(
    logits: Float[Tensor, "*masks x y z"],
    target: Float[Tensor, "*masks x y z"],
    *,
    smooth: float = 1.0,
    empty_dice: float = 1.0,
    inside_weight: float = 0.0,
) -> Float[Tensor, "*masks"]:
    """Dice plus binary cross-entropy (mean over voxels) of each mask.

    Args:
        inside_weight: of the mean cross-entropy of the voxels inside. Something small whose logits fell far below zero
            while other things were learnt gets next to no gradient from Dice (p is 0) or from the mean over all voxels
            (it is one in thousands), and stays unfound; this term brings it back.
        empty_dice: weight of the Dice of a mask whose truth is empty. At 1 a single wrong voxel costs as much as a
            missed organ; where absent things are asked for often and present ones rarely, all that is learnt is to say
            nothing, so a head with a presence logit of its own takes little and leaves absence to it.

    Source: M3D-LaMed (arXiv:2404.00578) and SegVol (arXiv:2311.13385), with the smoothing put right.
    """
    truth = target.float().flatten(-3)
    both, said, wrong, missed = _MaskSums.apply(logits.float().flatten(-3), truth)
    meant = truth.sum(-1)
    dice = 1 - (2 * both + smooth) / (said + meant + smooth)
    loss = dice * torch.where(meant > 0, 1.0, empty_dice) + wrong / truth.shape[-1]
    return loss + inside_weight * missed / meant.clamp_min(1)


class _MaskSums(torch.autograd.Function):
    """Sums over the voxels of each mask, from logits x and truth t, of σ(x)t, σ(x), the cross-entropy, and the
    cross-entropy where t is 1.

    At the volume's resolution the loss of a dozen masks is a large part of a step. Written out, its gradient is four
    passes over the voxels and keeps σ(x) and t, where the parts one by one would keep and pass over a dozen such maps.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        probability = logits.sigmoid()
        each = F.softplus(logits).sub_(logits * truth)
        ctx.save_for_backward(probability, truth)
        with torch.autocast(logits.device.type, enabled=False):  # the dot products are matrix products to autocast
            return _dot(probability, truth), probability.sum(-1), each.sum(-1), _dot(each, truth)

    @staticmethod
    def backward(ctx: Any, both: Tensor, said: Tensor, wrong: Tensor, missed: Tensor) -> tuple[Tensor, None]:
        probability, truth = ctx.saved_tensors
        both, said, wrong, missed = (gradient[..., None] for gradient in (both, said, wrong, missed))
        # σ' = σ(1 − σ); the cross-entropy's derivative is σ − t.
        slope = torch.addcmul(said, both, truth).mul_(probability).mul_(1 - probability)
        return slope.addcmul_(torch.addcmul(wrong, missed, truth), probability - truth), None


def _dot(one: Tensor, two: Tensor) -> Tensor:
    """Σ over the last axis of the product, without the product."""
    return (one[..., None, :] @ two[..., None])[..., 0, 0]


def deep_mask_loss(
    levels: list[Tensor], target: Float[Tensor, "batch prompts x y z"], *, falloff: float = 0.5, **options: float
) -> Float[Tensor, "batch prompts"]:
    """`mask_loss` at several resolutions, finest first; each coarser one weighs `falloff` of the one before.

    At a coarser level a cell counts as inside when the mask touches it, so that nothing small is lost. Weights sum
    to 1; `options` are those of `mask_loss`.
    """
    weights = [falloff**level for level in range(len(levels))]
    total, touched = torch.zeros((), device=target.device), target.float()
    for weight, logits in zip(weights, levels, strict=True):
        size = tuple(logits.shape[-3:])
        if size != tuple(touched.shape[-3:]):
            touched = F.adaptive_max_pool3d(touched, size)
        total = total + weight / sum(weights) * mask_loss(logits, touched, **options)
    return total


def box_loss(
    predicted: Float[Tensor, "boxes 6"],
    truth: Float[Tensor, "boxes 6"],
    extent_mm: Spacing | None = None,
    *,
    l1_weight: float = 5.0,
    iou_weight: float = 2.0,
) -> Float[Tensor, " boxes"]:
    """L1 of the corners plus 1 − generalised IoU of each box, (x1, y1, z1, x2, y2, z2).

    Args:
        extent_mm: size of the volume; corners are then millimetres and L1 is measured in shares of it. None: corners
            are shares already. The IoU is the same either way.

    Source: Rezatofighi et al. 2019 (arXiv:1902.09630) in 3D; weights of DETR (arXiv:2005.12872).
    """
    scale = torch.ones(6) if extent_mm is None else torch.tensor([*extent_mm, *extent_mm])
    difference = (predicted - truth).abs() / scale.to(predicted)
    return l1_weight * difference.mean(-1) + iou_weight * (1 - generalised_iou(predicted, truth))


def generalised_iou(one: Float[Tensor, "boxes 6"], two: Float[Tensor, "boxes 6"]) -> Float[Tensor, " boxes"]:
    """IoU minus the share of the smallest enclosing box that neither fills: −1 far apart, 1 when equal."""
    inside = (torch.minimum(one[:, 3:], two[:, 3:]) - torch.maximum(one[:, :3], two[:, :3])).clamp_min(0).prod(-1)
    hull = (torch.maximum(one[:, 3:], two[:, 3:]) - torch.minimum(one[:, :3], two[:, :3])).prod(-1)
    union = (one[:, 3:] - one[:, :3]).prod(-1) + (two[:, 3:] - two[:, :3]).prod(-1) - inside
    tiny = torch.finfo(hull.dtype).tiny
    return inside / union.clamp_min(tiny) - (hull - union) / hull.clamp_min(tiny)
