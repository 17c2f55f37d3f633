"""Prompt banks: what a report says when a finding is there, when it is not, and how it may look.

A text encoder has read reports, so a finding is asked for in the words of reports: several wordings of its presence
(with synonyms, side and grammar), of its absence, and its attributes (severity, place, size). All come from the
ontology; a finding outside it gets the general wordings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from vol3d.text.ontology import FINDINGS, LOBES, POLES, SIDES

_AN = re.compile(r"\b([Aa]) (?=[aeiou]|8|11 |18 )")
_PRESENT = ("There is {a}.", "{A} is seen.", "{Name}.", "Findings of {name}.")
_ABSENT = ("No {bare}.", "There is no {bare}.", "No evidence of {bare}.", "No {bare} identified.")
_UNCOUNTED = (
    "fluid", "air", "disease", "opacity", "change", "enlargement", "calcium", "consolidation", "emphysema",
    "atelectasis", "pneumonia", "cardiomegaly", "calcification", "steatosis", "splenomegaly", "hydronephrosis",
    "ascites", "obstruction", "dilatation", "cholelithiasis", "nephrolithiasis", "pelvicaliectasis", "loss",
)  # fmt: skip
"""Last words of a name that takes neither "a" nor a plural."""
_MILLIMETRES = (10, 20, 40)


@dataclass(frozen=True, slots=True)
class PromptBank:
    """The wordings of one finding.

    Args:
        positive: sentences that say it is there, by its name. negative: sentences that say it is not.
        synonyms: sentences that say it is there, by other names.
        attributes: sentences that say it is there, how severe, where, or how large.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    synonyms: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()


@lru_cache(maxsize=1024)
def prompt_bank(finding: str) -> PromptBank:
    """The wordings of a finding, with its side where it has one.

    Args:
        finding: a key ("left pleural effusion"), a name ("ascites"), or any other words for a finding.

    Raises:
        ValueError: no words.

    Example:
        >>> prompt_bank("left pleural effusion").positive[0]
        'There is a left pleural effusion.'
        >>> prompt_bank("ascites").negative[0]
        'No ascites.'
    """
    words = " ".join(finding.lower().split())
    if not words:
        raise ValueError("a finding to ask for has no words: name it, such as 'left pleural effusion'")
    side, _, name = words.partition(" ")
    if side not in SIDES or not name:
        side, name = "", words
    kind = FINDINGS.get(name)
    others = [sentence for one in (kind.synonyms[:2] if kind else ()) for sentence in _present(one, side)]
    bare = [f"{side} {name}".strip(), name] if side else [name]
    negative = [template.format(bare=one) for one in bare for template in _ABSENT]
    return PromptBank(*map(_unique, (_present(name, side), negative, others, _attributes(name, side))))


def _present(name: str, side: str) -> list[str]:
    plural = _plural(name)
    article = "" if plural or name.endswith(_UNCOUNTED) else "a "
    ways = [f"{side} {name}", f"{side}-sided {name}"] if side else [name]
    sentences = []
    for words in ways:
        slots = {"a": article + words, "A": _capital(article + words), "name": words, "Name": _capital(words)}
        sentences += [template.format(**slots) for template in _PRESENT]
    if side:
        sentences.append(f"{_capital(name)} on the {side}.")
    if plural:
        sentences = [s.replace("There is", "There are").replace(" is seen", " are seen") for s in sentences]
    return [_AN.sub(r"\1n ", sentence) for sentence in sentences]


def _attributes(name: str, side: str) -> list[str]:
    kind = FINDINGS.get(name)
    if kind is None:
        return []
    sided = f"{side} {name}".strip()
    article = "" if _plural(name) or name.endswith(_UNCOUNTED) else "a "
    sentences = [f"There is {article}{grade} {sided}." for grade in kind.severities]
    sentences += [f"{_capital(name)} in the {place}." for place in _places(name, side)]
    if kind.measured and article:
        sentences += [f"There is a {size} mm {sided}." for size in _MILLIMETRES]
    if kind.countable:
        many = sided if _plural(name) else f"{sided.removesuffix('is')}es" if sided.endswith("is") else f"{sided}s"
        sentences.append(f"There are two {many}.")
    return [_AN.sub(r"\1n ", sentence) for sentence in sentences]


def _places(name: str, side: str) -> list[str]:
    sites = FINDINGS[name].sites
    if sites == LOBES:
        fits = [site for site in sites if (site, side) not in (("middle lobe", "left"), ("lingula", "right"))]
        return [site if site == "lingula" else f"{side} {site}".strip() for site in fits]
    if sites == POLES:
        return [f"{site} of the {side} kidney".replace("  ", " ") for site in sites]
    if FINDINGS[name].organ == "Liver and gallbladder":
        return [f"{site} of the liver" for site in sites]
    return []


def _plural(name: str) -> bool:
    return name.endswith(("s", "calculi")) and not name.endswith(("is", "ss", "us", *_UNCOUNTED))


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _unique(sentences: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sentences))
