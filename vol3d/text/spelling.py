"""Slips of the pen in the words that findings are told by: "pnuemothorax", "effussion", "cardiomegally"."""

from __future__ import annotations

import re
from functools import cache
from string import ascii_lowercase

from vol3d.text.ontology import FINDINGS

_OTHERS = (
    "pneumonia", "emphysematous", "atelectatic", "cholelithiasis", "nephrolithiasis", "metastases", "metastatic",
    "aneurysmal", "hydrothorax", "bilateral",
)  # fmt: skip
_WORD = re.compile(r"[a-z]{5,}")


def respelt(text: str) -> str:
    """A lower-case text with such words spelt right.

    One letter too many, too few or wrong, or two that changed places; the first and the last stand, so that no other
    form of the word ("pneumonic") is taken for it.

    Example:
        >>> respelt("small left plural effussion, no pnuemothorax")
        'small left pleural effusion, no pneumothorax'
    """
    slips = _slips()
    return _WORD.sub(lambda match: slips.get(match[0], match[0]), text)


@cache
def _slips() -> dict[str, str]:
    named = {word for name in FINDINGS for word in name.split() if len(word) > 5} | set(_OTHERS)
    words = named | {f"{word}s" for word in named}
    return {slip: word for word in sorted(words) for slip in _slips_of(word) if slip not in words}


def _slips_of(word: str) -> set[str]:
    cuts = [(word[:i], word[i:]) for i in range(1, len(word))]
    slips = {a + letter + b for a, b in cuts for letter in ascii_lowercase}
    for a, b in cuts[:-1]:
        slips |= {a + b[1:]} | {a + letter + b[1:] for letter in ascii_lowercase}
        slips |= {a + b[1] + b[0] + b[2:]} if len(b) > 2 else set()
    return slips
