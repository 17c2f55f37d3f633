"""The audit of a dataset: what is wrong with it is told before a GPU is rented."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from vol3d.data.doctor_rows import check_codes, check_counts, check_paths, check_priors, check_reports, check_sides
from vol3d.data.doctor_studies import check_duplicates, check_grids, check_orientation_known
from vol3d.data.doctor_volume import Note, Probe, probe
from vol3d.data.identity import file_identity
from vol3d.data.manifest import Manifest, Study, check_across, locate, read_rows, unknown_fields
from vol3d.data.parallel import map_in_order

log = logging.getLogger(__name__)

_LOOKS = 2
"""Counted up when more is looked for in a study's files: what an earlier audit kept is then looked at again."""
SEVERITIES = ("error", "warning", "info")
CHECKS: tuple[Callable[[Manifest, dict[str, Probe]], Iterator[Note]], ...] = (
    check_grids,
    check_orientation_known,
    check_duplicates,
    check_sides,
    check_reports,
    check_priors,
    check_codes,
    check_paths,
    check_counts,
)
"""Each looks at all studies together; what one file shows is in its Probe."""


def doctor(
    manifest: str | Path | Manifest,
    workers: int = 0,
    *,
    resume: str | Path | None = None,
    page: str | Path | None = None,
    progress: bool = False,
) -> list[dict[str, str]]:
    """Audits a dataset and lists what it found, the worst first.

    Each volume is read once, one at a time a process; of each only a few numbers are kept.

    Args:
        workers: processes beside this one; 0 works in this one.
        resume: a JSON Lines file that keeps what each volume showed; with it an audit that was stopped goes on,
            and volumes that have not changed are not read again.
        page: also write an HTML page, with thumbnails of the studies concerned, to this path.

    Returns:
        {study, file, check, severity, message} each; severity is "error" (training on it would be wrong),
        "warning" (look at it) or "info". What concerns the whole dataset has an empty study.

    Raises:
        FileNotFoundError, ValueError: no manifest, or none that vol3d reads. Bad rows do not raise: they are
            listed.

    Example:
        >>> for finding in doctor("data/manifest.jsonl", workers=4):  # doctest: +SKIP
        ...     print(finding["severity"], finding["study"], finding["message"])
    """
    manifest, notes = _read(manifest)
    probes = _probe_all(manifest, workers, None if resume is None else Path(resume), progress=progress)
    notes += chain.from_iterable(found.notes for found in probes.values())
    for check in CHECKS:
        notes += check(manifest, probes)
    order = {study.study: number for number, study in enumerate(manifest)}
    notes.sort(key=lambda note: (SEVERITIES.index(note.severity), note.check, order.get(note.study, -1)))
    if page is not None:
        from vol3d.data.doctor_page import write_page

        write_page(Path(page), manifest, probes, notes)
    return [asdict(note) for note in notes]


def _read(source: str | Path | Manifest) -> tuple[Manifest, list[Note]]:
    """The good rows, and the bad ones as notes."""
    if isinstance(source, Manifest):
        manifest, problems, ignored = source, check_across((0, study) for study in source), []
    else:
        path = locate(Path(source))
        rows, problems, _ = read_rows(path)
        first: dict[str, Study] = {}
        for _, study in rows:
            first.setdefault(study.study, study)
        manifest = Manifest(first.values(), path)
        ignored = unknown_fields(path)
    name = "" if manifest.path is None else manifest.path.name
    notes = [
        Note(bad.study, name, "manifest", "error",
             f"{f'row {bad.row}, ' if bad.row else ''}field {bad.field!r}: {bad.message}")
        for bad in problems
    ]  # fmt: skip
    notes += [Note("", name, "manifest", "warning", message) for message in ignored]
    alone = Counter(study.patient == study.study for study in manifest)[True]
    if alone:
        message = f"{alone} of {len(manifest)} studies have no patient: leaks of a patient across splits cannot be seen"
        notes.append(Note("", name, "patients", "warning", message))
    return manifest, notes


def _probe_all(manifest: Manifest, workers: int, resume: Path | None, *, progress: bool) -> dict[str, Probe]:
    from tqdm import tqdm

    keys = {study.study: _key(study) for study in manifest}
    known = {} if resume is None else _load(resume)
    probes = {name: known[key] for name, key in keys.items() if key in known}
    missing = [study for study in manifest if study.study not in probes]
    results = map_in_order(probe, missing, workers)
    bar = tqdm(results, desc="doctor", unit="study", total=len(manifest), initial=len(probes), disable=not progress)
    for study, found in zip(missing, bar, strict=True):
        probes[study.study] = found
        if resume is not None:
            resume.parent.mkdir(parents=True, exist_ok=True)
            with resume.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": keys[study.study], **found.to_row()}) + "\n")
    return {study.study: probes[study.study] for study in manifest}


def _load(path: Path) -> dict[str, Probe]:
    """What an earlier audit saw; a line that was cut off when it was stopped is left out."""
    known = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            key = row.pop("key")
            known[key] = Probe.from_row(row)
        except (json.JSONDecodeError, KeyError, TypeError):
            log.warning("%s: a line that cannot be read is left out", path.name)
    return known


def _key(study: Study) -> str:
    """Changes with everything that a probe depends on."""
    try:
        files = [file_identity(p) for p in (study.image, study.mask, study.finding_mask) if p is not None]
    except OSError as error:
        files = [str(error)]
    return json.dumps(
        [_LOOKS, study.study, files, study.mask_labels, study.finding_labels, study.boxes, study.modality]
    )
