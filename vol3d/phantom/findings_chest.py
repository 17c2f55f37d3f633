"""Painters of findings in lungs, pleura, heart and aorta. Each returns its boolean voxel mask."""

from __future__ import annotations

import numpy as np

from vol3d.phantom.anatomy import ORGANS, SIDE_SIGN, Scene
from vol3d.phantom.canvas import Number, Patch, stream
from vol3d.phantom.organs import within
from vol3d.text.ontology import Finding

LOBE_CENTRES = {
    "upper lobe": (70.0, 8.0, 146.0),
    "lower lobe": (74.0, -38.0, 78.0),
    "middle lobe": (72.0, 48.0, 92.0),
    "lingula": (82.0, 46.0, 98.0),
}
"""Where each lobe's disease sits (mm, right side; mirrored for the left)."""


def _lobe(finding: Finding) -> tuple[float, float, float]:
    x, y, z = LOBE_CENTRES[finding.site or "lower lobe"]
    return SIDE_SIGN[finding.side or "right"] * x, y, z


def _grade(finding: Finding, rng: np.random.Generator, low: Number, middle: Number, high: Number) -> float:
    """A length (mm) by severity, with a little of the patient's own."""
    names = ("small", "moderate", "large") if finding.type.severities[0] == "small" else ("mild", "moderate", "severe")
    return dict(zip(names, (low, middle, high), strict=True))[finding.severity or "moderate"] * rng.uniform(0.93, 1.07)


def _in_lung(scene: Scene, finding: Finding, patch: Patch) -> Patch:
    return patch & within(scene.lungs[finding.side or "right"], patch.box)


def pleural_effusion(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Fluid pooling behind the lung, deepest at the base, with a meniscus up the lateral wall."""
    canvas, lung = scene.canvas, scene.lungs[finding.side or "right"]
    deep, high = _grade(finding, rng, 30, 52, 88), _grade(finding, rng, 120, 155, 200)
    _, y, z = canvas.axes(lung.box)
    surface = -86 + deep * np.clip(1 - z / high, 0, 1.05)
    rise = 16 * np.exp(np.minimum(0, -scene.cavity[lung.box]) / 10)
    fluid = lung & canvas.edge(surface.astype(np.float32) + rise.astype(np.float32) * (z < high - 20) - y)
    canvas.paint(fluid, float(rng.uniform(6, 18)))
    return canvas.mask(fluid)


def pneumothorax(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Air in front of, beside and above the lung, no vessels in it, the visceral pleura as a line."""
    canvas, lung = scene.canvas, scene.lungs[finding.side or "right"]
    deep = _grade(finding, rng, 34, 52, 80)
    x, y, z = canvas.axes(lung.box)
    level = 76 - deep - 0.42 * np.maximum(z - 90, 0) + 0.2 * (90 - np.minimum(z, 90))
    outward = np.maximum(np.float32(SIDE_SIGN[finding.side or "right"]) * x - 45, 0)
    front = y - level.astype(np.float32) + np.square(outward) * np.float32(deep / 6000) - 4
    air = lung & canvas.edge(front)
    canvas.paint(lung & canvas.edge(2.0 - np.abs(front)), -350.0)
    canvas.paint(lung & canvas.edge(front - 1.5), -1005.0)
    return canvas.mask(air)


def consolidation(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Airspace filling of part of a lobe with ragged edges and air bronchograms."""
    canvas = scene.canvas
    centre = tuple(c + d for c, d in zip(_lobe(finding), rng.uniform(-5, 5, 3), strict=True))
    size = rng.uniform(38, 46)
    patch = canvas.ellipsoid(centre, (size * 1.25, size * 1.25, size * 1.15), angle=rng.uniform(-0.5, 0.5))
    x, y, z = canvas.axes(patch.box)
    radius = np.sqrt(np.square(x - centre[0]) + np.square(y - centre[1]) + np.square(z - centre[2]))
    ragged, tubes = canvas.field(rng, patch.box, 22.0), canvas.field(rng, patch.box, 12.0)
    patch = _in_lung(scene, finding, Patch(patch.box, patch.cover * canvas.edge(size + 7 * ragged - radius)))
    air = np.clip(1 - np.square(ragged * 2.2) - np.square(tubes * 2.2), 0, 1)
    canvas.paint(patch, 48 - np.float32(600) * air)
    return canvas.mask(patch)


def pulmonary_nodule(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Solid round nodules in one lobe, the first the largest, far enough apart to be counted."""
    canvas, sign = scene.canvas, SIDE_SIGN[finding.side or "right"]
    first = np.array(_lobe(finding)) + rng.uniform(-5, 5, 3)
    mask = np.zeros(canvas.shape, bool)
    for index, (x, y, z) in enumerate(((0, -6, 0), (-18, 10, 22), (-12, -20, 28))[: finding.count]):
        size = (finding.size_mm or 18.0) * (1.0, 0.8, 0.7)[index]
        centre = tuple(float(v) for v in first + np.array([sign * x, y, z]))
        patch = _in_lung(scene, finding, canvas.ellipsoid(centre, scene.radii(size)))
        canvas.paint(patch, 45.0)
        mask |= canvas.mask(patch)
    return mask


def emphysema(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Holes in both lungs, most in the upper lobes, merging as they grow."""
    canvas = scene.canvas
    mask = np.zeros(canvas.shape, bool)
    wanted = {"mild": 0.2, "moderate": 0.55, "severe": 1.0}[finding.severity or "moderate"]
    for side in SIDE_SIGN:
        lung = scene.lungs[side]
        holes = canvas.field(stream(scene.patient.seed, f"emphysema {side}"), lung.box, 17.0)
        holes += np.float32(wanted - 1.15) + (canvas.z[lung.box[2]] - 60) * np.float32(0.007)
        patch = lung & np.clip(holes * np.float32(2.5) + np.float32(0.5), 0, 1)
        # The vessels stay: only aerated lung turns into holes.
        canvas.paint(patch & np.clip((-500 - canvas.hu[lung.box]) / 200, 0, 0.95), -995.0)
        mask |= canvas.mask(patch)
    return mask


def atelectasis(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """A collapsed plate of lung, thick at the pleura, slanting towards the hilum."""
    canvas, sign = scene.canvas, SIDE_SIGN[finding.side or "right"]
    x, y, z = _lobe(finding)
    centre = (x + sign * 4, y + float(rng.uniform(-4, 4)), z + float(rng.uniform(-5, 5)))
    thick = float(rng.uniform(9, 12))
    plate = canvas.ellipsoid(centre, (46, 34, 44))
    px, py, pz = canvas.axes(plate.box)
    tilt = pz - centre[2] + np.float32(sign * 0.55) * (px - centre[0]) + np.float32(0.25) * (py - centre[1])
    wedge = np.float32(thick) * np.clip(0.7 + sign * (px - centre[0]) / 60, 0.3, 1.3) + 2 * canvas.field(
        rng, plate.box, 16.0
    )
    plate = plate & canvas.edge(wedge - np.abs(tilt), direction=2)
    plate = _in_lung(scene, finding, plate)
    canvas.paint(plate, 35.0)
    return canvas.mask(plate)


def coronary_calcification(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Beads of calcium along the left anterior descending, the circumflex and the right coronary artery."""
    canvas = scene.canvas
    centre, radii, angle = scene.heart["sac"]
    beads = {"mild": 4, "moderate": 8, "severe": 12}[finding.severity or "moderate"]
    ways = (((-0.05, 0.55, 0.62), (-0.72, 0.48, 0.1)), ((0.05, -0.15, 0.8), (-0.55, -0.62, 0.2)),
            ((0.45, 0.55, 0.45), (0.75, 0.3, -0.3)))  # fmt: skip
    mask = np.zeros(canvas.shape, bool)
    c, s = np.cos(angle), np.sin(angle)
    for bead in range(beads):
        start, end = (np.array(p) for p in ways[(0, 1, 0, 2)[bead % 4]])
        u, v, w = (start + (end - start) * rng.random()) * (np.array(radii) - 3)
        place = (centre[0] + c * u - s * v, centre[1] + s * u + c * v, centre[2] + w)
        size = float(rng.uniform(3.2, 4.6))
        spot = canvas.ellipsoid(place, (size, size, size * 1.4), angle=float(rng.uniform(0, 3)))
        canvas.paint(spot, 1100.0)
        mask |= canvas.mask(spot)
    return mask


def pericardial_effusion(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """A rim of fluid all round the heart."""
    canvas = scene.canvas
    centre, radii, angle = scene.heart["sac"]
    thick = _grade(finding, rng, 12, 17, 23)
    outer = canvas.ellipsoid(centre, tuple(r + thick for r in radii), angle=angle)
    heart = canvas.ellipsoid(centre, tuple(r - 2 for r in radii), angle=angle)
    above = canvas.edge(canvas.z[outer.box[2]] - scene.dome[outer.box[:2]][:, :, None] + 6, direction=2)
    rim = outer & (1 - within(heart, outer.box)) * above * canvas.edge(scene.cavity[outer.box] - 2)
    keep = ~np.isin(canvas.organs[rim.box], [ORGANS["aorta"], ORGANS["trachea"], ORGANS["spine"]])
    rim = rim & keep
    canvas.paint(rim, float(rng.uniform(6, 16)))
    return canvas.mask(rim)


def cardiomegaly(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """Nothing to paint: the anatomy already drew the large heart."""
    centre, radii, angle = scene.heart["sac"]
    sac = scene.canvas.ellipsoid(centre, radii, angle=angle)
    above = scene.canvas.z[sac.box[2]] - scene.dome[sac.box[:2]][:, :, None] + np.float32(4)
    return scene.canvas.mask(sac & scene.canvas.edge(above, direction=2))


def aortic_aneurysm(scene: Scene, finding: Finding, rng: np.random.Generator) -> np.ndarray:
    """A spindle of the aorta with mural thrombus round the open lumen and flecks of calcium in the wall."""
    canvas = scene.canvas
    sx, sy, _ = canvas.pose.scale
    rx, ry = (finding.size_mm or 60.0) / 2 / sx, (finding.size_mm or 60.0) / 2 / sy
    x, y, z = {
        "ascending aorta": (14 + 0.4 * (rx - 14), 18 + 0.2 * (ry - 14), 132.0),
        "descending aorta": (-22 - 0.7 * (rx - 12), -40 + 0.35 * (ry - 12), 96.0),
    }.get(finding.site or "", (-5.0, -33.0 + ry, -58.0))
    sac = canvas.ellipsoid((x, y, z), (rx, ry, 1.35 * rx))
    sac = sac & (canvas.organs[sac.box] != ORGANS["spine"])
    canvas.paint(sac, 44.0, ORGANS["aorta"])
    lumen = canvas.ellipsoid((x, y - 0.1 * ry, z), (0.62 * rx, 0.6 * ry, 1.28 * rx))
    canvas.paint(lumen, scene.hu("blood"))
    for angle in rng.uniform(0, 2 * np.pi, 5):
        spot = (x + 0.96 * rx * np.cos(angle), y + 0.96 * ry * np.sin(angle), z + rng.uniform(-9, 9))
        canvas.paint(canvas.ellipsoid(spot, (3, 3, 5)) & 0.8, 600.0)
    return canvas.mask(sac)


PAINTERS = {
    "emphysema": emphysema,
    "pneumothorax": pneumothorax,
    "pleural effusion": pleural_effusion,
    "atelectasis": atelectasis,
    "consolidation": consolidation,
    "pulmonary nodule": pulmonary_nodule,
    "cardiomegaly": cardiomegaly,
    "pericardial effusion": pericardial_effusion,
    "coronary artery calcification": coronary_calcification,
    "aortic aneurysm": aortic_aneurysm,
}
