"""Report sections: findings and impression by header, and the findings by organ.

Radiologists name the same part in many ways ("CONCLUSION", "Opinion"; "Lower chest", "Lung bases", "Thorax"). Two
tables collect the ways: one for the parts of a report, one for organs. The organs are Merlin's thirteen, so that its
reports and prompts line up with ours; our own phantoms' seven sections are in `ontology.ORGANS`.

Headers that no table can list in full ("CT CHEST FINDINGS", "Findings/Impression") are told by their words. What
stands before the findings (history, technique, comparison) ends where a report goes on to the body, under a known
header or not: a sick patient's report that loses its body would count as a healthy one's.

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
    "results": "findings", "result": "findings",
    "observations": "findings", "body": "findings", "interpretation": "findings", "ct findings": "findings",
    "impression": "impression", "impressions": "impression", "conclusion": "impression", "conclusions": "impression",
    "opinion": "impression", "summary": "impression", "assessment": "impression", "diagnosis": "impression",
    "comment": "impression", "addendum": "impression", "summary of findings": "impression",
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
    "exam date": "other", "date of exam": "other", "date": "other", "exam type": "other", "accession": "other",
    "accession number": "other", "mrn": "other", "patient": "other", "patient name": "other", "name": "other",
    "dob": "other", "age": "other", "sex": "other", "ordering physician": "other", "referring physician": "other",
    "radiologist": "other", "medications": "other", "symptoms": "other",
    "recommendation": "other", "recommendations": "other", "electronically signed by": "other", "signed by": "other",
}  # fmt: skip
_CLOSING = {"recommendation", "recommendations", "electronically signed by", "signed by", "radiologist"}
"""Parts behind the impression: no body of a report follows them."""
_PART_WORDS = {
    "findings": "findings", "finding": "findings", "impression": "impression", "impressions": "impression",
    "conclusion": "impression", "conclusions": "impression", "opinion": "impression", "summary": "impression",
    "history": "other", "indication": "other", "indications": "other", "technique": "other", "comparison": "other",
    "comparisons": "other", "reason": "other", "recommendation": "other", "recommendations": "other",
}  # fmt: skip
_REGIONS = {"chest", "thorax", "thoracic", "abdomen", "abdominal", "abdominopelvic", "pelvis", "pelvic", "neck", "body"}
_FILLERS = {
    "ct", "cta", "mr", "mri", "pet", "and", "or", "with", "without", "iv", "contrast", "enhanced", "non", "noncontrast",
    "scan", "imaging", "exam", "examination", "study", "for", "clinical", "medical", "radiology", "radiological",
    "final", "upper", "lower",
}  # fmt: skip
_START = r"(?im)(?:^|(?<=[.;:!?\n]) )[ \t]*(?:(?:[-*•#_]+|\d{1,2}[.)])[ \t]*)?[*_]*"


def _any(words: Iterable[str]) -> str:
    return "(" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + ")"


# A header ends with a colon or stands alone on its line; Markdown stars and hashes around it are passed over.
_HEADER = re.compile(rf"{_START}([a-z][a-z ,/&()+-]{{1,60}}?)[*_]*[ \t]*(?P<end>:[*_]*|$)")
_ORGAN_HEADER = re.compile(rf"{_START}{_any(HEADERS)}[*_]*[ \t]*(?::[*_]*|[ ]-[ ]|$)")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True, slots=True)
class ReportSections:
    """The two parts of a report that are learnt and judged; "" where a report lacks one."""

    findings: str
    impression: str


def header_section(header: str) -> str | None:
    """Tell what part of a report a header opens: "findings", "impression", "other" (history, technique), or None.

    A header outside the table is told by its words, if all are words of headers; a joint one ("Findings/Impression")
    opens the first part it names, before any "other".
    """
    header = header.strip(" :*#_-").lower()
    if header in _PARTS:
        return _PARTS[header]
    words = re.findall(r"\w+", header)
    if not _PART_WORDS.keys() | _REGIONS | _FILLERS >= set(words):
        return None
    parts = [_PART_WORDS[word] for word in words if word in _PART_WORDS]
    return next((part for part in parts if part != "other"), parts[0] if parts else None)


def header_organ(header: str) -> str | None:
    """Tell which of our sections (`ontology.ORGANS`) an organ header belongs to, or None."""
    organ = HEADERS.get(header.strip(" :*#_-").lower())
    return None if organ is None else _OURS[organ]


def split_report(text: str) -> ReportSections:
    """Split a report into findings and impression by their headers.

    Text before the first known header is findings if no findings header follows; history, indication, technique and
    comparison go to neither. A report with no header at all is all findings, and "Findings/Impression" is findings.
    """
    parts = report_parts(text)
    findings, impression = (
        "\n".join(body for part, body in parts if part == wanted) for wanted in ("findings", "impression")
    )
    return ReportSections(findings, impression)


def report_parts(text: str) -> list[tuple[str, str]]:
    """Cut a report into (part, text) in its order, without the headers of the parts.

    The part is "findings", "impression", "other", or "lead": text before all headers where a findings header follows.
    History, technique and comparison end at the next part; at an organ's or a region's header ("LUNGS:", "ABDOMEN AND
    PELVIS:"); and, unless a findings header is still to come, at any header that starts a line and at a blank line:
    what follows is findings.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    marks = list(_HEADER.finditer(text))
    findings = [m.start() for m in marks if header_section(m[1]) == "findings"]
    cuts = [("lead" if findings else "findings", 0, 0)]
    closing = False
    for mark in sorted([*marks, *_PARAGRAPH.finditer(text)], key=lambda m: (m.start(), m.end())):
        part = header_section(mark[1]) if mark.re is _HEADER else None
        if part is not None:
            cuts.append((part, mark.start(), mark.end()))
            closing = mark[1].lower() in _CLOSING
        elif cuts[-1][0] == "other":
            empty = not text[cuts[-1][2] : mark.start()].strip()
            awaited = closing or bool(findings and findings[-1] > mark.start())
            if _ends_other(text, mark, empty=empty, awaited=awaited):
                cuts.append(("findings", mark.start(), mark.start()))
    ends = [start for _, start, _ in cuts[1:]] + [len(text)]
    bodies = [text[start:end].strip() for (_, _, start), end in zip(cuts, ends, strict=True)]
    return [(part, body) for (part, _, _), body in zip(cuts, bodies, strict=True) if body]


def _ends_other(text: str, mark: re.Match[str], *, empty: bool, awaited: bool) -> bool:
    """Whether an unknown header or a blank line ends history, technique or comparison."""
    if mark.re is _PARAGRAPH:
        return not empty and not awaited
    new_line = text[: mark.start()].rstrip(" \t")[-1:] in ("", "\n")
    if header_organ(mark[1]) is not None or (mark["end"] and _is_region(mark[1])):
        return not empty or (new_line and bool(mark["end"]) and not awaited)
    return bool(mark["end"]) and new_line and not empty and not awaited


def _is_region(header: str) -> bool:
    words = set(re.findall(r"\w+", header.lower()))
    return bool(words & _REGIONS) and words <= _REGIONS | {"and", "or", "upper", "lower"}


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
