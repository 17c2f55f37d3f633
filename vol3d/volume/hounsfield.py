"""Can these values be HU? Rescaled zero or two times, MR or PET given as CT: refused before a GPU is rented. And what
is no CT, can a grid's whole numbers hold it?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vol3d.volume.loaded import PADDING_BELOW, Loaded

WINDOWED = "windowed"
"""The entry of a volume's `meta` that names the grid which windowed it."""


def check_finite(loaded: Loaded) -> None:
    """Refuses volumes with NaN or infinite voxels, which would silently poison every convolution."""
    if loaded.array.dtype.kind == "f":
        bad = loaded.array.size - int(np.isfinite(loaded.array).sum())
        if bad:
            raise ValueError(f"{loaded.path}: {bad} of {loaded.array.size} voxels are NaN or infinite; export it again")


def check_hounsfield(loaded: Loaded, sample: NDArray[np.generic]) -> None:
    """Refuses values that no CT in HU has.

    A CT shows gas, lung or the air around the patient (below −200 HU) and water, fat or soft tissue (−250 to
    400 HU), each in at least one voxel of a thousand. Stored values whose intercept was not applied have no negative
    tissue; applied twice, soft tissue lies near −1000. A crop without any gas is told apart from MR by nothing but
    the user's word, `modality="CT"`, or by DICOM's rescale intercept.

    Raises:
        ValueError: says what was found and what to pass instead.
    """
    values = loaded.scaled(sample)
    kept = values[values > PADDING_BELOW]
    gas, tissue = float((kept < -200).mean()), float(((kept > -250) & (kept < 400)).mean())
    air = gas >= 1e-3 or loaded.rescaled
    if kept.size and air and tissue >= 1e-3:
        return
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9)))
    digits = 0 if high - low >= 10 else 2
    found = f"{loaded.path}: values from {low:.{digits}f} to {high:.{digits}f}"
    if not air:
        raise ValueError(
            f"{found}, {100 * gas:.2f} % below −200: no air, so this is not HU (MR or PET? rescale intercept not "
            'applied?): pass modality="MR" (or "PT") for what it is, fix the intercept, or vouch with modality="CT"'
        )
    raise ValueError(
        f"{found}, {100 * tissue:.2f} % between −250 and 400: no soft tissue, so this is not HU (rescale slope or "
        'intercept applied twice?): convert it again from its source, or vouch with modality="CT"'
    )


def check_whole_numbers(name: Any, values: NDArray[np.floating[Any]]) -> None:
    """Refuses values of another modality than CT that int16 would flatten (SUV, images scaled to 0–1) or clip (Bq/ml).

    Args:
        name: of the file.
        values: a sample of the volume, in its own unit.

    Raises:
        ValueError: fractions that span less than 200 whole numbers, or more than int16 holds; says by what to multiply.
    """
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9))) if values.size else (0.0, 0.0)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > 32767:
        factor = 10.0 ** -math.ceil(math.log10(largest / 32767))
        said = f"values reach {largest:.0f}, a grid holds whole numbers up to 32767"
    elif 0 < high - low < 200 and (values != values.round()).any():
        factor = 10.0 ** math.floor(math.log10(32767 / largest))
        said = f"values from {low:g} to {high:g} are fractions, which a grid would round to whole numbers"
    else:
        return
    raise ValueError(f"{name}: {said}: store them multiplied by {factor:g}, and a window in numbers likewise")


def check_not_windowed(meta: Mapping[str, Any], values: NDArray[np.floating[Any]]) -> None:
    """Refuses what a grid has windowed, or others have scaled to fractions from −1 to 1: taken as HU it would be
    rounded to water and windowed again.

    Args:
        meta: of the volume. With a "modality" it was read by vol3d, and its values were asked for then.
        values: a sample of the volume.
    """
    low, high = (float(v) for v in (values.min(initial=0.0), values.max(initial=0.0)))
    scaled = "modality" not in meta and low >= -1 and high <= 1 and (values != values.round()).any()
    if WINDOWED in meta or scaled:
        raise ValueError(
            f"{meta.get('filename', 'volume')}: values from {low:g} to {high:g} are no HU but what a window or a "
            "normalisation made of them: give the volume as vol3d.read returns it, the grid does the rest"
        )
