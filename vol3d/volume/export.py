"""Volumes and masks → files: NIfTI, NRRD, MetaImage, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vol3d.volume.atomic import atomic
from vol3d.volume.files import create_gzip
from vol3d.volume.geometry import LPS_TO_RAS, affine_of

if TYPE_CHECKING:
    from monai.data import MetaTensor

_NIFTI = (".nii", ".nii.gz")
_OTHER = (".nrrd", ".mha")


def write(volume: MetaTensor, path: str | os.PathLike[str]) -> Path:
    """Writes a volume or a mask with its affine; the format follows the suffix (.nii, .nii.gz, .nrrd, .mha).

    Whole numbers that fit are stored as int16 (uint8 for boolean masks), others as float32. The file appears only
    when it is complete. NIfTI stores the affine in single precision, NRRD and MetaImage in full. Label names in
    `.meta["labels"]` go into NRRD as 3D Slicer segments.

    Args:
        volume: (1, x, y, z) with `.affine`, RAS mm.

    Raises:
        ValueError: a suffix that is not written, several channels, NaN, whole numbers over 32 bits, or no affine.
    """
    path = Path(path)
    name = path.name.lower()
    check_suffix(path)
    affine = affine_of(volume)
    values = (volume.as_tensor() if hasattr(volume, "as_tensor") else volume).detach().cpu().numpy()
    if values.ndim != 4 or values.shape[0] != 1:
        raise ValueError(f"{path}: volume is {values.shape}, a file holds (1, x, y, z): write one channel at a time")
    array = _compact(values[0], path)
    with atomic(path) as temporary:
        if name.endswith(_NIFTI):
            _write_nifti(array, affine, temporary)
        else:
            _write_itk(array, affine, temporary, volume.meta.get("labels") or {})
    return path


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Whether `write` knows the format, told before a model runs.

    Raises:
        ValueError: a suffix that is not written.
    """
    if not Path(path).name.lower().endswith((*_NIFTI, *_OTHER)):
        raise ValueError(f"{path}: cannot write this suffix; use {', '.join((*_NIFTI, *_OTHER))}")


def _compact(values: NDArray[Any], path: Path) -> NDArray[Any]:
    """The smallest of uint8 (booleans), int16, int32 and float32 that holds the values exactly."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ValueError(f"{path}: {int((~np.isfinite(values)).sum())} voxels are NaN or infinite")
        if not (values == np.rint(values)).all() or np.abs(values).max(initial=0) > 2**31 - 1:
            return values.astype(np.float32)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < -(2**31) or high >= 2**31:
        raise ValueError(
            f"{path}: whole numbers from {low} to {high}, a file takes {-(2**31)} to {2**31 - 1}: number labels anew"
        )
    return values.astype(np.int16 if low >= -32768 and high <= 32767 else np.int32)


def _write_nifti(array: NDArray[Any], affine: NDArray[np.float64], path: Path) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.allclose(cosines.T @ cosines, np.eye(3), atol=1e-5):  # a qform holds no shear
        image.set_qform(affine, code=1)
    with create_gzip(path) if path.name.lower().endswith(".gz") else path.open("wb") as stream:
        image.to_stream(stream)


def _write_itk(array: NDArray[Any], affine: NDArray[np.float64], path: Path, labels: dict[int, str]) -> None:
    import SimpleITK as sitk  # noqa: N813

    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    if path.name.lower().endswith(".nrrd"):
        for index, (number, name) in enumerate(sorted(labels.items())):
            for key, value in (("ID", f"Segment_{number}"), ("Name", name), ("LabelValue", number), ("Layer", 0)):
                image.SetMetaData(f"Segment{index}_{key}", str(value))
    sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)
