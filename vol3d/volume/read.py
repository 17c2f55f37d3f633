"""Any CT file or folder → one volume: (1, x, y, z), RAS, HU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vol3d.volume.files import existing, naming
from vol3d.volume.hounsfield import check_finite, check_hounsfield
from vol3d.volume.loaded import Loaded, thinned
from vol3d.volume.straighten import straighten

if TYPE_CHECKING:
    from monai.data import MetaTensor

_MAX_SHEAR_DEGREES = 0.1
_ROUNDING = 1e-3
"""How far a label may lie off its whole number: 255 voxels of a slope of 1/255 are not quite 1."""
_READABLE = "NIfTI (.nii, .nii.gz, .hdr + .img), NRRD, MHA/MHD, a DICOM folder or a zip of one"


def read(
    path: str | os.PathLike[str],
    *,
    series: str | int | None = None,
    modality: str | None = None,
    irregular: Literal["resample"] | None = None,
) -> MetaTensor:
    """Reads a CT volume, brought to the closest RAS by flips and permutations alone.

    Nothing is resampled, except that a sheared grid (tilted gantry) is straightened, with a note in
    `.meta["notes"]`. Values below −1500 HU (the scanner's padding) become air, −1024.

    Args:
        path: NIfTI, NRRD, MHA/MHD, a DICOM folder, a zip of one, or a multi-frame DICOM file.
        series: which DICOM series, by UID, number or description, when there are several.
        modality: "MR", "PT" or another name takes the values as they are; "CT" vouches that they are HU where the
            file does not say so. Left out, a file that cannot be HU is refused.
        irregular: "resample" interpolates unevenly spaced DICOM slices, which are refused otherwise.

    Shape:
        (1, x, y, z) float32. Memory order follows the file (often z slowest): call `.contiguous()` for `.view`.
        `.affine` (4, 4) float64, index → RAS mm. `.meta` holds filename, original_affine and original_shape (the
        file's own grid), spacing (mm), modality, notes; nothing of the patient's tags.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: not an image, truncated, one slice, several series, missing slices, not HU; names file and remedy.

    Example:
        >>> volume = vol3d.read("ct.nii.gz")  # doctest: +SKIP
        >>> volume.shape, vol3d.Geometry.of(volume).spacing  # doctest: +SKIP
        (torch.Size([1, 512, 512, 200]), (0.75, 0.75, 1.5))
    """
    loaded = load(path, series=series, modality=modality, irregular=irregular)
    return to_tensor(loaded, loaded.values(loaded.canonical()))


def read_mask(path: str | os.PathLike[str], *, segments: Sequence[str] | None = None) -> MetaTensor:
    """Reads a label map by the rules of `read`: (1, x, y, z) int16, RAS.

    `.meta["labels"]` is {number: name} when the file names its labels (.seg.nrrd, TotalSegmentator's NIfTI).

    Args:
        segments: of a 3D Slicer segmentation (.seg.nrrd), the names to take. Segments may overlap there and a label
            map cannot: a later one in this list covers an earlier one.

    Raises:
        ValueError: fractional values (a probability map), labels beyond int16, segments that overlap while none were
            chosen, or a name that the file does not have.

    Example:
        >>> mask = read_mask("liver.seg.nrrd", segments=["liver", "tumor"])  # doctest: +SKIP
    """
    found = existing(path)
    with naming(found):
        loaded = _load(found, None, None) if segments is None else _load_segments(found, segments)
        check_finite(loaded)
        if loaded.geometry.shear_degrees > _MAX_SHEAR_DEGREES:
            loaded = straighten(loaded, labels=True)
    values = np.array(loaded.canonical(), order="K")
    if (loaded.slope, loaded.intercept) != (1.0, 0.0) or values.dtype.kind == "f":
        exact = values * loaded.slope + loaded.intercept
        values = np.rint(exact)
        fractional = int((np.abs(exact - values) > _ROUNDING).sum())
        if fractional:
            raise ValueError(
                f"{loaded.path}: {fractional} of {values.size} voxels are not whole numbers: a probability map, not "
                "a label map; threshold it first"
            )
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < -32768 or high > 32767:
        raise ValueError(f"{loaded.path}: labels from {low} to {high} do not fit int16: not a label map?")
    tensor = to_tensor(loaded, values.astype(np.int16, order="K"))
    tensor.meta["labels"] = dict(loaded.labels)
    return tensor


def load(
    path: str | os.PathLike[str],
    *,
    series: str | int | None = None,
    modality: str | None = None,
    irregular: Literal["resample"] | None = None,
    unread: bool = False,
) -> Loaded:
    """The lower level of `read`: the voxels in the file's own order, checked, neither turned nor converted.

    Args:
        unread: leave them in the file where that can be (a .nii.gz), to be taken slice by slice, and checked then.
    """
    found = existing(path)
    with naming(found):
        loaded = _load(found, series, irregular, unread=unread)
        _check_slices(loaded)
        _settle_modality(loaded, modality.upper() if modality else None)
        if not loaded.unread:
            check_finite(loaded)
            loaded.check(loaded, thinned(loaded.array))
        return straighten(loaded) if loaded.geometry.shear_degrees > _MAX_SHEAR_DEGREES else loaded


def _check_slices(loaded: Loaded) -> None:
    """Refuses an image of one slice, from whatever file; a mask may be one, since it is laid onto its image's grid."""
    shape = loaded.geometry.shape
    if min(shape) < 2:
        size = "×".join(map(str, shape))
        raise ValueError(f"{loaded.path}: {size}: a single slice, not a volume; give the whole series")


def _settle_modality(loaded: Loaded, wanted: str | None) -> None:
    """What the file says it is, or what the user says; values that nobody vouches for must be able to be HU."""
    known = loaded.modality
    if known and wanted and known != wanted:
        raise ValueError(f'{loaded.path}: its Modality is {known}, not {wanted}: pass modality="{known}"')
    if known not in (None, "CT") and wanted is None:
        raise ValueError(f'{loaded.path}: its Modality is {known}, not CT: pass modality="{known}" to take it so')
    loaded.modality = known or wanted or "CT"
    if wanted is None:
        loaded.check = check_hounsfield


def to_tensor(loaded: Loaded, values: NDArray[Any]) -> MetaTensor:
    """Canonical values (x, y, z) with the geometry of `loaded` as a MetaTensor (1, x, y, z)."""
    from monai.data import MetaTensor

    affine = torch.from_numpy(np.array(loaded.geometry.canonical().affine))
    return MetaTensor(torch.from_numpy(values)[None], affine=affine, meta=loaded.meta())


def _load(
    path: Path, series: str | int | None, irregular: Literal["resample"] | None, *, unread: bool = False
) -> Loaded:
    """Chooses the reader by the file's first bytes, not by its name."""
    start = b""
    if not path.is_dir():
        with path.open("rb") as stream:
            start = stream.read(360)
        if not start:
            raise ValueError(f"{path}: an empty file; copy or export it again")
    if path.is_dir() or start[:4] == b"PK\x03\x04" or _is_dicom(start):
        from vol3d.volume.dicom import load_dicom

        return load_dicom(path, series=series, irregular=irregular)
    if start.startswith(b"NRRD"):
        from vol3d.volume.headed import load_nrrd

        return load_nrrd(path)
    if path.name.lower().endswith((".mha", ".mhd")):
        from vol3d.volume.headed import load_metaimage

        return load_metaimage(path)
    if _is_nifti(start) or path.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".hdr.gz")):
        from vol3d.volume.nifti import load_nifti

        return load_nifti(path, unread=unread)
    raise ValueError(f"{path}: not an image that vol3d reads (it starts with {start[:8]!r}); give {_READABLE}")


def _load_segments(path: Path, segments: Sequence[str]) -> Loaded:
    from vol3d.volume.headed import load_nrrd

    if isinstance(segments, str) or not segments:
        raise ValueError(f"{path}: segments={segments!r} is not a list of names, such as ['liver', 'tumor']")
    with path.open("rb") as stream:
        if stream.read(4) != b"NRRD":
            raise ValueError(f"{path}: only 3D Slicer's .seg.nrrd has segments to choose; leave segments= out")
    return load_nrrd(path, segments)


def _is_dicom(start: bytes) -> bool:
    return start[128:132] == b"DICM" or (start[:2] in (b"\x08\x00", b"\x02\x00") and start[4:6].isalpha())


def _is_nifti(start: bytes) -> bool:
    return start[:2] == b"\x1f\x8b" or start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0")
