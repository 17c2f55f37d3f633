"""Volumes changed on purpose.

Two kinds. After `blank`, `mirror` and `erase` a faithful output changes in a known way. After `shift_hu`, `noise`,
`thick_slices`, `missing_slices` and `contrast_phase` it should stay. What a model that ignores the image scores in
either kind is told by a control (`vol3d.evaluation.controls`).

All functions take HU (…, x, y, z), any integer or float array, and return a new one of the same shape and type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from jaxtyping import Bool, Int, Shaped
from numpy import ndarray

Volume = Shaped[ndarray, "... x y z"]
AIR = -1024
ENHANCEMENT = {
    "aorta|vena cava|vein|artery|vessel": (40, 150),
    "heart|atrium|ventricle": (45, 120),
    "kidney": (32, 180),
    "spleen": (48, 118),
    "liver": (57, 110),
    "pancreas": (40, 98),
}
"""Organs (words of their names) that take up contrast medium: typical HU without and in the portal venous phase."""


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


def enhancing(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Those of the organs that take up contrast medium, with their HU without and in the portal venous phase."""
    return {
        name: rise
        for name in names
        for words, rise in ENHANCEMENT.items()
        if re.search(rf"\b(?:{words})", name.lower().replace("_", " "))
    }


def contrast_phase(
    hu: Shaped[ndarray, "x y z"], organs: Int[ndarray, "x y z"], labels: Mapping[str, int]
) -> Shaped[ndarray, "x y z"]:
    """The other contrast phase: organs and vessels that take up contrast medium raised to the portal venous phase, or
    lowered to none when the scan has it; everything else, and the texture inside, stays.

    A rough likeness: real phases differ in vessels and lesions that no organ mask names. Without such an organ in
    `labels` the volume comes back as it is.

    Args:
        organs: label map on the same grid. labels: organ → its number.
    """
    masks = [(organs == labels[name], rise) for name, rise in enhancing(labels).items()]
    seen = [(mask, rise) for mask, rise in masks if mask.any()]
    if not seen:
        return hu.copy()
    # Which phase it is: are the organs nearer to their values with or without medium?
    bright = np.mean([np.median(hu[mask]) > (plain + venous) / 2 for mask, (plain, venous) in seen]) > 0.5
    changed = hu.astype(np.float32)
    for mask, (plain, venous) in seen:
        changed[mask] += (plain - venous) if bright else (venous - plain)
    return _as(changed, hu)


FAITHFUL: dict[str, Callable[..., Volume]] = {"blank": blank, "mirror": mirror}
"""Probes of one volume after which a faithful report must change."""
ROBUST: dict[str, Callable[..., Volume]] = {
    "shift_hu": shift_hu,
    "noise": noise,
    "thick_slices": thick_slices,
    "missing_slices": missing_slices,
}
"""Probes of one volume after which the output should stay, as after `contrast_phase`, which needs organ masks."""


def _as(values: ndarray, like: ndarray) -> ndarray:
    """Back to the type of `like`, rounded for integers."""
    if np.issubdtype(like.dtype, np.integer):
        bounds = np.iinfo(like.dtype)
        return np.clip(np.round(values), bounds.min, bounds.max).astype(like.dtype)
    return values.astype(like.dtype)
