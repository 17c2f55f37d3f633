"""Painters of findings in the abdomen. Each returns its boolean voxel mask."""

from __future__ import annotations

import numpy as np

from vol3d.phantom.anatomy import ORGANS, SIDE_SIGN, Scene
from vol3d.phantom.canvas import Patch
from vol3d.phantom.organs import gallbladder_shape, kidney_shape
from vol3d.text.ontology import Finding

_LESIONS = {
    "right lobe": ((84, 4, 22), (66, -28, -4), (72, 40, 6)),
    "left lobe": ((4, 40, 14), (34, 44, 16), (12, 66, 14)),
}
_CYSTS = {
    "right lobe": ((84, 2, -16), (58, 30, 34), (84, -34, 8)),
    "left lobe": ((14, 50, 13), (-4, 30, 14), (-14, 52, 16)),
}
_SHARES = (1.0, 0.6, 0.5)
"""Size of each of several, of the largest's: so small that they lie apart, and can be counted."""


def _inside(scene: Scene, patch: Patch, *organs: str) -> Patch:
    return patch & np.isin(scene.canvas.organs[patch.box], [ORGANS[name] for name in organs])


def _organ(scene: Scene, name: str) -> np.ndarray:
    return scene.canvas.organs == ORGANS[name]


def hepatic_steatosis(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Nothing to paint: the anatomy already drew the fatty liver."""
    return _organ(scene, "liver")


def splenomegaly(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Nothing to paint: the anatomy already drew the large spleen."""
    return _organ(scene, "spleen")


def ascites(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Free water: round liver and spleen, along both flanks, filling the pelvis."""
    canvas = scene.canvas
    rim = {"small": 9.0, "moderate": 14.0, "large": 21.0}[finding.severity or "moderate"] * rng.uniform(0.95, 1.1)
    box = canvas.box((-140, -85, -205), (140, 110, 75))
    x, y, z = canvas.axes(box)
    depth = scene.cavity[box]
    under = canvas.edge(scene.dome[box[:2]][:, :, None] - 3 - z, direction=2) * canvas.edge(depth - 1)
    shell = canvas.edge(np.float32(rim) - depth + 0.12 * np.minimum(np.abs(x) - 70, 30)) * canvas.edge(y + 58)
    basin = canvas.edge(52 * (1 - np.sqrt(np.square(x / 64) + np.square((y - 16) / 52))))
    pelvis = canvas.edge(np.float32(-172 + 2.0 * rim) - z, direction=2) * basin
    cap = canvas.edge(z - scene.dome[box[:2]][:, :, None] + np.float32(0.75 * rim), direction=2)
    cover = np.maximum(np.maximum(shell, pelvis), cap * canvas.edge(np.abs(x) - 22)) * under
    solid = [
        ORGANS[n]
        for n in (
            "aorta",
            "inferior vena cava",
            "spine",
            "bladder",
            "pelvis",
            "left kidney",
            "right kidney",
            "ribs",
            "heart",
        )
    ]
    water = Patch(box, cover * ~np.isin(canvas.organs[box], solid))
    canvas.paint(water, float(rng.uniform(4, 14)))
    mask = np.zeros(canvas.shape, bool)
    # A thin film over the liver covers less than half of a thick slice, and is ascites all the same.
    mask[box] = water.cover >= 0.3
    canvas.organs[mask] = 0
    return mask


def liver_lesion(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Ill-defined hypodense masses with a necrotic core and, in contrast, a rim."""
    canvas = scene.canvas
    mask = np.zeros(canvas.shape, bool)
    venous = scene.patient.contrast == "portal venous"
    # In contrast darker than a fatty liver, too.
    tissue = min(62.0, scene.change.get("liver_hu", 113.0) - 30) if venous else 30.0
    shift = rng.uniform(-3, 3, 3)
    for place, share in zip(_LESIONS[finding.site or "right lobe"][: finding.count], _SHARES, strict=False):
        size = (finding.size_mm or 30.0) * share
        centre = tuple(p + d for p, d in zip(place, shift, strict=True))
        patch = _inside(scene, canvas.ellipsoid(centre, scene.radii(size)), "liver")
        canvas.paint(patch, tissue)
        core = canvas.ellipsoid(centre, scene.radii(0.6 * size), angle=rng.uniform(0, 3))
        canvas.paint(_inside(scene, core, "liver"), min(30.0 if venous else 16.0, tissue - 14))
        mask |= canvas.mask(patch)
    return mask


def hepatic_cyst(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Sharply bounded water."""
    canvas = scene.canvas
    mask = np.zeros(canvas.shape, bool)
    shift = rng.uniform(-3, 3, 3)
    for place, share in zip(_CYSTS[finding.site or "right lobe"][: finding.count], _SHARES, strict=False):
        size = (finding.size_mm or 30.0) * share
        centre = tuple(p + d for p, d in zip(place, shift, strict=True))
        patch = _inside(scene, canvas.ellipsoid(centre, scene.radii(size)), "liver")
        canvas.paint(patch, 2.0)
        mask |= canvas.mask(patch)
    return mask


def gallstones(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Calcified stones lying in the dependent part of the gallbladder."""
    canvas = scene.canvas
    centre, radii = gallbladder_shape(scene)
    mask = np.zeros(canvas.shape, bool)
    density = float(rng.uniform(450, 900))
    spots = ((0.0, -0.62, -0.15), (0.25, -0.5, 0.55), (-0.4, -0.4, -0.75))
    for (x, y, z), share in zip(spots[: finding.count], _SHARES, strict=False):
        size = (finding.size_mm or 14.0) * share
        place = (centre[0] + x * radii[0], centre[1] + y * radii[1] + size / 2, centre[2] + z * radii[2])
        stone = canvas.ellipsoid(place, scene.radii(size))
        canvas.paint(stone, density)
        mask |= canvas.mask(stone)
    return mask


def hydronephrosis(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Dilated renal pelvis, calyces reaching into the parenchyma, and a wide upper ureter."""
    canvas, sign = scene.canvas, SIDE_SIGN[finding.side or "right"]
    centre, radii, angle = kidney_shape(scene, finding.side or "right")
    wide = {"mild": 0.85, "moderate": 1.0, "severe": 1.15}[finding.severity or "moderate"] * rng.uniform(0.96, 1.05)
    hub = (centre[0] - sign * 13, centre[1] + 5, centre[2])
    parts = [canvas.ellipsoid(hub, (17 * wide, 15 * wide, 24 * wide), angle=angle, lean=(-sign * 0.15, 0.0))]
    for up in (-0.6, 0.0, 0.6):
        tip = (centre[0] + sign * 6 - sign * 0.15 * up * radii[2], centre[1] - 1, centre[2] + up * radii[2])
        parts.append(canvas.capsule(hub, tip, 5 * wide, 10 * wide))
    ureter = (centre[0] - sign * 24, centre[1] + 10, centre[2] - 34)
    parts.append(canvas.capsule((hub[0] - sign * 8, hub[1] + 4, hub[2] - 8), ureter, 8 * wide, 6 * wide))
    parts.append(canvas.capsule(ureter, (sign * 34, -26, -112), 6 * wide))
    water = float(rng.uniform(2, 12))
    mask = np.zeros(canvas.shape, bool)
    for part in parts:
        canvas.paint(part, water)
        mask |= canvas.mask(part)
    return mask


def renal_cyst(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Round water bulging from the outer cortex."""
    canvas, sign = scene.canvas, SIDE_SIGN[finding.side or "right"]
    centre, radii, _ = kidney_shape(scene, finding.side or "right")
    mask = np.zeros(canvas.shape, bool)
    up = {"upper pole": 0.62, "mid pole": 0.0, "lower pole": -0.62}[finding.site or "mid pole"]
    spots = ((up, 0.54, 0.2), (0.62, -0.3, -0.2), (-0.62, -0.3, -0.2))  # height, depth, and how far out of the cortex
    for (level, front, out), share in zip(spots[: finding.count], _SHARES, strict=False):
        size = (finding.size_mm or 30.0) * share
        place = (
            centre[0] + sign * (0.55 * radii[0] + 0.25 * size),
            centre[1] + front * radii[1] + out * size,
            centre[2] + level * radii[2],
        )
        cyst = canvas.ellipsoid(place, scene.radii(size))
        keep = ~np.isin(canvas.organs[cyst.box], [ORGANS["spine"], ORGANS["ribs"], ORGANS["pelvis"]])
        cyst = cyst & keep
        canvas.paint(cyst, 4.0)
        mask |= canvas.mask(cyst)
    return mask


def renal_stone(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Dense stones in the calyces."""
    canvas, sign = scene.canvas, SIDE_SIGN[finding.side or "right"]
    centre, radii, _ = kidney_shape(scene, finding.side or "right")
    up = {"upper pole": 0.45, "mid pole": 0.0, "lower pole": -0.45}[finding.site or "mid pole"]
    mask = np.zeros(canvas.shape, bool)
    for index, level in enumerate((up, 0.45, -0.45)[: finding.count]):
        size = (finding.size_mm or 10.0) * (1.0, 0.85, 0.75)[index]
        place = (centre[0] - sign * (7 + 0.15 * level * radii[2]), centre[1] + 3, centre[2] + level * radii[2])
        stone = canvas.ellipsoid(place, scene.radii(size))
        canvas.paint(stone, 1400.0)
        mask |= canvas.mask(stone)
    return mask


def bowel_obstruction(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Wide loops with air-fluid levels: a ladder of small bowel, or the colon's frame."""
    canvas = scene.canvas
    small = [((-58, 40, -66), (48, 40, -70)), ((-62, 28, -104), (56, 28, -106)), ((-44, 36, -140), (44, 34, -138)),
             ((-40, 2, -84), (36, 2, -88)), ((-44, 0, -126), (42, 0, -124))]  # fmt: skip
    large = [((84, 0, -132), (86, 4, -62)), ((80, 46, -58), (-76, 46, -52)), ((-88, 4, -48), (-88, 0, -128)),
             ((-80, 6, -132), (-16, 18, -150))]  # fmt: skip
    wide = float(rng.uniform(18.5, 22)) if finding.site == "small bowel" else float(rng.uniform(27, 31))
    wall, fluid, mask = scene.hu("wall"), float(rng.uniform(8, 22)), np.zeros(canvas.shape, bool)
    keep = [0, *(ORGANS[n] for n in ("bowel", "stomach", "pancreas"))]
    for start, end in small if finding.site == "small bowel" else large:
        start, end = (tuple(float(v) for v in np.array(p) + rng.uniform(-4, 4, 3)) for p in (start, end))
        outer = canvas.capsule(start, end, wide)
        outer = outer & np.isin(canvas.organs[outer.box], keep) * canvas.edge(scene.cavity[outer.box] - 1)
        inner = canvas.capsule(start, end, wide - 2.5)
        inner = inner & np.isin(canvas.organs[inner.box], keep) * canvas.edge(scene.cavity[inner.box] - 3)
        canvas.paint(outer, wall + 10, ORGANS["bowel"])
        canvas.paint(inner, fluid)
        level = (start[1] + end[1]) / 2 + float(rng.uniform(-1, 7))
        canvas.paint(inner & canvas.edge(canvas.y[inner.box[:2]] - np.float32(level))[:, :, None], -960.0)
        mask |= canvas.mask(outer)
    return mask


def inguinal_hernia(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """A sac with bowel in it bulging through the groin into the subcutaneous fat."""
    canvas, sign = scene.canvas, SIDE_SIGN[finding.side or "right"]
    size = {"small": 20.0, "moderate": 25.0, "large": 31.0}[finding.severity or "moderate"] * float(
        rng.uniform(0.96, 1.04)
    )
    x, z = sign * 46.0, -176.0
    front = 68.0 + 0.55 * scene.patient.fat_mm + 0.5 * size
    parts = ((size + 6, 30.0), (size + 3.5, -100.0), (size, scene.hu("wall") + 5), (size - 3.5, 12.0))
    mask = np.zeros(canvas.shape, bool)
    for index, (radius, value) in enumerate(parts):
        sac = canvas.ellipsoid((x, front, z), (radius, radius * 0.9, radius))
        if index < 2:
            # Skin and fat bulge outwards only: inside the body they are there already.
            sac = sac & (canvas.hu[sac.box] < -300)
        canvas.paint(sac, value)
        mask |= canvas.mask(sac)
    neck = canvas.capsule((x - sign * 6, 54.0, z + 12), (x, front - 4, z + 4), 9.0)
    canvas.paint(neck, 12.0)
    gas = canvas.ellipsoid((x, front, z), (size - 4, size * 0.9 - 4, size - 4))
    level = canvas.edge(canvas.y[gas.box[:2]] - np.float32(front + 0.1 * size))[:, :, None]
    canvas.paint(gas & level, -940.0)
    return mask | canvas.mask(neck)


PAINTERS = {
    "hepatic steatosis": hepatic_steatosis,
    "splenomegaly": splenomegaly,
    "ascites": ascites,
    "liver lesion": liver_lesion,
    "hepatic cyst": hepatic_cyst,
    "gallstones": gallstones,
    "hydronephrosis": hydronephrosis,
    "renal cyst": renal_cyst,
    "renal stone": renal_stone,
    "bowel obstruction": bowel_obstruction,
    "inguinal hernia": inguinal_hernia,
}
