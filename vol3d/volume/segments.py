"""3D Slicer's segmentations (.seg.nrrd): named segments in layers, which may overlap → one label map."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def segment_names(keys: dict[str, str]) -> dict[int, str]:
    """{label value: name} of a 3D Slicer segmentation."""
    names = {
        name.removesuffix("_Name"): value for name, value in keys.items() if re.fullmatch(r"Segment\d+_Name", name)
    }
    return {int(keys[f"{segment}_LabelValue"]): name for segment, name in names.items()
            if keys.get(f"{segment}_LabelValue", "").isdigit()}  # fmt: skip


def paint(
    array: NDArray[Any], keys: dict[str, str], path: Path, wanted: Sequence[str] | None
) -> tuple[NDArray[np.int16], dict[int, str]]:
    """Layers (layer, i, j, k) of a .seg.nrrd → one label map; each segment gets a number of its own.

    Args:
        wanted: names of segments, painted in this order, so that a later one covers an earlier one.

    Raises:
        ValueError: two segments share voxels, which one label map cannot hold, and no order was asked for.
    """
    segments = _segment_list(keys, path)
    known = [name for _, name, _, _ in segments]
    for name in wanted or ():
        if known.count(name) != 1:
            raise ValueError(f"{path}: segment {name!r} occurs {known.count(name)} times; its segments are {known}")
    chosen = segments if wanted is None else [segments[known.index(name)] for name in wanted]
    merged = np.zeros(array.shape[1:], dtype=np.int16, order="F")
    labels: dict[int, str] = {}
    for number, name, layer, value in chosen:
        if not 0 <= layer < len(array):
            raise ValueError(f"{path}: segment {name!r} is in layer {layer} of {len(array)}; export it again")
        voxels = array[layer] == value
        shared = np.unique(merged[voxels & (merged > 0)])
        labels[number] = name
        if shared.size and wanted is None:
            raise ValueError(
                f"{path}: segments {name!r} and {labels[int(shared[0])]!r} share "
                f"{int((voxels & (merged == shared[0])).sum())} voxels; a label map holds one label a voxel: choose "
                f"some, the last on top, as in read_mask(path, segments=[{labels[int(shared[0])]!r}, {name!r}])"
            )
        merged[voxels] = number
    return merged, labels


def _segment_list(keys: dict[str, str], path: Path) -> list[tuple[int, str, int, int]]:
    """(number, name, layer, label value) of each segment. Label values are kept as numbers where they are unique."""
    found = sorted(int(match[1]) for name in keys if (match := re.fullmatch(r"Segment(\d{1,6})_LabelValue", name)))
    segments = [
        (
            keys.get(f"Segment{index}_Name", f"Segment{index}"),
            int(keys.get(f"Segment{index}_Layer", 0)),
            int(keys[f"Segment{index}_LabelValue"]),
        )
        for index in found
    ]
    values = [value for _, _, value in segments]
    unique = len(set(values)) == len(values) and all(0 < value < 2**15 for value in values)
    if len(segments) > 2**15 - 1:
        raise ValueError(f"{path}: {len(segments)} segments do not fit int16; save them in several files")
    return [(value if unique else n, name, layer, value) for n, (name, layer, value) in enumerate(segments, start=1)]
