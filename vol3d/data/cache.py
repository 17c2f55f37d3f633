"""Volumes on a grid, kept on disk: the slow part of loading is done once.

An entry is HU in int16 before any window, so that one cache serves every window. Its name is a hash of the grid,
of what the file holds and of the cache's format: another grid or a changed file finds no entry and makes a new one.
How an entry looks inside is told in `vol3d.data.entries`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as remember
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vol3d.data.batch import Sample
from vol3d.data.entries import (
    SUFFIX,
    Compression,
    Room,
    check_compression,
    no_room,
    read_entry,
    room_needed,
    write_entry,
)
from vol3d.data.identity import TEXT_HEADERS, file_identity
from vol3d.data.manifest import Manifest, Study
from vol3d.data.parallel import map_in_order
from vol3d.data.study import in_manifest_words
from vol3d.volume.atomic import PART, atomic
from vol3d.volume.grid import Grid

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the entries and of how they are named; also counted up when reading or resampling changes its result."""
MASK_FORMAT = 2
"""Counted up when only label maps come to lie otherwise on a grid: images stay, masks are made anew."""
OTHER_FORMAT = 2
"""Counted up when only volumes that are no CT come to lie otherwise on a grid."""
HEADED_FORMAT = 1
"""Counted up when only NRRD and MetaImage are read otherwise."""
MASKS = ("mask", "finding_mask")
"""The label maps that a study may have."""
_STALE_SECONDS = 3600


class CacheFullError(OSError):
    """No room is left for the cache; what is in it stays whole."""


@dataclass(frozen=True)
class FillReport:
    """What `prepare` did: entries made, found ready, failed (listed in the file `failures`)."""

    studies: int
    made: int
    ready: int
    failed: int
    seconds: float
    failures: Path | None


class VolumeCache:
    """Reads through: a study that is not in the cache yet is prepared and put there.

    Entries are written whole or not at all, and several processes may fill one folder. Nothing of the patient
    but the voxels is stored.

    Args:
        folder: where entries lie; one folder serves many grids.
        grid: the preprocessing card.
        compression: how new entries are written: "blosc2" (LZ4, lossless) takes about half the disk and twice the
            time to read. Entries of either kind are read, whatever is given here.

    Raises:
        ValueError: the folder was written by another version of the format.
        ImportError: blosc2 is asked for and not installed.
    """

    def __init__(self, folder: str | Path, grid: Grid, compression: Compression | None = None) -> None:
        check_compression(compression)
        self.grid = grid
        self.compression = compression
        self.root = Path(folder).absolute()
        self.folder = self.root / grid.fingerprint[:16]
        _check_format(self.root / "cache.json")

    def get(self, study: Study, masks: Collection[str] = MASKS, room: Room = no_room) -> Sample:
        """The study on the grid.

        Args:
            masks: which label maps to load; the others are None in the sample.
            room: memory for "hu" and each mask, by name and shape (a batch's own); None makes some.

        Raises:
            ValueError, OSError: the image or a mask cannot be used; the message names the study.
            CacheFullError: the disk is full.
        """
        with _named(study):
            return _sample(study, self.grid, self._through, masks, room)

    def has(self, study: Study) -> bool:
        """Whether image and masks of the study are in the cache as their files are now."""
        with _named(study):
            masks = [path for path in (study.mask, study.finding_mask) if path is not None]
            return all(self._path(study, mask).exists() for mask in (None, *masks))

    def fill(self, manifest: Manifest, workers: int = 0, *, progress: bool = True) -> FillReport:
        """Puts every study of the manifest into the cache; see `prepare`."""
        start = time.monotonic()
        _remove_leftovers(self.folder)
        missing = [study for study in manifest if not self._ready(study)]
        ready = len(manifest) - len(missing)
        made = 0
        self._check_room(missing)
        # Another process that fills the same folder then rarely works on the same study.
        random.Random(os.getpid()).shuffle(missing)
        failed: dict[str, str] = {}
        results = map_in_order(self._try, missing, workers)
        for study, result in _with_progress(zip(missing, results, strict=True), len(manifest), ready, enabled=progress):
            if isinstance(result, CacheFullError):
                done = ready + sum(self._ready(study) for study in missing)
                raise CacheFullError(f"{result}; {done} of {len(manifest)} studies are ready") from result
            if isinstance(result, Exception):
                failed[study.study] = str(result)
            made += result is True
        failures = self._write_failures([study for study in manifest if study.study in failed], failed)
        seconds, ready = time.monotonic() - start, len(manifest) - made - len(failed)
        return FillReport(len(manifest), made, ready, len(failed), seconds, failures)

    def _ready(self, study: Study) -> bool:
        try:
            return self.has(study)
        except (ValueError, OSError):
            return False

    def _try(self, study: Study) -> Exception | bool:
        """Whether the study was made here, not by another process; a failure is kept and does not stop the others."""
        try:
            if self.has(study):
                return False
            self.get(study)
        except Exception as error:
            log.debug("study %r failed", study.study, exc_info=True)
            return _plain(error)
        return True

    def _path(self, study: Study, mask: Path | None = None) -> Path:
        if mask is None:
            about = ["", *other_format(study)]
        else:
            about = [file_identity(mask), MASK_FORMAT, *_headed_format(study.image, mask)]
        key = json.dumps([FORMAT, self.grid.fingerprint, study.modality, file_identity(study.image), *about])
        name = hashlib.sha256(key.encode()).hexdigest()[:40]
        return self.folder / name[:2] / (name + SUFFIX)

    def _through(
        self, study: Study, mask: Path | None, make: Callable[[], dict[str, Tensor]], room: Room
    ) -> dict[str, Tensor]:
        path = self._path(study, mask)
        stored = read_entry(path, room)
        if stored is not None:
            return stored
        tensors = make()
        self._store(path, tensors)
        return _moved(tensors, room)

    def _store(self, path: Path, tensors: dict[str, Tensor]) -> None:
        try:
            if not (self.folder / "grid.json").exists():
                with atomic(self.folder / "grid.json") as part:
                    part.write_text(json.dumps(self.grid.to_dict(), indent=1))
            write_entry(path, tensors, self.compression)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CacheFullError(
                f"{self.root}: the disk is full ({shutil.disk_usage(self.root).free / 1e9:.2f} GB free): free some "
                "space or choose another cache folder, then run the same command again, it goes on where it stopped"
            ) from error

    def _check_room(self, missing: list[Study]) -> None:
        """Refuses before hours of work what cannot fit, and tells what may not; only a grid of fixed shape tells."""
        if self.grid.shape is None or not missing:
            return
        masks = sum((study.mask is not None) + (study.finding_mask is not None) for study in missing)
        least, most = room_needed(len(missing), masks, math.prod(self.grid.shape), self.compression)
        free = shutil.disk_usage(self.root).free
        if least > free:
            smaller = ", a coarser grid or compression (blosc2)" if self.compression is None else " or a coarser grid"
            raise CacheFullError(
                f"{self.root}: {len(missing)} studies need {'' if least == most else 'at least '}{least / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free: choose another cache folder, fewer studies{smaller}"
            )
        if most > free:
            log.warning(
                "%s: %d studies need %.1f to %.1f GB compressed, %.1f GB are free; should the disk become full, "
                "what is ready stays",
                self.root, len(missing), least / 1e9, most / 1e9, free / 1e9,
            )  # fmt: skip

    def _write_failures(self, studies: list[Study], failed: dict[str, str]) -> Path | None:
        path = self.folder / "failures.jsonl"
        if not failed:
            path.unlink(missing_ok=True)
            return None
        rows = [{"study": s.study, "image": str(s.image), "error": failed[s.study]} for s in studies]
        with atomic(path) as part:
            part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path


def prepare(
    manifest: Manifest | str | Path,
    grid: Grid,
    cache: str | Path,
    workers: int = 0,
    *,
    compression: Compression | None = None,
    progress: bool = True,
) -> FillReport:
    """Fills the cache for a manifest, going on where an earlier run stopped.

    A study that cannot be read is listed in failures.jsonl (study, image, error) and does not stop the others.

    Args:
        workers: processes beside this one; 0 works in this one.
        compression: "blosc2" halves the disk; see `VolumeCache`.

    Raises:
        CacheFullError: no room; studies that are ready stay ready.
        ManifestError, ValueError: the manifest or the cache folder cannot be used.
    """
    manifest = manifest if isinstance(manifest, Manifest) else Manifest.read(manifest)
    return VolumeCache(cache, grid, compression).fill(manifest, workers, progress=progress)


def sample(study: Study, grid: Grid, masks: Collection[str] = MASKS, room: Room = no_room) -> Sample:
    """The study on the grid, prepared from its files without any cache; arguments as for `VolumeCache.get`."""
    with _named(study):
        return _sample(study, grid, lambda study, mask, make, room: _moved(make(), room), masks, room)


@dataclass(frozen=True)
class Reader:
    """Puts a manifest's studies on a grid, through the cache where there is one. Other processes may be given it."""

    grid: Grid
    cache: VolumeCache | None = None

    def __call__(self, study: Study, masks: Collection[str] = MASKS, room: Room = no_room) -> Sample:
        return sample(study, self.grid, masks, room) if self.cache is None else self.cache.get(study, masks, room)

    def attempt(self, study: Study, masks: Collection[str] = MASKS) -> Sample | Exception:
        """What goes wrong is handed back, to be raised where it is asked for."""
        try:
            return self(study, masks)
        except (ValueError, OSError) as error:
            return error


Through = Callable[[Study, Path | None, Callable[[], dict[str, Tensor]], Room], dict[str, Tensor]]


def _sample(study: Study, grid: Grid, through: Through, masks: Collection[str], room: Room) -> Sample:
    from vol3d.volume.read import load, read_mask

    loaded = remember(lambda: load(study.image, unread=True, modality=study.modality))

    def image() -> dict[str, Tensor]:
        on_grid = grid.place(loaded())
        return {"hu": _plain_tensor(on_grid), "affine": torch.as_tensor(on_grid.affine, dtype=torch.float64).clone()}

    def mask(path: Path) -> dict[str, Tensor]:
        return {"mask": _plain_tensor(grid.resample_mask(read_mask(path), like_volume=loaded()))[0]}

    stored = through(study, None, image, room)
    on_grid: dict[str, Tensor] = {}
    for name in masks:
        path = getattr(study, name)
        if path is not None:
            # The entry calls either of them "mask": one file may be both.
            own_room = lambda _, shape, name=name: room(name, shape)  # noqa: E731
            on_grid[name] = through(study, path, partial(mask, path), own_room)["mask"]
    return Sample(study, stored["hu"], stored["affine"], **on_grid)


def _moved(tensors: dict[str, Tensor], room: Room) -> dict[str, Tensor]:
    """What was just made, in the memory it is wanted in."""
    places = {name: room(name, tuple(t.shape)) for name, t in tensors.items() if t.dtype == torch.int16}
    return tensors | {name: place.copy_(tensors[name]) for name, place in places.items() if place is not None}


def other_format(study: Study) -> list[int]:
    """What the key of anything made of the study's image holds besides when that is no CT, or has a text header."""
    kind = [] if study.modality in (None, "CT") else [OTHER_FORMAT]
    return kind + _headed_format(study.image)


def _headed_format(*paths: Path) -> list[int]:
    return [HEADED_FORMAT] if any(path.suffix.lower() in TEXT_HEADERS for path in paths) else []


def _plain_tensor(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor).to(torch.int16).contiguous()


@contextmanager
def _named(study: Study) -> Iterator[None]:
    """Puts the study's name before whatever goes wrong with it."""
    try:
        yield
    except CacheFullError:
        raise
    except (ValueError, OSError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"study {study.study!r}: {in_manifest_words(str(error))}") from error
    except Exception as error:
        error.add_note(f"while reading study {study.study!r}")
        raise


def _plain(error: Exception) -> Exception:
    """The error as one that any process can hand to another."""
    if isinstance(error, (CacheFullError, FileNotFoundError)):
        return type(error)(str(error))
    return ValueError(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")


def _check_format(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with atomic(path) as part:
            part.write_text(json.dumps({"format": FORMAT}))
    try:
        found = json.loads(path.read_text()).get("format")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{path}: not the card of a cache: give another folder, or remove this one") from error
    if found != FORMAT:
        raise ValueError(
            f"{path.parent}: a cache of format {found}, this version reads and writes {FORMAT}: "
            "give another folder, or remove this one"
        )


def _remove_leftovers(folder: Path) -> None:
    """Parts that a killed process left behind; younger ones may belong to one that is at work."""
    for part in folder.glob(f"*/.*{PART}*"):
        try:
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink()
        except FileNotFoundError:
            continue


def _with_progress(items: Iterator[Any], total: int, done: int, *, enabled: bool) -> Iterator[Any]:
    from tqdm import tqdm

    yield from tqdm(items, desc="prepare", unit="study", total=total, initial=done, disable=not enabled)
