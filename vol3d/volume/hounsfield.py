"""Can these values be HU? Rescaled zero or two times, MR or PET given as CT: refused before a GPU is rented."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vol3d.volume.loaded import PADDING_BELOW, Loaded


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
    found = f"{loaded.path}: values from {low:.0f} to {high:.0f}"
    if not air:
        raise ValueError(
            f"{found}, {100 * gas:.2f} % below −200: no air, so this is not HU (MR or PET? rescale intercept not "
            'applied?): pass modality="MR" (or "PT") for what it is, fix the intercept, or vouch with modality="CT"'
        )
    raise ValueError(
        f"{found}, {100 * tissue:.2f} % between −250 and 400: no soft tissue, so this is not HU (rescale slope or "
        'intercept applied twice?): convert it again from its source, or vouch with modality="CT"'
    )
