"""Which findings a patient has, and the table of their painters.

A finding is first planned (side, place, size: pure words and numbers), then painted over the finished anatomy.
Each is planned and painted from its own random stream, so that adding, removing, resizing or moving one leaves
every other to the voxel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vol3d.phantom import findings_abdomen, findings_bones, findings_chest
from vol3d.phantom.anatomy import Scene
from vol3d.phantom.canvas import near, stream
from vol3d.text.ontology import FINDINGS, SIDES, Finding

Painter = Callable[[Scene, Finding, np.random.Generator], np.ndarray]

PAINTERS: dict[str, Painter] = {**findings_chest.PAINTERS, **findings_abdomen.PAINTERS, **findings_bones.PAINTERS}
"""Finding name → painter, in painting order: later ones lie on top."""

SIZES_MM: dict[str, tuple[float, float]] = {
    "pulmonary nodule": (13, 28),
    "aortic aneurysm": (52, 76),
    "liver lesion": (27, 48),
    "hepatic cyst": (22, 44),
    "gallstones": (10, 19),
    "splenomegaly": (122, 156),
    "renal stone": (7, 14),
    "renal cyst": (26, 48),
    "bone metastasis": (14, 24),
}
"""Smallest and largest diameter drawn: never so small that 64 × 64 × 32 voxels could not show it."""

_PLACES: dict[str, tuple[str, ...]] = {
    "aortic aneurysm": ("abdominal aorta", "abdominal aorta", "ascending aorta", "descending aorta"),
    "liver lesion": ("right lobe", "right lobe", "left lobe"),
    "hepatic cyst": ("right lobe", "right lobe", "left lobe"),
    "vertebral fracture": ("T8", "T10", "T12", "L2", "L4"),
    "bone metastasis": ("T7", "T9", "T11", "L1", "L3", "pelvis", "sternum"),
}
_SCATTERED = ("renal stone", "renal cyst", "bone metastasis")
"""Several of these lie in several places: no site is told."""
_LOBES = {
    "left": ("upper lobe", "lower lobe", "lower lobe", "lingula"),
    "right": ("upper lobe", "lower lobe", "lower lobe", "middle lobe"),
}

_EXCLUDE = {
    frozenset(pair)
    for pair in (
        ("cardiomegaly", "pericardial effusion"),
        ("cardiomegaly", "hiatal hernia"),
        ("pericardial effusion", "hiatal hernia"),
        ("consolidation", "atelectasis"),
        ("consolidation", "pulmonary nodule"),
        ("atelectasis", "pulmonary nodule"),
        ("hepatic steatosis", "hepatic cyst"),
    )
}
"""Pairs that would hide or contradict each other (on one side, for sided ones)."""
_FILL_LINGULA = {"cardiomegaly", "pericardial effusion"}
"""What leaves no lung there for a nodule to lie in."""


@dataclass(frozen=True)
class Planned:
    """A finding and the random stream it is painted from (kept when a twin moves or resizes it)."""

    finding: Finding
    source: str

    @property
    def key(self) -> str:
        return self.finding.key


def plan(seed: int, allowed: Sequence[str] | None = None, prevalence: float | None = None) -> list[Planned]:
    """Draw which findings a patient has.

    Args:
        allowed: names to choose among; None for all.
        prevalence: chance of each finding (of each side of a sided one), independently, before those are left out
            that would hide another; None for a case mix of three in ten normal and one to four findings otherwise.

    Raises:
        ValueError: an unknown name, or a prevalence outside 0 to 1.
    """
    names = check_names(allowed)
    rng = stream(seed, "plan")
    keys = [(name, side) for name in names for side in (SIDES if FINDINGS[name].sided else (None,))]
    check_prevalence(prevalence)
    if prevalence is not None:
        chosen = [key for key in keys if stream(seed, f"present {key}").random() < prevalence]
    elif rng.random() < 0.3:
        chosen = []
    else:
        wanted = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.3, 0.25, 0.15]))
        chosen = []
        for index in rng.permutation(len(names))[:wanted]:
            name = names[index]
            sides = (None,) if not FINDINGS[name].sided else SIDES if rng.random() < 0.15 else (SIDES[rng.integers(2)],)
            chosen += [(name, side) for side in sides]
    kept: list[Planned] = []
    for index in rng.permutation(len(chosen)):
        name, side = chosen[index]
        drawn = Planned(describe(seed, name, side), f"{side} {name}")
        if not any(excluded(drawn.finding, there.finding) for there in kept):
            kept.append(drawn)
    order = list(FINDINGS)
    return sorted(kept, key=lambda p: (order.index(p.finding.name), p.finding.side or ""))


def excluded(one: Finding, other: Finding) -> bool:
    """Whether a finding cannot stand beside another."""
    names = {one.name, other.name}
    if "pulmonary nodule" in names and names & _FILL_LINGULA:
        return "lingula" in (one.site, other.site)
    return frozenset(names) in _EXCLUDE and one.side == other.side


def check_names(allowed: Sequence[str] | None) -> list[str]:
    """The allowed names in report order.

    Raises:
        ValueError: a name that is no finding of the phantom's, or none at all.
    """
    if allowed is None:
        return [name for name in FINDINGS if name in PAINTERS]
    unknown = [name for name in allowed if name not in PAINTERS]
    if unknown or not allowed:
        problem = f"unknown finding {unknown[0]!r}" if unknown else "findings is empty"
        raise ValueError(f"{problem}: choose among {', '.join(PAINTERS)}, or None for all")
    return [name for name in FINDINGS if name in set(allowed)]


def check_prevalence(prevalence: float | None) -> None:
    """Refuses what is no chance."""
    if prevalence is not None and not 0 <= prevalence <= 1:
        raise ValueError(f"prevalence is {prevalence}: give a chance between 0 and 1, or None for the usual mix")


def describe(seed: int, name: str, side: str | None = None) -> Finding:
    """Draw one finding's site, size, count and severity from its own stream."""
    kind = FINDINGS[name]
    rng = stream(seed, f"describe {side} {name}")
    luck, place, many, grade = rng.random(4)
    site = None
    if kind.sites and name in _PLACES:
        site = _PLACES[name][int(place * len(_PLACES[name]))]
    elif kind.sites and side in _LOBES and "lower lobe" in kind.sites:
        site = _LOBES[side][int(place * 4)]
    elif kind.sites:
        site = kind.sites[int(place * len(kind.sites))]
    count = (1, 1, 1, 1, 1, 2, 2, 3)[int(many * 8)] if kind.countable else 1
    if count > 1 and name in _SCATTERED:
        site = None
    size = None
    if name in SIZES_MM:
        low, high = sizes(name, site, count)
        size = float(round(low + luck * (high - low)))
    severity = kind.severities[int(grade * len(kind.severities))] if kind.severities else None
    return Finding(name, side=side, site=site, size_mm=size, count=count, severity=severity)


def sizes(name: str, site: str | None, count: int) -> tuple[float, float]:
    """Smallest and largest diameter (mm) of a finding, as far as its place has room for so many."""
    low, high = SIZES_MM[name]
    if site == "left lobe":
        high = min(high, 30)
    if name == "gallstones" and count > 1:
        high = 14
    return float(low), float(high)


def reshape(scene: Scene, planned: Sequence[Planned]) -> None:
    """Set how whole-organ findings change the anatomy before it is drawn."""
    for item in planned:
        finding, rng = item.finding, stream(scene.patient.seed, f"{item.source} paint")
        if finding.name == "cardiomegaly":
            factor = {"mild": 1.53, "moderate": 1.64, "severe": 1.76}[finding.severity or "moderate"]
            scene.change["heart"] = factor + float(rng.uniform(0, 0.05))
        elif finding.name == "splenomegaly":
            scene.change["spleen_mm"] = finding.size_mm or 138.0
        elif finding.name == "hepatic steatosis":
            gap = {"mild": 36, "moderate": 46, "severe": 58}[finding.severity or "moderate"] + rng.uniform(0, 6)
            scene.change["liver_hu"] = scene.hu("spleen") - float(gap)


def paint(scene: Scene, planned: Sequence[Planned]) -> dict[str, np.ndarray]:
    """Paint the findings over the anatomy; key → boolean mask (x, y, z), in the order given."""
    order = list(PAINTERS)
    masks: dict[str, np.ndarray] = {}
    for item in sorted(planned, key=lambda p: (order.index(p.finding.name), p.finding.side or "")):
        rng = stream(scene.patient.seed, f"{item.source} paint")
        before = scene.canvas.hu.copy()
        mask = PAINTERS[item.finding.name](scene, item.finding, rng)
        # Faint tails end two voxels from the mask, so that a twin differs nowhere else.
        np.copyto(scene.canvas.hu, before, where=~near(mask))
        masks[item.key] = mask
    return {item.key: masks[item.key] for item in planned}
