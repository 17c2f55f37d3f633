"""A mask as the runs of its voxels, and how likely each voxel is: how predictions.jsonl holds masks."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
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


LEVELS = 15
"""Steps between a probability of 0 and of 1; none is off by more than 1/30."""


def encode_levels(probability: Float[ndarray, "x y z"]) -> dict[str, Any]:
    """Probabilities in steps of 1/15: "low", "size" of the box that holds all above 0, and "zlib", its steps."""
    steps = np.round(LEVELS * probability).astype(np.uint8)
    places = [np.flatnonzero(steps.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not len(places[0]):
        return {"low": [0, 0, 0], "size": [0, 0, 0], "zlib": ""}
    box = tuple(slice(int(place[0]), int(place[-1]) + 1) for place in places)
    packed = zlib.compress(np.ascontiguousarray(steps[box]).tobytes(), 6)
    low, size = [part.start for part in box], [part.stop - part.start for part in box]
    return {"low": low, "size": size, "zlib": base64.b64encode(packed).decode("ascii")}


def decode_levels(levels: Mapping[str, Any], shape: Triple) -> Float[ndarray, "x y z"]:
    """The probabilities that `encode_levels` wrote.

    Raises:
        ValueError: they reach beyond a volume of this shape.
    """
    low, size = levels["low"], levels["size"]
    if any(start + length > most for start, length, most in zip(low, size, shape, strict=True)):
        raise ValueError(f"probabilities of {tuple(size)} voxels from {tuple(low)} do not fit in {tuple(shape)}")
    probability = np.zeros(shape, np.float32)
    if min(size):
        steps = np.frombuffer(zlib.decompress(base64.b64decode(levels["zlib"])), np.uint8).reshape(size)
        probability[tuple(slice(start, start + length) for start, length in zip(low, size, strict=True))] = (
            steps / LEVELS
        )
    return probability
