"""The real CTs of ../shared/data, and what `read` promises of any file."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from volume_files import SHARED, body, needs_shared, oblique, save_nifti

from vol3d.volume.geometry import LPS_TO_RAS, Geometry
from vol3d.volume.read import read, read_mask

FILES = [
    "abdomen_ct_totalseg/ct.nii.gz",
    "abdomen_dicom_totalseg/dicom",
    "abdomen_dicom_crlm1004",
    "abdomen_mr_totalseg/mr.nii.gz",
    "chest_ct_slicerio/CTChest4.nrrd",
    "chest_ct_lung1/lung1_image.nrrd",
]


def read_sitk(path: Path) -> sitk.Image:
    if not path.is_dir():
        return sitk.ReadImage(str(path))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
    return reader.Execute()


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_real_files_agree_with_simpleitk(name: str) -> None:
    """Value and place of a thousand voxels, by an independent reader."""
    volume = read(SHARED / name, modality="MR" if "_mr_" in name else None)
    image = read_sitk(SHARED / name)
    theirs = sitk.GetArrayFromImage(image)
    geometry = Geometry.of(volume)
    assert geometry.axcodes == "RAS"
    assert volume.dtype == torch.float32
    assert volume.affine.dtype == torch.float64
    assert volume.meta["original_shape"] == image.GetSize()
    index = np.random.default_rng(0).integers(0, geometry.shape, (1000, 3))
    lps = geometry.to_mm(index) @ LPS_TO_RAS[:3, :3]
    at = np.array([image.TransformPhysicalPointToIndex(point.tolist()) for point in lps])
    expected = theirs[at[:, 2], at[:, 1], at[:, 0]].astype(float)
    if "_mr_" not in name:
        expected[expected < -1500] = -1024
    np.testing.assert_array_equal(volume[0].numpy()[tuple(index.T)], expected)


@needs_shared
def test_liver_is_liver() -> None:
    """Image stored LPS, mask stored LAS: 89 HU when both are turned, −75 when the axes are confused."""
    volume = read(SHARED / "abdomen_dicom_totalseg/dicom")
    mask = read_mask(SHARED / "abdomen_dicom_totalseg/seg.nii.gz")
    assert Geometry.of(volume).is_close(Geometry.of(mask))
    assert mask.meta["labels"][5] == "liver"
    assert float(volume[mask == 5].mean()) == pytest.approx(89, abs=1)
    assert Geometry.of(volume).spacing == pytest.approx((0.9765625, 0.9765625, 2.0))  # SliceThickness says 3


@needs_shared
def test_implant_is_in_the_left_femur() -> None:
    volume = read(SHARED / "abdomen_ct_totalseg/ct.nii.gz")
    place = Geometry.of(volume).to_mm(np.argwhere(volume[0].numpy() > 2500)).mean(0)
    np.testing.assert_allclose(place, (-118, 122, 110), atol=2)  # RAS: negative x is the patient's left


@needs_shared
def test_slicer_segments_have_names_and_sides() -> None:
    mask = read_mask(SHARED / "chest_ct_slicerio/Segmentation.seg.nrrd")
    assert mask.meta["labels"][5] == "right lung"
    volume = read(SHARED / "chest_ct_slicerio/CTChest4.nrrd")
    assert float(volume.min()) >= -1500  # padding −3024 became air
    right, left = (Geometry.of(mask).to_mm(np.argwhere(mask[0].numpy() == label)).mean(0)[0] for label in (5, 6))
    assert right > left


@needs_shared
def test_mr_is_refused_as_ct_and_taken_as_mr() -> None:
    path = SHARED / "abdomen_mr_totalseg/mr.nii.gz"
    with pytest.raises(ValueError, match=r'mr.nii.gz: values from -\d+ to \d+, .* pass modality="MR"'):
        read(path)
    assert read(path, modality="MR").meta["modality"] == "MR"


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "SAL", "ILP"])
def test_any_orientation_is_the_same_volume(codes: str, tmp_path: Path) -> None:
    import nibabel as nib
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    array, affine = body(), oblique(degrees=5)
    image = nib.Nifti1Image(array, affine)
    turned = image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(codes)))
    path = save_nifti(tmp_path / "ct.nii", np.asarray(turned.dataobj), turned.affine)
    volume = read(path)
    np.testing.assert_array_equal(volume[0].numpy(), array)
    np.testing.assert_allclose(volume.affine.numpy(), affine, atol=1e-4)
    np.testing.assert_allclose(volume.meta["original_affine"], turned.affine, atol=1e-4)


def test_padding_becomes_air(tmp_path: Path) -> None:
    array = body()
    array[:3] = -3024
    array[3:5] = -2000
    array[5] = -1200  # ringing of a sharp kernel: kept
    volume = read(save_nifti(tmp_path / "ct.nii.gz", array))
    assert (volume[0, :5] == -1024).all()
    assert (volume[0, 5] == -1200).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hu: hu + 1024, r"0.00 % below −200: no air"),  # intercept not applied
        (lambda hu: np.where(hu < -500, -2000, hu + 1024), r"no air"),  # the same, with padding
        (lambda hu: hu - 1024, r"no soft tissue, so this is not HU \(rescale slope or intercept applied twice"),
        (lambda hu: np.abs(hu) / 100, r"no air"),  # PET in SUV
        (lambda hu: (hu + 1024) / 4096, r"values from 0\.00 to 0\.\d\d,"),  # normalised by somebody: both numbers told
    ],
)
def test_values_that_cannot_be_hu(change, message: str, tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "ct.nii", change(body()).astype(np.float32))
    with pytest.raises(ValueError, match=message):
        read(path)
    assert read(path, modality="CT").meta["modality"] == "CT"


def test_nan_is_refused(tmp_path: Path) -> None:
    array = body().astype(np.float32)
    array[3, 4, 5] = np.nan
    with pytest.raises(ValueError, match=r"1 of 5760 voxels are NaN"):
        read(save_nifti(tmp_path / "ct.nii", array), modality="CT")


def test_missing_file_names_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no/ct.nii.gz: no such file .*nearest folder that exists"):
        read(tmp_path / "no" / "ct.nii.gz")


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.nrrd", "ct.mha", "ct.dcm", "ct.txt", "ct.hdr", "ct.npy"])
@pytest.mark.parametrize("content", [b"", b"not an image, just some text\n" * 30, b"\x93NUMPY\x01\x00" + bytes(500)])
def test_not_an_image(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read(tmp_path / name)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty folder; give the folder that holds the DICOM files"):
        read(tmp_path)


def test_masks_are_whole_numbers(tmp_path: Path) -> None:
    labels = (body() > -500).astype(np.float64) * 3
    mask = read_mask(save_nifti(tmp_path / "m.nii", labels))
    assert mask.dtype == torch.int16
    assert sorted(mask.unique().tolist()) == [0, 3]
    stretched = save_nifti(tmp_path / "s.nii", (labels * 85).astype(np.uint8), scl_slope=1 / 85, scl_inter=0)
    assert torch.equal(read_mask(stretched).as_tensor(), mask.as_tensor()), "255 / 85 is 3.0000001"
    with pytest.raises(ValueError, match=r"of 5760 voxels are not whole numbers: a probability map"):
        read_mask(save_nifti(tmp_path / "p.nii", labels / 7))
    with pytest.raises(ValueError, match=r"0 to 90000 do not fit int16"):
        read_mask(save_nifti(tmp_path / "l.nii", (labels * 30000).astype(np.int32)))
