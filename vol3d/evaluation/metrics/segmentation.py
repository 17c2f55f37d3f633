"""Masks: Dice, NSD and HD95 in mm by MONAI, volume error in ml, and the soft Dice that M3D-Bench calls Dice.

An empty truth is part of the test: saying nothing where nothing is scores 1, saying something scores 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from vol3d.evaluation.intervals import clustered_bootstrap, undefined
from vol3d.types import Spacing

DEFINITIONS = {
    "dice": "2|A∩B| / (|A|+|B|) of thresholded masks; 1 when both are empty",
    "nsd": "share of both surfaces that lies within the tolerance (mm) of the other; 1 when both are empty, 0 when "
    "one is",
    "hd95_mm": "the larger of the two 95th percentiles of surface distance; undefined when either mask is empty",
    "volume_error_ml": "absolute difference of the two volumes",
    "m3d_soft_dice": "M3D-Bench's “Dice”: 2Σpt / (Σp + Σt + 1) of probabilities p, without a threshold; an empty pair "
    "scores 0",
}
METRICS = tuple(DEFINITIONS)


def mask_scores(
    predicted: Bool[ndarray, "_x _y _z"],
    truth: Bool[ndarray, "_x _y _z"],
    spacing: Spacing,
    *,
    tolerance_mm: float = 2.0,
    probabilities: Float[ndarray, "_x _y _z"] | None = None,
) -> dict[str, float | None]:
    """The scores of one mask against its truth, both on the same grid.

    Args:
        spacing: mm along x, y, z.
        tolerance_mm: how far apart surfaces may be for NSD.
        probabilities: for `m3d_soft_dice`; without them the mask itself is used.

    Returns:
        One number a metric of DEFINITIONS; None where undefined.

    Raises:
        ValueError: shapes that differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"predicted mask is {predicted.shape} voxels, truth is {truth.shape}: resample with "
            "vol3d.resample(mask, like=image)"
        )
    voxel_ml = float(np.prod(spacing)) / 1000
    soft = predicted.astype(np.float64) if probabilities is None else probabilities.astype(np.float64)
    total = int(predicted.sum()) + int(truth.sum())
    scores: dict[str, float | None] = {
        "dice": 2 * int((predicted & truth).sum()) / total if total else 1.0,
        "nsd": 1.0 if not total else 0.0,
        "hd95_mm": None,
        "volume_error_ml": abs(int(predicted.sum()) - int(truth.sum())) * voxel_ml,
        "m3d_soft_dice": float(2 * (soft * truth).sum() / (soft.sum() + truth.sum() + 1)),
    }
    if predicted.any() and truth.any():
        scores |= _surface(predicted, truth, spacing, tolerance_mm)
    return scores


def score_segmentation(
    rows: Sequence[Mapping[str, Any]],
    patients: Sequence[Hashable],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Means over masks, and over the masks of each label, with 95 % patient-clustered intervals.

    Args:
        rows: `mask_scores` of each mask, with "label" (what it is of) when there are several.
        patients: who each mask belongs to.

    Returns:
        METRICS, "per_label" {label: {metric: …, "support": masks}}. A score that some masks lack says so in "note".
    """
    options = {"replicates": replicates, "seed": seed}
    result: dict[str, Any] = _means(rows, patients, options)
    labels = sorted({str(row["label"]) for row in rows if "label" in row})
    result["per_label"] = {}
    for label in labels:
        chosen = [i for i, row in enumerate(rows) if str(row.get("label")) == label]
        means = _means([rows[i] for i in chosen], [patients[i] for i in chosen], options)
        result["per_label"][label] = means | {"support": len(chosen)}
    return result


def _means(rows: Sequence[Mapping[str, Any]], patients: Sequence[Hashable], options: dict[str, int]) -> dict[str, Any]:
    result = {}
    for metric in METRICS:
        values = np.array([np.nan if row.get(metric) is None else row[metric] for row in rows], dtype=np.float64)
        known = np.isfinite(values)
        if not known.any():
            result[metric] = undefined(f"defined for none of {len(rows)} masks")
            continue
        who = [patient for patient, there in zip(patients, known, strict=True) if there]
        result[metric] = mean_score(values[known], who, share=not metric.endswith(("_mm", "_ml")), **options)
        if not known.all():
            result[metric]["note"] = f"over the {known.sum()} of {len(rows)} masks for which it is defined"
    return result


def mean_score(
    values: Float[ndarray, " items"],
    patients: Sequence[Hashable],
    *,
    share: bool = False,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The mean of one number an item, with its patient-clustered interval.

    Args:
        share: of numbers between 0 and 1: where all are 0, or all 1, the interval is the exact binomial one.
    """

    def statistic(weights: ndarray) -> ndarray:
        return weights @ values / weights.sum(1)

    trials = len(set(patients)) if share else None
    return clustered_bootstrap(statistic, patients, trials=trials, replicates=replicates, seed=seed)[0]


def _surface(predicted: ndarray, truth: ndarray, spacing: Spacing, tolerance_mm: float) -> dict[str, float]:
    """NSD and HD95 by MONAI, on the box that holds both masks (a mask far from the border has the same surface)."""
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    box = tuple(slice(max(0, int(places.min()) - 1), int(places.max()) + 2) for places in np.nonzero(predicted | truth))
    one, two = (np.pad(mask[box], 1) for mask in (predicted, truth))
    first, second = (torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32)) for mask in (one, two))
    nsd = compute_surface_dice(first, second, [tolerance_mm], spacing=spacing, include_background=False)
    hd95 = compute_hausdorff_distance(first, second, percentile=95, spacing=spacing, include_background=False)
    return {"nsd": float(nsd.item()), "hd95_mm": float(hd95.item())}
