"""Phantom studies on disk: NIfTI volumes, label maps and the manifest, as a user's own data would be."""

from __future__ import annotations

import gzip
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import numpy as np

from vol3d.phantom.canvas import stream
from vol3d.phantom.study import CHANGES, SHAPE, PhantomStudy, check_request, make

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class _Job:
    """What one worker needs to write one patient."""

    index: int
    seed: int
    split: str
    twin: int | None


def write(
    out: str | Path,
    *,
    studies: int,
    seed: int = 0,
    shape: tuple[int, int, int] = SHAPE,
    findings: Sequence[str] | None = None,
    prevalence: float | None = None,
    split: tuple[float | int, float | int, float | int] = (0.7, 0.15, 0.15),
    twins: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> Path:
    """Write synthetic studies as NIfTI files and a manifest.

    Args:
        out: folder to write into; made if missing.
        studies: number of studies, one a patient.
        seed: names the data set: the same seed, the same files.
        shape: voxels along x, y, z.
        findings: names that may occur; None for all.
        prevalence: see `vol3d.phantom.make`.
        split: shares of train, val and test, or three whole numbers that sum to `studies`.
        twins: so many test studies get a twin (same patient, one finding removed, moved or resized, in turn),
            appended to the test split as a study of its own.
        workers: processes.
        progress: show a bar with the time left on stderr.

    Returns:
        Path of `manifest.jsonl`, which is written last: where it stands, all files stand.

    Raises:
        ValueError: what `vol3d.phantom.make` refuses, no study asked for, a split that does not fit, or fewer test
            studies with findings than twins; nothing is written then.
    """
    out = Path(out)
    check_request(seed, shape, findings, prevalence)
    jobs = _jobs(studies, seed, split, twins, findings, prevalence)
    for folder in ("images", "organs", "findings"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    task = partial(_write_patient, out=out, shape=shape, findings=findings, prevalence=prevalence)
    rows = [row for rows in _watch(_map(task, jobs, workers), len(jobs), progress) for row in rows]
    # Twins go last, so that the first rows are the same whatever number of twins is asked for.
    rows.sort(key=lambda row: "twin_of" in row["meta"])
    manifest = out / "manifest.jsonl"
    _replace(manifest, "".join(json.dumps(row) + "\n" for row in rows).encode())
    logger.info("wrote %d studies to %s", len(rows), manifest)
    return manifest


def row(study: PhantomStudy, name: str, *, patient: str | None = None, split: str | None = None) -> dict[str, Any]:
    """The manifest row of a study whose files are `images/NAME.nii.gz`, `organs/…` and `findings/…`."""
    return {
        "study": name,
        "image": f"images/{name}.nii.gz",
        "patient": patient or name,
        **({"split": split} if split else {}),
        "report": study.report.text,
        "findings": study.report.findings,
        "impression": study.report.impression,
        "codes": study.codes,
        "codes_absent": study.codes_absent,
        "code_system": "icd10cm",
        "labels_known": study.labels_known,
        "outcomes": study.outcomes,
        "mask": f"organs/{name}.nii.gz",
        "mask_labels": study.organ_labels,
        "finding_mask": f"findings/{name}.nii.gz",
        "finding_labels": study.finding_labels,
        "boxes": study.boxes,
        "questions": study.questions,
        "meta": {**study.meta, "findings": [finding.key for finding in study.findings]},
    }


def write_nifti(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write one volume as .nii.gz, atomically and with the same bytes each time."""
    import nibabel

    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    # Level 1: a noisy volume hardly packs tighter at 9, which takes ten times as long.
    _replace(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _jobs(
    studies: int,
    seed: int,
    split: Sequence[float | int],
    twins: int,
    findings: Sequence[str] | None,
    prevalence: float | None,
) -> list[_Job]:
    from vol3d.phantom.findings import plan

    counts = _counts(studies, split)
    order = stream(seed, "split").permutation(studies)
    names = np.repeat(SPLITS, counts)
    splits = {int(index): str(name) for index, name in zip(order, names, strict=True)}
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(studies, np.uint32)]
    twin_at: dict[int, int] = {}
    for index in range(studies):
        if len(twin_at) < twins and splits[index] == "test" and plan(seeds[index], findings, prevalence):
            twin_at[index] = len(twin_at)
    if len(twin_at) < twins:
        raise ValueError(
            f"{twins} twins asked for, but only {len(twin_at)} of {counts[2]} test studies have a finding: "
            "ask for fewer twins, or give the test split more studies"
        )
    return [_Job(index, seeds[index], splits[index], twin_at.get(index)) for index in range(studies)]


def _counts(studies: int, split: Sequence[float | int]) -> list[int]:
    if studies < 1:
        raise ValueError(f"studies is {studies}: give at least 1")
    if all(isinstance(part, int) for part in split) and sum(split) != 1:
        if sum(split) != studies or min(split) < 0:
            raise ValueError(f"split {tuple(split)} sums to {sum(split)}, studies is {studies}: make them equal")
        return [int(part) for part in split]
    if abs(sum(split) - 1) > 1e-6 or min(split) < 0:
        raise ValueError(f"split {tuple(split)} sums to {sum(split)}: give shares that sum to 1, or whole numbers")
    val, test = (round(studies * part) for part in split[1:])
    val, test = min(val, studies), min(test, studies - min(val, studies))
    return [studies - val - test, val, test]


def _write_patient(
    job: _Job,
    *,
    out: Path,
    shape: tuple[int, int, int],
    findings: Sequence[str] | None,
    prevalence: float | None,
) -> list[dict[str, Any]]:
    study = make(job.seed, shape=shape, findings=findings, prevalence=prevalence)
    patient, name = f"patient-{job.index:05d}", f"study-{job.index:05d}"
    rows = [_write_study(study, name, out=out, patient=patient, split=job.split)]
    if job.twin is not None:
        twin = _twin(study, CHANGES[job.twin % len(CHANGES)])
        twin.meta["twin_of"] = name
        rows.append(_write_study(twin, f"{name}-twin", out=out, patient=patient, split=job.split))
    return rows


def _twin(study: PhantomStudy, kind: str) -> PhantomStudy:
    try:
        return study.twin(kind)
    except ValueError:
        # Not every finding has a side or a size; every one can be removed.
        return study.twin("remove")


def _write_study(study: PhantomStudy, name: str, *, out: Path, patient: str, split: str) -> dict[str, Any]:
    write_nifti(study.hu, study.affine, out / "images" / f"{name}.nii.gz")
    write_nifti(study.organs.astype(np.uint8), study.affine, out / "organs" / f"{name}.nii.gz")
    write_nifti(study.finding_mask, study.affine, out / "findings" / f"{name}.nii.gz")
    return row(study, name, patient=patient, split=split)


def _map(task: partial, jobs: list[_Job], workers: int) -> Iterator[list[dict[str, Any]]]:
    if workers <= 1:
        yield from map(task, jobs)
        return
    # Forked workers need no guard in the user's script; they run numpy only.
    method = "fork" if "fork" in get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(workers, mp_context=get_context(method)) as pool:
        yield from pool.map(task, jobs, chunksize=4)


def _watch(rows: Iterable[Any], total: int, progress: bool) -> Iterable[Any]:
    if not progress:
        return rows
    from tqdm import tqdm

    return tqdm(rows, total=total, desc="phantoms", unit="study")


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
