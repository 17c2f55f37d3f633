import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from volume_files import body, geometries, oblique

from vol3d.volume.export import write
from vol3d.volume.geometry import LPS_TO_RAS, Geometry
from vol3d.volume.read import read, read_mask


def tensor(array: np.ndarray, **meta: object) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(oblique()), meta=meta or None)


@given(geometries(), st.sampled_from([".nii", ".nii.gz", ".nrrd", ".mha"]))
@settings(max_examples=40, deadline=None)
def test_any_geometry_there_and_back(geometry: Geometry, suffix: str) -> None:
    """Any rotation, handedness and spacing: every voxel is read back at its own place."""
    values = torch.arange(np.prod(geometry.shape), dtype=torch.int16).reshape(1, *geometry.shape)
    with tempfile.TemporaryDirectory() as folder:
        volume = MetaTensor(values, affine=torch.from_numpy(geometry.affine.copy()))
        back = read_mask(write(volume, Path(folder) / f"ct{suffix}"))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in back.shape[1:]], indexing="ij"), -1).reshape(-1, 3)
    at = geometry.to_index(Geometry.of(back).to_mm(index))
    np.testing.assert_allclose(at, np.rint(at), atol=2e-3)
    expected = values[0].numpy()[tuple(np.rint(at).astype(int).T)]
    np.testing.assert_array_equal(back[0].numpy().ravel(), expected)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_round_trip(suffix: str, tmp_path: Path) -> None:
    """An oblique volume: voxels exact, affine exact (NIfTI: to single precision), readable by SimpleITK."""
    path = write(tensor(body().astype(np.float32)), tmp_path / "deep" / f"ct{suffix}")
    back = read(path)
    np.testing.assert_array_equal(back[0].numpy(), body())
    np.testing.assert_allclose(back.affine.numpy(), oblique(), atol=1e-12 if suffix in (".nrrd", ".mha") else 1e-4)
    image = sitk.ReadImage(str(path))
    assert image.GetPixelID() == sitk.sitkInt16
    point = LPS_TO_RAS[:3, :3] @ image.TransformIndexToPhysicalPoint((5, 6, 7))
    np.testing.assert_allclose(point, (oblique() @ [5, 6, 7, 1])[:3], atol=1e-3)
    assert image[5, 6, 7] == body()[5, 6, 7]
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing temporary is left


def test_the_smallest_type_that_holds_the_values(tmp_path: Path) -> None:
    for array, kind in (
        (body() > 0, sitk.sitkUInt8),
        (body().astype(np.float64), sitk.sitkInt16),
        (body() + np.float32(0.5), sitk.sitkFloat32),
        (body().astype(np.int32) * 1000, sitk.sitkInt32),
    ):
        path = write(tensor(array), tmp_path / "a.nii.gz")
        assert sitk.ReadImage(str(path)).GetPixelID() == kind


@pytest.mark.parametrize("name", ["m.seg.nrrd", "M.SEG.NRRD"])
def test_label_names_are_kept_in_nrrd(name: str, tmp_path: Path) -> None:
    mask = tensor((body() > 0).astype(np.int16) * 4, labels={4: "liver"})
    assert read_mask(write(mask, tmp_path / name)).meta["labels"] == {4: "liver"}


def test_same_volume_same_bytes(tmp_path: Path) -> None:
    one, two = (write(tensor(body()), tmp_path / name).read_bytes() for name in ("one.nii.gz", "two.nii.gz"))
    assert one == two


@pytest.mark.parametrize("name", ["ct.png", "ct", "ct.mhd", "ct.dcm"])
def test_unknown_suffix(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name}: cannot write this suffix; use .nii, .nii.gz, .nrrd, .mha"):
        write(tensor(body()), tmp_path / name)


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tensor(body()), tmp_path / "ct.nii.gz")
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vol3d.volume.export._write_nifti", full)
    with pytest.raises(OSError, match="No space left"):
        write(tensor(body() * 2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no affine"):
        write(torch.zeros(1, 2, 2, 2), tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"volume is \(2, 3, 3, 3\)"):
        write(MetaTensor(torch.zeros(2, 3, 3, 3)), tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"from 0 to 8589934592, a file takes -2147483648 to 2147483647: number"):
        write(tensor(np.full((3, 3, 3), 2**33)), tmp_path / "labels.nii.gz")
    with pytest.raises(ValueError, match="27 voxels are NaN"):
        write(MetaTensor(torch.full((1, 3, 3, 3), torch.nan)), tmp_path / "a.nii")
    assert not list(tmp_path.iterdir())
