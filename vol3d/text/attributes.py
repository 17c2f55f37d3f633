"""How large, how many, how severe and exactly where: what a sentence says about a finding besides its side."""

from __future__ import annotations

import re

from vol3d.text.mentions import Span
from vol3d.text.ontology import FINDINGS, LOBES, POLES, Finding, Side
from vol3d.text.places import PRE, STOP, Place

_SIZE = re.compile(
    r"(?P<first>\d+(?:\.\d+)?)\s*(?:mm|cm)?(?P<more>(?:\s*(?:x|×|by|-|to)\s*\d+(?:\.\d+)?\s*(?:mm|cm)?)*)\s*-?(?P<unit>mm|cm|millimet\w+|centimet\w+)\b"
)
_BEHIND_PLACE = re.compile(r"\s*\([^()]*|,?:? ?")
_BEFORE_PLACE = re.compile(r" (?:(?:in|on|at|within) (?:the )?)?")
_DISTANCE = re.compile(
    r" (?:from|above|below|away|deep to|distal to|proximal to) (?:the|its|from)\b(?! (?:prior|previous))"
)
"""What tells that a length is how far away the finding lies."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_FORMER = re.compile(
    r"(?:[,(]\s*was|previously|prior(?! to )|formerly|(?P<start>from)|(?P<was>was|were)|compared (?:to|with)|versus|vs"
    r"|than)\s*(?:\w+\s+){0,2}$"
)
_TODAY = re.compile(r"\b(?:now|currently|today|measures|previous(?:ly)?|prior)\b")
_FORMER_BEHIND = re.compile(
    r",? (?:(?:previously|formerly)(?! (?:\w+ ){0,2}\d)|before|(?:on|in) (?:the )?(?:prior|previous)"
    r"|in (?:19|20)\d\d)\b"
)
_TO = re.compile(r"\bto\b")
_LABELLED = re.compile(
    r"\b(?:segments?|seg|series|se|images?|img|im|slices?|grades?|levels?|stages?|stations?|zones?|types?|class|category"
    r"|scores?|phase|day|number|ribs?|bosniak|rads)[\s#-]*\d+[a-d]?\b(?!\s*-?(?:mm|cm))"
    r"(?:\s*(?:[/-]|and|to)\s*\d+[a-d]?\b(?!\s*-?(?:mm|cm)))*"
)
"""Numbers that name a thing ("segment 7", "series 4, image 56") and count none."""
_COUNTS = {w: n for n, w in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine"), 1)}
_COUNT = re.compile(
    rf"\b(?P<count>{'|'.join(_COUNTS)}|multiple|several|numerous|many|few"
    r"|\d{1,2}(?!\s*-?(?:mm|cm|x|\.)|\s*(?:-|to)\s*\d[\d.]*\s*-?[cm]m\b))[\s-]+"
    rf"(?:(?!(?:{STOP})\b)[\w./]+[\s-]+){{0,5}}$"
)
_PLURAL = re.compile(r"(?:\w*[^siu\W]s|calculi|metastases|masses)$")
_LEVEL = {
    "small": 0, "trace": 0, "tiny": 0, "minimal": 0, "mild": 0, "slight": 0, "mildly": 0, "slightly": 0, "minimally": 0,
    "moderate": 1, "moderately": 1, "large": 2, "massive": 2, "severe": 2, "severely": 2, "marked": 2, "markedly": 2,
    "extensive": 2, "advanced": 2, "huge": 2,
}  # fmt: skip
_SEVERITY = re.compile(rf"\b(?:{'|'.join(_LEVEL)})(?![- ]bowel)(?=\W|$)")
_SEVERITY_BEFORE = re.compile(rf"\b({'|'.join(_LEVEL)}) $")
_AFTER_SEVERITY = re.compile(rf"\s*(?:[,(]|is|are|appears)\s*(?P<word>{'|'.join(_LEVEL)})(?=\W|$)(?!\s+\w+\s)")


def sizes(text: str, spans: list[Span], places: list[Place]) -> list[list[tuple[float, Place | None]]]:
    """Sizes in millimetres, the largest of each "3 × 2 cm", of each finding; former sizes are left out.

    Beside each stands the place right beside it ("right upper lobe (4 mm)", "7 mm in the LLL"), None if there is none.
    """
    out: list[list[tuple[float, Place | None]]] = [[] for _ in spans]
    for match in _SIZE.finditer(text) if spans else ():
        numbers = [] if _DISTANCE.match(text, match.end()) else _today(text, match)
        unit = 1.0 if match["unit"].startswith("m") else 10.0
        value = round(max(numbers, default=0.0) * unit, 3)
        owner = _size_owner(text, spans, match)
        ahead = [p for p in places if _BEFORE_PLACE.fullmatch(text, match.end(), p.start)]
        behind = [p for p in places if _BEHIND_PLACE.fullmatch(text, p.end, match.start())]
        place = next(iter(ahead or behind), None)
        for which, span in enumerate(spans):
            if (span.core, span.end) == (spans[owner].core, spans[owner].end) and 0 < value < 1000:
                out[which].append((value, place))
    return out


def _today(text: str, match: re.Match[str]) -> list[float]:
    """The numbers of a size that are not of an earlier exam: none of "previously 8 mm", 12 of "from 8 to 12 mm"."""
    former = _FORMER.search(text[max(0, match.start() - 40) : match.start()])
    changed = list(_TO.finditer(match[0])) if former and former["start"] else []
    if changed:
        return [float(n) for n in _NUMBER.findall(match[0][changed[-1].end() :])]
    if _FORMER_BEHIND.match(text, match.end()) or (former and not (former["was"] and not _TODAY.search(text))):
        return []
    return [float(match["first"]), *(float(n) for n in _NUMBER.findall(match["more"]))]


def _size_owner(text: str, spans: list[Span], match: re.Match[str]) -> int:
    following = next((i for i, s in enumerate(spans) if s.core >= match.end()), None)
    if following is not None and PRE.fullmatch(text, match.end(), spans[following].core):
        return following
    measured = [i for i, s in enumerate(spans) if s.end <= match.start() and FINDINGS[s.name].measured]
    if measured:
        return measured[-1]
    if following is not None:
        return following
    return max(i for i, s in enumerate(spans) if s.core < match.end()) if spans[0].core < match.end() else 0


def count(text: str, spans: list[Span], index: int, *, both: bool) -> tuple[int, bool]:
    """How many, and whether that is said: by a number before the finding, or one in the singular. A bare plural ("renal
    cysts") and "multiple" are two or more, given as 2, and 1 on each side if bilateral."""
    span = spans[index]
    if not FINDINGS[span.name].countable:
        return 1, True
    start = max((s.end for s in spans[:index] if s.end <= span.core), default=0)
    match = _COUNT.search(_LABELLED.sub("x", text[start : span.core]))
    if match is not None:
        word = match["count"]
        said = word in _COUNTS or word.isdigit()
        number = _COUNTS.get(word) or (int(word) if said else 2)
        return (number if 0 < number < 100 else 1), said
    word = text[span.core : span.end]
    many = _PLURAL.search(word) is not None and span.name != "hydronephrosis"
    return (2 if many and not both else 1), not many


def severity(text: str, spans: list[Span], index: int, places: list[Place]) -> str | None:
    """The severity a finding is given, on its own scale ("trace" effusion is small, "marked" is severe).

    A word right before one of its places counts first: "mild right, severe left hydronephrosis".
    """
    span = spans[index]
    scale = FINDINGS[span.name].severities
    if not scale:
        return None
    start = max((s.end for s in spans[:index] if s.end <= span.core), default=0)
    words = [match[1] for place in places if (match := _SEVERITY_BEFORE.search(text[start : place.start]))]
    words = words or _SEVERITY.findall(text[start : span.end])
    if not words:
        after = _AFTER_SEVERITY.match(text, span.end)
        if after is None:
            return None
        words = [after["word"]]
    return scale[_LEVEL[words[-1]]]


_VERTEBRA = re.compile(r"\b([tl])-?(1[0-2]|[1-9])\b")
_BONE_SITE = re.compile(
    r"\b(?:(sacr(?:um|al))|(pelvi[sc]|iliac|acetabul\w+|isch\w+|pubi\w+)|(stern\w+)|(ribs?)|(femur|femoral))\b"
)
_AORTA = re.compile(r"\b(?:(ascending)|(descending)|(abdominal|infrarenal))\b")


def sites(text: str, span: Span, places: list[Place]) -> list[str | None]:
    """The sites of one finding, within its type's own list; [None] if it names none."""
    allowed = FINDINGS[span.name].sites
    if not allowed:
        return [None]
    if allowed in (LOBES, POLES) or "right lobe" in allowed:
        named = [place.site for place in places if place.site in allowed]
        return list(dict.fromkeys(named)) or [None]
    if span.name == "bowel obstruction":
        word = text[span.core : span.end].replace("-", " ")
        if "small" in word or "sbo" in word:
            return ["small bowel"]
        return ["large bowel"] if "large" in word or "colonic" in word or "lbo" in word else [None]
    if span.name == "aortic aneurysm":
        match = _AORTA.search(text)
        word = text[span.core : span.end]
        return (
            [allowed[match.lastindex - 1]]
            if match and match.lastindex
            else ["abdominal aorta" if word == "aaa" else None]
        )
    match = _VERTEBRA.search(text)
    if match and f"{match[1].upper()}{match[2]}" in allowed:
        return [f"{match[1].upper()}{match[2]}"]
    bone = _BONE_SITE.search(text)
    named = ("sacrum", "pelvis", "sternum", "rib", "femur")
    return [named[bone.lastindex - 1]] if bone and bone.lastindex and named[0] in allowed else [None]


def make_finding(
    name: str, side: Side | None, site: str | None, size: float | None, number: int, grade: str | None
) -> Finding:
    """Build a finding from what was read, dropping a site that cannot be on that side."""
    if (site, side) in (("middle lobe", "left"), ("lingula", "right")):
        site = None
    kind = FINDINGS[name]
    return Finding(name, side, site, size if kind.measured else None, number if kind.countable else 1, grade)
