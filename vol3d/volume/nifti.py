"""NIfTI-1 and -2, .nii, .nii.gz, .hdr + .img: header by nibabel, voxels and their checksum by ourselves.

nibabel does not read a gzip file to its end, so a broken checksum passes; SimpleITK returns a partly filled
volume for a truncated file. Neither may happen to a study.
"""

from __future__ import annotations

import io
import re
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from vol3d.types import Affine, Triple
from vol3d.volume.files import Stream, Unread, brief, check_size, check_spacing, open_gzip, read_voxels
from vol3d.volume.geometry import Geometry
from vol3d.volume.loaded import Loaded, Voxels

_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_UNITS = {1: "metres", 3: "micrometres"}


def load_nifti(path: Path, *, unread: bool = False) -> Loaded:
    """A NIfTI file in its own voxel order.

    Args:
        unread: leave the voxels of a .nii.gz in the file, when they are whole numbers.

    Raises:
        ValueError: not NIfTI, truncated, 4D, colour or complex, without orientation, with a spacing of 0, or with
            a qform and a sform that disagree.
    """
    path = _header_path(path)
    with _open(path) as stream:
        header = _header(stream, path)
        shape, dtype = _layout(header, path)
        paired = header["magic"].item() in (b"ni1", b"ni2")
        labels: dict[int, str] = {}
        if not paired:
            offset = max(int(header["vox_offset"]), header.sizeof_hdr)
            between = stream.read(min(offset - header.sizeof_hdr, 1 << 24))
            labels = _labels(between)
            _check_room(stream, path, shape, dtype, offset)
            if unread and not _is_plain(stream) and dtype.kind in "iu":
                voxels: Voxels = Unread(path, shape, dtype, partial(_open, path, offset))
            else:
                voxels = read_voxels(stream, shape, dtype, path)
    if paired:
        data = _sibling(path, ".img")
        with _open(data, int(header["vox_offset"])) as stream:
            _check_room(stream, data, shape, dtype, 0)
            voxels = read_voxels(stream, shape, dtype, data)
    notes: list[str] = []
    affine = _affine(header, path, shape, notes)
    slope, intercept = _scaling(header)
    return Loaded(path, voxels, affine, slope, intercept, labels=labels, notes=notes)


def _header_path(path: Path) -> Path:
    """The .hdr of a pair, whichever of the two was named."""
    return _sibling(path, ".hdr") if re.search(r"\.img(\.gz)?$", path.name, re.IGNORECASE) else path


def _sibling(path: Path, suffix: str) -> Path:
    stem = re.sub(r"\.(hdr|img)(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    for name in (stem + suffix, stem + suffix + ".gz", stem + suffix.upper()):
        if (path.parent / name).exists():
            return path.parent / name
    raise ValueError(f"{path}: its other half {stem}{suffix} is missing; put both files in one folder")


def _open(path: Path, offset: int = 0) -> Stream:
    with path.open("rb") as start:
        packed = start.read(2) == b"\x1f\x8b"
    stream = open_gzip(path) if packed else path.open("rb")
    stream.read(offset)
    return stream


def _header(stream: Stream, path: Path) -> Any:
    try:
        start = stream.read(4)
        sizes = {int.from_bytes(start, order): order for order in ("little", "big")}
        kind = nib.Nifti1Header if 348 in sizes else nib.Nifti2Header if 540 in sizes else None
        if kind is None:
            raise ValueError(f"{path}: not a NIfTI file (it starts with {start!r}); give the image itself")
        header = kind.from_fileobj(io.BytesIO(start + stream.read(kind.sizeof_hdr - 4)), check=False)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path}: its NIfTI header cannot be read ({brief(error)}); copy or export it again"
        ) from error
    if header["magic"].item() not in (b"n+1", b"ni1", b"n+2", b"ni2"):
        raise ValueError(f"{path}: an Analyze 7.5 file says nothing about left and right; convert it from its source")
    return header


def _layout(header: Any, path: Path) -> tuple[Triple, np.dtype]:
    """Shape and stored type, after refusing what is not one grey volume."""
    code = int(header["datatype"])
    if code in (128, 2304, 32, 1792, 2048):
        kind = "colour" if code in (128, 2304) else "complex"
        raise ValueError(f"{path}: {kind} voxels (NIfTI datatype {code}); a CT has one real number a voxel")
    try:
        dtype = header.get_data_dtype()
    except Exception as error:
        raise ValueError(f"{path}: unknown NIfTI datatype {code}") from error
    dims = [int(size) for size in header["dim"]]
    if not 1 <= dims[0] <= 7:
        raise ValueError(f"{path}: header claims {dims[0]} dimensions")
    sizes = dims[1 : 1 + dims[0]]
    if any(size > 1 for size in sizes[3:]):
        raise ValueError(
            f"{path}: {'×'.join(map(str, sizes))}: a series of {np.prod(sizes[3:])} volumes; save one of them"
        )
    if len(sizes) < 3:
        size = "×".join(map(str, sizes))
        raise ValueError(f"{path}: {size}: a single slice, not a volume; give the whole series")
    return tuple(sizes[:3]), dtype


def _check_room(stream: Stream, path: Path, shape: Triple, dtype: np.dtype, offset: int) -> None:
    stored = path.stat().st_size - (offset if _is_plain(stream) else 0)
    check_size(shape, dtype, path, stored=stored, packed=not _is_plain(stream))


def _is_plain(stream: Stream) -> bool:
    """Whether it is read as it lies on the disk."""
    return isinstance(stream, io.BufferedReader)


def _scaling(header: Any) -> tuple[float, float]:
    """scl_slope and scl_inter; a slope of 0 or NaN means that values are stored as they are."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    return slope, intercept if np.isfinite(intercept) else 0.0


def _affine(header: Any, path: Path, shape: Triple, notes: list[str]) -> Affine:
    """The sform, else the qform, in mm."""
    sform = header.get_sform() if int(header["sform_code"]) > 0 else None
    steps = np.array(header["pixdim"][1:4], dtype=np.float64)
    qform = None
    if int(header["qform_code"]) > 0:
        if (steps > 0).all() and np.isfinite(steps).all():
            qform = _qform(header, path)
        elif sform is None:
            raise ValueError(f"{path}: voxel size {_sizes(steps)} in pixdim: set the right one in its header")
    if sform is None and qform is None:
        raise ValueError(
            f"{path}: neither qform nor sform: left and right are unknown; convert it again from its source, or set "
            "the sform (nibabel: image.set_sform(affine, code=1))"
        )
    if sform is not None and qform is not None:
        _check_agreement(sform, qform, path)
    affine = np.array(sform if sform is not None else qform, dtype=np.float64)
    unit = int(header["xyzt_units"]) & 7
    if sform is not None and qform is not None and not np.allclose(sform, qform, atol=1e-2):
        corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape))])
        apart = np.linalg.norm(corners @ (sform - qform).T, axis=1).max() * _TO_MM.get(unit, 1.0)
        notes.append(f"sform and qform lie up to {apart:.3g} mm apart; sform taken, other programs may take the qform")
    if _TO_MM.get(unit, 1.0) != 1.0:
        affine[:3] *= _TO_MM[unit]
        notes.append(f"header in {_UNITS[unit]}, converted to mm")
    spacing = check_spacing(affine, "its unit (xyzt_units)", path)
    if sform is not None and not np.allclose(steps * _TO_MM.get(unit, 1.0), spacing, rtol=0.01):
        notes.append(f"pixdim is {_sizes(steps)}, voxel size {_sizes(spacing)} mm taken from the sform")
    return affine


def _qform(header: Any, path: Path) -> NDArray[np.float64]:
    try:
        return header.get_qform()
    except Exception as error:  # nibabel's errors for quaternions that are none
        raise ValueError(
            f"{path}: its qform is not a rotation ({brief(error)}); set the right one in its header"
        ) from error


def _check_agreement(sform: NDArray[np.float64], qform: NDArray[np.float64], path: Path) -> None:
    """Refuses a file whose two affines differ in orientation or spacing; a shift or a shear is only noted."""
    for name, matrix in (("sform", sform), ("qform", qform)):
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
            raise ValueError(f"{path}: {name} is not an invertible matrix; set the right one in its header")
    one, two = Geometry(sform, (2, 2, 2)), Geometry(qform, (2, 2, 2))
    angles = np.degrees(np.arccos(np.clip((one.direction * two.direction).sum(0), -1, 1)))
    ratio = np.array(one.spacing) / np.array(two.spacing)
    if angles.max() > 35 or (ratio.max() > 1.15 or ratio.min() < 0.85):
        raise ValueError(
            f"{path}: sform says {one.axcodes} at {_sizes(one.spacing)} mm, qform says {two.axcodes} at "
            f"{_sizes(two.spacing)} mm: find out which is right and set both to it"
        )


def _sizes(values: Any) -> str:
    return "×".join(f"{float(value):.4g}" for value in values)


def _labels(extension: bytes) -> dict[int, str]:
    """Names of a label map from the XML that TotalSegmentator and Connectome Workbench put behind the header."""
    match = re.search(rb"<(CaretExtension|LabelTable).*</\1>", extension, re.DOTALL)
    if match is None or b"<!" in match[0].replace(b"<![CDATA[", b""):  # no entity definitions from strangers
        return {}
    try:
        root = ElementTree.fromstring(match[0])
    except ElementTree.ParseError:
        return {}
    labels = {int(label.get("Key", "0")): (label.text or "").strip() for label in root.iter("Label")}
    return {key: name for key, name in labels.items() if key != 0 and name}
