"""One file of the cache: a few named tensors in a safetensors file, int16 volumes compressed on demand.

A file without its last byte, or with a header that does not fit, is no entry: safetensors checks both on opening.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vol3d.volume.atomic import atomic, save_tensors

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
Compression = Literal["blosc2"]
COMPRESSIONS = ("blosc2",)
Room = Callable[[str, tuple[int, ...]], Tensor | None]
"""Memory for the int16 volume of this name and shape, or None when there is none of that shape."""
_PACKED = "blosc2."
"""Before the name of a tensor that holds the compressed bytes of another."""


def no_room(name: str, shape: tuple[int, ...]) -> None:
    """Volumes get memory of their own."""


def check_compression(compression: str | None) -> None:
    """Refuses before any work a compression that is unknown or not installed.

    Raises:
        ValueError: unknown.
        ImportError: names the extra to install.
    """
    if compression is None:
        return
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression {compression!r}: choose {' or '.join(map(repr, COMPRESSIONS))}, or None")
    _blosc2()


def room_needed(images: int, masks: int, voxels: int, compression: Compression | None) -> tuple[float, float]:
    """The least and the most bytes that so many volumes of so many voxels take on disk.

    How far a CT can be compressed depends on its noise and on the air around it: chests and abdomens on shipped grids
    took 0.23 to 0.62 of their int16, label maps of many organs 0.06.
    """
    raw = 2.0 * voxels
    if compression is None:
        return ((images + masks) * raw,) * 2
    return 0.2 * images * raw, (0.65 * images + 0.1 * masks) * raw


def write_entry(path: Path, tensors: dict[str, Tensor], compression: Compression | None = None) -> None:
    """Whole or not at all."""
    shapes: dict[str, str] = {}
    if compression is not None:
        volumes = {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.int16}
        shapes = {name: json.dumps(list(tensor.shape)) for name, tensor in volumes.items()}
        packed = {_PACKED + name: _pack(tensor) for name, tensor in volumes.items()}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in volumes} | packed
    with atomic(path) as part:
        save_tensors(tensors, part, shapes)


def read_entry(path: Path, room: Room = no_room) -> dict[str, Tensor] | None:
    """An entry's tensors, or None when there is none (or none that can be used, after a disk error).

    Args:
        room: where its int16 volumes go: they are read once, straight to their place in a batch.

    Raises:
        ImportError: a compressed entry, and blosc2 is not installed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as entry, path.open("rb", buffering=0) as file:
            shapes = entry.metadata() or {}
            places = _places(file)
            return dict(_read(entry, file, name, places[name], shapes, room) for name in entry.keys())  # noqa: SIM118
    except FileNotFoundError:
        return None
    except (SafetensorError, _Damaged) as error:
        log.warning("cache entry %s is damaged (%s): made anew", path.name, error)
        return None


def _places(file: FileIO) -> dict[str, int]:
    """Where in the file each tensor begins, as its header (which safetensors has checked) says."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    return {name: 8 + length + told["data_offsets"][0] for name, told in header.items() if name != "__metadata__"}


def _read(entry: Any, file: FileIO, name: str, place: int, shapes: dict[str, str], room: Room) -> tuple[str, Tensor]:
    if name.startswith(_PACKED):
        name = name.removeprefix(_PACKED)
        shape = tuple(json.loads(shapes[name]))
        return name, _unpack(entry.get_tensor(_PACKED + name), _memory(name, shape, room))
    stored = entry.get_tensor(name)  # lies in the mapped file: nothing has been read of it
    if stored.dtype != torch.int16:
        return name, stored.clone()
    volume = _memory(name, tuple(stored.shape), room)
    _fill(volume, file, place)
    return name, volume


def _fill(volume: Tensor, file: FileIO, place: int) -> None:
    """Reads straight into `volume`; a copy out of the mapped file takes a third longer, in page faults."""
    file.seek(place)
    left = memoryview(volume.view(-1).numpy()).cast("B")
    while left:
        if not (count := file.readinto(left)):
            raise _Damaged(f"{len(left)} bytes are missing")
        left = left[count:]


def _memory(name: str, shape: tuple[int, ...], room: Room) -> Tensor:
    place = room(name, shape)
    return torch.empty(shape, dtype=torch.int16) if place is None else place


class _Damaged(Exception):  # noqa: N818  # never leaves this file
    pass


def _pack(volume: Tensor) -> Tensor:
    """LZ4 after a byte shuffle: half the size, at a tenth of the time that stronger codecs take to pack.

    Of its levels and block sizes this one is read fastest.
    """
    blosc2 = _blosc2()
    packed = blosc2.compress2(
        volume.contiguous().numpy(), codec=blosc2.Codec.LZ4, filters=[blosc2.Filter.SHUFFLE], typesize=2, clevel=9,
        splitmode=blosc2.SplitMode.NEVER_SPLIT, nthreads=1,
    )  # fmt: skip
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def _unpack(packed: Tensor, place: Tensor) -> Tensor:
    blosc2, source = _blosc2(), packed.numpy()
    try:
        # blosc2 itself writes beyond memory that is too small.
        unpacked, stored, _ = blosc2.get_cbuffer_sizes(source)
        if (unpacked, stored) != (place.nbytes, len(source)):
            raise _Damaged(f"{stored} bytes for {unpacked}, there are {len(source)} for {place.nbytes}")
        blosc2.decompress2(source, dst=place.numpy(), nthreads=1)
    except (RuntimeError, ValueError) as error:
        raise _Damaged(str(error)) from error
    return place


def _blosc2() -> Any:
    try:
        import blosc2
    except ImportError as error:
        raise ImportError("compressed cache entries need blosc2: pip install 'vol3d[blosc2]'") from error
    return blosc2
