"""The doctor's findings as one HTML file with thumbnails."""

from __future__ import annotations

import base64
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np

from vol3d.data.doctor_volume import Note, Probe
from vol3d.data.formats import atomic
from vol3d.data.manifest import Manifest, Study

THUMBNAILS = 24
"""Studies with a picture: the first that have an error or a warning (each is read once more)."""
LISTED = 500
"""Findings of one check that the page lists; a browser gives up long before a dataset with a flaw in every row ends."""


def write_page(path: Path, manifest: Manifest, probes: dict[str, Probe], notes: list[Note]) -> Path:
    """Writes the page, whole or not at all; it needs no other file and no network."""
    from jinja2 import Environment, PackageLoader

    template = Environment(loader=PackageLoader("vol3d.data", "."), autoescape=True).get_template("doctor.html")
    concerned = dict.fromkeys(note.study for note in notes if note.severity != "info" and note.study)
    shown = [study for name in concerned if name in manifest and probes[(study := manifest[name]).study].shape]
    html = template.render(
        name=manifest.path.name if manifest.path else "manifest",
        studies=len(manifest),
        patients=len(manifest.patients),
        readable=sum(bool(found.shape) for found in probes.values()),
        counts=Counter(note.severity for note in notes),
        by_check=sorted(Counter((note.check, note.severity) for note in notes).items()),
        notes=_first_of_each(notes),
        listed=LISTED,
        pictures=[(study.study, thumbnail(study)) for study in shown[:THUMBNAILS]],
    )
    with atomic(path) as part:
        part.write_text(html, encoding="utf-8")
    return path


def _first_of_each(notes: list[Note]) -> list[Note]:
    """In their order, at most LISTED of a check and severity."""
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for note in notes:
        seen[note.check, note.severity] += 1
        if seen[note.check, note.severity] <= LISTED:
            kept.append(note)
    return kept


def thumbnail(study: Study, height: int = 128) -> str:
    """The three middle slices side by side, radiological view, as a base64 PNG."""
    from PIL import Image

    from vol3d.data.doctor_volume import read_volume

    volume = read_volume(study)
    steps = np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0)
    voxels = volume[0].numpy()
    middle = [size // 2 for size in voxels.shape]
    slices = [
        (voxels[:, :, middle[2]], steps[[0, 1]]),
        (voxels[:, middle[1], :], steps[[0, 2]]),
        (voxels[middle[0], :, :], steps[[1, 2]]),
    ]
    # Viewed from the feet and from the front: the patient's right (high x) is at the left of the picture.
    row = np.concatenate([_fit(plane[::-1].T[::-1], step[::-1], height) for plane, step in slices], axis=1)
    file = BytesIO()
    grey = (np.clip((row + 160.0) / 400.0, 0, 1) * 255).astype(np.uint8)
    Image.fromarray(grey).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def _fit(plane: np.ndarray, step: np.ndarray, height: int) -> np.ndarray:
    """Nearest neighbour to `height` pixels with square pixels in mm."""
    rows, columns = plane.shape
    width = max(1, round(height * columns * float(step[1]) / (rows * float(step[0]))))
    picked_rows = np.linspace(0, rows - 1, height).round().astype(int)
    return plane[picked_rows][:, np.linspace(0, columns - 1, width).round().astype(int)]
