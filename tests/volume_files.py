"""Small CT files for the tests of vol3d.volume: a body in air, written as NIfTI, NRRD or DICOM, right or wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from scipy.spatial.transform import Rotation

from vol3d.volume.geometry import Geometry

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real CTs of ../shared/data")
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


def body(shape: tuple[int, int, int] = (24, 20, 12), seed: int = 0) -> NDArray[np.int16]:
    """(x, y, z) HU: soft tissue with a gas bubble in air, noisy, and nothing symmetric about it."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    hu = np.where(x**2 + y**2 < 0.7, 40 + 30 * x + 10 * z, -1000)
    hu[(x - 0.4) ** 2 + (y + 0.2) ** 2 + z**2 < 0.05] = -700
    hu[(x + 0.5) ** 2 + (y - 0.1) ** 2 < 0.02] = 300
    return (hu + rng.normal(0, 8, shape)).clip(-1024, 3000).astype(np.int16)


def oblique(spacing: tuple[float, float, float] = (0.75, 0.8, 2.5), degrees: float = 12.0) -> NDArray[np.float64]:
    """A rotated RAS affine."""
    a, b = np.radians(degrees), np.radians(-degrees / 2)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag(spacing)
    affine[:3, 3] = (-100.25, 37.5, -812.125)
    return affine


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any rotation, any spacing, any handedness."""
    rotation = Rotation.from_euler("xyz", [draw(st.floats(-180, 180)) for _ in range(3)], degrees=True).as_matrix()
    spacing = [draw(st.floats(0.2, 8)) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing) @ np.diag([draw(st.sampled_from([-1, 1])), 1, 1])
    affine[:3, 3] = [draw(st.floats(-900, 900)) for _ in range(3)]
    return Geometry(affine, tuple(draw(st.integers(1, 9)) for _ in range(3)))


def save_nifti(path: Path, array: NDArray[Any], affine: NDArray[np.float64] | None = None, **header: Any) -> Path:
    """A NIfTI file; `header` fields overwrite what nibabel wrote (.nii only)."""
    affine = np.diag([1.5, 1.5, 3, 1.0]) if affine is None else affine
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nib.save(image, path)
    if header:
        raw = bytearray(path.read_bytes())
        for name, value in header.items():
            dtype, offset = nib.Nifti1Header().structarr.dtype.fields[name]
            raw[offset : offset + dtype.itemsize] = np.asarray(value).astype(dtype.base).tobytes()
        path.write_bytes(raw)
    return path


def dicom_slice(stored: NDArray[Any], position: Any, orientation: Any = (1, 0, 0, 0, 1, 0), **tags: Any) -> Dataset:
    """One CT slice (row, column) at an LPS position; `tags` overwrite, None removes."""
    slice_ = Dataset()
    slice_.SOPClassUID, slice_.SOPInstanceUID = CT_STORAGE, pydicom.uid.generate_uid()
    slice_.Modality, slice_.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    slice_.StudyInstanceUID, slice_.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    slice_.SeriesNumber, slice_.SeriesDescription = 2, "Thorax 1.0"
    slice_.PatientName, slice_.PatientID = "Secret^Name", "SECRET-ID"
    slice_.Rows, slice_.Columns = stored.shape
    slice_.PixelSpacing, slice_.SliceThickness = [0.8, 0.75], 5
    slice_.ImagePositionPatient = [round(float(v), 6) for v in position]
    slice_.ImageOrientationPatient = [round(float(v), 8) for v in orientation]
    slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
    slice_.PixelRepresentation = int(stored.dtype.kind == "i")
    slice_.PixelData = stored.tobytes()
    slice_.file_meta = FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_.file_meta.MediaStorageSOPClassUID = CT_STORAGE
    slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID
    for name, value in tags.items():
        if value is None:
            delattr(slice_, name)
        else:
            setattr(slice_, name, value)
    return slice_


def dicom_series(hu: NDArray[np.int16], gap: float = 2.0, **tags: Any) -> list[Dataset]:
    """`hu` (x, y, z) in DICOM's own order (columns to Left, rows to Posterior), one Dataset a slice."""
    stored = (hu + 1024).astype(np.uint16)
    return [
        dicom_slice(np.ascontiguousarray(stored[:, :, k].T), (-50, -60, -100 + gap * k), **tags)
        for k in range(hu.shape[2])
    ]


def save_dicom(folder: Path, slices: list[Dataset], prefix: str = "IM") -> Path:
    """Writes slices under names that sort against their order."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(slices):
        one.save_as(folder / f"{prefix}{(number * 7919) % 9973:04d}", enforce_file_format=True)
    return folder
