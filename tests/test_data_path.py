"""The user's path in one go: phantoms written, audited, prepared, batched; left is left at the end of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import RandFlipd

from vol3d import phantom
from vol3d.data.augment import Augment, Transforms
from vol3d.data.cache import prepare
from vol3d.data.dataset import VolumeData
from vol3d.data.doctor import doctor
from vol3d.data.manifest import Manifest
from vol3d.volume.grid import Grid

GRID = Grid(spacing=(8.0, 8.0, 12.0), shape=(48, 48, 36), window=[(-1000.0, 1000.0), (-160.0, 240.0)])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write(tmp_path_factory.mktemp("phantoms"), studies=12, seed=3, shape=(64, 64, 32), twins=2)


def test_doctor_finds_phantoms_sound(manifest: Path) -> None:
    findings = [f for f in doctor(manifest) if f["severity"] != "info" and f["check"] != "classes"]
    assert findings == []


@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(flip=1.0),
        Augment(rotate=10.0, zoom=0.1, flip=0.5, seed=1),
        Transforms(RandFlipd(("image", "mask", "finding_mask"), prob=0.5, spatial_axis=0)),
    ],
)
def test_left_is_left_in_the_batch(manifest: Path, tmp_path: Path, augment: Augment | Transforms) -> None:
    assert prepare(manifest, GRID, tmp_path, progress=False).failed == 0
    data = VolumeData(Manifest.read(manifest), GRID, cache=tmp_path, batch_size=4)
    sided = 0
    for batch in data.train_dataloader():
        batch = augment(data.on_after_batch_transfer(batch, 0), step=1)
        assert batch.image.shape == (4, 2, *(GRID.shape or ()))
        assert batch.mask is not None
        assert batch.finding_mask is not None
        for row, study in enumerate(batch.studies):
            affine = batch.affine[row].numpy()
            middle = centre(batch.image[row, 0] > 0.4, affine)
            left, right = (
                centre(batch.mask[row] == study.mask_labels[f"{side} kidney"], affine) for side in ("left", "right")
            )
            assert left < middle < right, "RAS: x grows to the patient's right"
            for name, label in study.finding_labels.items():
                lesion = batch.finding_mask[row] == label
                if lesion.sum() >= 3 and name.startswith(("left ", "right ")):
                    sided += 1
                    assert (centre(lesion, affine) < middle) == name.startswith("left "), name
    assert sided > 3


def centre(inside: torch.Tensor, affine: np.ndarray) -> float:
    """Where on the x axis, in mm."""
    index = np.append(inside.nonzero().double().mean(0).numpy(), 1.0)
    return float((affine @ index)[0])
