"""Spine, ribs, sternum, shoulder girdle and pelvis."""

from __future__ import annotations

import numpy as np

from vol3d.phantom.anatomy import ORGANS, PITCH_MM, Scene, spine_at
from vol3d.phantom.canvas import Patch


def draw_spine(scene: Scene) -> None:
    """Vertebral bodies with discs, canal, posterior elements, sacrum; psoas and paraspinal muscle beside them."""
    canvas = scene.canvas
    rng = scene.rng("bone")
    marrow = float(np.interp(scene.patient.age, (20, 90), (230, 130)) + rng.uniform(-25, 25))
    for sign in (-1.0, 1.0):
        psoas = canvas.tube(
            [-200, -130, -80, -10], [sign * 62, sign * 46, sign * 36, sign * 24], [0, -30, -44, -50], [14, 19, 17, 8]
        )
        canvas.paint(psoas, scene.hu("muscle"))
    box = canvas.box((-50, -125, -122), (50, -20, 230))
    x, y, z = canvas.axes(box)
    line = z[0, 0]
    cx, cy, radius = (np.asarray(v, np.float32) for v in spine_at(scene, line))
    x, y = x - cx, y - cy
    body = canvas.edge(radius - np.sqrt(np.square(x) + np.square(y * np.float32(1.2))))
    core = canvas.edge(radius - 3 - np.sqrt(np.square(x) + np.square(y * np.float32(1.2))))
    phase = (line + 110.0) / PITCH_MM
    off = np.abs(phase - np.rint(phase)) * PITCH_MM
    bone = np.clip((8.0 - off) / canvas.step[2] + 0.5, 0, 1).astype(np.float32)
    endplate = bone * np.clip((off - 6.0) / canvas.step[2] + 0.5, 0, 1).astype(np.float32)
    hard = 85 + bone * np.float32(330)
    soft = (85 + bone * np.float32(marrow - 85) + endplate * np.float32(150)).astype(np.float32)
    canvas.paint(Patch(box, body), hard + core * (soft - hard), ORGANS["spine"])
    canal_y = y + radius + 6
    canal = np.sqrt(np.square(x) + np.square(canal_y))
    arch = canvas.edge(15 - canal) * (0.35 + 0.65 * bone)
    canvas.paint(Patch(box, arch), 330.0, ORGANS["spine"])
    canvas.paint(Patch(box, canvas.edge(8 - canal)), 30.0)
    spinous = canvas.edge(4 - np.abs(x)) * canvas.edge(12 - np.abs(canal_y + 23)) * (0.2 + 0.8 * bone)
    canvas.paint(Patch(box, spinous), 330.0, ORGANS["spine"])
    wings = canvas.edge(4 - np.abs(canal_y + 2)) * canvas.edge(34 - np.abs(x)) * canvas.edge(np.abs(x) - 10)
    off_wing = np.clip((5.0 - off) / canvas.step[2] + 0.5, 0, 1).astype(np.float32)
    canvas.paint(Patch(box, wings * off_wing), 300.0, ORGANS["spine"])


def draw_ribs(scene: Scene) -> None:
    """Twelve pairs of ribs as one shell cut by slanting planes; sternum, clavicles, scapulae, humeral heads."""
    canvas = scene.canvas
    box = canvas.box((-150, -120, -60), (150, 110, 200))
    x, y, z = canvas.axes(box)
    shell = canvas.edge(4 - np.abs(scene.cavity[box] + 6))
    phase = (z + np.float32(0.36) * y) * np.float32(1 / PITCH_MM)
    phase -= np.rint(phase)
    np.abs(phase, out=phase)
    phase *= np.float32(-PITCH_MM)
    phase += np.float32(4.6)
    shell *= canvas.edge(phase, direction=2)
    margin = z + np.float32(0.36) * y + np.float32(22)
    margin = np.minimum(margin, z + 70 - np.float32(1.0) * np.maximum(y + 20, 0))
    shell *= canvas.edge(margin, direction=2)
    shell *= canvas.edge(np.maximum(np.abs(x) - 38, -20 - y)) * canvas.edge(np.abs(x) - 14)
    canvas.paint(Patch(box, shell), 420.0, ORGANS["ribs"])
    marrow = canvas.edge(np.float32(2.0) - np.abs(scene.cavity[box] + 6))
    canvas.paint(Patch(box, shell * marrow), 200.0)
    canvas.paint(canvas.ellipsoid((0, 92, 105), (16, 6, 60), lean=(0, -0.16)), 260.0, ORGANS["ribs"])
    for sign in (-1.0, 1.0):
        canvas.paint(canvas.capsule((sign * 14, 62, 176), (sign * 110, 35, 200), 6), 380.0, ORGANS["ribs"])
        canvas.paint(canvas.ellipsoid((sign * 96, -84, 150), (36, 5, 48), angle=sign * 0.45), 320.0, ORGANS["ribs"])
        canvas.paint(canvas.ellipsoid((sign * 138, -10, 196), (20, 21, 20)), 280.0, ORGANS["ribs"])


def draw_pelvis(scene: Scene) -> None:
    """Sacrum, iliac wings, pubis, hip joints and gluteal fat planes."""
    canvas = scene.canvas
    wide = 4.0 if scene.patient.sex == "female" else 0.0
    sacrum = canvas.ellipsoid((0, -72, -156), (46, 17, 40), lean=(0, 0.35))
    canvas.paint(sacrum, 320.0, ORGANS["pelvis"])
    canvas.paint(canvas.ellipsoid((0, -72, -156), (41, 12, 36), lean=(0, 0.35)), 170.0)
    canvas.paint(canvas.tube([-190, -125], [0, 0], [-92, -72], 6), 30.0)
    for sign in (-1.0, 1.0):
        centre, radii, angle = (sign * (64 + wide), -30, -140), (52.0, 60.0, 56.0), sign * 0.5
        outer = canvas.ellipsoid(centre, radii, angle=angle)
        x, y, z = canvas.axes(outer.box)
        dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
        u = (dx * np.float32(np.cos(angle)) + dy * np.float32(np.sin(angle))) / np.float32(radii[0] - 9)
        v = (dy * np.float32(np.cos(angle)) - dx * np.float32(np.sin(angle))) / np.float32(radii[1] - 9)
        q = np.sqrt(np.square(u) + np.square(v) + np.square((z - np.float32(centre[2])) / np.float32(radii[2] + 8)))
        inner = canvas.edge((1 - q) * np.float32(radii[0] - 9))
        side = canvas.edge(np.float32(sign) * x - np.float32(56 + wide) - np.float32(0.25) * dy)
        canvas.paint(Patch(outer.box, outer.cover * (1 - inner) * side), 400.0, ORGANS["pelvis"])
        hip = (sign * (88 + wide), -6.0, -192.0)
        canvas.paint(canvas.ellipsoid(hip, (31, 31, 30)), 380.0, ORGANS["pelvis"])
        canvas.paint(canvas.ellipsoid((hip[0] + sign * 4, hip[1], hip[2] - 4), (26, 26, 25)), 60.0)
        canvas.paint(canvas.ellipsoid((hip[0] + sign * 4, hip[1], hip[2] - 4), (23, 23, 22)), 300.0, ORGANS["pelvis"])
        canvas.paint(canvas.capsule((sign * 70, 25, -195), (sign * 10, 62, -205), 9), 360.0, ORGANS["pelvis"])
