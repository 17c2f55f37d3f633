"""What a file holds, without reading all of it: the part of a cache key that follows the data."""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path

_EDGE = 1 << 16
"""Bytes hashed at either end of a file."""
TEXT_HEADERS = {".mhd", ".mha", ".nhdr", ".nrrd"}
"""Text headers, which may name a second file that holds the voxels, whatever their suffix promises."""
_PAIR = re.compile(r"\.(hdr|img)(\.gz)?$", re.IGNORECASE)
_HALVES = (".hdr", ".img", ".hdr.gz", ".img.gz", ".HDR", ".IMG")
"""Suffixes of NIfTI in two files that the reader takes for one another's other half."""
_DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", re.MULTILINE | re.IGNORECASE)


def file_identity(path: Path) -> str:
    """A hash that changes when the file (or any file of a DICOM folder) does; its name and place do not matter.

    Hashed are size, modification time and 64 kB at either end. A gzip file ends in the checksum and length of all
    it holds, so there the time is left out and a copied dataset finds its cache again.
    """
    parts = _parts(path)
    stats = [part.stat() for part in parts]
    return _identity(tuple((str(p), s.st_size, s.st_mtime_ns) for p, s in zip(parts, stats, strict=True)))


@lru_cache(maxsize=100_000)
def _identity(parts: tuple[tuple[str, int, int], ...]) -> str:
    """Remembered by size and time, so that a warm epoch only asks the file system for those."""
    digest = hashlib.sha256()
    edge = _EDGE if len(parts) < 8 else 4096
    for name, size, time in parts:
        digest.update(f"{len(parts)} {size} {0 if name.endswith('.gz') else time}".encode())
        with open(name, "rb") as file:
            digest.update(file.read(edge))
            if size > edge:
                file.seek(max(edge, size - edge))
                digest.update(file.read(edge))
    return digest.hexdigest()


def _parts(path: Path) -> list[Path]:
    """The files a volume is made of."""
    if path.is_dir():
        return sorted(Path(root, name) for root, _, names in os.walk(path) for name in names)
    if pair := _PAIR.search(path.name):
        halves = {path.name[: pair.start()] + half for half in _HALVES}
        return sorted({path, *(part for name in halves if (part := path.parent / name).exists())})
    if path.suffix.lower() not in TEXT_HEADERS:
        return [path]
    stat = path.stat()
    name = _data_file(path, stat.st_size, stat.st_mtime_ns)
    if name.upper() == "LOCAL":
        return [path]
    data = path.parent / name
    # A list or a numbered pattern of files: take all that lies in the folder.
    return (
        [path, data]
        if data.is_file()
        else [path, *sorted(p for p in path.parent.iterdir() if p.is_file() and p != path)]
    )


@lru_cache(maxsize=100_000)
def _data_file(path: Path, size: int, time: int) -> str:
    """Where a text header says that the voxels lie: "LOCAL" is behind it. Remembered as `_identity` is."""
    with path.open("rb") as file:
        start = file.read(_EDGE)
    header = re.split(rb"\r?\n\r?\n", start, maxsplit=1)[0] if start.startswith(b"NRRD") else start
    found = _DATA_FILE.search(header)
    return os.fsdecode(found[1]) if found else "LOCAL"
