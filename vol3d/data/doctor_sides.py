"""Which way a body lies, told from its air, bone and liver; says nothing where it is not sure.

A header that is wrong by a mirror is what no other check sees: image and mask agree, and left is right.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vol3d.types import Spacing

Verdict = Literal["right", "wrong", "unknown"]
_STEP_MM = 4.0
_COARSEST_MM = 12.5
_LITRE = 1e6


def sides(hu: NDArray[np.float32], spacing: Spacing) -> dict[str, Verdict]:
    """Whether x, y and z of a CT (x, y, z) in RAS run the way they say: {"left-right": …, "front-back": …, …}.

    The spine lies behind the body's middle. A belly as wide as the chest lies below the lungs. The thickest solid
    organ below the lungs, where nothing as thick faces it, is the liver: on the right.
    """
    steps = [max(1, round(_STEP_MM / step)) for step in spacing]
    coarse = np.asarray(hu[:: steps[0], :: steps[1], :: steps[2]], np.float32)
    mm = tuple(step * size for step, size in zip(steps, spacing, strict=True))
    unknown: dict[str, Verdict] = {"left-right": "unknown", "front-back": "unknown", "head-feet": "unknown"}
    if min(coarse.shape) < 4 or max(mm) > _COARSEST_MM:
        return unknown
    body = _body(coarse)
    if body.sum() * np.prod(mm) < 1.0 * _LITRE:
        return unknown
    lung = _lung(coarse, body, mm)
    return {
        "left-right": _left_right(coarse, body, lung, mm),
        "front-back": _front_back(coarse, body, mm),
        "head-feet": _head_feet(body, lung, mm),
    }


def _body(hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The patient with lungs and bowel, without the table."""
    solid = ndimage.binary_opening(hu > -300, iterations=2)
    parts, count = ndimage.label(solid)
    if not count:
        return solid
    largest = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(largest, 2, 0)], axis=2)


def _lung(hu: NDArray[np.float32], body: NDArray[np.bool_], mm: Spacing) -> NDArray[np.bool_]:
    """Gas within the body in pieces over 0.2 l."""
    parts, count = ndimage.label(body & (hu < -500))
    sizes = np.bincount(parts.ravel(), minlength=count + 1) * np.prod(mm)
    sizes[0] = 0
    return np.isin(parts, np.flatnonzero(sizes > 0.2 * _LITRE))


def _front_back(hu: NDArray[np.float32], body: NDArray[np.bool_], mm: Spacing) -> Verdict:
    bone = body & (hu > 300)
    if bone.sum() * np.prod(mm) < 0.03 * _LITRE:
        return "unknown"
    ahead = (np.median(np.nonzero(bone)[1]) - np.median(np.nonzero(body)[1])) * mm[1]
    return "unknown" if abs(ahead) < 20 else "right" if ahead < 0 else "wrong"


def _head_feet(body: NDArray[np.bool_], lung: NDArray[np.bool_], mm: Spacing) -> Verdict:
    area, room = lung.sum(axis=(0, 1)), body.sum(axis=(0, 1))
    if area.sum() * np.prod(mm) < 0.4 * _LITRE:
        return "unknown"
    with_lung = np.flatnonzero(area > 0.1 * area.max())
    first, last = int(with_lung[0]), int(with_lung[-1])
    chest = np.median(room[first : last + 1])
    ends = {"right": room[:first], "wrong": room[last + 1 :]}
    belly = [side for side, end in ends.items() if len(end) * mm[2] > 80 and np.median(end) > 0.75 * chest]
    far = [side for side, end in ends.items() if len(end) * mm[2] > 40]
    return belly[0] if len(belly) == 1 and far == belly else "unknown"  # type: ignore[return-value]


def _left_right(hu: NDArray[np.float32], body: NDArray[np.bool_], lung: NDArray[np.bool_], mm: Spacing) -> Verdict:
    smooth = ndimage.gaussian_filter(np.clip(hu, -200, 300), 1.0)
    area = lung.sum(axis=(0, 1))
    no_lung = area <= 0.25 * max(int(area.max()), 1)
    solid = body & (smooth > 25) & (smooth < 220) & no_lung
    depth = ndimage.distance_transform_edt(np.pad(solid, ((1, 1), (1, 1), (0, 0))), sampling=mm)[1:-1, 1:-1]
    middle = np.median(np.nonzero(body)[0])
    x = (np.arange(hu.shape[0]) - middle) * mm[0]
    right = float(depth[x > 20].max(initial=0))
    left = float(depth[x < -20].max(initial=0))
    if max(right, left) < 26 or min(right, left) > 0.75 * max(right, left):
        return "unknown"
    return "right" if right > left else "wrong"
