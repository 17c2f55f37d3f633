"""A file appears under its name when it is whole, or not at all. Loads nothing heavy: manifests use it too."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

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


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """A safetensors file with the rights of any new file; safetensors itself lets nobody but its owner read it, so that
    a model on a shared disk would be of no use to colleagues.

    Raises:
        OSError: the disk is full, or what else the system says; safetensors has an error of its own for all of it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    rights = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata=dict(metadata) or None)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(rights)
