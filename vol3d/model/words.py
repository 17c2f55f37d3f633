"""Texts → sentences → rows of a hashed word table, in any script."""

from __future__ import annotations

import re
import unicodedata
import zlib
from functools import lru_cache

# Marks belong to the letter before them, which `re` does not know. Chinese, Japanese, Thai, Lao, Burmese and Khmer put
# no spaces between words: each of their letters is one.
_MARKS = "".join(chr(code) for code in range(0x300, 0x3100) if unicodedata.category(chr(code)).startswith("M"))
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_OTHER = r"\W\d_²³¹¼½¾"
_WORD = re.compile(
    rf"[^{_OTHER}{_UNSPACED}](?:[^{_OTHER}{_UNSPACED}]|[{_MARKS}])*|[^{_OTHER}][{_MARKS}]*|\d+(?:\.\d+)?"
)
_SENTENCE = re.compile(r"(?<=[.;:!?؛؟۔।])\s+|(?<=[。;:!?])|\n+")


def sentences(text: str) -> list[str]:
    """The sentences of a text that hold a word, in lower case; ["empty"] for a text without any: letters of every
    script are words, so such a text says nothing."""
    found = [part.strip().lower() for part in _SENTENCE.split(unicodedata.normalize("NFC", text))]
    return [part for part in found if _WORD.search(part)] or ["empty"]


@lru_cache(maxsize=100_000)
def word_ids(sentence: str, buckets: int) -> tuple[int, ...]:
    """Rows of the word table, 1 … buckets; sizes in cm and mm are read as the same whole millimetres."""
    words = _WORD.findall(sentence)
    for place in range(len(words) - 1):
        if words[place + 1] == "cm" and words[place][0].isdigit():
            words[place : place + 2] = [f"{float(words[place]) * 10:.0f}", "mm"]
    return tuple(1 + zlib.crc32(word.encode()) % buckets for word in words)
