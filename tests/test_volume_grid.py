"""The grid: equal to MONAI, exact where nothing changes, and back to the file for every orientation."""

import itertools
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import CropForeground, Orientation, Resize, ResizeWithPadOrCrop, Spacing
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.spatial.transform import Rotation
from volume_files import SHARED, body, needs_shared, oblique, save_nifti

from vol3d.volume.files import Unread
from vol3d.volume.geometry import Geometry
from vol3d.volume.grid import Grid, check_same_grid, resample
from vol3d.volume.read import load, read, read_mask


def tensor(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array))[None], affine=torch.from_numpy(affine.copy()))


def smooth(shape: tuple[int, int, int] = (48, 40, 30), seed: int = 0) -> np.ndarray:
    return body(shape, seed).astype(np.float32)


def dice(one: np.ndarray, two: np.ndarray) -> float:
    return float(2 * (one & two).sum() / (one.sum() + two.sum()))


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 3.0), (0.5, 0.6, 1.0), (2.5, 0.8, 2.4)])
@pytest.mark.parametrize("shape", [None, (20, 24, 60), (64, 10, 33), (17, 21, 12)])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_equal_to_monai(spacing: tuple, shape: tuple | None, layout: str) -> None:
    """Orientation, Spacing (bilinear), ResizeWithPadOrCrop; within rounding to whole HU."""
    volume = tensor(smooth(), oblique())
    ours_from = MetaTensor(
        torch.from_numpy(np.asarray(smooth(), order=layout))[None], affine=torch.from_numpy(oblique())
    )
    ours = Grid(spacing=spacing, shape=shape).resample(ours_from)
    theirs = Spacing(spacing, mode="bilinear")(Orientation("RAS", labels=None)(volume))
    if shape is not None:
        theirs = ResizeWithPadOrCrop(shape, mode="constant", value=-1024)(theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.int16
    torch.testing.assert_close(ours.as_tensor().float(), theirs.as_tensor().round(), atol=1.001, rtol=0)
    assert (ours.as_tensor().float() - theirs.as_tensor()).abs().max() < 0.52
    torch.testing.assert_close(ours.affine, theirs.affine.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PLI", "SAL", "PIR"])
def test_the_fast_way_is_the_same(codes: str, antialias: bool, tmp_path: Path) -> None:
    """File → grid without a float copy of the volume: the same voxels, padding, slope and orientation included."""
    array = body((40, 36, 20))
    array[:4] = -3024
    image = nib.Nifti1Image(array.astype(np.float32) + 0.25, oblique())
    ornt = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    nib.save(image.as_reoriented(ornt), tmp_path / "float.nii.gz")
    image = nib.Nifti1Image(array, oblique())
    image.header.set_slope_inter(0.5, -500)
    nib.save(image.as_reoriented(ornt), tmp_path / "scaled.nii")
    nib.save(image.as_reoriented(ornt), tmp_path / "scaled.nii.gz")
    for name in ("float.nii.gz", "scaled.nii", "scaled.nii.gz"):
        for grid in (
            Grid(spacing=(1.1, 1.2, 3), shape=(30, 20, 24), antialias=antialias),
            Grid(shape=(20, 20, 10), crop="foreground", orientation="LPS", antialias=antialias),
            Grid(shape=(30, 40, 20)),
            Grid(),
        ):
            slow = grid.resample(read(tmp_path / name, modality="CT"))
            fast = grid.read(tmp_path / name, modality="CT")
            assert torch.equal(slow.as_tensor(), fast.as_tensor())
            assert torch.equal(slow.affine, fast.affine)


def test_a_gzipped_file_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much memory that saves is measured in benchmarks/data.py."""
    monkeypatch.delattr(Unread, "read")
    path = save_nifti(tmp_path / "ct.nii.gz", body(), oblique())
    Grid(spacing=(2, 2, 4), shape=(12, 12, 8)).read(path)
    with pytest.raises(AttributeError, match="read"):
        Grid(shape=(12, 12, 8), crop="foreground").read(path)  # where the body begins must be known first


def test_a_file_read_slice_by_slice_is_checked_too(tmp_path: Path) -> None:
    """What is known only after the last slice still refuses all of it, and a rescale twice over is such a thing."""
    grid, path = Grid(spacing=(2, 2, 4), shape=(12, 12, 8)), save_nifti(tmp_path / "ct.nii.gz", body() - 1024)
    with pytest.raises(ValueError, match="no soft tissue, so this is not HU"):
        grid.read(path)
    assert grid.read(path, modality="CT").shape == (1, 12, 12, 8)


def test_geometry_is_enough_for_a_mask() -> None:
    volume, mask = tensor(smooth(), oblique()), tensor((smooth() > 0).astype(np.int16), oblique())
    grid = Grid(spacing=(1.5, 1.5, 3), shape=(30, 30, 30))
    one, two = grid.resample_mask(mask, volume), grid.resample_mask(mask, Geometry.of(volume))
    assert torch.equal(one.as_tensor(), two.as_tensor())
    with pytest.raises(ValueError, match="crops the foreground: give the volume itself"):
        Grid.preset("m3d").resample_mask(mask, Geometry.of(volume))


def test_resize_equals_monai() -> None:
    """M3D's way: foreground cut out, resized, no spacing."""
    array = smooth()
    array[:5], array[:, :, -4:] = array.min(), array.min()
    volume = tensor(array, np.diag([-1.0, -1, 2, 1]))
    ours = Grid(shape=(32, 32, 16), crop="foreground", orientation="LPS", window="minmax").resample(volume)
    cut = CropForeground(select_fn=lambda image: image > image.min(), allow_smaller=True)(volume)
    theirs = Resize((32, 32, 16), mode="trilinear")(cut)
    assert (ours.as_tensor().float() - theirs.as_tensor()).abs().max() < 0.52
    torch.testing.assert_close(ours.affine, theirs.affine.double(), atol=1e-6, rtol=0)


@needs_shared
@pytest.mark.parametrize("name", ["abdomen_dicom_totalseg/dicom", "chest_ct_slicerio/CTChest4.nrrd"])
def test_real_files_equal_monai_and_the_fast_way(name: str) -> None:
    grid, volume = Grid.preset("merlin"), read(SHARED / name)
    ours = grid.resample(volume)
    theirs = ResizeWithPadOrCrop((224, 224, 160), mode="constant", value=-1024)(
        Spacing((1.5, 1.5, 3.0), mode="bilinear")(volume)
    )
    difference = (ours.as_tensor().float() - theirs.as_tensor()).abs()
    assert difference.mean() < 0.5
    assert difference.max() < 0.52
    fast = grid.read(SHARED / name)
    assert torch.equal(fast.as_tensor(), ours.as_tensor())
    assert torch.equal(fast.affine, ours.affine)
    assert fast.meta["original_shape"] == volume.meta["original_shape"]


@given(
    st.lists(st.floats(0.6, 4), min_size=3, max_size=3),
    st.lists(st.integers(4, 30), min_size=3, max_size=3),
    st.lists(st.floats(-180, 180), min_size=3, max_size=3),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_a_ramp_stays_a_ramp(spacing: list, shape: list, angles: list, antialias: bool) -> None:
    """HU that are a linear function of place: each grid voxel inside must have the HU of its place."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag([1.0, 1.5, 2.0])
    affine = Geometry(affine, (20, 16, 12)).canonical().affine
    size = Geometry(affine, (20, 16, 12))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in size.shape], indexing="ij"), -1)
    slope = np.array([3.0, -7.0, 5.0])
    volume = tensor((size.to_mm(index) @ slope).astype(np.float32), affine)
    grid = Grid(spacing=spacing, shape=shape, pad=-9999, antialias=antialias)
    out = grid.resample(volume)
    assert out.shape == (1, *shape)
    places = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    at = size.to_index(Geometry.of(out).to_mm(places))
    margin = np.array(spacing) / np.array(size.spacing) if antialias else 1e-3
    inside = ((at > margin) & (at < np.array(size.shape) - 1 - margin)).all(-1)
    np.testing.assert_allclose(
        out[0].numpy()[inside],
        (Geometry.of(out).to_mm(places) @ slope)[inside],
        atol=3 if antialias else 0.51,  # a triangle's centre of mass is off by up to a tenth of a voxel
    )


@pytest.mark.parametrize("window", ["percentile", "minmax"])
@pytest.mark.parametrize("spacing", [(3, 3, 3), (2, 2, 4)])
def test_padding_does_not_squeeze_what_is_no_ct(window: str, spacing: tuple, tmp_path: Path) -> None:
    """−1024 is air in HU only: around an MR lies its own lowest value, read whole, slice by slice or as a tensor."""
    array = np.random.default_rng(0).integers(100, 900, (24, 24, 16)).astype(np.int16)
    path = tmp_path / "mr.nii.gz"
    save_nifti(path, array, np.diag([3.0, 3, 3, 1]))
    grid = Grid(spacing=spacing, shape=(48, 48, 24), window=window)
    volume = read(path, modality="MR")
    for out in (grid.resample(volume), grid.read(path, modality="MR"), grid.place(load(path, modality="MR"))):
        assert int(out.min()) == int(out[0, 0, 0, 0]) >= 100
        assert out.max() > 850
    tissue = grid(volume)
    assert (tissue.min(), tissue.max()) == (0, 1)
    assert replace(grid, pad=7).resample(volume).min() == 7, "what a card asks for"
    assert grid.read(path, modality="CT").min() == -1024


def test_antialias_sees_what_linear_skips() -> None:
    """A calcification one voxel thin between two samples: skipped by two taps, averaged in by the filter."""
    array = np.zeros((60, 60, 60), np.float32)
    array[30, 30, 29] = 2700
    volume = tensor(array, np.eye(4))
    plain = Grid(spacing=(3, 3, 3)).resample(volume)
    soft = Grid(spacing=(3, 3, 3), antialias=True).resample(volume)
    assert plain.max() == 0
    assert 0 < soft.float().sum() * 27 == pytest.approx(2700, rel=0.12)  # nothing is lost
    noise = tensor(np.random.default_rng(0).normal(0, 100, (60, 60, 60)).astype(np.float32), np.eye(4))
    assert Grid(spacing=(3, 3, 3), antialias=True).resample(noise).float().std() < 25
    finer = Grid(spacing=(0.7, 0.7, 0.7))
    averaged = Grid(spacing=(0.7, 0.7, 0.7), antialias=True)
    assert torch.equal(finer.resample(noise).as_tensor(), averaged.resample(noise).as_tensor())


def test_on_the_grid_already_nothing_changes() -> None:
    array, affine = body((64, 64, 32)), oblique((5, 5, 8))
    out = Grid(spacing=(5, 5, 8), shape=(64, 64, 32), antialias=True).resample(tensor(array.astype(np.float32), affine))
    np.testing.assert_array_equal(out[0].numpy(), array)
    np.testing.assert_array_equal(out.affine.numpy(), affine)
    shifted = Grid(spacing=(5, 5, 8), shape=(60, 70, 32)).resample(tensor(array.astype(np.float32), affine))
    np.testing.assert_array_equal(shifted[0, :, 3:67].numpy(), array[2:62])
    assert (shifted[0, :, :3] == -1024).all()


ORIENTATIONS = [
    (order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product([1, -1], repeat=3)
]


def sphere_on(affine: np.ndarray, shape: tuple[int, int, int], diameter: float) -> np.ndarray:
    geometry = Geometry(affine, shape)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    centre = geometry.to_mm((np.array(shape) - 1) / 2) + np.array([3.3, -1.7, 0.9])
    return ((geometry.to_mm(index) - centre) ** 2).sum(-1) <= (diameter / 2) ** 2


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_to_the_grid_and_back(order: tuple, flips: tuple, tmp_path: Path) -> None:
    """A 20 mm sphere in a file of any orientation, oblique: Merlin's grid and back on the file's own."""
    affine = oblique((0.8, 0.9, 2.5))
    affine[:3, :3] = affine[:3, list(order)] * flips
    shape = tuple((60, 54, 24)[axis] for axis in order)
    hu = np.where(sphere_on(affine, shape, 36), 40, -1000).astype(np.int16)
    ball = sphere_on(affine, shape, 20)
    volume = read(save_nifti(tmp_path / "ct.nii", hu, affine))
    grid = Grid.preset("merlin")
    share = MetaTensor(
        read_mask(save_nifti(tmp_path / "m.nii", ball.astype(np.uint8), affine)).as_tensor().float(),
        affine=volume.affine,
    )
    probability = grid.resample_mask(share, like_volume=volume)
    assert probability.shape == (1, 224, 224, 160)
    back = grid.inverse(probability, like=volume)
    assert back.shape == (1, *shape)
    np.testing.assert_allclose(back.affine.numpy(), affine, atol=1e-4)
    assert dice(back[0].numpy() >= 0.5, ball) >= 0.98


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 1.0), (0.8, 0.8, 2.0), (1.0, 1.0, 5.0), (1.5, 1.5, 3.0), (3, 3, 3)])
@pytest.mark.parametrize(("diameter", "least"), [(20, 0.94), (40, 0.97)])
def test_whole_labels_and_back(spacing: tuple, diameter: int, least: float) -> None:
    """Whole numbers hold the border no better than the grid's voxel (1.5 × 1.5 × 3 mm): less than probabilities."""
    shape = tuple(int(60 / step) + 1 for step in spacing)
    affine = np.diag([*spacing, 1.0])
    ball = sphere_on(affine, shape, diameter)
    mask = tensor(ball.astype(np.int16) * 7, affine)
    grid = Grid.preset("merlin")
    back = grid.inverse(grid.resample_mask(mask), like=mask)
    assert set(back.unique().tolist()) == {0, 7}
    assert dice(back[0].numpy() == 7, ball) >= least
    naive = grid.inverse(grid.resample_mask(mask).bool(), like=mask)
    assert naive.dtype == torch.bool


def test_small_lesions_survive_the_way_back() -> None:
    like = tensor(smooth((64, 64, 40)), np.diag([0.75, 0.75, 1.0, 1]))
    grid = Grid(spacing=(1.5, 1.5, 3), shape=(32, 32, 14))
    labels = torch.zeros((32, 32, 14), dtype=torch.int16)
    labels[4:20, 4:20, 2:9] = 1
    labels[26, 26, 7], labels[8, 27, 11] = 2, 1
    back = grid.inverse(labels, like=like)[0].numpy()
    at = Geometry.of(like).to_index(grid.geometry(like).to_mm([(26, 26, 7), (8, 27, 11)]))
    at = np.rint(at).astype(int)
    assert [int(back[tuple(one)]) for one in at] == [2, 1]
    assert 5 <= (back == 2).sum() <= 20  # one grid voxel is 12 of the file's


def test_labels_never_mix() -> None:
    labels = np.zeros((40, 40, 20), np.int16)
    labels[:20], labels[20:, 20:], labels[20:, :20] = 3, 90, -5
    mask = tensor(labels, np.diag([1.0, 1, 2, 1]))
    for spacing in [(1.7, 1.3, 3), (0.6, 0.7, 1)]:
        out = Grid(spacing=spacing).resample_mask(mask)
        assert set(out.unique().tolist()) <= {-5, 0, 3, 90}
        assert (out == 0).float().mean() < 0.01


def test_inverse_of_image_is_the_image() -> None:
    volume = tensor(smooth(), oblique())
    grid = Grid(spacing=(0.75, 0.8, 2.5), shape=(60, 30, 30))
    back = grid.inverse(grid.resample(volume).float(), like=volume)
    np.testing.assert_allclose(back[0, :, 5:35].numpy(), volume[0, :, 5:35].numpy())
    assert (back[0, :, :5] == 0).all()  # cropped away: unknown


def test_inverse_onto_a_volume_that_is_not_ras() -> None:
    """A MetaTensor of another source, in LPS: the way back is to its own voxels."""
    array = smooth()
    lps = tensor(array, np.diag([-1.0, -1, 2, 1]))
    for orientation in ("RAS", "LPS"):
        grid = Grid(spacing=(1, 1, 2), shape=(48, 40, 30), orientation=orientation)
        on_grid = grid.resample(lps)
        expected = array[::-1, ::-1] if orientation == "RAS" else array
        np.testing.assert_array_equal(on_grid[0].numpy(), expected.round())
        back = grid.inverse(on_grid.float(), like=lps)
        np.testing.assert_array_equal(back[0].numpy(), array.round())
        np.testing.assert_array_equal(back.affine.numpy(), lps.affine.numpy())


def test_inverse_of_a_straightened_file(tmp_path: Path) -> None:
    """A tilted scan: the mask comes back on the tilted slices."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 2 * np.tan(np.radians(12))
    hu = np.full((40, 44, 30), -1000, np.int16)
    hu[5:35, 5:39] = 40
    nib.save(nib.Nifti1Image(hu, affine), tmp_path / "ct.nii")
    volume = read(tmp_path / "ct.nii")
    ball = sphere_on(affine, hu.shape, 20)
    grid = Grid(spacing=(1, 1, 2))
    target = grid.geometry(volume)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in target.shape], indexing="ij"), -1)
    centre = Geometry(affine, hu.shape).to_mm((np.array(hu.shape) - 1) / 2) + np.array([3.3, -1.7, 0.9])
    on_grid = torch.from_numpy(((target.to_mm(index) - centre) ** 2).sum(-1) <= 100)
    back = grid.inverse(on_grid.float(), like=volume)
    assert back.shape == (1, 40, 44, 30)
    np.testing.assert_allclose(back.affine.numpy(), affine, atol=1e-6)
    assert dice(back[0].numpy() >= 0.5, ball) > 0.95


def test_wrong_shape_for_inverse() -> None:
    volume = tensor(smooth(), oblique())
    with pytest.raises(ValueError, match=r"array is \(1, 5, 6, 7\), grid 'merlin' is \(224, 224, 160\)"):
        Grid.preset("merlin").inverse(torch.zeros(5, 6, 7), like=volume)


def test_windows_are_channels_and_batched_equals_one_by_one() -> None:
    grid = Grid(window=[(-1000, 1000), (-160, 240)], out_range=(-1, 1))
    hu = torch.from_numpy(np.stack([body((8, 8, 8), seed) for seed in range(3)]))[:, None]
    out = grid.window_hu(hu)
    assert out.shape == (3, 2, 8, 8, 8)
    assert out.dtype == torch.float32
    expected = ((hu[:, 0].float() + 160) / 400).clamp(0, 1) * 2 - 1
    torch.testing.assert_close(out[:, 1], expected)
    torch.testing.assert_close(grid.window_hu(hu[1]), out[1])
    with pytest.raises(ValueError, match=r"\(3, 2, 8, 8, 8\); windows take \(..., 1, x, y, z\)"):
        grid.window_hu(out)


@pytest.mark.parametrize("window", [(-1000, 1000), [(-1000, 200), (-160, 240)], "minmax", "zscore"])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_window_into_memory_that_is_used_again(window: object, dtype: torch.dtype) -> None:
    grid = Grid(window=window, out_range=(-1, 1))  # type: ignore[arg-type]
    hu = torch.from_numpy(np.stack([body((8, 8, 8), seed) for seed in range(2)]))[:, None].to(dtype)
    before = hu.clone()
    out = torch.full((2, grid.channels, 8, 8, 8), torch.nan)
    assert grid.window_hu(hu, out) is out
    assert torch.equal(out, grid.window_hu(hu))
    assert torch.equal(hu, before), "the volume itself is not touched"
    with pytest.raises(ValueError, match=r"out is \(2, 8, 8, 8\) torch.float32, .* volume \(2, \d, 8, 8, 8\)"):
        grid.window_hu(hu, out[:, 0])


@pytest.mark.parametrize("rule", ["minmax", "percentile", "zscore"])
def test_rules_see_each_volume_alone(rule: str) -> None:
    hu = torch.from_numpy(np.stack([body((8, 8, 8), seed) * (seed + 1) for seed in range(2)]))[:, None]
    grid = Grid(window=rule)
    out = grid.window_hu(hu)
    torch.testing.assert_close(out[1], grid.window_hu(hu[1]))
    if rule == "minmax":
        assert out.amin() == 0
        assert out[0].amax() == out[1].amax() == 1
    assert torch.isfinite(Grid(window=rule).window_hu(torch.zeros(1, 4, 4, 4))).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_foreground_is_found_slab_by_slab(order: str, tmp_path: Path) -> None:
    """The same box from the file, where padding becomes air first and the slope may be negative, as from the volume."""
    array = np.full((40, 24, 50), -1024, np.int16)
    array[0], array[3, 2:20, 18:40] = -3024, np.arange(18 * 22).reshape(18, 22) - 300
    path = save_nifti(tmp_path / "a.nii", np.asarray(-array, order=order), np.diag([2.0, 2, 2, 1]), scl_slope=-1.0)
    grid = Grid(shape=(1, 9, 11), crop="foreground")
    volume = read(path)
    axes, target, *_ = grid._plan(volume)
    assert [(axis.source, round(axis.step * axis.size)) for axis in axes] == [(40, 1), (24, 18), (50, 22)]
    assert torch.equal(grid.read(path).as_tensor(), grid.resample(volume).as_tensor())
    mask = MetaTensor((volume.as_tensor() > -1024).short(), affine=volume.affine)
    for like in (volume, load(path)):
        assert torch.equal(grid.resample_mask(mask, like).as_tensor(), torch.ones(1, *target.shape).short())


def test_every_preset_prepares_a_volume() -> None:
    volume = tensor(smooth((30, 30, 20)), np.diag([8.0, 8, 12, 1]))
    for name in ("merlin", "m3d", "ct-clip", "fvlm", "spectre", "colipri", "segvol", "radfm"):
        assert name in Grid.names()
        grid = Grid.preset(name)
        if np.prod(grid.shape) > 12e6:
            continue
        out = grid(volume)
        assert out.shape == (grid.channels, *grid.shape)
        assert Geometry.of(out).axcodes == grid.orientation
        assert torch.isfinite(out.as_tensor()).all()
    with pytest.raises(ValueError, match="no grid named 'merlot'; there are colipri"):
        Grid.preset("merlot")


def test_card_round_trip(tmp_path: Path) -> None:
    for name in Grid.names():
        Grid.preset(name).save(tmp_path / "grid.json")
        assert Grid.load(tmp_path / "grid.json") == Grid.preset(name)
    (tmp_path / "grid.json").write_text('{"version": 1, "spacings": [1, 1, 1]}')
    with pytest.raises(ValueError, match="unknown fields spacings"):
        Grid.load(tmp_path / "grid.json")
    (tmp_path / "grid.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="version 99, this vol3d reads version 1"):
        Grid.load(tmp_path / "grid.json")
    (tmp_path / "grid.json").write_text("[]")
    with pytest.raises(ValueError, match="not a grid card"):
        Grid.load(tmp_path / "grid.json")


def test_fingerprint_is_of_the_hu_alone() -> None:
    base = Grid(spacing=(1, 1, 1))
    assert base.fingerprint == Grid(spacing=[1.0, 1, 1], window=[(0, 1)], out_range=(-1, 1), name="x").fingerprint
    others = [Grid(spacing=(1, 1, 2)), Grid(spacing=(1, 1, 1), shape=(2, 2, 2)), Grid(spacing=(1, 1, 1), pad=0),
              Grid(spacing=(1, 1, 1), antialias=True), Grid(spacing=(1, 1, 1), orientation="LPS")]  # fmt: skip
    assert len({base.fingerprint, *(one.fingerprint for one in others)}) == 6


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"spacing": (1, 1)}, r"spacing \(1, 1\) is not three"),
        ({"spacing": (1, 0, 1)}, r"spacing \(1, 0, 1\)"),
        ({"shape": (8, -8, 8)}, r"shape \(8, -8, 8\)"),
        ({"window": (100, -100)}, r"window \(100, -100\) is not \(low, high\)"),
        ({"window": "hounsfield"}, "window 'hounsfield'"),
        ({"orientation": "SRA"}, "orientation 'SRA': vol3d keeps the axes in the order x, y, z"),
        ({"crop": "left"}, "crop 'left'"),
    ],
)
def test_impossible_cards(card: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(**card)


def test_resample_is_nearest_by_label() -> None:
    image = tensor(smooth(), oblique())
    labels = tensor((smooth((20, 20, 20)) > -500).astype(np.int16) * 9, oblique((1.9, 1.7, 4.0), degrees=20))
    with pytest.raises(ValueError, match=r"mask is 20×20×20 voxels of 1.9×1.7×4 mm.*image is 48×40×30.*resample it"):
        check_same_grid(labels, image)
    out = resample(labels, like=image)
    check_same_grid(out, image)
    assert set(out.unique().tolist()) == {0, 9}
    own, place = Geometry.of(labels), Geometry.of(image)
    for index in np.random.default_rng(0).integers(0, place.shape, (200, 3)):
        at = own.to_index(place.to_mm(index))
        if np.abs(at - np.floor(at) - 0.5).min() < 0.01:
            continue
        at = np.rint(at).astype(int)
        inside = (at >= 0).all() and (at < own.shape).all()
        assert out[0][tuple(index)] == (labels[0][tuple(at)] if inside else 0)


@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_resample_gives_the_same_voxels_laid_another_way(flips: tuple, order: tuple) -> None:
    """As other readers leave a file in its own order; not a face may be lost to rounding."""
    rng = np.random.default_rng(3)
    for _ in range(4):
        affine = np.diag([*rng.uniform(0.5, 3, 3).round(3), 1.0])
        affine[:3, 3] = rng.uniform(-200, 200, 3).round(2)
        image = tensor(smooth((11, 14, 15)) + 1000, affine)
        turned = Geometry.of(image).turned(order, flips)
        axes = [axis + 1 for axis, flip in enumerate(flips) if flip]
        values = image.as_tensor().permute(0, *(axis + 1 for axis in order)).flip(axes)
        turned_image = MetaTensor(values, affine=torch.tensor(turned.affine))
        back = resample(turned_image, like=image)
        torch.testing.assert_close(back.as_tensor(), image.as_tensor(), atol=0.01, rtol=0)
        larger = tensor(np.zeros((13, 16, 17), np.float32), affine)
        larger.affine[:3, 3] -= 0.25 * larger.affine[:3, :3].sum(1)  # off the voxels and beyond them
        one, other = (resample(part, like=larger) for part in (image, turned_image))
        torch.testing.assert_close(other.as_tensor(), one.as_tensor(), atol=0.01, rtol=0)


def test_beyond_an_image_that_is_no_ct_lies_its_lowest_value() -> None:
    image = tensor(smooth((8, 8, 8)) + 1100, np.eye(4))
    like = tensor(np.zeros((16, 8, 8), np.float32), np.eye(4))
    assert float(resample(image, like=like)[0, -1].max()) == -1024
    image.meta["modality"] = "PT"
    assert float(resample(image, like=like)[0, -1].max()) == float(image.min()) > 0


def test_mask_elsewhere() -> None:
    far = oblique()
    far[0, 3] += 500
    with pytest.raises(ValueError, match=r"mask is 48×40×30 .* they do not overlap"):
        resample(tensor(np.zeros((48, 40, 30), np.int16), far), like=tensor(smooth(), oblique()))


def test_mask_on_its_own_grid_fills_the_volume_grid() -> None:
    volume = tensor(smooth((48, 40, 29)), np.diag([1.0, 1, 1, 1]))
    grid = Grid(spacing=(2, 2, 2), shape=(24, 20, 15))
    own = tensor(
        np.ones((10, 10, 10), np.int16), np.array([[1.0, 0, 0, 10], [0, 1, 0, 10], [0, 0, 1, 10], [0, 0, 0, 1]])
    )
    out = grid.resample_mask(own, like_volume=volume)
    assert torch.equal(out.affine, grid.resample(volume).affine)
    assert out[0].nonzero().amin(0).tolist() == [5, 5, 5]
    assert int(out.sum()) == 125


def test_plain_tensor_has_no_place() -> None:
    with pytest.raises(ValueError, match=r"a plain tensor of shape .* has no affine"):
        Grid.preset("merlin").resample(torch.zeros(1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"a str has no affine: pass the MetaTensor that vol3d\.read returns"):
        Grid.preset("merlin")("ct.nii.gz")


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1.0, r"0.001 to 0.999 are .* by 10000"),
        (20.0, r"fractions.* by 1000"),
        (5e4, r"50000.* by 0\.1"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_other_modalities_that_whole_numbers_cannot_hold_are_refused(
    tmp_path: Path, factor: float, said: str, suffix: str
) -> None:
    values = np.linspace(0, factor, 16 * 16 * 8, dtype=np.float32).reshape(16, 16, 8)
    path = save_nifti(tmp_path / f"pt{suffix}", values)
    grid = Grid(spacing=(1.5, 1.5, 1.5), window="percentile")
    for place in (grid.read, lambda path, modality: grid(read(path, modality=modality))):
        with pytest.raises(ValueError, match=rf"pt{suffix}: values .*{said}"):
            place(path, modality="PT")
        assert place(path, modality="CT").shape == (1, 16, 16, 15), "HU are whole numbers enough"
    stored = save_nifti(tmp_path / f"scaled{suffix}", values * {1.0: 1e4, 20.0: 1e3, 5e4: 0.1}[factor])
    assert grid.read(stored, modality="PT").unique().numel() > 500


def test_whole_numbers_of_other_modalities_are_taken_however_few(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "mr.nii", np.arange(8 * 8 * 8, dtype=np.uint8).reshape(8, 8, 8) % 12)
    assert Grid(shape=(8, 8, 8), window="minmax").read(path, modality="MR").unique().tolist() == list(range(12))
