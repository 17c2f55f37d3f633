"""Boxes: intersection over union as everybody defines it, and over the enclosing hull as M3D-Bench computes it.

A box is (min, max) corners, six numbers (x1, y1, z1, x2, y2, z2). True IoU is given in RAS millimetres.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from vol3d.evaluation.intervals import share
from vol3d.evaluation.metrics.segmentation import mean_score

DEFINITIONS = {
    "iou": "|A∩B| / |A∪B|; an output without a readable box scores 0",
    "m3d_hull_iou": "M3D-Bench's “IoU”: |A∩B| / volume of the smallest box around both; −1 when the output has no "
    "readable box",
    "found@0.5": "share of boxes with an IoU of at least 0.5 (found@0.25: at least 0.25)",
    "readable": "share of outputs with a readable box",
}
Box = Sequence[float | int] | ndarray


def box_iou(one: Box, two: Box) -> float:
    """Intersection over union of two boxes (x1, y1, z1, x2, y2, z2).

    Two boxes that are both without volume have IoU 1 when equal and 0 otherwise.

    Raises:
        ValueError: not six numbers, or a corner below the other (both corners are given).
    """
    a, b = _box(one), _box(two)
    inside = np.prod(np.clip(np.minimum(a[1], b[1]) - np.maximum(a[0], b[0]), 0, None))
    union = np.prod(a[1] - a[0]) + np.prod(b[1] - b[0]) - inside
    return float(inside / union) if union else float((a == b).all())


def m3d_hull_iou(one: Box, two: Box) -> float:
    """What M3D-Bench reports as IoU: the intersection over the volume of the enclosing box, plus 1e-6.

    Source: BAAI-DCAI/M3D, Bench/utils.py `calculate_iou`; boxes there are normalised to 0…1.
    """
    a, b = _box(one), _box(two)
    inside = np.prod(np.clip(np.minimum(a[1], b[1]) - np.maximum(a[0], b[0]), 0, None))
    return float(inside / (np.prod(np.maximum(a[1], b[1]) - np.minimum(a[0], b[0])) + 1e-6))


def score_boxes(
    truths: Sequence[Box],
    predicted: Sequence[Box | None],
    patients: Sequence[Hashable],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """DEFINITIONS' scores over pairs of boxes, each with a 95 % patient-clustered interval.

    Args:
        predicted: None where the output has no readable box.
    """
    if not len(truths) == len(predicted) == len(patients):
        raise ValueError(
            f"{len(truths)} true and {len(predicted)} predicted boxes, {len(patients)} patients: one of each"
        )
    pairs = list(zip(truths, predicted, strict=True))
    iou = np.array([0.0 if box is None else box_iou(box, truth) for truth, box in pairs])
    hull = np.array([-1.0 if box is None else m3d_hull_iou(box, truth) for truth, box in pairs])
    options = {"replicates": replicates, "seed": seed}
    once = np.ones(len(pairs))
    result = {"iou": mean_score(iou, patients, share=True, **options)}
    result["m3d_hull_iou"] = mean_score(hull, patients, **options)
    for bound in (0.25, 0.5):
        result[f"found@{bound}"] = share((iou >= bound).astype(np.float64), once, patients, **options)
    readable = np.array([float(box is not None) for box in predicted])
    return result | {"readable": share(readable, once, patients, **options)}


def _box(box: Box) -> Float[ndarray, "2 3"]:
    corners = np.asarray(box, dtype=np.float64)
    if corners.shape != (6,):
        raise ValueError(f"a box has shape {corners.shape}, not (6,): give x1, y1, z1, x2, y2, z2")
    corners = corners.reshape(2, 3)
    if (corners[0] > corners[1]).any():
        raise ValueError(f"box from {corners[0].tolist()} to {corners[1].tolist()}: give the lower corner first")
    return corners
