"""DICOM as scanners and archives really write it, each trap as a few small slices."""

import io
import logging
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)
from volume_files import body, dicom_series, dicom_slice, save_dicom

from vol3d.volume.geometry import Geometry
from vol3d.volume.read import read, read_mask

HU = body()
RAS = HU[::-1, ::-1]  # columns run to the Left and rows to Posterior


def test_a_series(tmp_path: Path) -> None:
    """File names sort against the slices, SliceThickness is 5, the distance is 2."""
    volume = read(save_dicom(tmp_path, dicom_series(HU)))
    np.testing.assert_array_equal(volume[0].numpy(), RAS)
    geometry = Geometry.of(volume)
    assert geometry.spacing == pytest.approx((0.75, 0.8, 2.0))
    np.testing.assert_allclose(geometry.to_mm((23, 19, 0)), (50, 60, -100))
    assert volume.meta["original_shape"] == HU.shape
    assert volume.meta["modality"] == "CT"


def test_nothing_of_the_patient_is_kept_or_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        volume = read(save_dicom(tmp_path, dicom_series(HU)))
    assert "secret" not in (caplog.text + str(volume.meta)).lower()


def test_several_series_are_named_and_chosen(tmp_path: Path) -> None:
    save_dicom(tmp_path, dicom_series(HU))
    save_dicom(
        tmp_path / "deep" / "er",
        dicom_series(HU[:, :, :5], SeriesInstanceUID="1.2.3.5", SeriesNumber=7, SeriesDescription="Lung sharp"),
    )
    with pytest.raises(ValueError, match=r"2 series; choose one with series=.*Thorax 1.0.*Lung sharp"):
        read(tmp_path)
    for choice in ("1.2.3.5", 7, "7", "lung SHARP", "sharp"):
        assert read(tmp_path, series=choice).shape[-1] == 5
    assert read(tmp_path, series="Thorax 1.0").shape[-1] == 12
    with pytest.raises(ValueError, match=r"series='abdomen' is none of the 2"):
        read(tmp_path, series="abdomen")


def test_slope_and_intercept_of_each_slice(tmp_path: Path) -> None:
    slices = dicom_series(HU)
    for number, one in enumerate(slices):
        intercept = -1024 + 10 * (number % 3)
        stored = (HU[:, :, number].T - intercept).astype(np.int16)
        one.RescaleIntercept, one.PixelData, one.PixelRepresentation = intercept, stored.tobytes(), 1
    np.testing.assert_array_equal(read(save_dicom(tmp_path, slices))[0].numpy(), RAS)


def test_fractional_slope(tmp_path: Path) -> None:
    volume = read(save_dicom(tmp_path, dicom_series(HU, RescaleSlope=0.5, RescaleIntercept=-1000)), modality="CT")
    np.testing.assert_allclose(volume[0].numpy(), (RAS + 1024) * 0.5 - 1000)


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)]
)
def test_every_orientation_is_one_patient(orientation: tuple[int, ...], tmp_path: Path) -> None:
    """Feet first, sagittal, coronal: each voxel keeps its place in the patient."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    stored = (HU + 1024).astype(np.uint16)
    first = np.array([-40.0, 30.0, 20.0])
    slices = [
        dicom_slice(np.ascontiguousarray(stored[:, :, k].T), first + 2 * k * normal, orientation, PatientPosition="FFS")
        for k in range(HU.shape[2])
    ]
    volume = read(save_dicom(tmp_path, slices))
    geometry = Geometry.of(volume)
    assert geometry.axcodes == "RAS"
    for i, j, k in [(0, 0, 0), (5, 3, 2), (23, 19, 11), (10, 1, 7)]:
        lps = first + i * 0.75 * row + j * 0.8 * column + 2 * k * normal
        at = geometry.to_index(lps * [-1, -1, 1])
        assert volume[0][tuple(np.rint(at).astype(int))] == HU[i, j, k]
        np.testing.assert_allclose(at, np.rint(at), atol=1e-6)


def test_duplicate_slices(tmp_path: Path) -> None:
    slices = dicom_series(HU)
    with pytest.raises(ValueError, match=r"1 duplicate slices: .* both lie at -94.00 mm"):
        read(save_dicom(tmp_path, [*slices, slices[3]]))


def test_missing_slice(tmp_path: Path) -> None:
    slices = dicom_series(HU)
    folder = save_dicom(tmp_path, slices[:4] + slices[5:])
    with pytest.raises(
        ValueError, match=r"usually 2.00 mm apart, but 4.00 mm after IM\d+ \(1 uneven gaps, about 1 sli"
    ):
        read(folder)
    volume = read(folder, irregular="resample")
    assert volume.shape[-1] == 12
    np.testing.assert_allclose(volume[0, :, :, 4], (RAS[:, :, 3] + RAS[:, :, 5].astype(float)) / 2)
    np.testing.assert_array_equal(volume[0, :, :, 11], RAS[:, :, 11])
    assert volume.meta["notes"] == ["slices 2.00 to 4.00 mm apart, resampled to 2.00 mm"]


def test_last_slice_apart(tmp_path: Path) -> None:
    slices = dicom_series(HU)
    with pytest.raises(ValueError, match="about 2 slices missing"):
        read(save_dicom(tmp_path, slices[:9] + slices[11:]))


def test_rounded_positions_are_even(tmp_path: Path) -> None:
    """0.625 mm steps written as 0.6 and 0.7."""
    slices = dicom_series(HU)
    for number, one in enumerate(slices):
        one.ImagePositionPatient = [-50, -60, round(0.625 * number, 1)]
    assert Geometry.of(read(save_dicom(tmp_path, slices))).spacing[2] == pytest.approx(0.625, abs=0.01)


def test_gantry_tilt(tmp_path: Path) -> None:
    """The couch moves along z while the slices lean by 15°: resampled to a right angle, everything in place."""
    hu = np.full((24, 40, 24), 40, np.int16)
    hu[:2] = -1000
    hu[10:14, 16:22, 9:15] = -700
    angle = np.radians(15)
    orientation = (1, 0, 0, 0, np.cos(angle), np.sin(angle))
    stored = (hu + 1024).astype(np.uint16)
    slices = [
        dicom_slice(np.ascontiguousarray(stored[:, :, k].T), (0, 0, 2.0 * k), orientation, GantryDetectorTilt=15)
        for k in range(24)
    ]
    volume = read(save_dicom(tmp_path, slices))
    assert "15.0° off a right angle (gantry tilt): resampled" in volume.meta["notes"][0]
    assert Geometry.of(volume).shear_degrees < 1e-6
    values = volume[0].numpy()
    place = Geometry.of(volume).to_mm(np.argwhere((values < -500) & (values > -900))).mean(0)
    i, j, k = 11.5, 18.5, 11.5
    lps = np.array([i * 0.75, j * 0.8 * np.cos(angle), j * 0.8 * np.sin(angle) + 2 * k])
    np.testing.assert_allclose(place, lps * [-1, -1, 1], atol=0.5)
    assert volume.meta["original_shape"] == (24, 40, 24)


def test_what_is_not_a_slice_is_left_aside(tmp_path: Path) -> None:
    slices = dicom_series(HU)
    other = slices[0].Rows, slices[0].Columns
    stored = np.zeros(other, np.uint16)
    scout = dicom_slice(stored, (0, 0, 0), (1, 0, 0, 0, 0, -1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    capture = dicom_slice(stored, (0, 0, 0), SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    dose = dicom_slice(stored, (0, 0, 0), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67", PixelData=None, Rows=None)
    save_dicom(tmp_path, slices)
    save_dicom(tmp_path, [scout, capture, dose], prefix="X")
    (tmp_path / "README.txt").write_text("hello " * 50)
    (tmp_path / ".DS_Store").write_bytes(b"x" * 500)
    np.testing.assert_array_equal(read(tmp_path)[0].numpy(), RAS)
    for one in tmp_path.glob("IM*"):
        one.unlink()
    with pytest.raises(ValueError, match=r"no CT, MR or PET image in it \(.*1 × localizer"):
        read(tmp_path)


def test_empty_class_private_and_empty_tags(tmp_path: Path) -> None:
    slices = dicom_series(HU, SOPClassUID="", SeriesNumber=None, SeriesDescription="")
    for one in slices:
        one.add_new((0x0009, 0x0010), "LO", "VENDOR")
        one.add_new((0x0009, 0x1001), "UN", b"\x00\x01private")
        one.SliceThickness, one.AcquisitionNumber, one.KVP = None, "", None
    np.testing.assert_array_equal(read(save_dicom(tmp_path, slices))[0].numpy(), RAS)


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("PixelSpacing", None, "no PixelSpacing: the pixels' size in mm is unknown"),
        ("PixelSpacing", [0, 0.8], "PixelSpacing 0×0.8 mm"),
        ("ImagePositionPatient", None, "no ImagePositionPatient"),
        ("ImageOrientationPatient", None, "no ImageOrientationPatient"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "not two orthogonal unit vectors"),
        ("SamplesPerPixel", 3, r"3 values a pixel \(colour\)"),
        ("RescaleSlope", 0, "RescaleSlope 0"),
        ("RescaleType", "MGML", "values are 'MGML', not HU"),
        ("Rows", 19, "copy or export it again|two kinds"),
    ],
)
def test_refused_slices(tag: str, value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read(save_dicom(tmp_path, dicom_series(HU, **{tag: value})))


def test_two_sizes_in_one_series(tmp_path: Path) -> None:
    slices = dicom_series(HU)
    slices[5] = dicom_slice(np.zeros((10, 24), np.uint16), (-50, -60, -90))
    with pytest.raises(ValueError, match=r"pixels 24×20, .* has 24×10"):
        read(save_dicom(tmp_path, slices))


def test_intercept_forgotten(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no air, so this is not HU"):
        read(save_dicom(tmp_path, dicom_series(HU, RescaleIntercept=None, RescaleSlope=None)))


def test_a_field_of_view_without_air(tmp_path: Path) -> None:
    """A small reconstruction inside the body: DICOM's own intercept says that it is HU."""
    hu = HU.clip(-90, None)
    np.testing.assert_array_equal(read(save_dicom(tmp_path, dicom_series(hu)))[0].numpy(), hu[::-1, ::-1])


def test_intercept_applied_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no soft tissue, so this is not HU"):
        read(save_dicom(tmp_path, dicom_series((HU - 1024).clip(-1024, None), RescaleIntercept=-2048)))


def test_padding_value_becomes_air(tmp_path: Path) -> None:
    stored = (HU + 1024).astype(np.int16)
    stored[:2] = -900  # −1924 HU after rescale … and −1000 in another file would look like real air
    slices = [
        dicom_slice(np.ascontiguousarray(stored[:, :, k].T), (-50, -60, 2 * k), PixelPaddingValue=-900)
        for k in range(12)
    ]
    volume = read(save_dicom(tmp_path, slices))
    assert (volume[0, -2:] == -1024).all()
    np.testing.assert_array_equal(volume[0, :-2].numpy(), RAS[:-2])


def test_padding_that_tissue_may_have_is_told(tmp_path: Path) -> None:
    """Values stored in HU whose padding is said to be 0: water turns to air, as the file wants it."""
    slices = [
        dicom_slice(np.ascontiguousarray(HU[:, :, k].T), (-50, -60, 2 * k), PixelPaddingValue=0, RescaleIntercept=0)
        for k in range(12)
    ]
    volume = read(save_dicom(tmp_path / "zero", slices))
    assert volume.meta["notes"] == [
        "PixelPaddingValue is 0 HU, which tissue has too: all voxels of that value became air"
    ]
    assert (volume[0].numpy()[RAS == 0] == -1024).all()
    assert read(save_dicom(tmp_path / "air", dicom_series(HU, PixelPaddingValue=0))).meta["notes"] == []


@pytest.mark.parametrize("multi_frame", [False, True])
def test_padding_of_signed_pixels_written_unsigned(multi_frame: bool, tmp_path: Path) -> None:
    """Padding is −900 in the pixels and 64636 in the tag; rescaled it lies where air is, so that nothing else tells."""
    stored = HU.copy()
    stored[:2] = -900
    slices = [
        dicom_slice(np.ascontiguousarray(stored[:, :, k].T), (-50, -60, 2 * k), RescaleIntercept=0) for k in range(12)
    ]
    if multi_frame:
        slices = [enhanced(stored)]
        slices[0].PixelData = (
            np.frombuffer(slices[0].PixelData, np.uint16).astype(np.int16) - np.int16(1024)
        ).tobytes()
        slices[0].PixelRepresentation = 1
        slices[0].SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleIntercept = 0
    for one in slices:
        one.add_new("PixelPaddingValue", "US", 64636)
    folder = save_dicom(tmp_path, slices)
    for file in folder.iterdir():
        assert pydicom.dcmread(file)["PixelPaddingValue"].value == 64636
    volume = read(folder)
    assert (volume[0, -2:] == -1024).all()
    assert volume.meta["notes"] == []


@pytest.mark.parametrize("storage", ["66.4", "481.3"])
def test_contours_are_no_label_map(storage: str, tmp_path: Path) -> None:
    contours = dicom_slice(HU[:, :, 0], (0, 0, 0), SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{storage}")
    with pytest.raises(ValueError, match=r"as a mask, these contours saved as a label map \(NIfTI or .seg.nrrd"):
        read_mask(save_dicom(tmp_path, [contours]))


def test_one_slice_is_no_volume(tmp_path: Path) -> None:
    folder = save_dicom(tmp_path, dicom_series(HU)[:1])
    for path in (folder, next(folder.iterdir())):
        with pytest.raises(ValueError, match="1 slice; a volume needs the whole series: give its folder"):
            read(path)


def test_mr_series(tmp_path: Path) -> None:
    folder = save_dicom(tmp_path, dicom_series(HU, SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR"))
    with pytest.raises(ValueError, match='its Modality is MR, not CT: pass modality="MR"'):
        read(folder)
    assert read(folder, modality="MR").meta["modality"] == "MR"
    with pytest.raises(ValueError, match="its Modality is MR, not CT"):
        read(folder, modality="CT")


def test_an_mr_has_a_unit_of_its_own(tmp_path: Path) -> None:
    """Philips writes RescaleType "normalized" into its MR, and enhanced MR must have one."""
    slices = dicom_series(HU, SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR", RescaleType="normalized")
    folder = save_dicom(tmp_path, slices)
    np.testing.assert_array_equal(read(folder, modality="MR")[0].numpy(), RAS)
    with pytest.raises(ValueError, match='its Modality is MR, not CT: pass modality="MR"'):
        read(folder)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed_syntaxes(syntax: str, tmp_path: Path) -> None:
    slices = dicom_series(HU)
    for number, one in enumerate(slices):
        one.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            one.PixelData = np.frombuffer(one.PixelData, "<u2").astype(">u2").tobytes()
        one.save_as(tmp_path / f"{number}.dcm", implicit_vr=syntax == ImplicitVRLittleEndian,
                    little_endian=syntax != ExplicitVRBigEndian)  # fmt: skip
    np.testing.assert_array_equal(read(tmp_path)[0].numpy(), RAS)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("fallback", [False, True])
def test_compressed_syntaxes(syntax: str, fallback: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hu = body((64, 48, 3))
    slices = dicom_series(hu)
    for one in slices:
        one.compress(syntax, generate_instance_uid=False)
    if fallback:
        without_plugins(monkeypatch)
    np.testing.assert_array_equal(read(save_dicom(tmp_path, slices))[0].numpy(), hu[::-1, ::-1])


def without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no decoder of pydicom's knew any syntax: what users without the GPL plugins have for JPEG."""
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(lambda self: 1 / 0))


def test_jpeg_lossless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_plugins(monkeypatch)
    hu = body((64, 48, 3))
    slices = dicom_series(hu)
    for number, one in enumerate(slices):
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(tmp_path / "pixels.dcm"))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(sitk.GetImageFromArray((hu[:, :, number].T + 1024).astype(np.uint16)[None]))
        packed = pydicom.dcmread(tmp_path / "pixels.dcm")
        assert packed.file_meta.TransferSyntaxUID == JPEGLosslessSV1
        one.PixelData = packed.PixelData
        one["PixelData"].is_undefined_length = True
        one.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    np.testing.assert_array_equal(read(save_dicom(tmp_path / "ct", slices))[0].numpy(), hu[::-1, ::-1])


@pytest.mark.parametrize("fallback", [False, True])
def test_jpeg_baseline(fallback: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight bits, lossy: HU within a few grey levels."""
    if fallback:
        without_plugins(monkeypatch)
    hu = body((64, 48, 3))
    slices = dicom_series(hu, RescaleSlope=8, BitsAllocated=8, BitsStored=8, HighBit=7)
    for number, one in enumerate(slices):
        grey = np.clip((hu[:, :, number].T + 1024) / 8, 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(grey).save(stream, "JPEG", quality=98)
        one.PixelData = encapsulate([stream.getvalue()])
        one["PixelData"].is_undefined_length = True
        one.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    volume = read(save_dicom(tmp_path, slices))
    assert np.abs(volume[0].numpy() - hu[::-1, ::-1].clip(None, 1000)).mean() < 12


def test_deflated_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vol3d.volume.dicom._DEFLATED_LIMIT", 2**20)
    slices = dicom_series(np.full((1200, 1000, 2), -1024, np.int16))
    for one in slices:
        one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    folder = save_dicom(tmp_path, slices)
    assert max(file.stat().st_size for file in folder.iterdir()) < 10_000
    with pytest.raises(ValueError, match=r"\d+ bytes unpack to over 1048576: a decompression bomb"):
        read(folder)


@pytest.mark.parametrize("syntax", [None, JPEG2000Lossless, RLELossless])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_truncated_slice(syntax: str | None, share: float, tmp_path: Path) -> None:
    """No slice may be half there."""
    slices = dicom_series(body((48, 40, 4)))
    if syntax:
        for one in slices:
            one.compress(syntax, generate_instance_uid=False)
    save_dicom(tmp_path, slices)
    victim = sorted(tmp_path.iterdir())[2]
    raw = victim.read_bytes()
    victim.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(ValueError, match=victim.name):
        read(tmp_path)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_half_a_code_stream(syntax: str, tmp_path: Path) -> None:
    """The file is whole, its compressed pixels are not: no decoder's partly filled slice gets through."""
    slices = dicom_series(body((64, 48, 3)))
    for one in slices:
        one.compress(syntax, generate_instance_uid=False)
    frame = next(generate_frames(slices[1].PixelData, number_of_frames=1))
    slices[1].PixelData = encapsulate([frame[: len(frame) * 9 // 20 * 2]])
    with pytest.raises(ValueError, match=r"pixels cannot be decoded|broken pixels") as caught:
        read(save_dicom(tmp_path, slices))
    assert "\n" not in str(caught.value)


def enhanced(hu: np.ndarray) -> Dataset:
    """An Enhanced CT: one file, each frame's place and rescale in the functional groups, frames shuffled."""
    order = np.random.default_rng(0).permutation(hu.shape[2])
    stored = np.stack([(hu[:, :, k].T + 1024).astype(np.uint16) for k in order])
    moved = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    one = dicom_slice(stored[0], (0, 0, 0), SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", **dict.fromkeys(moved))
    one.NumberOfFrames, one.PixelData = len(order), stored.tobytes()

    def group(**tags: object) -> Sequence:
        item = Dataset()
        for name, value in tags.items():
            setattr(item, name, value)
        return Sequence([item])

    shared = Dataset()
    shared.PixelMeasuresSequence = group(PixelSpacing=[0.8, 0.75], SliceThickness=5)
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelValueTransformationSequence = group(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    one.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k in order:
        frame = Dataset()
        frame.PlanePositionSequence = group(ImagePositionPatient=[-50, -60, -100 + 2.0 * int(k)])
        frames.append(frame)
    one.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return one


def test_enhanced_multi_frame(tmp_path: Path) -> None:
    folder = save_dicom(tmp_path, [enhanced(HU)])
    for path in (folder, next(folder.iterdir())):
        volume = read(path)
        np.testing.assert_array_equal(volume[0].numpy(), RAS)
        assert Geometry.of(volume).spacing == pytest.approx((0.75, 0.8, 2.0))


def test_without_preamble(tmp_path: Path) -> None:
    """Old archives write the data set alone, without the 128 bytes and "DICM"."""
    slices = dicom_series(HU)
    for number, one in enumerate(slices):
        del one.file_meta
        one.save_as(tmp_path / str(number), implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(read(tmp_path)[0].numpy(), RAS)


def zipped(folder: Path, target: Path, name: str = "study/{}") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.writestr(zipfile.ZipInfo(name.format(file.name)), file.read_bytes(), zipfile.ZIP_DEFLATED)
    return target


def test_zip(tmp_path: Path) -> None:
    folder = save_dicom(tmp_path / "dicom", dicom_series(HU))
    np.testing.assert_array_equal(read(zipped(folder, tmp_path / "ct.zip"))[0].numpy(), RAS)


@pytest.mark.parametrize("name", ["../{}", "/etc/{}", "a/../../{}", "..\\{}", "C:/{}"])
def test_zip_that_climbs_out(name: str, tmp_path: Path) -> None:
    folder = save_dicom(tmp_path / "dicom", dicom_series(HU)[:2])
    with pytest.raises(ValueError, match="points outside the zip: refused"):
        read(zipped(folder, tmp_path / "ct.zip", name))


def test_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ct.zip", "w") as archive:
        entry = zipfile.ZipInfo("bomb.dcm")
        entry.compress_type = zipfile.ZIP_BZIP2
        archive.writestr(entry, bytes(50 << 20))
    with pytest.raises(ValueError, match="refused as a decompression bomb"):
        read(tmp_path / "ct.zip")


def test_broken_zip(tmp_path: Path) -> None:
    path = zipped(save_dicom(tmp_path / "dicom", dicom_series(HU)), tmp_path / "ct.zip")
    raw = bytearray(path.read_bytes())
    raw[2000] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"ct.zip: entry 'study/IM\d+' is broken"):
        read(path)
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"ct.zip"):
        read(path)


def test_link_out_of_the_folder(tmp_path: Path) -> None:
    elsewhere = save_dicom(tmp_path / "another patient", dicom_series(HU)[:1])
    folder = save_dicom(tmp_path / "study", dicom_series(HU)[1:])
    (folder / "link").symlink_to(next(elsewhere.iterdir()))
    with pytest.raises(ValueError, match="a link that leaves"):
        read(folder)


def test_fuzzed_slices_raise_or_read(tmp_path: Path) -> None:
    """Random bytes in a header: a volume, or a ValueError; never another exception."""
    folder = save_dicom(tmp_path, dicom_series(body((8, 7, 4))))
    victim = sorted(folder.iterdir())[1]
    good, rng = victim.read_bytes(), np.random.default_rng(0)
    for _ in range(120):
        raw = bytearray(good)
        for at in rng.integers(132, len(good) - 112, 4):
            raw[at] = int(rng.integers(0, 256))
        victim.write_bytes(raw)
        try:
            assert read(folder).numel() < 10**6
        except ValueError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017
