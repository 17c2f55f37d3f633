"""Report sections: findings and impression by header, and the findings by organ.

Radiologists name the same part in many ways ("CONCLUSION", "Opinion"; "Lower chest", "Lung bases", "Thorax"). Two
tables collect the ways: one for the parts of a report, one for organs. The organs are Merlin's thirteen, so that its
reports and prompts line up with ours; our own phantoms' seven sections are in `ontology.ORGANS`.

Source: the thirteen organs are those of Merlin (Blankemeier et al., arXiv:2406.06512); the aliases are our own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MERLIN_ORGANS: tuple[str, ...] = (
    "lower thorax",
    "liver",
    "gallbladder",
    "spleen",
    "pancreas",
    "adrenal glands",
    "kidneys",
    "bowel",
    "peritoneum",
    "pelvic",
    "circulatory",
    "lymph nodes",
    "musculoskeletal",
)
"""Merlin's organ sections, in its order."""

_ALIASES: dict[str, tuple[str, ...]] = {
    "lower thorax": (
        "lower thorax", "lower chest", "lung bases", "lung base", "lungs", "lung", "chest", "thorax", "pleura",
        "lungs and pleura",
        "lungs and airways", "airways", "lungs/pleura", "lungs and large airways", "lungs, pleura", "pulmonary",
        "lower thoracic", "visualized chest", "visualized lower chest", "visualized lung bases", "basal lungs",
        "bases",
        "lung parenchyma", "pleural spaces", "pleural space", "lungs & pleura", "inferior thorax",
    ),
    "liver": (
        "liver", "hepatobiliary", "liver and biliary tree", "liver and biliary system", "liver and bile ducts",
        "hepatic",
        "liver/biliary", "liver and gallbladder", "liver, gallbladder and bile ducts", "liver/gallbladder",
    ),
    "gallbladder": (
        "gallbladder", "gallbladder and biliary tree", "biliary", "biliary tree", "biliary system", "bile ducts",
        "gallbladder and bile ducts", "gallbladder/biliary", "biliary tract", "gall bladder",
    ),
    "spleen": ("spleen", "spleen and pancreas", "splenic"),
    "pancreas": ("pancreas", "pancreas and spleen", "pancreatic"),
    "adrenal glands": ("adrenal glands", "adrenals", "adrenal", "adrenal gland", "suprarenal glands"),
    "kidneys": (
        "kidneys", "kidney", "renal", "kidneys and ureters", "kidneys/ureters", "kidneys and collecting systems",
        "urinary tract",
        "genitourinary", "gu", "kidneys, ureters and bladder", "kidneys, ureters, bladder", "urinary system",
        "renal tract",
        "left kidney", "right kidney", "left kidney and ureter", "right kidney and ureter",
        "kidneys and urinary tract",
    ),
    "bowel": (
        "bowel", "gastrointestinal tract", "gi tract", "gastrointestinal", "gi", "stomach and bowel",
        "small bowel", "colon",
        "stomach", "large bowel", "stomach, small bowel and colon", "bowel and mesentery", "appendix",
        "bowel and appendix",
        "bowel and peritoneum", "gastrointestinal system", "intestines", "stomach/bowel", "hollow viscera",
        "esophagus",
    ),
    "peritoneum": (
        "peritoneum", "peritoneal cavity", "peritoneum/retroperitoneum", "peritoneum and retroperitoneum",
        "mesentery",
        "retroperitoneum", "peritoneum and mesentery", "peritoneum, mesentery and omentum", "omentum",
        "abdominal cavity",
        "free fluid", "ascites/free air", "peritoneal",
    ),
    "pelvic": (
        "pelvic", "pelvis", "pelvic organs", "reproductive organs", "bladder", "urinary bladder", "prostate",
        "uterus",
        "reproductive", "uterus and ovaries", "prostate and seminal vesicles", "pelvic structures",
        "bladder and pelvic organs",
        "uterus/adnexa", "adnexa", "uterus and adnexa", "bladder and reproductive organs",
    ),
    "circulatory": (
        "circulatory", "vasculature", "vessels", "vascular", "aorta", "heart", "heart and vessels",
        "cardiovascular", "heart and great vessels",
        "great vessels", "abdominal vasculature", "vascular structures", "aorta and vessels", "cardiac",
        "heart and mediastinum",
        "mediastinum and heart", "heart/mediastinum", "pericardium", "heart and pericardium", "cardiomediastinum",
        "mediastinum",
        "major vessels", "coronary arteries", "aorta and iliac arteries", "cardiovascular system",
    ),
    "lymph nodes": (
        "lymph nodes", "lymphatics", "lymphatic", "nodes", "adenopathy", "lymph node", "lymphatic system",
        "lymphadenopathy",
        "mediastinal lymph nodes", "mediastinum and hila",
    ),
    "musculoskeletal": (
        "musculoskeletal", "bones", "bone", "osseous structures", "skeleton", "msk", "bones and soft tissues",
        "soft tissues",
        "soft tissues and bones", "body wall", "abdominal wall", "bony structures", "musculoskeletal system",
        "spine", "osseous",
        "bones/soft tissues", "skeletal", "chest wall", "musculoskeletal and soft tissues", "bones and joints",
        "skeletal structures",
        "abdominal wall and soft tissues", "bones & soft tissues", "bones, soft tissues", "visualized bones",
        "axial skeleton",
    ),
}  # fmt: skip

_OURS = {
    "lower thorax": "Lungs and pleura",
    "liver": "Liver and gallbladder",
    "gallbladder": "Liver and gallbladder",
    "spleen": "Spleen and pancreas",
    "pancreas": "Spleen and pancreas",
    "adrenal glands": "Spleen and pancreas",
    "kidneys": "Kidneys",
    "bowel": "Bowel and peritoneum",
    "peritoneum": "Bowel and peritoneum",
    "pelvic": "Bowel and peritoneum",
    "circulatory": "Heart and vessels",
    "lymph nodes": "Spleen and pancreas",
    "musculoskeletal": "Bones",
}
HEADERS: dict[str, str] = {alias: organ for organ, aliases in _ALIASES.items() for alias in aliases}
"""Every header we know, lower case, and Merlin's name of its organ."""

_PARTS = {
    "findings": "findings", "finding": "findings", "report": "findings", "description": "findings",
    "results": "findings",
    "observations": "findings", "body": "findings", "interpretation": "findings", "ct findings": "findings",
    "impression": "impression", "impressions": "impression", "conclusion": "impression", "conclusions": "impression",
    "opinion": "impression", "summary": "impression", "assessment": "impression", "diagnosis": "impression",
    "comment": "impression",
    "final impression": "impression", "key findings": "impression", "imp": "impression",
    "history": "other", "clinical history": "other", "clinical information": "other", "indication": "other",
    "indications": "other",
    "clinical indication": "other", "reason for exam": "other", "reason for examination": "other",
    "technique": "other",
    "comparison": "other", "comparisons": "other", "exam": "other", "examination": "other", "procedure": "other",
    "study": "other",
    "clinical details": "other", "clinical question": "other", "protocol": "other", "contrast": "other",
    "dose": "other",
    "medical history": "other", "past medical history": "other", "pmh": "other", "prior studies": "other",
    "priors": "other",
    "clinical data": "other", "reason for study": "other", "history and indication": "other",
    "radiation dose": "other",
    "recommendation": "other", "recommendations": "other", "electronically signed by": "other", "signed by": "other",
}  # fmt: skip
_START = r"(?im)(?:^|(?<=[.;:\n]) )[ \t]*(?:[-*•#_]+|\d{1,2}[.)])?[ \t]*[*_]*"


def _any(words: Iterable[str]) -> str:
    return "(" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + ")"


# A header ends with a colon or stands alone on its line; Markdown stars and hashes around it are passed over.
_PART_HEADER = re.compile(rf"{_START}{_any(_PARTS)}[*_]*[ \t]*(?::[*_]*|$)")
_ORGAN_HEADER = re.compile(rf"{_START}{_any(HEADERS)}[*_]*[ \t]*(?::[*_]*|[ ]-[ ]|$)")


@dataclass(frozen=True, slots=True)
class ReportSections:
    """The two parts of a report that are learnt and judged; "" where a report lacks one."""

    findings: str
    impression: str


def header_section(header: str) -> str | None:
    """Tell what part of a report a header opens: "findings", "impression", "other" (history, technique), or None."""
    return _PARTS.get(header.strip(" :*#_-").lower())


def header_organ(header: str) -> str | None:
    """Tell which of our sections (`ontology.ORGANS`) an organ header belongs to, or None."""
    organ = HEADERS.get(header.strip(" :*#_-").lower())
    return None if organ is None else _OURS[organ]


def split_report(text: str) -> ReportSections:
    """Split a report into findings and impression by their headers.

    Text before the first known header is findings if no findings header follows; history, indication, technique and
    comparison go to neither. A report with no header at all is all findings.
    """
    parts: dict[str, list[str]] = {"findings": [], "impression": [], "other": []}
    matches = list(_PART_HEADER.finditer(text))
    lead = text[: matches[0].start()] if matches else text
    named = {_PARTS[m[1].lower()] for m in matches}
    parts["findings" if "findings" not in named else "other"].append(lead)
    for match, part in zip(matches, _between(matches, text), strict=True):
        parts[_PARTS[match[1].lower()]].append(part)
    findings, impression = ("\n".join(s.strip() for s in parts[p] if s.strip()) for p in ("findings", "impression"))
    return ReportSections(findings, impression)


def split_organs(findings: str) -> dict[str, str]:
    """Split a findings section into organs by their headers.

    Returns:
        Merlin's organ → its text, in the order of `MERLIN_ORGANS`, organs without text left out. Text before the first
        header is left out too: nobody can tell what it speaks of. A joint header ("Spleen and pancreas") goes to
        the first organ it names.
    """
    matches = list(_ORGAN_HEADER.finditer(findings))
    texts: dict[str, list[str]] = {}
    for match, part in zip(matches, _between(matches, findings), strict=True):
        if text := part.strip():
            texts.setdefault(HEADERS[match[1].lower()], []).append(text)
    return {organ: "\n".join(texts[organ]) for organ in MERLIN_ORGANS if organ in texts}


def split_sections(report: str) -> dict[str, str]:
    """Split a whole report: "findings", "impression", and each organ of the findings under Merlin's name for it."""
    parts = split_report(report)
    named = {"findings": parts.findings, "impression": parts.impression}
    return {name: text for name, text in named.items() if text} | split_organs(parts.findings)


def _between(headers: list[re.Match[str]], text: str) -> list[str]:
    """The text behind each header, up to the next."""
    ends = [header.start() for header in headers[1:]] + [len(text)]
    return [text[header.end() : end] for header, end in zip(headers, ends, strict=False)]
