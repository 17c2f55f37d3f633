"""Soft organs of chest and abdomen."""

from __future__ import annotations

import numpy as np

from vol3d.phantom.anatomy import ORGANS, SIDE_SIGN, Scene
from vol3d.phantom.canvas import Patch, lattice, trim


def draw_chest(scene: Scene) -> None:
    """Lungs with their vessels, trachea and main bronchi."""
    canvas = scene.canvas
    rng = scene.rng("lung density")
    base = float(rng.uniform(-860, -825))
    for side, sign in SIDE_SIGN.items():
        box = canvas.box(*(((-140, -110, -35), (-2, 110, 215)) if sign < 0 else ((2, -110, -35), (140, 110, 215))))
        x, y, z = canvas.axes(box)
        middle = 9 + 20 * np.exp(-np.square((y - 4) / 42))
        cover = canvas.edge(scene.cavity[box] - np.float32(3))
        cover *= canvas.edge(np.float32(sign) * x - middle)
        cover *= canvas.edge(z - scene.domes[side][box[:2]][:, :, None], direction=2)
        patch = Patch(box, cover)
        canvas.paint(patch, np.float32(base) - np.float32(0.35) * y, ORGANS[f"{side} lung"])
        scene.lungs[side] = patch
        _lung_vessels(scene, side, patch)
    gas = canvas.tube([136, 212], [0, 0], [-14, -8], 8.0)
    canvas.paint(canvas.tube([134, 214], [0, 0], [-14, -8], 10.5), 40.0)
    bronchi = [canvas.capsule((0, -14, 138), (sign * 40, -18, 112), 6.5, 5) for sign in (-1.0, 1.0)]
    for tube in (gas, *bronchi):
        canvas.paint(tube, -990.0, ORGANS["trachea"])


def _lung_vessels(scene: Scene, side: str, lung: Patch) -> None:
    """Tubes where two smooth random fields are both zero, wider near the hilum, and a tree of trunks."""
    canvas, sign = scene.canvas, SIDE_SIGN[side]
    rng = scene.rng(f"{side} lung vessels")
    hilum = (sign * 36.0, -10.0, 112.0)
    first, second = canvas.field(rng, lung.box, 26.0), canvas.field(rng, lung.box, 26.0)
    x, y, z = canvas.axes(lung.box)
    away = np.sqrt(np.square(x - hilum[0]) + np.square(y - hilum[1])) + np.abs(z - hilum[2])
    first *= first
    second *= second
    first += second
    np.sqrt(first, out=first)
    radius = np.maximum(np.float32(3.6) - away * np.float32(0.017), np.float32(1.1))
    half = np.float32(0.5 * max(canvas.step))
    wide = np.maximum(radius, half)
    faint = np.square(radius / wide)
    first *= np.float32(-14.0)
    first += wide
    first /= 2 * half
    first += np.float32(0.5)
    np.clip(first, 0, 1, out=first)
    canvas.paint(Patch(lung.box, first * faint * lung.cover), 30.0)
    blood = scene.hu("blood")
    for _ in range(7):
        aim = np.array([sign * rng.uniform(55, 100), rng.uniform(-65, 55), rng.uniform(20, 185)])
        middle = np.array(hilum) + (aim - hilum) * 0.45 + rng.uniform(-7, 7, 3)
        for start, end, thick, thin in ((hilum, middle, 5.5, 3.5), (middle, aim, 3.5, 1.2)):
            twig = canvas.capsule(tuple(start), tuple(end), thick, thin)
            canvas.paint(Patch(twig.box, twig.cover * within(lung, twig.box)), blood * 0.8)


def within(patch: Patch, box: tuple[slice, slice, slice]) -> np.ndarray:
    """A patch's coverage on another box; 0 outside its own."""
    out = np.zeros(tuple(s.stop - s.start for s in box), np.float32)
    inner, source = [], []
    for target, own in zip(box, patch.box, strict=True):
        start, stop = max(target.start, own.start), min(target.stop, own.stop)
        if stop <= start:
            return out
        inner.append(slice(start - target.start, stop - target.start))
        source.append(slice(start - own.start, stop - own.start))
    out[tuple(inner)] = patch.cover[tuple(source)]
    return out


def heart_shape(scene: Scene) -> tuple[tuple, tuple, float]:
    """(centre, radii, angle) of the pericardial sac, enlarged by `scene.change["heart"]`."""
    centre, radii = scene.jitter("heart", (-19.0, 26.0, 88.0), (50.0, 39.0, 40.0), grow=0.04)
    factor = scene.change.get("heart", 1.0)
    radii = (radii[0] * factor, radii[1] * (1 + 0.55 * (factor - 1)), radii[2] * (1 + 0.45 * (factor - 1)))
    centre = (centre[0], centre[1] + 6 * (factor - 1), centre[2] + 14 * (factor - 1))
    return centre, radii, -0.5


def draw_heart(scene: Scene) -> None:
    """Epicardial fat, myocardium and four chambers; the lungs give way."""
    canvas = scene.canvas
    centre, radii, angle = heart_shape(scene)
    sac = canvas.ellipsoid(centre, radii, angle=angle)
    above = canvas.z[sac.box[2]] - scene.dome[sac.box[:2]][:, :, None] + np.float32(4)
    sac.cover *= canvas.edge(above, direction=2)
    sac = trim(sac)
    canvas.paint(sac, -75.0)
    scene.heart["sac"] = (centre, radii, angle)
    for lung in scene.lungs.values():
        lung.cover *= 1 - within(sac, lung.box)
    np.copyto(canvas.organs[sac.box], 0, where=sac.cover >= 0.5)
    muscle = canvas.ellipsoid(centre, tuple(r - 4 for r in radii), angle=angle)
    muscle.cover *= canvas.edge(canvas.z[muscle.box[2]] - scene.dome[muscle.box[:2]][:, :, None] + 2, direction=2)
    canvas.paint(muscle, scene.hu("heart"), ORGANS["heart"])
    blood = scene.hu("blood")
    unit = np.array(radii)
    c, s = np.cos(angle), np.sin(angle)
    chambers = (
        ((-0.42, -0.14, -0.02), 0.33, 0.46),
        ((-0.02, 0.5, 0.05), 0.40, 0.26),
        ((0.5, 0.16, 0.05), 0.26, 0.36),
        ((0.22, -0.5, 0.2), 0.36, 0.26),
    )
    for (du, dv, dw), long, short in chambers:
        u, v = du * unit[0], dv * unit[1]
        place = (centre[0] + c * u - s * v, centre[1] + s * u + c * v, centre[2] + dw * unit[2])
        canvas.paint(canvas.ellipsoid(place, (long * unit[0], short * unit[1], 0.55 * unit[2]), angle=angle), blood)


def draw_vessels(scene: Scene) -> None:
    """Aorta with arch and iliac arteries, both caval veins, pulmonary trunk and arteries."""
    canvas = scene.canvas
    blood = scene.hu("blood")
    wide = float(scene.rng("aorta").uniform(0.9, 1.1))
    aorta, vein = ORGANS["aorta"], ORGANS["inferior vena cava"]
    canvas.paint(canvas.tube([98, 168], [27, 27], [10, 8], 9.0), blood)
    canvas.paint(canvas.ellipsoid((-15, 30, 124), (13, 14, 16)), blood)
    canvas.paint(canvas.capsule((-12, 22, 124), (38, -2, 114), 9, 7), blood)
    canvas.paint(canvas.capsule((-15, 24, 126), (-42, -14, 122), 9, 7), blood)
    canvas.paint(canvas.tube([106, 152], [9, 12], [22, 16], 14.5 * wide), blood, aorta)
    canvas.paint(canvas.capsule((12, 16, 152), (-19, -36, 156), 13.5 * wide, 12 * wide), blood, aorta)
    heights, xs, ys = [-94, -60, 0, 40, 100, 156], [-3, -6, -12, -17, -20, -19], [-20, -21, -27, -34, -40, -36]
    radii = [radius * wide for radius in (9.5, 10, 11, 11.5, 12, 12)]
    canvas.paint(canvas.tube(heights, xs, ys, radii), blood, aorta)
    canvas.paint(canvas.tube([-96, -30, 20, 52], [21, 22, 22, 18], [-24, -24, -20, -4], 11.0), blood * 0.95, vein)
    for sign in (-1.0, 1.0):
        canvas.paint(canvas.capsule((sign * 3, -20, -92), (sign * 42, -4, -150), 6.5), blood, aorta)
        canvas.paint(canvas.capsule((sign * 42, -4, -150), (sign * 58, 42, -205), 6), blood)
        canvas.paint(canvas.capsule((21 - 19 * (sign < 0), -28, -96), (sign * 50, -12, -152), 6.5), blood * 0.9)


def spleen_shape(scene: Scene) -> tuple[tuple, tuple]:
    """(centre, radii) of the spleen; a large one, `scene.change["spleen_mm"]` long, grows downwards."""
    centre, radii = scene.jitter("spleen", (-84.0, -36.0, 14.0), (27.0, 36.0, 36.0))
    if "spleen_mm" not in scene.change:
        return centre, radii
    long = scene.change["spleen_mm"] / 2 / scene.canvas.pose.scale[2] + 6
    wide = 1.12 + 0.004 * (long - 60)
    grown = (radii[0] * wide, radii[1] * wide, long)
    return (centre[0] + 3, centre[1] + 8, centre[2] + 42 - long), grown


def draw_abdomen(scene: Scene) -> None:
    """Bowel first, the solid organs over it, then bladder and stomach."""
    _draw_bowel(scene)
    _draw_stomach(scene)
    _draw_liver(scene)
    canvas = scene.canvas
    _draw_pancreas(scene)
    for side in SIDE_SIGN:
        _draw_kidney(scene, side)
    centre, radii = spleen_shape(scene)
    spleen = trim(scene.below_dome(canvas.ellipsoid(centre, radii, angle=0.35)))
    canvas.paint(spleen, scene.hu("spleen"), ORGANS["spleen"])
    centre, radii = scene.jitter("bladder", (0.0, 30.0, -182.0), (33.0, 26.0, 22.0), grow=0.18)
    canvas.paint(canvas.ellipsoid(centre, radii), scene.hu("wall"), ORGANS["bladder"])
    canvas.paint(canvas.ellipsoid(centre, tuple(r - 3 for r in radii)), 6.0)
    if scene.patient.sex == "female":
        canvas.paint(canvas.ellipsoid((4, -8, -168), (24, 17, 17)), scene.hu("muscle") + 15)
    else:
        canvas.paint(canvas.ellipsoid((0, 14, -206), (20, 16, 12)), scene.hu("muscle"))
    canvas.paint(canvas.tube([-205, -150, -125], [0, 0, -18], [-44, -46, -30], 14), 30.0, ORGANS["bowel"])


def _draw_liver(scene: Scene) -> None:
    """A wedge: right lobe under the right dome, thinning to the left, with portal and hepatic veins; gallbladder."""
    canvas = scene.canvas
    centre, radii = scene.jitter("liver", (42.0, 8.0, 14.0), (96.0, 84.0, 66.0), move=2.5, grow=0.03)
    liver = scene.below_dome(canvas.ellipsoid(centre, radii, angle=-0.12))
    x, y, z = canvas.axes(liver.box)
    low = np.float32(-52) + np.float32(0.52) * np.maximum(np.float32(104) - x, 0) - np.float32(0.12) * y
    liver.cover *= canvas.edge(z - low, direction=2)
    back = y + np.float32(12) + np.float32(0.75) * np.minimum(x - np.float32(18), 60)
    liver.cover *= canvas.edge(np.float32(0.8) * back)
    liver = trim(liver)
    level = scene.change.get("liver_hu", scene.hu("liver"))
    canvas.paint(liver, level, ORGANS["liver"])
    vein = level + (32.0 if scene.patient.contrast == "portal venous" else -8.0)
    rng = scene.rng("liver vessels")
    hilum = np.array([30.0, 0.0, 2.0])
    for aim in ((85, -15, 10), (80, 30, -5), (70, -5, 38), (-12, 35, 28), (60, 45, 22)):
        aim = np.array(aim) + rng.uniform(-8, 8, 3)
        twig = canvas.capsule(tuple(hilum), tuple(aim), 6, 2)
        canvas.paint(Patch(twig.box, twig.cover * within(liver, twig.box)), vein)
    centre, radii = gallbladder_shape(scene)
    canvas.paint(canvas.ellipsoid(centre, radii, angle=0.4), scene.hu("wall"), ORGANS["gallbladder"])
    canvas.paint(canvas.ellipsoid(centre, tuple(r - 1.5 for r in radii), angle=0.4), 9.0)


def gallbladder_shape(scene: Scene) -> tuple[tuple, tuple]:
    """(centre, radii) of the gallbladder."""
    return scene.jitter("gallbladder", (50.0, 48.0, -26.0), (14.0, 20.0, 21.0), grow=0.08)


def _draw_stomach(scene: Scene) -> None:
    """Fundus, body and antrum with contents below and a gas bubble in front."""
    canvas = scene.canvas
    rng = scene.rng("stomach")
    parts = [
        canvas.ellipsoid((-52, 8, 26), (33, 34, 26)),
        canvas.ellipsoid((-50, 38, -4), (27, 26, 30)),
        canvas.ellipsoid((-12, 48, -20), (36, 20, 15), angle=-0.2),
    ]
    wall, inside = scene.hu("wall"), float(rng.uniform(10, 40))
    level = float(rng.uniform(40, 50))
    for part in parts:
        part = scene.below_dome(part, 5.0)
        canvas.paint(part, wall, ORGANS["stomach"])
    for centre, radii, angle in (
        ((-52, 8, 26), (30, 31, 23), 0),
        ((-50, 38, -4), (24, 23, 27), 0),
        ((-12, 48, -20), (33, 17, 12), -0.2),
    ):
        part = scene.below_dome(canvas.ellipsoid(centre, radii, angle=angle), 8.0)
        canvas.paint(part, inside)
        gas = canvas.edge(canvas.y[part.box[:2]] - np.float32(level))[:, :, None]
        canvas.paint(Patch(part.box, part.cover * gas), -950.0)


def _draw_bowel(scene: Scene) -> None:
    """Colon as a frame with stool and gas, small bowel loops inside it."""
    canvas = scene.canvas
    rng = scene.rng("bowel")
    label, wall = ORGANS["bowel"], scene.hu("wall")
    loops = [(rng.uniform(-62, 62), rng.uniform(0, 58), rng.uniform(-150, -50), rng.uniform(12, 17)) for _ in range(24)]
    for x, y, z, r in loops:
        centre, radii, angle = (x, y, z), (r * rng.uniform(1.1, 1.8), r, r), rng.uniform(0, np.pi)
        canvas.paint(canvas.ellipsoid(centre, radii, angle=angle), wall, label)
        content, gas = rng.uniform(5, 35), rng.random() < 0.25
        canvas.paint(canvas.ellipsoid(centre, tuple(a - 3 for a in radii), angle=angle), content)
        if gas:
            canvas.paint(canvas.ellipsoid((x, y + 0.45 * r, z), (0.7 * r, 0.4 * r, 0.6 * r)), -850.0)
    frame = [((90, -8, -134), (92, -4, -60)), ((-95, -18, -20), (-96, -14, -120)), ((-92, -10, -122), (-30, -6, -148)),
             ((80, 52, -52), (0, 64, -60)), ((0, 64, -60), (-88, 40, -40))]  # fmt: skip
    stool_at = lattice(rng, 9.0)
    for start, end in frame:
        start, end = (tuple(np.array(p) + rng.uniform(-4, 4, 3)) for p in (start, end))
        canvas.paint(canvas.capsule(start, end, 17), wall, label)
        inner = canvas.capsule(start, end, 14)
        stool = canvas.spread(stool_at, inner.box, 9.0)
        middle = np.float32((start[1] + end[1]) / 2 + rng.uniform(-4, 10))
        canvas.paint(inner, np.clip(-60 + 110 * stool, -400, 70))
        gas = canvas.edge(canvas.y[inner.box[:2]] - middle)[:, :, None]
        canvas.paint(Patch(inner.box, inner.cover * gas), -880.0)


def _draw_pancreas(scene: Scene) -> None:
    """Head, neck, body and tail as a chain; duodenum beside the head."""
    canvas = scene.canvas
    tissue = scene.hu("pancreas")
    canvas.paint(canvas.ellipsoid((44, 8, -28), (13, 14, 24)), scene.hu("wall"), ORGANS["bowel"])
    for centre, radii, angle in (
        ((26, 8, -24), (15, 14, 20), 0.0), ((8, 16, -12), (18, 9, 11), -0.2), ((-16, 12, -5), (22, 9, 11), 0.25),
        ((-44, -4, 0), (24, 10, 11), 0.5),
    ):  # fmt: skip
        canvas.paint(canvas.ellipsoid(centre, radii, angle=angle), tissue, ORGANS["pancreas"])


def kidney_shape(scene: Scene, side: str) -> tuple[tuple, tuple, float]:
    """(centre, radii, angle) of a kidney; the right one lies lower."""
    sign = SIDE_SIGN[side]
    centre, radii = scene.jitter(f"{side} kidney", (sign * 62.0, -46.0, -40.0 - 8 * (sign > 0)), (25.0, 27.0, 43.0))
    return centre, radii, sign * 0.5


def _draw_kidney(scene: Scene, side: str) -> None:
    """Perirenal fat, parenchyma, sinus fat and a collapsed renal pelvis."""
    canvas, sign = scene.canvas, SIDE_SIGN[side]
    centre, radii, angle = kidney_shape(scene, side)
    fat = canvas.ellipsoid((centre[0] + sign * 2, centre[1] - 2, centre[2]), tuple(r + 8 for r in radii), angle=angle)
    keep = np.isin(canvas.organs[fat.box], [0, ORGANS["bowel"]])
    canvas.paint(Patch(fat.box, fat.cover * keep * canvas.edge(scene.cavity[fat.box])), -105.0)
    lean = (-sign * 0.15, 0.0)
    canvas.paint(canvas.ellipsoid(centre, radii, angle=angle, lean=lean), scene.hu("kidney"), ORGANS[f"{side} kidney"])
    sinus = (centre[0] - sign * 13, centre[1] + 5, centre[2])
    canvas.paint(canvas.ellipsoid(sinus, (13, 7, 20), angle=angle, lean=lean), -80.0)
    canvas.paint(canvas.ellipsoid(sinus, (10, 3.5, 12), angle=angle, lean=lean), 15.0)
