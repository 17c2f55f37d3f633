"""NIfTI's traps, each as a small file."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import MetaTensor
from volume_files import body, oblique, save_nifti

from vol3d.volume.grid import Grid
from vol3d.volume.read import read, read_mask

Reading = Callable[[Path], MetaTensor]
both_ways = pytest.mark.parametrize(
    "reading", [read, Grid(spacing=(2, 2, 4), shape=(12, 10, 9)).read], ids=["whole", "by slices"]
)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_both_versions(kind: type, suffix: str, tmp_path: Path) -> None:
    nib.save(kind(body(), oblique()), tmp_path / f"ct{suffix}")
    volume = read(tmp_path / f"ct{suffix}")
    np.testing.assert_array_equal(volume[0].numpy(), body())
    np.testing.assert_allclose(volume.affine.numpy(), oblique(), atol=1e-4)


def test_header_and_voxels_in_two_files(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(body(), oblique()), tmp_path / "ct.hdr")
    for name in ("ct.hdr", "ct.img"):
        np.testing.assert_array_equal(read(tmp_path / name)[0].numpy(), body())
    (tmp_path / "ct.img").unlink()
    with pytest.raises(ValueError, match=r"its other half ct.img is missing"):
        read(tmp_path / "ct.hdr")


def test_big_endian(tmp_path: Path) -> None:
    image = nib.Nifti1Image(body(), oblique(), nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "ct.nii")
    assert (tmp_path / "ct.nii").read_bytes()[:4] == b"\0\0\x01\x5c"
    np.testing.assert_array_equal(read(tmp_path / "ct.nii")[0].numpy(), body())


def test_slope_and_intercept(tmp_path: Path) -> None:
    image = nib.Nifti1Image(body() + 1024, oblique())
    nib.save(image, tmp_path / "ct.nii")
    raw = bytearray((tmp_path / "ct.nii").read_bytes())
    raw[112:120] = np.array([1, -1024], "<f4").tobytes()
    (tmp_path / "ct.nii").write_bytes(raw)
    np.testing.assert_array_equal(read(tmp_path / "ct.nii")[0].numpy(), body())


def test_slope_zero_means_stored_values(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "ct.nii", body())
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([0, 77], "<f4").tobytes()
    path.write_bytes(raw)
    np.testing.assert_array_equal(read(path)[0].numpy(), body())


def test_metres_become_millimetres(tmp_path: Path) -> None:
    affine = np.diag([0.0015, 0.0015, 0.003, 1.0])
    volume = read(save_nifti(tmp_path / "ct.nii", body(), affine, xyzt_units=1 | 8))
    assert volume.meta["spacing"] == pytest.approx((1.5, 1.5, 3.0))
    assert "header in metres, converted to mm" in volume.meta["notes"]
    with pytest.raises(ValueError, match=r"voxel size 0.0015×0.0015×0.003 mm: outside 0.01 to 100 mm"):
        read(save_nifti(tmp_path / "no_unit.nii", body(), affine, xyzt_units=0))


def test_zero_pixdim(tmp_path: Path) -> None:
    pixdim = np.array([1, 0, 0, 0, 0, 0, 0, 0], np.float32)
    volume = read(save_nifti(tmp_path / "sform.nii", body(), pixdim=pixdim))
    assert volume.meta["spacing"] == pytest.approx((1.5, 1.5, 3.0))
    assert volume.meta["notes"] == ["pixdim is 0×0×0, voxel size 1.5×1.5×3 mm taken from the sform"]
    with pytest.raises(ValueError, match=r"voxel size 0×0×0 in pixdim"):
        read(save_nifti(tmp_path / "qform.nii", body(), pixdim=pixdim, sform_code=0))


def test_no_orientation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="left and right are unknown"):
        read(save_nifti(tmp_path / "ct.nii", body(), sform_code=0, qform_code=0))


def test_forms_that_disagree(tmp_path: Path) -> None:
    image = nib.Nifti1Image(body(), np.diag([1.5, 1.5, 3, 1]))
    image.set_qform(np.diag([-1.5, -1.5, 3, 1]), code=1)
    image.set_sform(np.diag([1.5, 1.5, 3, 1]), code=1)
    nib.save(image, tmp_path / "ct.nii")
    with pytest.raises(ValueError, match=r"sform says RAS at 1.5×1.5×3 mm, qform says LPS at 1.5×1.5×3 mm"):
        read(tmp_path / "ct.nii")


def test_forms_that_lie_apart_are_told_by_how_much(tmp_path: Path) -> None:
    image = nib.Nifti1Image(body(), np.diag([1.5, 1.5, 3, 1]))
    image.set_qform(np.diag([1.5, 1.5, 3, 1]), code=1)
    image.set_sform(np.array([[1.5, 0, 0, 30], [0, 1.5, 0, 0], [0, 0, 3, -40], [0, 0, 0, 1]]), code=1)
    nib.save(image, tmp_path / "ct.nii")
    volume = read(tmp_path / "ct.nii")
    assert volume.affine[:3, 3].tolist() == [30, 0, -40]
    assert volume.meta["notes"] == [
        "sform and qform lie up to 50 mm apart; sform taken, other programs may take the qform"
    ]


def test_sheared_affine_is_straightened(tmp_path: Path) -> None:
    """A point keeps its place: the bubble lies where the sheared affine puts it."""
    array = np.full((30, 40, 24), 40, np.int16)
    array[:3] = -1000
    array[12:18, 18:24, 10:14] = -800
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 2 * np.tan(np.radians(12))
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "ct.nii")
    volume = read(tmp_path / "ct.nii")
    linear = volume.affine.numpy()[:3, :3]
    np.testing.assert_allclose(linear.T @ linear, np.diag([1, 1, 4]), atol=1e-6)
    assert "12.0° off a right angle (gantry tilt): resampled" in volume.meta["notes"][0]
    index = np.argwhere((volume[0].numpy() < -600) & (volume[0].numpy() > -900))[:, :3]
    place = (index @ linear.T + volume.affine.numpy()[:3, 3]).mean(0)
    np.testing.assert_allclose(place, (affine @ [14.5, 20.5, 11.5, 1])[:3], atol=0.6)
    np.testing.assert_allclose(volume.meta["original_affine"], affine, atol=1e-6)
    assert volume.meta["original_shape"] == (30, 40, 24)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 6, 3), np.int16), r"4×5×6×3: a series of 3 volumes"),
        (np.zeros((4, 5, 6), np.complex64), r"complex voxels \(NIfTI datatype 32\)"),
        (np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), r"colour voxels \(NIfTI datatype 128\)"),
        (np.zeros((4, 5), np.int16), r"4×5: a single slice"),
        (np.zeros((4, 5, 1), np.int16), r"4×5×1: a single slice, not a volume; give the whole series"),
    ],
)
def test_not_one_grey_volume(array: np.ndarray, message: str, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "ct.nii")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "ct.nii")


def test_fourth_axis_of_one(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(save_nifti(tmp_path / "ct.nii", body()[..., None]))[0].numpy(), body())


@both_ways
@pytest.mark.parametrize("cut", [100, 348, 400, 5000])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_is_refused_whole(reading: Reading, cut: int, suffix: str, tmp_path: Path) -> None:
    path = save_nifti(tmp_path / f"ct{suffix}", body())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=f"ct{suffix}"):
        reading(path)


def test_last_bytes_missing(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "ct.nii", body())
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"\(11520 bytes\), the file holds 11518 bytes"):
        read(path)


@both_ways
@pytest.mark.parametrize("missing", [1, 4, 8])
def test_gzip_trailer_missing(reading: Reading, missing: int, tmp_path: Path) -> None:
    """All voxels are there, the checksum is not: nibabel reads this file without a word."""
    path = save_nifti(tmp_path / "ct.nii.gz", body())
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(ValueError, match="broken compressed data"):
        reading(path)


@both_ways
def test_broken_checksum(reading: Reading, tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "ct.nii.gz", body())
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="broken compressed data"):
        reading(path)


@both_ways
def test_every_flipped_bit_is_seen(reading: Reading, tmp_path: Path) -> None:
    """gzip's checksum covers header and voxels: no single wrong bit may give a volume."""
    path = save_nifti(tmp_path / "ct.nii.gz", body((10, 9, 8)))
    good, expected = path.read_bytes(), reading(path)
    for at in np.random.default_rng(0).integers(18, len(good), 40):
        raw = bytearray(good)
        raw[at] ^= 1 << int(at % 8)
        path.write_bytes(raw)
        try:
            assert (reading(path).numpy() == expected.numpy()).all()  # a bit that nothing reads (a block's padding)
        except ValueError as error:
            assert "ct.nii.gz" in str(error)  # noqa: PT017  # either outcome is right


@both_ways
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_claims_a_trillion_voxels(reading: Reading, suffix: str, tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "ct.nii", body(), dim=np.array([3, 10000, 10000, 10000, 1, 1, 1, 1], np.int16))
    if suffix == ".nii.gz":
        path = tmp_path / "ct.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "ct.nii").read_bytes()))
    with pytest.raises(ValueError, match=r"10000×10000×10000 = 1e\+12 voxels; 1 to 4e\+09 can be read"):
        reading(path)


def test_a_header_that_claims_more_than_deflate_can_hold(tmp_path: Path) -> None:
    raw = save_nifti(tmp_path / "ct.nii", body(), dim=np.array([3, 1000, 1000, 900, 1, 1, 1, 1], np.int16)).read_bytes()
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(raw))
    with pytest.raises(ValueError, match=r"header claims 1000×1000×900 voxels of int16 \(1800000000 bytes\)"):
        read(tmp_path / "ct.nii.gz")


@both_ways
def test_a_decompression_bomb_behind_the_voxels(reading: Reading, tmp_path: Path) -> None:
    raw = save_nifti(tmp_path / "ct.nii", body()).read_bytes()
    with gzip.open(tmp_path / "ct.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(raw)
        for _ in range(70):
            stream.write(bytes(1 << 20))
    with pytest.raises(ValueError, match="more than 64 MiB of other data"):
        reading(tmp_path / "ct.nii.gz")


def test_names_of_labels_from_the_header(tmp_path: Path) -> None:
    xml = b'<CaretExtension><LabelTable><Label Key="5">liver</Label></LabelTable></CaretExtension>'
    image = nib.Nifti1Image((body() > 0).astype(np.uint8) * 5, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, xml))
    nib.save(image, tmp_path / "m.nii.gz")
    assert read_mask(tmp_path / "m.nii.gz").meta["labels"] == {5: "liver"}


def test_fuzzed_headers_raise_or_read(tmp_path: Path) -> None:
    """Random header bytes: a volume, or a ValueError that names the file; never another exception or a huge array."""
    path = save_nifti(tmp_path / "ct.nii", body((8, 7, 6)))
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        raw = bytearray(good)
        for at in rng.integers(0, 348, 3):
            raw[at] = int(rng.integers(0, 256))
        path.write_bytes(raw)
        try:
            assert read(path).numel() < 10**6
        except ValueError as error:
            assert "ct.nii" in str(error)  # noqa: PT017


def test_bgzip_members(tmp_path: Path) -> None:
    """gzip files written in several members (bgzip, pigz -i) are read to their end."""
    raw = save_nifti(tmp_path / "ct.nii", body()).read_bytes()
    out = io.BytesIO()
    for start in range(0, len(raw), 3000):
        out.write(gzip.compress(raw[start : start + 3000]))
    (tmp_path / "ct.nii.gz").write_bytes(out.getvalue())
    np.testing.assert_array_equal(read(tmp_path / "ct.nii.gz")[0].numpy(), body())
