"""Shorthand written out before a report is read: "b/l", "R", "Lt.", "w/", "comp fx", "hydro", "(-)"."""

from __future__ import annotations

import re

from vol3d.text.lexicon import SIDE_LETTER

_WORDS = {
    "b/l": "bilateral",
    "bilat": "bilateral",
    "lt": "left",
    "rt": "right",
    "mod": "moderate",
    "sm": "small",
    "comp": "compression",
    "w/": "with",
    "c/w": "consistent with",
    "fx": "fracture",
    "fxs": "fractures",
    "hydro": "hydronephrosis",
    "calcs": "calcifications",
    "cac": "coronary artery calcification",
    "gb": "gallbladder",
    "ggn": "ground-glass nodule",
    "ggns": "ground-glass nodules",
}
_SIDE_OF = (
    r"(?= [A-Z]{2}| (?:side|lungs?|kidney|renal|pleural|upper|mid|middle|lower|bas(?:e|al|ilar)|ap(?:ex|ical)"
    r"|inguinal|hemi\w+)\b)"
)
"""What stands behind "RT" that is a side and no radiotherapy."""
_SHORT = re.compile(
    r"(?<![\w/-])(?:"
    r"(?P<adjective>(?i:b/l|bilat|mod(?=[ -]|\. [a-z])|sm(?= )|comp(?= (?:fx|fracture|deformit)))"
    rf"|[Ll]t|[Rr]t|[LR]T{_SIDE_OF})(?P<dot>\.(?= [a-z]))?(?![\w/])"
    r"|(?P<word>(?i:c/w|fxs?|hydro|calcs|cac|gb|ggns?))(?![\w/-])"
    r"|(?P<with>(?i:w/)(?= ))"
    r")"
)
_MINUS = re.compile(r"\((?:-|-ve)\)(?P<behind>(?=\s*(?:[.,;]|$)))?")
_LETTER = re.compile(rf"(?:{SIDE_LETTER})(?P<dot>\.(?= [a-z]))?")


def written_out(text: str) -> str:
    """Write the shorthand of a report out; case tells a side ("R effusion") from other letters.

    Example:
        >>> written_out("Mod. R hydro, no comp fx.")
        'moderate right hydronephrosis, no compression fracture.'
    """
    text = _MINUS.sub(lambda match: "no" if match["behind"] is None else "absent", text)
    text = _LETTER.sub(lambda match: "left" if match[0].startswith("L") else "right", text)
    return _SHORT.sub(lambda match: _WORDS[(match["adjective"] or match["word"] or "w/").lower()], text)
