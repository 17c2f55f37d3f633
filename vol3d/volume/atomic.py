"""A file appears under its name when it is whole, or not at all. Loads nothing heavy: manifests use it too."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"
"""Marks a file that is still being written."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path to write to, with the same suffix; what was written there becomes `path` at the end, or vanishes if
    anything fails.

    It reaches the disk before it gets its name, so that not even a power cut leaves half a file under that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PART}{suffix}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
