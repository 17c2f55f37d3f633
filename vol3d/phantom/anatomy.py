"""The normal torso: who the patient is, and the chest, the abdomen and the bones in HU.

Everything is placed in patient millimetres (x right, y anterior, z superior, origin mid-body at about T11) of
an average patient; the pose scales, turns and shifts it. The trunk is squat, about 0.65 of a real one's
height, so that lung apices and groins share one field of view.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vol3d.phantom.canvas import Canvas, Number, Patch, Point, Pose, stream

ORGANS: dict[str, int] = {
    name: index + 1
    for index, name in enumerate(
        (
            "left lung", "right lung", "trachea", "heart", "aorta", "inferior vena cava", "liver", "gallbladder",
            "spleen", "pancreas", "left kidney", "right kidney", "bladder", "stomach", "bowel", "spine", "ribs",
            "pelvis",
        )
    )
}  # fmt: skip
"""Integers of the organ label map."""

SIDE_SIGN = {"left": -1.0, "right": 1.0}
"""Sign of x on each side: RAS, so x grows to the patient's right."""

LEVELS = (*(f"T{n}" for n in range(1, 13)), *(f"L{n}" for n in range(1, 6)))
PITCH_MM = 20.0
"""Height of one vertebra with its disc, before the pose's scale."""

_PLAIN = {"blood": 42, "heart": 46, "liver": 58, "spleen": 49, "kidney": 33, "pancreas": 40, "muscle": 52, "wall": 38}
_VENOUS = {
    "blood": 152, "heart": 108, "liver": 113, "spleen": 117, "kidney": 185, "pancreas": 98, "muscle": 60, "wall": 80,
}  # fmt: skip

_HEIGHTS = (-220, -170, -120, -60, 0, 60, 120, 160, 190, 220)
_CAVITY_X = (108, 116, 118, 117, 122, 128, 123, 108, 78, 48)
_CAVITY_Y = (66, 76, 80, 82, 88, 90, 84, 70, 52, 38)
_CAVITY_SHIFT = (0, 2, 2, 0, 2, 0, -4, -12, -20, -26)
_MUSCLE_X = (150, 149, 138, 133, 136, 143, 146, 152, 150, 128)
_MUSCLE_Y = (96, 100, 99, 98, 104, 107, 101, 92, 78, 64)

_SPINE_Z = (-215, -160, -120, -80, -30, 40, 110, 170, 215)
_SPINE_Y = (-88, -74, -57, -50, -54, -62, -68, -63, -54)


@dataclass(frozen=True)
class Patient:
    """Who is scanned and how: drawn once from the seed, the same for a study, its twin and any shape.

    Args:
        contrast: "none" or "portal venous".
        fat_mm: thickness of the subcutaneous fat.
        noise_hu: standard deviation of the noise at 2.5 × 2.5 × 3.25 mm.
        kernel: "soft" (correlated noise) or "sharp".
    """

    seed: int
    sex: str
    age: int
    contrast: str
    pose: Pose
    fat_mm: float
    noise_hu: float
    kernel: str

    @classmethod
    def draw(cls, seed: int) -> Patient:
        rng = stream(seed, "patient")
        sex = "female" if rng.random() < 0.5 else "male"
        size = rng.uniform(0.93, 1.05) - (0.02 if sex == "female" else 0.0)
        scale = tuple(float(size * rng.uniform(0.98, 1.02)) for _ in range(3))
        shift = tuple(float(rng.uniform(-6, 6)) for _ in range(3))
        return cls(
            seed=seed,
            sex=sex,
            age=int(rng.integers(22, 90)),
            contrast="portal venous" if rng.random() < 0.75 else "none",
            pose=Pose(float(np.deg2rad(rng.uniform(-4, 4))), shift, scale),
            fat_mm=float(rng.uniform(7, 24)),
            noise_hu=float(rng.uniform(8, 20)),
            kernel="soft" if rng.random() < 0.6 else "sharp",
        )


@dataclass
class Scene:
    """The canvas being painted, with what the findings need to know about the anatomy under them.

    Args:
        lungs: Patch of each lung as it shows beside the heart.
        cavity: Patch-sized depth (mm) under the inner body wall, and the box it covers.
        domes: height z of the diaphragm (mm) over the (x, y) plane, by side.
        change: how findings reshape an organ: {"heart": 1.5, "spleen_mm": 140.0, "liver_hu": 15.0}.
    """

    canvas: Canvas
    patient: Patient
    change: dict[str, float] = field(default_factory=dict)
    lungs: dict[str, Patch] = field(default_factory=dict)
    domes: dict[str, np.ndarray] = field(default_factory=dict)
    cavity: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    heart: dict[str, tuple] = field(default_factory=dict)

    def rng(self, name: str) -> np.random.Generator:
        return stream(self.patient.seed, name)

    def hu(self, tissue: str) -> float:
        """HU of a tissue in this patient's contrast phase, with its own small variation."""
        table = _VENOUS if self.patient.contrast == "portal venous" else _PLAIN
        return float(table[tissue] + self.rng(f"hu {tissue}").uniform(-5, 5))

    def jitter(self, name: str, centre: tuple, radii: tuple, *, move: float = 3.0, grow: float = 0.06) -> tuple:
        """An organ's own place and size in this patient."""
        rng = self.rng(f"organ {name}")
        moved = tuple(c + rng.uniform(-move, move) for c in centre)
        factor = rng.uniform(1 - grow, 1 + grow)
        return moved, tuple(r * factor * rng.uniform(0.98, 1.02) for r in radii)

    def radii(self, size_mm: Number) -> Point:
        """Radii in patient mm of a ball `size_mm` across in the scanner."""
        sx, sy, sz = self.canvas.pose.scale
        return size_mm / 2 / sx, size_mm / 2 / sy, size_mm / 2 / sz

    @property
    def dome(self) -> np.ndarray:
        """(x, y): height of the diaphragm, whichever side is higher."""
        return np.maximum(self.domes["left"], self.domes["right"])

    def below_dome(self, patch: Patch, gap: Number = 3.0) -> Patch:
        """The part of a patch that lies inside the abdomen."""
        canvas = self.canvas
        z = canvas.z[patch.box[2]]
        height = self.dome[patch.box[:2]][:, :, None] - np.float32(gap) - z
        inside = canvas.edge(self.cavity[patch.box] - np.float32(2))
        return Patch(patch.box, patch.cover * canvas.edge(height, direction=2) * inside)


def contour(canvas: Canvas, half_x: np.ndarray, half_y: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Depth (mm, positive inside) below a trunk outline between an ellipse and a rounded rectangle, full grid."""
    x2 = np.square(canvas.x)[:, :, None]
    u = x2 * (1 / np.square(half_x)).astype(np.float32)
    if np.any(shift):
        v = np.square(canvas.y[:, :, None] - shift.astype(np.float32))
        v *= (1 / np.square(half_y)).astype(np.float32)
    else:
        v = np.square(canvas.y)[:, :, None] * (1 / np.square(half_y)).astype(np.float32)
    rho = u * v
    u += v
    np.square(u, out=u)
    rho *= np.float32(-0.9)
    rho += u
    np.sqrt(rho, out=rho)
    np.sqrt(rho, out=rho)
    rho += np.float32(1e-3)
    np.reciprocal(rho, out=rho)
    rho -= 1
    rho *= np.hypot(canvas.x, canvas.y)[:, :, None]
    return rho


def draw(scene: Scene) -> None:
    """Paint the whole normal torso of `scene.patient`, with the organs that `scene.change` reshapes."""
    from vol3d.phantom import bones, organs

    draw_couch(scene)
    draw_body(scene)
    organs.draw_chest(scene)
    bones.draw_spine(scene)
    organs.draw_heart(scene)
    organs.draw_vessels(scene)
    organs.draw_abdomen(scene)
    bones.draw_ribs(scene)
    bones.draw_pelvis(scene)


def draw_couch(scene: Scene) -> None:
    """A thin curved table under two patients in three."""
    canvas = scene.canvas
    if scene.rng("couch").random() > 0.67:
        return
    lowest = -float(np.max(_MUSCLE_Y)) - 0.8 * scene.patient.fat_mm - 12
    box = canvas.box((-190, lowest - 25, -240), (190, lowest + 45, 240))
    x, y = canvas.x[box[:2]], canvas.y[box[:2]]
    top = y - np.float32(lowest) - np.square(x) / 1100
    for depth, value in ((0.0, -350.0), (-14.0, -500.0)):
        plate = canvas.edge(2.0 - np.abs(top - depth)) * canvas.edge(175 - np.abs(x))
        canvas.paint(Patch(box, plate[:, :, None]), value)


def draw_body(scene: Scene) -> None:
    """Skin, fat, muscle and the fat-filled cavity; leaves the cavity's depth and the diaphragm in the scene."""
    canvas, patient = scene.canvas, scene.patient
    everywhere = (slice(None),) * 3
    half_x, half_y, shift = (np.interp(canvas.z, _HEIGHTS, v) for v in (_MUSCLE_X, _MUSCLE_Y, _CAVITY_SHIFT))
    hips = np.interp(canvas.z, (-220, -120, 0), (1.25, 1.1, 1.0)) if patient.sex == "female" else 1.0
    fat = patient.fat_mm * hips
    none = np.zeros_like(shift)
    outer = contour(canvas, half_x + fat, half_y + 0.8 * fat, none)
    canvas.paint(Patch(everywhere, canvas.edge(outer)), 30.0)
    outer -= np.float32(2.5)
    canvas.paint(Patch(everywhere, canvas.edge(outer)), -105.0)
    if patient.sex == "female":
        for sign in (-1.0, 1.0):
            centre = (sign * 62, 88 + 0.8 * patient.fat_mm, 88.0)
            breast = canvas.ellipsoid(centre, (46.0, 34.0, 38.0))
            canvas.paint(breast, 30.0)
            canvas.paint(canvas.ellipsoid(centre, (43.5, 31.5, 35.5)), -102.0)
            canvas.paint(canvas.ellipsoid((centre[0], centre[1] + 8, 86.0), (18.0, 15.0, 15.0)), 15.0)
    canvas.paint(Patch(everywhere, canvas.edge(contour(canvas, half_x, half_y, none))), scene.hu("muscle"))
    cavity = (np.interp(canvas.z, _HEIGHTS, v) for v in (_CAVITY_X, _CAVITY_Y))
    scene.cavity = contour(canvas, *cavity, shift)
    canvas.paint(Patch(everywhere, canvas.edge(scene.cavity)), -98.0)
    for side, top in (("right", 62.0), ("left", 52.0)):
        top += scene.rng(f"diaphragm {side}").uniform(-4, 4)
        x = canvas.x - np.float32(SIDE_SIGN[side] * 62)
        y = canvas.y - np.float32(22)
        scene.domes[side] = (np.float32(top) - np.square(x / 62) * 30 - np.square(y / 75) * 30).astype(np.float32)


def spine_at(scene: Scene, z: Number | np.ndarray) -> tuple:
    """(x, y, radius) of the vertebral bodies' centre line at height z (mm)."""
    bend = scene.rng("scoliosis").uniform(-5, 5)
    radius = np.interp(z, (-120, 0, 100, 215), (24.0, 22.0, 18.0, 14.0))
    return bend * np.sin(np.asarray(z) / 90.0), np.interp(z, _SPINE_Z, _SPINE_Y), radius


def level_height(level: str) -> float:
    """z (mm) of the middle of a vertebral body."""
    return -110.0 + PITCH_MM * (len(LEVELS) - 1 - LEVELS.index(level))
