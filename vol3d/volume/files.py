"""Bytes off a disk that nobody vouches for: limits before memory, whole files or none, atomic writes."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vol3d.types import Affine, Triple
from vol3d.volume.atomic import PART as PART
from vol3d.volume.atomic import atomic as atomic

Stream = io.BufferedIOBase
"""A file on disk, in memory or being decompressed."""
MAX_VOXELS = 4 * 10**9
"""A 1024×1024 CT of 3,800 slices. A header that claims more is refused before memory is taken."""
_MAX_DEFLATE = 1100
"""Deflate cannot shrink data more than 1032 times, so a small file cannot hold what a large header claims."""
_SLICES = 32


class Bounded(io.BufferedReader):
    """A file that takes no memory for bytes it does not have, whatever length its header claims for a field."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("rb", buffering=0))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        """At most `size` bytes."""
        if size is not None and size > 1 << 16:
            size = max(0, min(size, self._size - self.tell()))
        return super().read(size)


def existing(path: str | os.PathLike[str]) -> Path:
    """`path` as a Path that exists.

    Raises:
        FileNotFoundError: nothing is there; the message names the nearest folder that is.
    """
    found = Path(path).expanduser()
    if not found.exists():
        parent = next((folder for folder in found.absolute().parents if folder.exists()), Path("/"))
        raise FileNotFoundError(f"{found}: no such file or folder (the nearest folder that exists is {parent})")
    return found


def check_size(shape: tuple[int, ...], dtype: np.dtype, path: Path, *, stored: int, packed: bool) -> int:
    """Number of bytes the voxels take, after checking that the file can hold them.

    Args:
        stored: bytes of the file that are left for the voxels.
        packed: whether they are compressed.
    """
    voxels = prod(shape)
    size = "×".join(map(str, shape))
    if min(shape) < 1 or voxels > MAX_VOXELS:
        raise ValueError(f"{path}: header claims {size} = {voxels:.3g} voxels; 1 to {MAX_VOXELS:.3g} can be read")
    needed = voxels * dtype.itemsize
    if needed > stored * (_MAX_DEFLATE if packed else 1):
        raise ValueError(
            f"{path}: header claims {size} voxels of {dtype} ({needed} bytes), the file holds {stored} bytes"
            f"{' compressed' if packed else ''}: it is truncated or its header is wrong; copy or export it again"
        )
    return needed


def check_spacing(affine: Affine, unit: str, path: Path) -> NDArray[np.float64]:
    """Voxel edges in mm, after refusing an affine that is no scanner's: in another unit, or not finite.

    Args:
        unit: what the format calls the field that says it, for the remedy.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or spacing.min() < 0.01 or spacing.max() > 100:
        edges = "×".join(f"{edge:.4g}" for edge in spacing)
        raise ValueError(
            f"{path}: voxel size {edges} mm: outside 0.01 to 100 mm; set the right one, or {unit}, in its header"
        )
    return spacing


def read_voxels(stream: Stream, shape: tuple[int, ...], dtype: np.dtype, path: Path) -> NDArray[Any]:
    """The next voxels of `stream`, first axis fastest, and the stream's end checked (gzip's CRC comes last).

    Raises:
        ValueError: fewer bytes than the header claims, a broken checksum, or more than 64 MiB of other data behind.
    """
    array = np.empty(shape, dtype=dtype, order="F")
    with _unpacking(path):
        _fill(array, stream, path, 0, array.nbytes)
        _check_end(stream, path, array.nbytes)
    return array


@dataclass(frozen=True)
class Unread:
    """Voxels that are still in their file, first axis fastest.

    Args:
        open: the file at its first voxel, decompressed.
    """

    path: Path
    shape: Triple
    dtype: np.dtype
    open: Callable[[], Stream]

    def read(self) -> NDArray[Any]:
        """All of them, as by `read_voxels`."""
        with self.open() as stream:
            return read_voxels(stream, self.shape, self.dtype, self.path)

    def slices(self) -> Iterator[NDArray[Any]]:
        """(i, j) for each k, in memory that later ones use again; an error comes in the place of a slice, or last.

        Decompressed some at a time: in turn with other work after each slice, both take a tenth longer.

        Raises:
            ValueError: as `read_voxels`.
        """
        *plane, count = self.shape
        block = np.empty((*plane, min(count, _SLICES)), self.dtype, order="F")
        size = block[..., 0].nbytes
        with self.open() as stream, _unpacking(self.path):
            for first in range(0, count, _SLICES):
                part = block[..., : count - first]
                _fill(part, stream, self.path, first * size, count * size)
                yield from np.moveaxis(part, -1, 0)
            _check_end(stream, self.path, count * size)


def _fill(array: NDArray[Any], stream: Stream, path: Path, before: int, total: int) -> None:
    """The next bytes of a file of `total`, of which `before` have been read."""
    target = memoryview(array.reshape(-1, order="F")).cast("B")
    done = 0
    while done < len(target):
        count = stream.readinto(target[done : done + (1 << 16)])
        if not count:
            raise ValueError(
                f"{path}: truncated: {before + done} of the {total} bytes its header claims; copy or export it again"
            )
        done += count


def _check_end(stream: Stream, path: Path, total: int) -> None:
    for _ in range(65):
        if not stream.read(1 << 20):
            return
    raise ValueError(f"{path}: more than 64 MiB of other data behind the {total} bytes its header claims")


@contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    """Errors of a decompressor name the file: EOFError, BadGzipFile, OSError, and zlib's and isal's own."""
    try:
        yield
    except (ValueError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{path}: broken compressed data ({brief(error)}); copy or export it again") from error


def brief(error: BaseException) -> str:
    """What another library's error says, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "…"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the block name the file: numbers in a header that are none, an affine that is not invertible, …"""
    try:
        yield
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path}: its header cannot be right ({brief(error)}); copy or export it again") from error


def open_gzip(path: Path | Stream) -> Stream:
    """A decompressing stream; Intel's isal, when it is installed, takes half of zlib's time."""
    try:
        from isal import igzip
    except ImportError:
        return gzip.open(path, "rb")
    return igzip.open(path, "rb")


@contextmanager
def create_gzip(path: Path) -> Iterator[Stream]:
    """A compressing stream, fast rather than small; no name or time inside: same data, same file."""
    try:
        from isal.igzip import IGzipFile as Gzip
    except ImportError:
        from gzip import GzipFile as Gzip
    with path.open("wb") as raw, Gzip(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as stream:
        yield stream
