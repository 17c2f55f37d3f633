"""A mask as the runs of its voxels: how predictions.jsonl holds masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from vol3d.types import Triple


def encode_runs(mask: Bool[ndarray, "x y z"]) -> list[int]:
    """Starts and lengths of the runs of True, in turn, over the mask flattened with z running fastest.

    Example:
        >>> import numpy as np
        >>> encode_runs(np.array([[[False, True, True, False, True]]]))
        [1, 2, 4, 1]
    """
    steps = np.diff(np.concatenate([[0], mask.ravel().view(np.int8), [0]]))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return np.stack([starts, ends - starts], axis=1).ravel().tolist()


def decode_runs(runs: Sequence[int], shape: Triple) -> Bool[ndarray, "x y z"]:
    """The mask that `encode_runs` wrote.

    Raises:
        ValueError: runs that do not come in pairs, or reach beyond a mask of this shape.
    """
    size = int(np.prod(shape))
    if len(runs) % 2:
        raise ValueError(f"{len(runs)} numbers are no runs: give a start and a length for each")
    starts, lengths = np.asarray(runs[::2], np.int64), np.asarray(runs[1::2], np.int64)
    if len(starts) and (starts.min() < 0 or lengths.min() < 0 or (starts + lengths).max() > size):
        raise ValueError(
            f"runs reach voxel {int((starts + lengths).max())}, a mask of {tuple(shape)} has {size}: decode with the "
            "shape of the grid they were made on"
        )
    steps = np.zeros(size + 1, np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + lengths, -1)
    return (np.cumsum(steps)[:-1] > 0).reshape(shape)
