"""Masks and boxes there and back: on a grid, and again on the file's own, whatever its orientation."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from volume_files import SHARED, geometries, needs_shared, oblique, save_nifti

from vol3d.volume.geometry import Geometry
from vol3d.volume.grid import Grid
from vol3d.volume.label_fields import TO_COARSE, TO_FINE, border_depth
from vol3d.volume.label_maps import _places
from vol3d.volume.read import read, read_mask

MERLIN = Grid.preset("merlin")
SMALL = Grid(spacing=MERLIN.spacing, shape=(44, 44, 24))
"""Merlin's spacing on fewer voxels."""
ORIENTATIONS = [
    (order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product([1, -1], repeat=3)
]


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
@pytest.mark.parametrize("labels", [(), (1,), (-7, 3, 300), tuple(range(1, 400))])
def test_labels_are_found_with_their_boxes_however_they_lie(
    order: tuple[int, ...], flips: tuple[int, ...], labels: tuple[int, ...]
) -> None:
    random = np.random.default_rng(len(labels))
    volume = np.zeros((9, 12, 7), np.int16, order="F")
    for label in labels:
        volume[tuple(random.integers(size) for size in volume.shape)] = label
    turned = volume.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
    expected = []
    for label in np.unique(turned[turned != 0]):
        where = np.nonzero(turned == label)
        expected.append((int(label), tuple(slice(int(at.min()), int(at.max()) + 1) for at in where)))
    assert _places(turned) == expected


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def sphere(geometry: Geometry, diameter: float, off: tuple[float, ...] = (3.3, -1.7, 0.9)) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(size) for size in geometry.shape], indexing="ij"), -1)
    centre = geometry.to_mm((np.array(geometry.shape) - 1) / 2) + off
    return ((geometry.to_mm(index) - centre) ** 2).sum(-1) <= (diameter / 2) ** 2


def tensor(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(affine))


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_whole_labels_in_every_orientation(order: tuple, flips: tuple, tmp_path: Path) -> None:
    """A 20 mm sphere of label 7 in an oblique file: Merlin's spacing and back, Dice 0.98, in the right place."""
    affine = oblique((0.8, 0.9, 2.0))
    affine[:3, :3] = affine[:3, list(order)] * flips
    geometry = Geometry(affine, tuple((60, 54, 30)[axis] for axis in order))
    ball = sphere(geometry, 20)
    volume = read(save_nifti(tmp_path / "ct.nii", np.where(sphere(geometry, 40), 40, -1000).astype(np.int16), affine))
    mask = read_mask(save_nifti(tmp_path / "mask.nii", ball.astype(np.uint8) * 7, affine))
    on_grid = SMALL.resample_mask(mask, like_volume=volume)
    assert on_grid.dtype == torch.int16
    back = SMALL.inverse(on_grid, like=volume)
    assert back.shape == (1, *geometry.shape)
    np.testing.assert_allclose(back.affine.numpy(), affine, atol=1e-4)
    assert set(back.unique().tolist()) == {0, 7}
    assert dice(back[0].numpy() == 7, ball) >= 0.98


@pytest.mark.parametrize(
    "spacing", [(0.5, 0.5, 0.6), (0.7, 0.7, 1), (0.8, 0.8, 2), (0.8, 0.9, 2.5), (1, 1, 1), (1, 1, 5), (3, 3, 3)]
)
def test_whole_labels_of_every_spacing(spacing: tuple) -> None:
    affine = np.diag([*spacing, 1.0])
    geometry = Geometry(affine, tuple(int(45 / step) + 1 for step in spacing))
    for off in ((3.3, -1.7, 0.9), (-0.6, 1.1, -2.0)):
        mask = tensor((ball := sphere(geometry, 20, off)).astype(np.int16) * 7, affine)
        back = SMALL.inverse(SMALL.resample_mask(mask), like=mask)
        assert dice(back[0].numpy() == 7, ball) >= 0.98


@pytest.mark.parametrize(
    "spacing",
    [(0.5, 0.5, 0.6), (0.7, 0.7, 1), (0.8, 0.8, 2), (0.8, 0.9, 2.5), (1, 1, 1), (0.7, 0.7, 5), (1, 1, 4), (1, 1, 5),
     (1, 1, 6), (1.5, 1.5, 1), (3, 3, 1), (3, 3, 3), (5, 1, 1)],
)  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
def test_whole_labels_of_every_spacing_wherever_they_lie(spacing: tuple, turned: bool) -> None:
    """Thin slices or thick, straight or oblique, centred anywhere between voxels; where it lies on the grid it is
    nearer to the true sphere than the slices it came from."""
    rng = np.random.default_rng(int(100 * sum(spacing)) + turned)
    affine = oblique(spacing) if turned else np.diag([*spacing, 1.0])
    geometry = Geometry(affine, tuple(int(45 / step) + 1 for step in spacing))
    found = []
    for _ in range(2):
        off = tuple(rng.uniform(-4, 4, 3))
        mask = tensor((ball := sphere(geometry, 20, off)).astype(np.int16) * 7, affine)
        on_grid = SMALL.resample_mask(mask)
        found.append(dice(SMALL.inverse(on_grid, like=mask)[0].numpy() == 7, ball))
        there = np.stack(np.meshgrid(*[np.arange(size) for size in SMALL.shape], indexing="ij"), -1)
        centre = geometry.to_mm((np.array(geometry.shape) - 1) / 2) + off
        true = ((SMALL.geometry(mask).to_mm(there) - centre) ** 2).sum(-1) <= 100
        assert dice(on_grid[0].numpy() == 7, true) >= (0.88 if max(spacing) >= 3 else 0.95)
    assert np.mean(found) >= 0.98
    assert min(found) >= 0.975  # the worst of several hundred centres came to 0.977


def test_boxes_come_back(tmp_path: Path) -> None:
    """A box is in millimetres: found on the grid or on the file's voxels, it is the same to a grid voxel."""
    geometry = Geometry(np.diag([-0.8, -0.8, 2.0, 1.0]), (70, 60, 30))
    ball = sphere(geometry, 24)
    volume = read(save_nifti(tmp_path / "ct.nii", np.where(ball, 40, -1000).astype(np.int16), geometry.affine))
    on_grid = SMALL.resample_mask(tensor(ball[::-1, ::-1].astype(np.int16), volume.affine.numpy()), volume)
    back = SMALL.inverse(on_grid, like=volume)
    for one in (SMALL.geometry(volume).box(on_grid[0].numpy()), Geometry.of(back).box(back[0].numpy())):
        for end, true in zip(one, geometry.box(ball), strict=True):
            assert (np.abs(np.subtract(end, true)) <= np.array([1.5, 1.5, 3.0])).all()


@settings(max_examples=40, deadline=None)
@given(geometries(), st.integers(0, 2**31))
def test_a_grid_of_the_same_spacing_gives_labels_back_exactly(geometry: Geometry, seed: int) -> None:
    """Any affine: where the lattice falls on the voxels nothing may change."""
    labels = np.random.default_rng(seed).integers(0, 4, geometry.shape).astype(np.int16)
    like = tensor(labels, geometry.affine)
    turned = geometry.canonical()
    grid = Grid(spacing=turned.spacing, shape=tuple(size + 3 for size in turned.shape))
    back = grid.inverse(grid.resample_mask(like), like=like)
    np.testing.assert_array_equal(back[0].numpy(), labels)
    np.testing.assert_allclose(back.affine.numpy(), geometry.affine)


@settings(max_examples=30, deadline=None)
@given(geometries(), st.integers(0, 2**31))
def test_smooth_borders_move_no_voxel(geometry: Geometry, seed: int) -> None:
    """Whatever the shape, every voxel stays on its own side of the border."""
    rng = np.random.default_rng(seed)
    voxels = rng.random(geometry.shape) < rng.random()
    for sigmas in (TO_COARSE, TO_FINE):
        np.testing.assert_array_equal(border_depth(voxels, geometry.spacing, sigmas) > 0, voxels)


def test_a_gap_between_two_organs_stays() -> None:
    """Two slabs one voxel apart do not grow together, two that touch do not fall apart."""
    labels = np.zeros((40, 24, 24), np.int16)
    labels[4:18, 4:20, 4:20], labels[20:30, 4:20, 4:20], labels[30:38, 4:20, 4:20] = 1, 2, 3
    on_grid = tensor(labels, np.diag([1.5, 1.5, 3, 1.0]))
    like = tensor(np.zeros((79, 47, 70), np.int16), np.diag([0.75, 0.75, 1.0, 1.0]))
    back = Grid(spacing=(1.5, 1.5, 3), shape=(40, 24, 24)).inverse(on_grid, like=like)[0].numpy()
    middle = back[:, 24, 35]
    assert (middle[36:39] == 0).any()
    assert (middle[42:72] > 0).all()
    assert {1, 2, 3} <= set(middle.tolist())


@needs_shared
@pytest.mark.parametrize(
    ("name", "least"),
    [("abdomen_dicom_totalseg/seg.nii.gz", 0.93), ("abdomen_ct_totalseg/seg.nii.gz", 0.999),
     ("chest_ct_lung1/lung1_label.nrrd", 0.95), ("chest_ct_slicerio/Segmentation.seg.nrrd", 0.999)],
)  # fmt: skip
def test_real_masks_there_and_back(name: str, least: float) -> None:
    mask = read_mask(SHARED / name)
    mask.meta.pop("original_affine"), mask.meta.pop("original_shape")
    grid = Grid(spacing=MERLIN.spacing)
    back, labels = grid.inverse(grid.resample_mask(mask), like=mask).numpy(), mask.numpy()
    assert np.mean([dice(back == n, labels == n) for n in np.unique(labels)[1:] if (labels == n).sum() > 100]) >= least
