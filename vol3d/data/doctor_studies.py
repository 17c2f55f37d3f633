"""What only shows when studies are laid side by side: outliers and duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from vol3d.data.doctor_volume import Note, Probe
from vol3d.data.manifest import Manifest, Study

ALIKE = 0.9985
"""Correlation of two small pictures above which two volumes are near-duplicates."""
_BLOCK = 512


def check_grids(manifest: Manifest, probes: dict[str, Probe]) -> Iterator[Note]:
    """Spacings far from the dataset's own."""
    readable = [study for study in manifest if probes[study.study].spacing]
    if len(readable) < 5:
        return
    steps = np.log([probes[study.study].spacing for study in readable])
    usual = np.exp(np.median(steps, axis=0))
    for study, row in zip(readable, steps, strict=True):
        worst = int(np.abs(row - np.log(usual)).argmax())
        if abs(row[worst] - np.log(usual[worst])) > np.log(2.5):
            message = (
                f"{np.exp(row[worst]):.3g} mm along {'xyz'[worst]}; half of the dataset is at {usual[worst]:.3g} mm"
            )
            yield Note(study.study, study.image.name, "spacing", "warning", message)


def check_orientation_known(manifest: Manifest, probes: dict[str, Probe]) -> Iterator[Note]:
    """Says where left and right could not be checked."""
    blind = sum(bool(found.shape) and not found.sided for found in probes.values())
    if blind:
        message = (
            f"cannot tell left from right in {blind} of {len(probes)} studies: neither the liver's place nor a "
            "mask of a sided organ says"
        )
        yield Note("", "", "orientation", "info", message)


def check_duplicates(manifest: Manifest, probes: dict[str, Probe]) -> Iterator[Note]:
    """The same voxels twice, and volumes of two patients that look the same."""
    groups: defaultdict[str, list[Study]] = defaultdict(list)
    for study in manifest:
        if probes[study.study].content:
            groups[probes[study.study].content].append(study)
    for group in groups.values():
        for study in group[1:]:
            yield _pair(study, group[0], "duplicate", "holds the same voxels as")
    firsts = [group[0] for group in groups.values()]
    for one, other, alike in _alike_pairs(firsts, probes):
        if one.patient != other.patient and not _are_twins(one, other):
            yield _pair(other, one, "near_duplicate", f"looks the same (correlation {alike:.4f}) as")


def _alike_pairs(studies: list[Study], probes: dict[str, Probe]) -> Iterator[tuple[Study, Study, float]]:
    if len(studies) < 2:
        return
    looks = np.stack([probes[study.study].pixels() for study in studies]).astype(np.float32)
    looks -= looks.mean(axis=1, keepdims=True)
    looks /= np.linalg.norm(looks, axis=1, keepdims=True) + 1e-6
    for start in range(0, len(looks), _BLOCK):
        alike = looks[start : start + _BLOCK] @ looks.T
        for row, column in np.argwhere(np.triu(alike, k=start + 1) > ALIKE):
            yield studies[start + row], studies[column], float(alike[row, column])


def _are_twins(one: Study, other: Study) -> bool:
    """Phantoms made to differ in one finding say whose twin they are."""
    return one.meta.get("twin_of", one.study) == other.meta.get("twin_of", other.study)


def _pair(study: Study, other: Study, check: str, what: str) -> Note:
    apart = study.split != other.split and study.split is not None and other.split is not None
    where = f" in {other.split}, this one is in {study.split}: a leak between splits" if apart else ""
    message = f"{what} study {other.study!r}{where}"
    return Note(study.study, study.image.name, check, "error" if apart else "warning", message)
