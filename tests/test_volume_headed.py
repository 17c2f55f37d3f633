"""NRRD and MetaImage against SimpleITK, and their traps."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from volume_files import body, oblique, save_nifti

from vol3d.volume.geometry import LPS_TO_RAS
from vol3d.volume.read import read, read_mask


def save_itk(path: Path, array: np.ndarray, affine: np.ndarray, *, packed: bool = False) -> Path:
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=packed)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.int32])
def test_what_simpleitk_writes(suffix: str, packed: bool, dtype: type, tmp_path: Path) -> None:
    volume = read(save_itk(tmp_path / f"ct{suffix}", body().astype(dtype), oblique(), packed=packed))
    np.testing.assert_array_equal(volume[0].numpy(), body())
    np.testing.assert_allclose(volume.affine.numpy(), oblique(), atol=1e-9)


NRRD = """NRRD0004
type: short
dimension: 3
space: {space}
sizes: 24 20 12
space directions: (1.5,0,0) (0,1.5,0) (0,0,3)
kinds: domain domain domain
endian: {endian}
encoding: {encoding}
space origin: (10,20,30)

"""


def save_nrrd(
    path: Path, *, space: str = "left-posterior-superior", endian: str = "little", encoding: str = "raw"
) -> Path:
    data = body().astype("<i2" if endian == "little" else ">i2").tobytes(order="F")
    data = gzip.compress(data) if encoding == "gzip" else data
    path.write_bytes(NRRD.format(space=space, endian=endian, encoding=encoding).encode() + data)
    return path


def test_nrrd_in_another_unit_becomes_millimetres(tmp_path: Path) -> None:
    def in_units(units: str) -> Path:
        path = save_nrrd(tmp_path / "ct.nrrd")
        path.write_bytes(path.read_bytes().replace(b"kinds:", f"space units: {units}\nkinds:".encode()))
        return path

    plain, centimetres = (read(in_units(units)).affine.numpy() for units in ('"mm" "mm" "mm"', '"cm" "cm" "cm"'))
    np.testing.assert_allclose(centimetres[:3], 10 * plain[:3])
    with pytest.raises(ValueError, match=r"voxel size 0.0015×0.0015×0.003 mm: .* or its space units, in its header"):
        read(in_units('"um" "um" "um"'))
    with pytest.raises(ValueError, match=r"space units .* vol3d knows"):
        read(in_units('"inch" "inch" "inch"'))


META = """ObjectType = Image
NDims = 3
BinaryData = {binary}
DimSize = 24 20 12
ElementSpacing = {spacing}
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""


def test_metaimage_as_text_is_not_read_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "ct.mha"
    header = META.format(binary="False", spacing="1 1 2")
    path.write_text(header + " ".join(map(str, body().ravel(order="F"))) + "\n")
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).shape == (12, 20, 24)
    with pytest.raises(ValueError, match=r"written as text \(BinaryData = False\); save it as binary"):
        read(path)


def test_metaimage_in_metres_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ct.mha"
    path.write_bytes(META.format(binary="True", spacing="0.001 0.001 0.002").encode() + body().tobytes(order="F"))
    with pytest.raises(ValueError, match=r"voxel size 0.001×0.001×0.002 mm: outside 0.01 to 100 mm"):
        read(path)


def test_nrrd_spaces_turn_to_ras(tmp_path: Path) -> None:
    lps = read(save_nrrd(tmp_path / "lps.nrrd"))
    np.testing.assert_array_equal(lps[0].numpy(), body()[::-1, ::-1])
    np.testing.assert_allclose(lps.meta["original_affine"][:3, 3], (-10, -20, 30))
    ras = read(save_nrrd(tmp_path / "ras.nrrd", space="right-anterior-superior", endian="big", encoding="gzip"))
    np.testing.assert_array_equal(ras[0].numpy(), body())
    np.testing.assert_allclose(ras.affine.numpy()[:3, 3], (10, 20, 30))
    with pytest.raises(ValueError, match="space 'scanner-xyz': left and right are unknown"):
        read(save_nrrd(tmp_path / "s.nrrd", space="scanner-xyz"))


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("cut", [1, 9, 4000])
def test_truncated_nrrd(encoding: str, cut: int, tmp_path: Path) -> None:
    path = save_nrrd(tmp_path / "ct.nrrd", encoding=encoding)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=r"truncated|broken compressed"):
        read(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cut", [1, 4, 4000])
def test_truncated_mha(packed: bool, cut: int, tmp_path: Path) -> None:
    path = save_itk(tmp_path / "ct.mha", body(), oblique(), packed=packed)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=r"truncated|broken compressed"):
        read(path)


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_voxels_outside_the_folder_are_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    path = save_itk(tmp_path / "study" / f"ct{suffix}", body(), oblique())
    data = next(file for file in path.parent.iterdir() if file != path)
    data.rename(tmp_path / data.name)
    with pytest.raises(ValueError, match="is missing; put it beside the header"):
        read(path)
    path.write_text(path.read_text().replace(data.name, f"../{data.name}"))
    with pytest.raises(ValueError, match=rf"outside its folder \('../{data.name}'\): refused"):
        read(path)


def test_a_trillion_voxels(tmp_path: Path) -> None:
    path = save_nrrd(tmp_path / "ct.nrrd")
    path.write_bytes(path.read_bytes().replace(b"24 20 12", b"10000 10000 10000"))
    with pytest.raises(ValueError, match=r"10000×10000×10000 = 1e\+12 voxels"):
        read(path)


def test_colour_nrrd(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    for suffix in ("nrrd", "mha"):
        sitk.WriteImage(image, str(tmp_path / f"c.{suffix}"))
        with pytest.raises(ValueError, match="not one grey volume"):
            read(tmp_path / f"c.{suffix}")


SEGMENTS = """NRRD0004
type: unsigned char
dimension: 4
space: right-anterior-superior
sizes: 2 6 5 4
space directions: none (1,0,0) (0,1,0) (0,0,1)
kinds: list domain domain domain
encoding: raw
space origin: (0,0,0)
Segment0_Name:=liver
Segment0_LabelValue:=1
Segment0_Layer:=0
Segment1_Name:=cyst
Segment1_LabelValue:=1
Segment1_Layer:=1

"""


def save_segments(path: Path, layers: np.ndarray) -> Path:
    path.write_bytes(SEGMENTS.encode() + layers.astype(np.uint8).tobytes(order="F"))
    return path


def test_layers_of_segments(tmp_path: Path) -> None:
    layers = np.zeros((2, 6, 5, 4))
    layers[0, :3] = 1
    layers[1, 4:] = 1
    mask = read_mask(save_segments(tmp_path / "m.seg.nrrd", layers))
    assert mask.meta["labels"] == {1: "liver", 2: "cyst"}
    assert (mask[0, :3] == 1).all()
    assert (mask[0, 4:] == 2).all()
    layers[1, 2, 0, 0] = 1
    with pytest.raises(ValueError, match=r"segments 'cyst' and 'liver' share 1 voxels.*segments=\['liver', 'cyst'\]"):
        read_mask(save_segments(tmp_path / "o.seg.nrrd", layers))


def test_overlapping_segments_are_chosen_by_name(tmp_path: Path) -> None:
    """Nothing of a segment is lost: each alone is whole, and together the last covers the others."""
    layers = np.zeros((2, 6, 5, 4))
    layers[0, :4], layers[1, 3:] = 1, 1
    path = save_segments(tmp_path / "o.seg.nrrd", layers)
    for name, number, inside in (("liver", 1, layers[0]), ("cyst", 2, layers[1])):
        mask = read_mask(path, segments=[name])
        np.testing.assert_array_equal(mask[0].numpy(), number * inside)
        assert mask.meta["labels"] == {number: name}
    assert (read_mask(path, segments=["liver", "cyst"])[0, 3] == 2).all()
    assert (read_mask(path, segments=["cyst", "liver"])[0, 3] == 1).all()
    with pytest.raises(ValueError, match=r"segment 'spleen' occurs 0 times; its segments are \['liver', 'cyst'\]"):
        read_mask(path, segments=["spleen"])
    with pytest.raises(ValueError, match="is not a list of names"):
        read_mask(path, segments="liver")
    path.write_bytes(path.read_bytes().replace(b"Segment1_Layer:=1", b"Segment1_Layer:=9"))
    with pytest.raises(ValueError, match="segment 'cyst' is in layer 9 of 2"):
        read_mask(path)


def test_segments_of_one_layer_and_of_none(tmp_path: Path) -> None:
    """One shared layer keeps its label values; a file without segments has none to choose."""
    body_ = np.zeros((6, 5, 4), np.uint8)
    body_[:2], body_[4:] = 5, 9
    text = SEGMENTS.replace("4\nspace:", "3\nspace:").replace("2 6 5 4", "6 5 4").replace("none ", "")
    text = text.replace("list domain", "domain").replace("0_LabelValue:=1", "0_LabelValue:=5")
    text = text.replace("1_LabelValue:=1", "1_LabelValue:=9").replace("1_Layer:=1", "1_Layer:=0")
    path = tmp_path / "one.seg.nrrd"
    path.write_bytes(text.encode() + body_.tobytes(order="F"))
    assert read_mask(path).meta["labels"] == {5: "liver", 9: "cyst"}
    mask = read_mask(path, segments=["cyst"])
    assert mask.meta["labels"] == {9: "cyst"}
    np.testing.assert_array_equal(mask[0].numpy(), np.where(body_ == 9, 9, 0))
    plain = save_nrrd(tmp_path / "plain.nrrd")
    with pytest.raises(ValueError, match="names no segments"):
        read_mask(plain, segments=["cyst"])
    other = save_nifti(tmp_path / "mask.nii", body_)
    with pytest.raises(ValueError, match=r"only 3D Slicer's .seg.nrrd has segments"):
        read_mask(other, segments=["cyst"])


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_fuzzed_headers_raise_or_read(suffix: str, tmp_path: Path) -> None:
    """Random header bytes: a volume, or a ValueError that names the file; never another exception."""
    path = save_itk(tmp_path / f"ct{suffix}", body((8, 7, 6)), oblique(), packed=True)
    good, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        raw = bytearray(good)
        for at in rng.integers(0, 320, 3):
            raw[at] = int(rng.choice(list(b"0123456789 .-:=ABz\n")))
        path.write_bytes(raw)
        try:
            assert read(path).numel() < 10**6
        except ValueError as error:
            assert path.name in str(error)  # noqa: PT017
