"""Painters of findings in bones, and the hiatal hernia behind the heart. Each returns its boolean voxel mask."""

from __future__ import annotations

import numpy as np

from vol3d.phantom.anatomy import ORGANS, Scene, level_height, spine_at
from vol3d.phantom.canvas import Patch
from vol3d.text.ontology import Finding

_ELSEWHERE = {
    "pelvis": ((76.0, -48.0, -128.0), (-72.0, -50.0, -124.0), (20.0, -72.0, -150.0)),
    "sternum": ((0.0, 93.0, 120.0),),
}


def vertebral_fracture(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """A wedge: the upper front of one vertebral body has sunk, the rest is packed dense."""
    canvas = scene.canvas
    z0 = level_height(finding.site or "L2")
    cx, cy, radius = (float(v) for v in spine_at(scene, z0))
    lost = {"mild": 0.4, "moderate": 0.55, "severe": 0.7}[finding.severity or "moderate"] * float(
        rng.uniform(0.95, 1.05)
    )
    body = canvas.tube([z0 - 9.0, z0 + 9.0], [cx, cx], [cy, cy], radius + 3.0)
    _, y, z = canvas.axes(body.box)
    forward = np.clip((y - cy + radius) / (1.8 * radius), 0.25, 1)
    roof = z0 + 9.0 - np.float32(18.0 * lost) * forward
    canvas.paint(body, 560.0, ORGANS["spine"])
    gone = body & canvas.edge((z - roof).astype(np.float32), direction=2)
    canvas.paint(gone, 62.0)
    return canvas.mask(body)


def bone_metastasis(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Lytic (soft tissue where bone was) or sclerotic foci."""
    canvas = scene.canvas
    lytic = rng.random() < 0.5
    mask = np.zeros(canvas.shape, bool)
    levels = ["L1", "T9", "L3"] if finding.site is None else [finding.site]
    for index in range(finding.count):
        size = (finding.size_mm or 18.0) * (1.0, 0.85, 0.8)[index]
        site = levels[index % len(levels)]
        if site in _ELSEWHERE:
            place = _ELSEWHERE[site][0]
        else:
            z0 = level_height(site)
            cx, cy, radius = (float(v) for v in spine_at(scene, z0))
            place = (cx + (0.3 if index % 2 else -0.3) * radius, cy + 0.15 * radius, z0)
        focus = canvas.ellipsoid(place, scene.radii(size))
        canvas.paint(focus, 38.0 if lytic else 1050.0)
        mask |= canvas.mask(focus)
    return mask


def hiatal_hernia(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Stomach behind the heart, with its wall, fluid and a gas bubble in front."""
    canvas = scene.canvas
    size = {"small": 20.0, "moderate": 25.0, "large": 31.0}[finding.severity or "moderate"] * float(
        rng.uniform(0.96, 1.04)
    )
    centre = (-10.0, -16.0, 52.0 + 0.3 * size)
    sac = canvas.ellipsoid(centre, (size * 1.15, size * 0.85, size))
    keep = ~np.isin(canvas.organs[sac.box], [ORGANS["aorta"], ORGANS["spine"], ORGANS["inferior vena cava"]])
    canvas.paint(sac & keep, scene.hu("wall") + 8, ORGANS["stomach"])
    inner = canvas.ellipsoid(centre, (size * 1.15 - 4, size * 0.85 - 4, size - 4)) & 1.0
    inner = Patch(inner.box, inner.cover * ~np.isin(canvas.organs[inner.box], [ORGANS["aorta"], ORGANS["spine"]]))
    canvas.paint(inner, float(rng.uniform(12, 30)))
    gas = canvas.edge(canvas.y[inner.box[:2]] - np.float32(centre[1] + 0.05 * size))[:, :, None]
    canvas.paint(inner & gas, -960.0)
    return canvas.mask(sac & keep)


PAINTERS = {
    "hiatal hernia": hiatal_hernia,
    "vertebral fracture": vertebral_fracture,
    "bone metastasis": bone_metastasis,
}
