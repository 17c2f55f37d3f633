"""One manifest for many machines: the same cut everywhere, and the results put together again."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vol3d.data.cache import FillReport, VolumeCache
from vol3d.data.entries import Compression
from vol3d.data.formats import atomic
from vol3d.data.manifest import Manifest
from vol3d.data.study import Study
from vol3d.volume.grid import Grid


def parse_shard(text: str) -> tuple[int, int]:
    """ "3/16" → (3, 16): the fourth of sixteen shards.

    Raises:
        ValueError: not of this form, or a number that is not below the count.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise ValueError(f"shard {text!r} is not of the form I/N, such as 0/16 (I counts from 0)")
    index, count = int(found[1]), int(found[2])
    _check(index, count)
    return index, count


def _check(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise ValueError(f"shard {index} of {count}: shards are numbered 0 to {max(0, count - 1)}")


def shard(manifest: Manifest, index: int, count: int) -> Manifest:
    """The studies of every `count`-th patient, beginning with patient `index`.

    Patients are dealt in the order of the manifest, so that shards differ by at most one patient, a patient's exams
    stay together, and rows added at the end move no earlier study. A shard beyond the last patient is empty. A file
    that `write_shards` made for these numbers is that shard already and is not cut again.

    Raises:
        ValueError: an index that is not below the count.
    """
    _check(index, count)
    if manifest.path is not None and shard_of_file(manifest.path) == (index, count):
        return manifest
    chosen = set(manifest.patients[index::count])
    return Manifest((study for study in manifest if study.patient in chosen), manifest.path)


def write_shards(manifest: Manifest | str | Path, folder: str | Path, count: int) -> list[Path]:
    """The manifest as `count` files `shard-0003-of-0016.jsonl`, so that each job reads and checks only its own rows.

    Raises:
        ValueError: fewer patients than shards.
    """
    manifest = manifest if isinstance(manifest, Manifest) else Manifest.read(manifest)
    if len(manifest.patients) < count:
        raise ValueError(f"{len(manifest.patients)} patients cannot be dealt to {count} shards: ask for fewer")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return [
        shard(manifest, index, count).write(Path(folder) / f"shard-{index:04d}-of-{count:04d}.jsonl")
        for index in range(count)
    ]


def shard_of_file(path: str | Path) -> tuple[int, int] | None:
    """(3, 16) of "shard-0003-of-0016.jsonl", None of a file that `write_shards` did not name."""
    found = re.fullmatch(r"shard-(\d{4,})-of-(\d{4,})\.jsonl", Path(path).name)
    return None if found is None else (int(found[1]), int(found[2]))


def merge_predictions(
    parts: Iterable[str | Path], out: str | Path, order: Manifest | Sequence[str] | None = None
) -> Path:
    """Several predictions.jsonl as one, each study once; whole or not at all.

    A study may stand in two parts when a job was run again; both must say the same.

    Args:
        order: the studies' order; studies of it that no part has are left to `missing`. None keeps that of the parts.

    Raises:
        ValueError: two predictions of one study differ, or a line is not a prediction (file and line are named).
    """
    rows: dict[str, tuple[dict[str, Any], Path]] = {}
    for part in map(Path, parts):
        for number, line in enumerate(part.read_text(encoding="utf-8").splitlines(), 1):
            row = _row(line, f"{part.name}, line {number}")
            other, where = rows.setdefault(row["study"], (row, part))
            if other != row:
                raise ValueError(
                    f"study {row['study']!r} is predicted in {where.name} and otherwise in {part.name}, line {number}: "
                    "were they made by two models? predict both parts again"
                )
    names = list(rows)
    if order is not None:
        place = {name: at for at, name in enumerate(_names(order))}
        names.sort(key=lambda name: place.get(name, len(place)))
    out = Path(out)
    with atomic(out) as file:
        file.write_text("".join(json.dumps(rows[name][0]) + "\n" for name in names), encoding="utf-8")
    return out


def missing(predictions: str | Path, manifest: Manifest | Sequence[str]) -> list[str]:
    """The studies of the manifest that a predictions.jsonl does not have: the ones to run again."""
    lines = Path(predictions).read_text(encoding="utf-8").splitlines()
    there = {_row(line, f"{predictions}, line {number}")["study"] for number, line in enumerate(lines, 1)}
    return [name for name in _names(manifest) if name not in there]


def _names(order: Manifest | Sequence[str]) -> list[str]:
    return [study.study for study in order] if isinstance(order, Manifest) else list(order)


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is cut off ({error}): its job was killed, run it again") from error
    if not isinstance(row, dict) or "study" not in row:
        raise ValueError(f"{where} has no 'study': give files that vol3d predict wrote")
    return row


# --- preparing ----------------------------------------------------------------------------------------------


class _ShardCache(VolumeCache):
    """A cache whose failures are listed beside those of the other shards, not over them."""

    number, of = 0, 1

    def _write_failures(self, studies: list[Study], failed: dict[str, str]) -> Path | None:
        path = self.folder / f"failures-{self.number:04d}-of-{self.of:04d}.jsonl"
        if not failed:
            path.unlink(missing_ok=True)
            return None
        rows = [{"study": s.study, "image": str(s.image), "error": failed[s.study]} for s in studies]
        with atomic(path) as part:
            part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path


def prepare_shard(
    manifest: Manifest | str | Path,
    grid: Grid,
    cache: str | Path,
    index: int,
    count: int,
    workers: int = 0,
    *,
    compression: Compression | None = None,
    progress: bool = False,
) -> FillReport:
    """`prepare` for one shard; any number may fill one folder at once, and a job run again makes what is missing.

    Failures are listed in `failures-0003-of-0016.jsonl`. Arguments and errors are those of `prepare` and `shard`.
    """
    manifest = manifest if isinstance(manifest, Manifest) else Manifest.read(manifest)
    filled = _ShardCache(cache, grid, compression)
    filled.number, filled.of = index, count
    return filled.fill(shard(manifest, index, count), workers, progress=progress)


def shard_of_job(count_by: str = "SLURM_ARRAY_TASK_COUNT") -> tuple[int, int] | None:
    """The shard of this job of a SLURM array (`sbatch --array=0-15`), None outside of one.

    Raises:
        ValueError: an array that does not begin at 0 or leaves numbers out.
    """
    index, count = os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get(count_by)
    if index is None or count is None:
        return None
    first = os.environ.get("SLURM_ARRAY_TASK_MIN", "0")
    if first != "0" or not 0 <= int(index) < int(count):
        raise ValueError(
            f"job {index} of an array of {count} that begins at {first}: number the array from 0 without gaps "
            f"(sbatch --array=0-{int(count) - 1}), or give --shard I/N"
        )
    return int(index), int(count)
