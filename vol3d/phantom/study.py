"""One phantom study: volume, masks, report and labels from one seed, and its twin that differs in one finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vol3d.phantom import anatomy
from vol3d.phantom.anatomy import ORGANS, Patient, Scene
from vol3d.phantom.canvas import Canvas, stream
from vol3d.phantom.findings import (
    Planned,
    check_names,
    check_prevalence,
    excluded,
    paint,
    plan,
    reshape,
    sizes,
)
from vol3d.phantom.report import Report, write_report
from vol3d.text.ontology import FINDINGS, KEYS, Finding

SHAPE = (160, 160, 128)
CHANGES = ("remove", "swap", "resize")
"""The three ways in which a twin may differ."""

_REFERENCE_VOXEL_MM3 = 2.5 * 2.5 * 3.25
_HAZARD = {
    "liver lesion": 1.3, "bone metastasis": 1.5, "pulmonary nodule": 0.6, "pleural effusion": 0.7, "ascites": 1.0,
    "cardiomegaly": 0.7, "emphysema": 0.8, "aortic aneurysm": 0.6, "coronary artery calcification": 0.5,
    "consolidation": 0.4, "splenomegaly": 0.4, "hydronephrosis": 0.3, "vertebral fracture": 0.3,
}  # fmt: skip
_ACUTE = {
    "bowel obstruction": 2.2, "pneumothorax": 1.8, "ascites": 1.8, "pleural effusion": 1.6, "consolidation": 1.6,
    "cardiomegaly": 1.4, "aortic aneurysm": 1.2, "splenomegaly": 0.8, "emphysema": 0.8, "inguinal hernia": 0.6,
    "pericardial effusion": 0.6, "bone metastasis": 0.6, "hepatic steatosis": 0.4, "hydronephrosis": 0.4,
    "liver lesion": 0.4, "vertebral fracture": 0.3,
}  # fmt: skip


@dataclass(frozen=True)
class PhantomStudy:
    """A synthetic CT with everything that is true of it.

    Args:
        hu: HU, int16.
        affine: voxel index → RAS mm.
        organs: organ label map; `organ_labels` names its integers.
        masks: finding key → boolean mask.
        findings: what is there, in report order.
        allowed: names that could have been there (what is absent is known absent).
        meta: age, sex, contrast, kernel, noise_hu, seed; a twin's also twin_of (seed), change, changed (key).

    Shape:
        hu, organs, each mask: (x, y, z), RAS. affine: (4, 4) float64.
    """

    seed: int
    hu: np.ndarray
    affine: np.ndarray
    organs: np.ndarray
    organ_labels: dict[str, int]
    masks: dict[str, np.ndarray]
    findings: list[Finding]
    report: Report
    meta: dict[str, Any]
    allowed: list[str]
    planned: list[Planned] = field(repr=False)

    @property
    def questions(self) -> list[dict[str, Any]]:
        """Question–answer pairs, closed ones with choices."""
        return self.report.questions

    @property
    def boxes(self) -> list[dict[str, Any]]:
        """One box a finding: {label, min_mm, max_mm}, the outer faces of its voxels in RAS mm."""
        spacing, origin = np.diag(self.affine)[:3], self.affine[:3, 3]
        rows = []
        for key, mask in self.masks.items():
            low, high = _extent(mask)
            lowest, highest = origin + (low - 0.5) * spacing, origin + (high + 0.5) * spacing
            rows.append({"label": key, "min_mm": lowest.round(3).tolist(), "max_mm": highest.round(3).tolist()})
        return rows

    @property
    def codes(self) -> list[str]:
        """ICD-10-CM codes of what is there."""
        keys = [finding.name for finding in self.findings]
        codes = []
        for finding in self.findings:
            many = finding.count > 1 or keys.count(finding.name) > 1
            codes.append((many and finding.type.icd10cm_many) or finding.type.icd10cm)
        return sorted(set(codes))

    @property
    def codes_absent(self) -> list[str]:
        """ICD-10-CM codes of what could have been there and is not."""
        present = {finding.name for finding in self.findings}
        absent = (FINDINGS[name] for name in self.allowed if name not in present)
        codes = {code for kind in absent for code in (kind.icd10cm, kind.icd10cm_many) if code}
        return sorted(codes - set(self.codes))

    @property
    def labels_known(self) -> dict[str, int]:
        """1 or 0 for every allowed name, and for each side of a sided one ("left pleural effusion")."""
        present = {name for finding in self.findings for name in (finding.name, finding.key)}
        names = dict.fromkeys(name for kind in self.allowed for name in (kind, *FINDINGS[kind].keys))
        return {name: int(name in present) for name in names}

    @property
    def finding_labels(self) -> dict[str, int]:
        """Finding key → integer in `finding_mask`, the same in every study; all allowed keys are named."""
        return {key: KEYS.index(key) + 1 for name in self.allowed for key in FINDINGS[name].keys}

    @property
    def finding_mask(self) -> np.ndarray:
        """(x, y, z) uint8 label map of the findings; where two overlap the smaller lies on top."""
        out = np.zeros(self.hu.shape, np.uint8)
        for key in sorted(self.masks, key=lambda key: -int(self.masks[key].sum())):
            np.copyto(out, self.finding_labels[key], where=self.masks[key])
        return out

    @property
    def outcomes(self) -> dict[str, dict[str, int]]:
        """Days to death and to the next hospital admission, each from a stream of its own.

        Death leaves much to chance (an exponential time) and depends on age as well: who knows every finding and the
        age orders 74 % of the pairs rightly. Admission follows from the findings: a log-normal time whose median they
        shorten, 91 % with every finding known. About half of the patients are censored.
        """
        rng = stream(self.seed, "outcome")
        hazard = sum(_HAZARD.get(f.name, 0.1) for f in self.findings) + 0.03 * (self.meta["age"] - 60)
        death = 2200 * rng.exponential() * np.exp(-hazard), rng.uniform(200, 1825)
        rng = stream(self.seed, "admission")
        sooner = sum(_ACUTE.get(f.name, 0.1) for f in self.findings)
        admission = 6000 * np.exp(0.6 * rng.standard_normal() - sooner), rng.uniform(365, 3650)
        return {
            name: {"time": max(1, int(min(event, censored))), "event": int(event <= censored)}
            for name, (event, censored) in {"death": death, "admission": admission}.items()
        }

    def twin(
        self, kind: str | None = None, rng: np.random.Generator | None = None, *, key: str | None = None
    ) -> PhantomStudy:
        """The same patient with exactly one finding changed; every other voxel and sentence stays.

        Args:
            kind: "remove", "swap" (to the other side) or "resize" (size or severity); None for any possible one.
            rng: chooses the finding (and the kind); by default drawn from the study's seed.
            key: the finding to change, such as "left renal cyst"; None for any possible one.

        Raises:
            ValueError: the study has no finding to which this can be done.
        """
        if kind is not None and kind not in CHANGES:
            raise ValueError(f"kind of twin is {kind!r}: use one of {', '.join(CHANGES)}")
        rng = rng if rng is not None else stream(self.seed, f"twin {kind}")
        options = [(index, change) for change in ((kind,) if kind else CHANGES) for index in self._changeable(change)]
        if key is not None:
            options = [option for option in options if self.findings[option[0]].key == key]
        if not options:
            keys = ", ".join(f.key for f in self.findings) or "none"
            wish = f"{key or 'finding'} to {kind or 'change'}"
            raise ValueError(f"study {self.seed} has no {wish} (findings: {keys}): try another seed")
        index, change = options[int(rng.integers(len(options)))]
        planned = list(self.planned)
        old = planned.pop(index)
        if change != "remove":
            new = _swapped(old.finding) if change == "swap" else _resized(old.finding)
            planned.insert(index, replace(old, finding=new))
        shape = (self.hu.shape[0], self.hu.shape[1], self.hu.shape[2])
        twin = _build(self.seed, shape, planned, self.allowed)
        twin.meta.update(twin_of=self.seed, change=change, changed=old.key)
        return twin

    def _changeable(self, change: str) -> list[int]:
        if change == "remove":
            return list(range(len(self.planned)))
        if change == "resize":
            return [i for i, p in enumerate(self.planned) if p.finding.severity or p.finding.size_mm]
        return [i for i, p in enumerate(self.planned) if p.finding.side is not None and self._swappable(p.finding)]

    def _swappable(self, finding: Finding) -> bool:
        new, others = _swapped(finding), [there for there in self.findings if there is not finding]
        return not any(there.key == new.key or excluded(new, there) for there in others)


def make(
    seed: int,
    *,
    shape: tuple[int, int, int] = SHAPE,
    findings: Sequence[str] | None = None,
    prevalence: float | None = None,
) -> PhantomStudy:
    """Make one synthetic CT of chest, abdomen and pelvis with its findings, masks and report.

    The same seed gives the same patient at any shape (the field of view is fixed) and the same voxels at the
    same shape.

    Args:
        seed: names the patient; 0 or more.
        shape: voxels along x, y, z; spacing is 400 × 400 × 416 mm over it.
        findings: names that may occur; None for all of `vol3d.phantom.FINDINGS`.
        prevalence: chance of each (side of each) finding; None for three normals in ten, others with 1 to 4.

    Raises:
        ValueError: a negative seed, a shape under 16 voxels, an unknown finding, a prevalence outside 0 to 1.

    Example:
        >>> study = make(3, shape=(64, 64, 32), findings=["pleural effusion", "ascites"])
        >>> study.hu.shape
        (64, 64, 32)
    """
    allowed = check_request(seed, shape, findings, prevalence)
    return _build(int(seed), (int(shape[0]), int(shape[1]), int(shape[2])), plan(seed, allowed, prevalence), allowed)


def check_request(
    seed: int, shape: Sequence[int], findings: Sequence[str] | None, prevalence: float | None
) -> list[str]:
    """The findings that may occur, after refusing what `make` cannot draw."""
    if seed < 0:
        raise ValueError(f"seed is {seed}: give 0 or more")
    if len(shape) != 3 or min(shape) < 16:
        raise ValueError(f"shape is {tuple(shape)}: give three sizes of at least 16 voxels, such as (64, 64, 32)")
    check_prevalence(prevalence)
    return check_names(findings)


def _build(seed: int, shape: tuple[int, int, int], planned: list[Planned], allowed: list[str]) -> PhantomStudy:
    patient = Patient.draw(seed)
    canvas = Canvas(shape, patient.pose)
    scene = Scene(canvas, patient)
    reshape(scene, planned)
    anatomy.draw(scene)
    masks = paint(scene, planned)
    _add_noise(canvas, patient)
    np.clip(canvas.hu, -1024, 3071, out=canvas.hu)
    np.rint(canvas.hu, out=canvas.hu)
    findings = [item.finding for item in planned]
    meta = {
        "age": patient.age,
        "sex": patient.sex,
        "contrast": patient.contrast,
        "kernel": patient.kernel,
        "noise_hu": round(patient.noise_hu, 1),
        "seed": seed,
    }
    report = write_report(
        findings, seed=seed, subset=allowed, age=float(patient.age), sex=patient.sex, contrast=patient.contrast
    )
    return PhantomStudy(
        seed=seed, hu=canvas.hu.astype(np.int16), affine=canvas.affine, organs=canvas.organs,
        organ_labels=dict(ORGANS), masks=masks, findings=findings, report=report, meta=meta, allowed=allowed,
        planned=planned,
    )  # fmt: skip


def _add_noise(canvas: Canvas, patient: Patient) -> None:
    noise = stream(patient.seed, f"noise {canvas.shape}").standard_normal(canvas.shape, dtype=np.float32)
    if patient.kernel == "soft":
        for axis in (0, 1):
            shifted = noise.swapaxes(0, axis)
            shifted[1:] += shifted[:-1]
        noise *= np.float32(0.5)
    # Thicker voxels average more photons, though less than independent noise would have it.
    noise *= np.float32(patient.noise_hu * (_REFERENCE_VOXEL_MM3 / float(np.prod(canvas.spacing))) ** 0.3)
    canvas.hu += noise


def _extent(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest voxel index of a mask along each axis."""
    spans = []
    for axis in range(3):
        line = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        spans.append((line[0], line[-1]) if len(line) else (0, 0))
    return np.array([low for low, _ in spans], float), np.array([high for _, high in spans], float)


def _swapped(finding: Finding) -> Finding:
    site = {"middle lobe": "lingula", "lingula": "middle lobe"}.get(finding.site or "", finding.site)
    return replace(finding, side="left" if finding.side == "right" else "right", site=site)


def _resized(finding: Finding) -> Finding:
    """Another size at least half the range away, or a grade at the far end of the scale."""
    size, severity = finding.size_mm, finding.severity
    if severity is not None:
        grades = finding.type.severities
        severity = grades[0] if severity == grades[-1] else grades[-1]
    if size is not None:
        low, high = sizes(finding.name, finding.site, finding.count)
        middle = (low + high) / 2
        size = float(round(size - (middle - low))) if size > middle else float(round(size + (high - middle)))
    return replace(finding, size_mm=size, severity=severity)
