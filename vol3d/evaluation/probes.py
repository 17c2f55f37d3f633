"""Volumes changed on purpose, and what a model that looks must say of them.

Two kinds. After `blank`, `mirror` and `erase` a faithful report changes in a known way: a model that ignores the
image fails each of them. After `shift_hu`, `noise`, `thick_slices` and `missing_slices` it should say the same,
which a model that ignores the image also does: these tell robustness, and only beside the first kind.

All functions take HU (…, x, y, z), any integer or float array, and return a new one of the same shape and type.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

from vol3d.evaluation.faithfulness import swap_side
from vol3d.evaluation.intervals import share
from vol3d.evaluation.metrics.findings import compare_findings, split_side

Volume = Shaped[ndarray, "... x y z"]
AIR = -1024

DEFINITIONS = {
    "blank": "share of studies with reported findings of which none is reported once the volume is empty (air only)",
    "mirror": "share of the findings with a side reported of the volume whose other side is reported of its mirror "
    "image",
    "erase": "share of reported true findings that are no longer reported once their voxels are filled with the "
    "tissue around them",
    "same_findings": "share of changed volumes of which exactly the same findings are reported as before",
    "f1_change": "finding F1 on the changed volumes − on the volumes as they are",
}


def blank(hu: Volume) -> Volume:
    """Nothing but air."""
    return np.full_like(hu, AIR)


def mirror(hu: Volume) -> Volume:
    """Left and right exchanged."""
    return np.ascontiguousarray(hu[..., ::-1, :, :])


def shift_hu(hu: Volume, by: float | int = 15.0) -> Volume:
    """A scanner that is off by a few HU everywhere."""
    return _as(hu + np.float32(by), hu)


def noise(hu: Volume, sd: float | int = 25.0, seed: int = 0) -> Volume:
    """A lower dose: Gaussian noise of `sd` HU on every voxel."""
    return _as(hu + np.random.default_rng(seed).normal(0, sd, hu.shape).astype(np.float32), hu)


def thick_slices(hu: Volume, factor: int = 3) -> Volume:
    """Axial slices `factor` times as thick: groups along z are averaged, the grid stays."""
    starts = np.arange(0, hu.shape[-1], factor)
    sums = np.add.reduceat(hu.astype(np.float32), starts, axis=-1)
    counts = np.diff(np.append(starts, hu.shape[-1]))
    return _as(np.repeat(sums / counts, counts, axis=-1), hu)


def missing_slices(hu: Volume, part: float = 0.1, seed: int = 0) -> Volume:
    """A tenth of the axial slices lost in transfer, each replaced by the last one that arrived."""
    slices = hu.shape[-1]
    lost = np.random.default_rng(seed).permutation(np.arange(1, slices))[: round(part * slices)]
    source = np.arange(slices)
    source[lost] = 0
    return np.ascontiguousarray(hu[..., np.maximum.accumulate(source)])


def erase(hu: Shaped[ndarray, "x y z"], mask: Bool[ndarray, "x y z"], rim: int = 2, seed: int = 0) -> Volume:
    """The masked voxels filled with values drawn from the rim around them, `rim` voxels wide.

    Raises:
        ValueError: the mask has no voxel, or no rim.
    """
    from scipy.ndimage import binary_dilation

    around = hu[binary_dilation(mask, iterations=rim) & ~mask].astype(np.float32)
    if not len(around):
        raise ValueError(f"mask has {int(mask.sum())} of {mask.size} voxels and no rim: nothing to fill it with")
    away = np.abs(around - np.median(around))
    filled = hu.copy()
    middle = around[away <= 2 * max(1.0, float(np.median(away)))]  # a vessel or an edge in the rim is not the tissue
    filled[mask] = np.random.default_rng(seed).choice(middle, int(mask.sum()))
    return filled


FAITHFUL: dict[str, Callable[..., Volume]] = {"blank": blank, "mirror": mirror}
"""Probes of one volume after which a faithful report must change."""
ROBUST: dict[str, Callable[..., Volume]] = {
    "shift_hu": shift_hu,
    "noise": noise,
    "thick_slices": thick_slices,
    "missing_slices": missing_slices,
}
"""Probes of one volume after which the report should stay."""


def score_probes(
    truths: Sequence[AbstractSet[str]],
    predicted: Sequence[AbstractSet[str]],
    probed: Mapping[str, Sequence[AbstractSet[str]]],
    patients: Sequence[Hashable],
    *,
    erased: Sequence[str | None] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """What the outputs for changed volumes say of the model.

    Args:
        truths, predicted: finding keys of the studies as they are.
        probed: probe name → finding keys of the outputs for the changed volumes, in the same order.
        erased: the key that was erased from each study, None where nothing was; needed for "erase".

    Returns:
        {"blank": score, "mirror": score, "erase": score} and, for each of ROBUST, {"same_findings": score,
        "f1_change": score with p}. 1 is best throughout, 0 for f1_change.

    Raises:
        ValueError: an unknown probe, or outputs that do not number as many as the studies.
    """
    options = {"replicates": replicates, "seed": seed}
    result: dict[str, Any] = {}
    for name, outputs in probed.items():
        if len(outputs) != len(predicted):
            raise ValueError(f"probe {name!r}: {len(outputs)} outputs for {len(predicted)} studies: give one a study")
        if name in ROBUST:
            same = [float(set(one) == set(two)) for one, two in zip(predicted, outputs, strict=True)]
            change = compare_findings(truths, outputs, predicted, patients, **options)["finding_f1"]
            result[name] = {"same_findings": share(same, [1.0] * len(same), patients, **options), "f1_change": change}
        else:
            hits, totals = _faithful(name, truths, predicted, outputs, erased)
            result[name] = share(hits, totals, patients, **options)
    return result


def _faithful(
    name: str,
    truths: Sequence[AbstractSet[str]],
    predicted: Sequence[AbstractSet[str]],
    outputs: Sequence[AbstractSet[str]],
    erased: Sequence[str | None] | None,
) -> tuple[list[float], list[float]]:
    """How often the output did as it must, and how often it could have, per study."""
    if name == "blank":
        # A model that never reports anything is silent here too, which says nothing for it.
        said = [bool(keys) for keys in predicted]
        return [float(had and not keys) for had, keys in zip(said, outputs, strict=True)], [float(had) for had in said]
    if name == "mirror":
        sided = [{key for key in keys if split_side(key)[0]} for keys in predicted]
        turned = [sum(swap_side(key) in after for key in keys) for keys, after in zip(sided, outputs, strict=True)]
        return [float(count) for count in turned], [float(len(keys)) for keys in sided]
    if name == "erase":
        keys = list(erased or [])
        if len(keys) != len(outputs):
            raise ValueError(f"probe 'erase': {len(keys)} erased keys for {len(outputs)} studies: one each, or None")
        seen = [
            key is not None and key in truth and key in before
            for key, truth, before in zip(keys, truths, predicted, strict=True)
        ]
        gone = [had and key not in after for had, key, after in zip(seen, keys, outputs, strict=True)]
        return [float(hit) for hit in gone], [float(had) for had in seen]
    known = ", ".join([*FAITHFUL, "erase", *ROBUST])
    raise ValueError(f"unknown probe {name!r}: choose from {known}")


def _as(values: ndarray, like: ndarray) -> ndarray:
    """Back to the type of `like`, rounded for integers."""
    if np.issubdtype(like.dtype, np.integer):
        bounds = np.iinfo(like.dtype)
        return np.clip(np.round(values), bounds.min, bounds.max).astype(like.dtype)
    return values.astype(like.dtype)
