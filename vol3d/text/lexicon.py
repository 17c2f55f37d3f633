"""Left and right in words: the mirror image of a text, of a name, of a finding.

Mirroring a volume without its words teaches a model the wrong side, so the words are mirrored with it. Left and right
change places in any case ("Left", "LEFT", "left-sided", "LLL", "kidney_left"), and so does a lone L or R that is a side
("R effusion"); the right middle lobe and the lingula change places as well. What is left or right by name only stays:
liver lobes, heart chambers, coronary arteries, the colon. "Bilateral" stays.
"""

from __future__ import annotations

import re
from dataclasses import replace

from vol3d.text.ontology import Finding

_WORDS = {
    "left": "right",
    "leftward": "rightward",
    "leftwards": "rightwards",
    "lt": "rt",
    "lul": "rul",
    "lll": "rll",
    "luq": "ruq",
    "llq": "rlq",
    "right middle lobe": "lingula",
    "left middle lobe": "right lingula",
    "middle lobe": "lingular lobe",
    "right middle-lobe": "lingular",
    "rml": "left lingula",
}
_SWAP = {**_WORDS, **{b: a for a, b in _WORDS.items()}}

RADIOTHERAPY = (
    r"(?i:(?-i:RT)(?=[- ](?:changes?|fields?|fibrosis|pneumonitis|planning|treatment|related)\b)"
    r"|(?:(?<=post[ -])|(?<=s/p )|(?<=after )|(?<=prior )|(?<=chemo[/-]))(?-i:RT)"
    r"(?=\s*(?:[.,;)]|$)|\s(?:to|in|for|with|and)\b))"
)
"""An "RT" that is no right side."""
_KEPT = (
    r"(?:left|right)[ -](?:(?:and|or|or the) (?:left|right) )?(?:hepatic|lobes? of the liver|lobe(?! pneumonia)|atri\w+"
    r"|ventric\w+|main\b|main coronary|coronary|anterior descending|circumflex|heart|bundle|hemicolon|colon|portal vein"
    r"|gastric)"
    r"|(?:atrium|ventricle|appendage)_(?:left|right)"
    r"|right (?:now|away|angle\w*|after|before)|all right"
    rf"|{RADIOTHERAPY}"
    r"|left (?:in place|in situ|untreated|alone|against|the hospital)"
)
SIDE_LETTER = (
    r"(?<![\w.'/-])(?<!\d )(?-i:[LR])(?="
    r"[\s,;:)&](?!\s*[1-9]\b(?!\s*-?[cm]m|\.\d|\s*x))(?! ?(?:spine|vertebr))|-sided|[<>=]|\.?$|\. (?-i:[a-z]))"
    r"|(?:(?<=the )|(?<=THE ))(?-i:[LR])(?=\.)"
)
"""A lone letter that is a side ("R effusion", "on the L.", "R>L"); not "2 L", "L 4", "L spine", "R/O", "R. Smith"."""
_PATTERN = re.compile(
    rf"(?P<kept>(?<![A-Za-z])(?:{_KEPT}))|(?P<letter>{SIDE_LETTER})"
    rf"|(?<![A-Za-z])(?P<word>{'|'.join(sorted(_SWAP, key=len, reverse=True))})(?![A-Za-z])",
    re.IGNORECASE,
)


def swap_sides(text: str) -> str:
    """Write the text of the mirrored body: left for right and right for left.

    Twice gives the text back (a title-cased "Right Middle Lobe" comes back as "Right middle lobe").

    Args:
        text: A report, sentence, question, or the name of a mask or box.

    Example:
        >>> swap_sides("Left-sided effusion. 5 mm nodule in the right middle lobe. Fatty liver.")
        'Right-sided effusion. 5 mm nodule in the lingula. Fatty liver.'
    """
    return _PATTERN.sub(_swap, text)


def swap_finding(finding: Finding) -> Finding:
    """Move a finding to the other side; an unsided one stays as it is."""
    if finding.side is None:
        return finding
    site = {"middle lobe": "lingula", "lingula": "middle lobe"}.get(finding.site or "", finding.site)
    return replace(finding, side="right" if finding.side == "left" else "left", site=site)


def _swap(match: re.Match[str]) -> str:
    word = match.group()
    if match["kept"]:
        return word
    if match["letter"]:
        return {"L": "R", "R": "L"}[word]
    other = _SWAP[word.lower()]
    if word.isupper():
        return other.upper()
    return other[0].upper() + other[1:] if word[0].isupper() else other
