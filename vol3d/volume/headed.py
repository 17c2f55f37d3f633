"""NRRD (.nrrd, .nhdr, .seg.nrrd) and MetaImage (.mha, .mhd): a text header, then voxels, first axis fastest."""

from __future__ import annotations

import bz2
import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vol3d.types import Affine
from vol3d.volume.files import Stream, check_size, check_spacing, open_gzip, read_voxels
from vol3d.volume.geometry import LPS_TO_RAS
from vol3d.volume.loaded import Loaded
from vol3d.volume.segments import paint, segment_names

_HEADER_LIMIT = 1 << 22
_NRRD_TYPES = {
    "int8": "i1", "signed char": "i1", "uint8": "u1", "uchar": "u1", "unsigned char": "u1",
    "int16": "i2", "short": "i2", "short int": "i2", "signed short": "i2", "uint16": "u2", "ushort": "u2",
    "unsigned short": "u2", "int32": "i4", "int": "i4", "signed int": "i4", "uint32": "u4", "uint": "u4",
    "unsigned int": "u4", "int64": "i8", "long long": "i8", "longlong": "i8", "uint64": "u8",
    "unsigned long long": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
_UNITS = {"": 1.0, "mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001}
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip


def load_nrrd(path: Path, segments: Sequence[str] | None = None) -> Loaded:
    """An NRRD file in its own voxel order.

    Args:
        segments: of a 3D Slicer segmentation, the names to take, the last on top.

    Raises:
        ValueError: not NRRD, truncated, without a space, in units that are unknown, or not one grey volume.
    """
    with path.open("rb") as stream:
        fields, keys = _nrrd_header(stream, path)
        dtype = _dtype(_NRRD_TYPES, fields, "type", path).newbyteorder("<>"[fields.get("endian") == "big"])
        sizes = [int(size) for size in _need(fields, "sizes", path).split()]
        affine, layers = _nrrd_affine(fields, sizes, path)
        if layers is not None and "Segment0_LabelValue" not in keys:
            raise ValueError(f"{path}: {'×'.join(map(str, sizes))}, several values a voxel: not one grey volume")
        shape = tuple(sizes)
        encoding = fields.get("encoding", "raw").lower()
        if "data file" in fields or "datafile" in fields:
            data = _beside(path, fields.get("data file", fields.get("datafile", "")))
            with data.open("rb") as other:
                array = _nrrd_voxels(other, data, shape, dtype, encoding, fields)
        else:
            array = _nrrd_voxels(stream, path, shape, dtype, encoding, fields)
    labels = segment_names(keys)
    if layers is not None or segments is not None:
        if not labels:
            raise ValueError(f"{path}: it names no segments, so none can be chosen; leave segments= out")
        array, labels = paint(array[None] if layers is None else np.moveaxis(array, layers, 0), keys, path, segments)
    return Loaded(path, array, affine, labels=labels)


def load_metaimage(path: Path) -> Loaded:
    """A MetaImage file in its own voxel order.

    Raises:
        ValueError: not MetaImage, truncated, voxels written as text, or not one grey volume.
    """
    with path.open("rb") as stream:
        fields = _meta_header(stream, path)
        sizes = tuple(int(size) for size in _need(fields, "dimsize", path).split())
        if len(sizes) != 3 or int(fields.get("elementnumberofchannels", "1")) != 1:
            raise ValueError(
                f"{path}: {'×'.join(map(str, sizes))} with {fields.get('elementnumberofchannels', '1')} values a "
                "voxel: not one grey volume"
            )
        if not fields.get("binarydata", "true").lower().startswith(("t", "1")):
            raise ValueError(f"{path}: its voxels are written as text (BinaryData = False); save it as binary")
        big = fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "false")).lower() == "true"
        dtype = _dtype(_META_TYPES, fields, "elementtype", path).newbyteorder("<>"[big])
        packed = fields.get("compresseddata", "false").lower() == "true"
        name = _need(fields, "elementdatafile", path)
        if name.upper() == "LOCAL":
            array = _meta_voxels(stream, path, sizes, dtype, packed)
        else:
            data = _beside(path, name)
            with data.open("rb") as other:
                header = int(fields.get("headersize", "0"))
                other.seek(header if header >= 0 else data.stat().st_size - int(np.prod(sizes)) * dtype.itemsize)
                array = _meta_voxels(other, data, sizes, dtype, packed)
    return Loaded(path, array, _meta_affine(fields, path))


def _need(fields: dict[str, str], name: str, path: Path) -> str:
    if name not in fields:
        raise ValueError(f"{path}: its header has no {name!r}; export it again")
    return fields[name]


def _dtype(types: dict[str, str], fields: dict[str, str], name: str, path: Path) -> np.dtype:
    value = _need(fields, name, path)
    if value not in types and value.lower() not in types:
        raise ValueError(f"{path}: {name} {value!r} is not a plain number a voxel")
    return np.dtype(types.get(value, types.get(value.lower())))


def _beside(path: Path, name: str) -> Path:
    """The detached data file, which must lie in the header's own folder."""
    if "%" in name or name.upper().startswith("LIST") or (" " in name.strip() and not (path.parent / name).exists()):
        raise ValueError(f"{path}: voxels in several files ({name!r}); join them into one .nrrd or .mha")
    data = (path.parent / name.strip()).resolve()
    if not data.is_relative_to(path.parent.resolve()):
        raise ValueError(f"{path}: its voxels are said to lie outside its folder ({name!r}): refused")
    if not data.is_file():
        raise ValueError(f"{path}: its voxel file {name!r} is missing; put it beside the header")
    return data


def _nrrd_header(stream: Stream, path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Fields ("type: int") and key/value pairs ("Segment0_Name:=ribs") up to the empty line."""
    if not stream.readline(64).startswith(b"NRRD"):
        raise ValueError(f"{path}: not an NRRD file; give the image itself")
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    while line := stream.readline(_HEADER_LIMIT):
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            return fields, keys
        if text.startswith("#"):
            continue
        if ":=" in text and ("=" not in text.split(":=")[0]) and ": " not in text.split(":=")[0]:
            name, value = text.split(":=", 1)
            keys[name] = value
        elif ": " in text:
            name, value = text.split(": ", 1)
            fields[name.strip().lower()] = value.strip()
        if stream.tell() > _HEADER_LIMIT:
            break
    if "data file" in fields or "datafile" in fields:
        return fields, keys
    raise ValueError(f"{path}: its NRRD header never ends; copy or export it again")


def _nrrd_affine(fields: dict[str, str], sizes: list[int], path: Path) -> tuple[Affine, int | None]:
    """The affine in RAS, and which axis lists layers of segments (None: there is none)."""
    space = _need(fields, "space", path).lower().replace("_", "-")
    sides = {"left-posterior-superior": LPS_TO_RAS, "lps": LPS_TO_RAS, "ras": np.eye(4),
             "right-anterior-superior": np.eye(4), "las": np.diag([-1.0, 1, 1, 1]),
             "left-anterior-superior": np.diag([-1.0, 1, 1, 1])}  # fmt: skip
    if space not in sides:
        raise ValueError(f"{path}: space {space!r}: left and right are unknown; export it in left-posterior-superior")
    vectors = re.findall(r"none|\([^)]*\)", _need(fields, "space directions", path))
    layers = [axis for axis, vector in enumerate(vectors) if vector == "none"]
    if len(vectors) != len(sizes) or len(sizes) - len(layers) != 3 or len(layers) > 1:
        raise ValueError(f"{path}: {'×'.join(map(str, sizes))} with {len(vectors)} directions: not one grey volume")
    affine = np.eye(4)
    affine[:3, :3] = np.array([_vector(vector) for vector in vectors if vector != "none"]).T
    affine[:3, 3] = _vector(fields.get("space origin", "(0,0,0)"))
    affine[:3] *= _millimetres(fields.get("space units", ""), path)
    check_spacing(affine, "its space units", path)
    return sides[space] @ affine, layers[0] if layers else None


def _millimetres(units: str, path: Path) -> float:
    """Millimetres in what "space units" says, one for all three axes: mm where it says nothing."""
    named = set(re.findall(r'"([^"]*)"', units)) or {"mm"}
    sizes = {_UNITS.get(name.strip().lower()) for name in named}
    if len(sizes) > 1 or None in sizes:
        raise ValueError(
            f"{path}: space units {units}: vol3d knows {', '.join(_UNITS)}; set the right one for all axes"
        )
    return sizes.pop()


def _vector(text: str) -> list[float]:
    return [float(value) for value in text.strip("() ").split(",")]


def _nrrd_voxels(
    stream: Stream, path: Path, shape: tuple[int, ...], dtype: np.dtype, encoding: str, fields: dict[str, str]
) -> NDArray[Any]:
    skip = int(fields.get("line skip", "0")), int(fields.get("byte skip", "0"))
    for _ in range(skip[0]):
        stream.readline()
    stored = path.stat().st_size - stream.tell()
    if encoding == "raw":
        needed = check_size(shape, dtype, path, stored=stored, packed=False)
        stream.seek(stored - needed if skip[1] == -1 else skip[1], io.SEEK_CUR)
        return read_voxels(stream, shape, dtype, path)
    if encoding in ("gzip", "gz"):
        check_size(shape, dtype, path, stored=stored, packed=True)
        with open_gzip(stream) as unpacked:
            unpacked.read(max(skip[1], 0))
            return read_voxels(unpacked, shape, dtype, path)
    if encoding in ("bzip2", "bz2"):
        check_size(shape, dtype, path, stored=stored * 50, packed=True)
        with bz2.open(stream) as unpacked:
            return read_voxels(unpacked, shape, dtype, path)
    raise ValueError(f"{path}: NRRD encoding {encoding!r}; save it as raw or gzip")


def _meta_header(stream: Stream, path: Path) -> dict[str, str]:
    fields: dict[str, str] = {}
    while stream.tell() < _HEADER_LIMIT and (line := stream.readline(_HEADER_LIMIT)):
        name, equals, value = line.decode("utf-8", "replace").partition("=")
        if not equals:
            break
        fields[name.strip().lower()] = value.strip()
        if name.strip().lower() == "elementdatafile":
            return fields
    raise ValueError(f"{path}: not a MetaImage file (no ElementDataFile in its header); give the image itself")


def _meta_voxels(stream: Stream, path: Path, shape: tuple[int, ...], dtype: np.dtype, packed: bool) -> NDArray[Any]:
    stored = path.stat().st_size - stream.tell()
    check_size(shape, dtype, path, stored=stored, packed=packed)
    return read_voxels(io.BufferedReader(_Inflated(stream)) if packed else stream, shape, dtype, path)


def _meta_affine(fields: dict[str, str], path: Path) -> Affine:
    """TransformMatrix holds the axes' directions in LPS, one after the other; Offset the first voxel."""
    matrix = fields.get("transformmatrix", fields.get("rotation", fields.get("orientation", "1 0 0 0 1 0 0 0 1")))
    spacing = fields.get("elementspacing", fields.get("elementsize"))
    if spacing is None:
        raise ValueError(f"{path}: its header has no ElementSpacing; export it again")
    affine = np.eye(4)
    affine[:3, :3] = np.array([float(v) for v in matrix.split()]).reshape(3, 3).T
    affine[:3, :3] *= np.array([float(v) for v in spacing.split()])
    origin = fields.get("offset", fields.get("position", fields.get("origin", "0 0 0")))
    affine[:3, 3] = [float(v) for v in origin.split()]
    check_spacing(affine, "ElementSpacing in mm", path)
    return LPS_TO_RAS @ affine


class _Inflated(io.RawIOBase):
    """A zlib stream as a file; its checksum is checked at the end."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._inflate, self._rest = stream, zlib.decompressobj(), b""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, target: Any) -> int:
        """The next bytes, inflated."""
        while not self._inflate.eof:
            packed = self._rest or self._stream.read(1 << 20)
            if not packed:
                raise EOFError("the compressed data ends too early")
            data = self._inflate.decompress(packed, len(target))
            self._rest = self._inflate.unconsumed_tail
            if data:
                target[: len(data)] = data
                return len(data)
        return 0
